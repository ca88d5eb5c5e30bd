"""The programs that serve an entry point: what they are told, and what they do before they have a line."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, Protocol

import pytest

from hybridload.contract import Contract
from hybridload.errors import ConfigError, ExitedBeforeHandshake
from hybridload.goplugin.client import Client
from hybridload.goplugin.launch_spec import (
    KINDS,
    ContractReference,
    LaunchSpec,
    PluginSetReference,
    import_path,
    kinds_contract,
)
from hybridload.handshake import Handshake

HANDSHAKE = Handshake("BASIC_PLUGIN", "hello", 3)
PATIENCE = 20.0

SDK = """
from typing import Protocol
from hybridload.contract import Contract
from hybridload.handshake import Handshake

class Refused(Exception):
    pass

class Greeter(Protocol):
    def greet(self, name: str = "you") -> str: ...

class Older(Protocol):
    def hello(self) -> str: ...

class Newer(Protocol):
    def greet(self, name: str = "you") -> str: ...
    def leave(self) -> None: ...

GREETER = Contract(Greeter, errors=[Refused])
PLUGINS = {"greeter": GREETER}
VERSIONS = {1: {"greeter": Older}, 2: {"greeter": GREETER}, 3: {"greeter": Greeter}}
TWO = {"greeter": GREETER, "other": Older}
NEWEST = {1: {"greeter": GREETER, "other": Older}, 2: {"greeter": Newer}}
NONE = {"other": Older, "newer": Newer}
HANDSHAKE = Handshake("BASIC_PLUGIN", "hello", 3)
"""

PLUGIN = """
import os, subprocess, sys
from launch_sdk import Refused

print("printed at import")
os.write(1, b"written at import\\n")
subprocess.run(["echo", "a child at import"], check=True)

class Hello:
    def __init__(self, greeting="Hello", **more):
        self.greeting = greeting
        self.more = more
    def greet(self, name="you"):
        if name == "nobody":
            raise Refused("not them")
        if name == "options":
            return repr(self.more)
        return f"{self.greeting}, {name}!"
    def close(self):
        print("closed")

module = sys.modules[__name__]
def greet(name="you"):
    return f"a module greets {name}"
"""


class Here(Protocol):
    def greet(self) -> str: ...


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path, with an SDK, a plugin, and a distribution that names the plugin."""
    (tmp_path / "launch_sdk.py").write_text(SDK)
    (tmp_path / "launch_plugin.py").write_text(PLUGIN)
    (tmp_path / "launch_broken.py").write_text("print('on the way')\nimport missing_dependency")
    metadata = tmp_path / "launch_dist-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: launch-dist\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[test.launch]\nhello = launch_plugin:Hello\nbroken = launch_broken:x\nexternal = launch_external:PROGRAM\n"
    )
    (tmp_path / "launch_external.py").write_text(
        "from hybridload.external import External\nPROGRAM = External(['/bin/program'])"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("launch_sdk", "launch_plugin"):
        sys.modules.pop(name, None)


@pytest.fixture
def spec(folder: Path) -> LaunchSpec:
    import launch_sdk  # type: ignore[import-not-found]

    return LaunchSpec(
        plugin="hello",
        kind="greeter",
        handshake=HANDSHAKE,
        plugins=PluginSetReference.of({3: launch_sdk.PLUGINS}, kind="greeter", plugin="hello"),
        entry_point="launch_plugin:Hello",
        path=(str(folder), *import_path()),
    )


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def begin(command: list[str], env: dict[str, str], **options: Any) -> Client:
        import launch_sdk

        plugins = options.pop("plugins", launch_sdk.PLUGINS)
        made = Client(command, env=env, plugins=plugins, handshake=HANDSHAKE, name="hello", **options)
        clients.append(made)
        made.start()
        return made

    yield begin
    for each in clients:
        each.kill()


def told(spec: LaunchSpec) -> LaunchSpec:
    """What the child makes of it."""
    environ = {**spec.environment(), "OTHER": "stays"}
    assert max(len(value) for value in environ.values()) < 128 * 1024
    found = LaunchSpec.from_environment(environ)
    assert set(environ) <= {"OTHER", "HYBRIDLOAD_LAUNCH_PATH"}
    return found


def test_a_spec_arrives_as_it_was(spec: LaunchSpec) -> None:
    assert told(spec) == spec
    options = {
        "text": "é\n" * 100_000,
        "nested": {"list": [1, 2.5, True, None, "x"]},
        "when": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        "day": date(2026, 1, 2),
        "hour": [time(3, 4)],
        "numbers": [float("inf"), -1e300, 2**70],
    }
    full = replace(spec, options=options, group="g", lookup="l", entry_point=None, outlive_host=True)
    assert told(full) == full
    named = PluginSetReference("sdk:PLUGINS")
    assert told(replace(spec, plugins=named)).plugins == named
    given = ContractReference(interface="a:B", service="x.Y", descriptor_set=bytes(range(256)), errors=("a:C",))
    several = PluginSetReference(contracts={1: {"a": given, "b": ContractReference("a:D")}, 0: {"a": given}})
    assert told(replace(spec, plugins=several)).plugins == several


def test_options_that_cannot_be_sent_are_named(spec: LaunchSpec) -> None:
    with pytest.raises(ConfigError, match=r"'hello'.*options.*object"):
        replace(spec, options={"odd": object()}).environment()


def test_what_no_other_process_can_import_is_refused() -> None:
    class Local(Protocol):
        def greet(self) -> str: ...

    with pytest.raises(ConfigError, match=r"interface .*Local is defined inside a function"):
        ContractReference.of(Contract(Local), plugin="p")
    here = type("Main", (Here,), {"__module__": "__main__"})
    with pytest.raises(ConfigError, match=r"interface Main is defined in __main__.*move it to a module"):
        ContractReference.of(Contract(here), plugin="p")
    error = type("Oops", (Exception,), {"__module__": "__main__"})
    with pytest.raises(ConfigError, match="exception class Oops"):
        ContractReference.of(Contract(Here, errors=[error]), plugin="p")


def test_a_given_contract_travels_with_its_descriptors(folder: Path) -> None:
    import launch_sdk

    wire = launch_sdk.GREETER.complete().wire()
    given = Contract(launch_sdk.Greeter, "proto.GreeterService", descriptor_set=wire.file_descriptor_set())
    reference = ContractReference.of(given, plugin="p")
    found = reference.resolve()
    assert found.given
    assert found.complete().full_name == "proto.GreeterService"
    assert found.complete().wire().proto_text() == given.complete().wire().proto_text()


def test_a_plugin_set_is_found_by_its_name_or_by_its_parts(folder: Path) -> None:
    import launch_sdk

    assert PluginSetReference("launch_sdk:PLUGINS").resolve(HANDSHAKE) == {3: launch_sdk.PLUGINS}
    versions = {1: {"a": Contract(launch_sdk.Older)}, 2: {"a": launch_sdk.GREETER, "b": Contract(launch_sdk.Newer)}}
    found = PluginSetReference.of(versions, kind="a", plugin="p").resolve(HANDSHAKE)
    interfaces = {version: {kind: each.interface for kind, each in kinds.items()} for version, kinds in found.items()}
    assert interfaces == {
        1: {"a": launch_sdk.Older},
        2: {"a": launch_sdk.Greeter, "b": launch_sdk.Newer},
    }


def test_of_a_plugin_set_only_the_kind_in_question_has_to_be_importable(folder: Path) -> None:
    import launch_sdk

    class Local(Protocol):
        def greet(self) -> str: ...

    plugins: Any = {1: {"greeter": launch_sdk.GREETER, "local": Contract(Local)}, 2: {"local": Contract(Local)}}
    reference = PluginSetReference.of(plugins, kind="greeter", plugin="p")
    assert {version: set(kinds) for version, kinds in reference.contracts.items()} == {1: {"greeter"}}
    with pytest.raises(ConfigError, match="Local is defined inside a function"):
        PluginSetReference.of(plugins, kind="local", plugin="p")


def test_what_is_printed_at_import_spoils_nothing(spec: LaunchSpec, start: Callable[..., Client]) -> None:
    out = io.StringIO()
    client = start(spec.command(), spec.environment(), sync_stdout=out)
    greeter = client.dispense("greeter")
    assert greeter.greet("world") == "Hello, world!"
    assert {"printed at import", "written at import", "a child at import"} <= set(client.stderr)
    import launch_sdk

    with pytest.raises(launch_sdk.Refused, match="not them"):
        greeter.greet("nobody")
    client.kill()
    assert client.returncode == 0
    assert out.getvalue() == "closed\n"


@pytest.mark.parametrize("plugins", [None, PluginSetReference("launch_sdk:PLUGINS")], ids=["parts", "name"])
def test_options_reach_the_class(
    spec: LaunchSpec, start: Callable[..., Client], plugins: PluginSetReference | None
) -> None:
    spec = replace(spec, plugins=plugins or spec.plugins, options={"greeting": "Hi", "day": date(2026, 1, 2)})
    greeter = start(spec.command(), spec.environment()).dispense("greeter")
    assert greeter.greet() == "Hi, you!"
    assert greeter.greet("options") == "{'day': datetime.date(2026, 1, 2)}"


def test_an_entry_point_may_be_looked_up_by_the_child(spec: LaunchSpec, start: Callable[..., Client]) -> None:
    spec = replace(spec, entry_point=None, group="test.launch", lookup="hello")
    assert start(spec.command(), spec.environment()).dispense("greeter").greet() == "Hello, you!"


def test_an_entry_point_may_be_a_module(spec: LaunchSpec, start: Callable[..., Client]) -> None:
    spec = replace(spec, entry_point="launch_plugin:module")
    assert start(spec.command(), spec.environment()).dispense("greeter").greet() == "a module greets you"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"entry_point": "launch_broken:x"}, "ModuleNotFoundError: No module named 'missing_dependency'"),
        ({"entry_point": "launch_plugin:Missing"}, "launch_plugin has no Missing"),
        ({"entry_point": None, "group": "test.launch", "lookup": "nobody"}, "has an entry point 'nobody'"),
        ({"entry_point": None, "group": "test.launch", "lookup": "external"}, "is a program (/bin/program)"),
        ({"entry_point": "launch_plugin:Refused"}, "is no Greeter"),
        ({"entry_point": "launch_plugin:module", "options": {"a": 1}}, "would have no effect"),
        (
            {"plugins": PluginSetReference(contracts={3: {"greeter": ContractReference("launch_sdk:Nothing")}})},
            "launch_sdk has no Nothing",
        ),
        ({"plugins": PluginSetReference("launch_sdk:NOTHING")}, "launch_sdk has no NOTHING"),
        ({"kind": "leaver"}, "no contract of kind 'leaver'; it has contracts of these kinds: greeter"),
    ],
)
def test_what_goes_wrong_before_the_line_is_what_the_host_is_told(
    spec: LaunchSpec, start: Callable[..., Client], change: dict[str, Any], reason: str
) -> None:
    wrong = replace(spec, **change)
    with pytest.raises(ExitedBeforeHandshake) as caught:
        start(wrong.command(), wrong.environment())
    assert caught.value.returncode == 1
    assert reason in str(caught.value)


def test_nothing_of_the_spec_is_left_in_the_environment(spec: LaunchSpec, start: Callable[..., Client]) -> None:
    code = (
        "import os\nclass Tell:\n    def greet(self, name=''): return ' '.join(k for k in os.environ if 'LAUNCH' in k)"
    )
    Path(spec.path[0], "launch_tell.py").write_text(code)
    spec = replace(spec, entry_point="launch_tell:Tell", options={})
    assert start(spec.command(), spec.environment()).dispense("greeter").greet() == ""


def test_the_working_directory_is_not_on_the_childs_import_path(
    spec: LaunchSpec, start: Callable[..., Client], tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "logging.py").write_text("raise SystemExit('the wrong logging')")
    assert start(spec.command(), spec.environment(), cwd=trap).dispense("greeter").greet() == "Hello, you!"


def test_started_by_hand_it_says_what_it_is_for() -> None:
    command = [sys.executable, "-m", "hybridload.goplugin.launch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "hybridload serve GROUP:NAME" in done.stderr


# serve_entry_point


def serving(arguments: str) -> list[str]:
    code = f"from hybridload.goplugin.launch import serve_entry_point\nserve_entry_point({arguments})"
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("plugins", "version"), [("launch_sdk:PLUGINS", 3), ("launch_sdk:VERSIONS", 3)], ids=["one", "versions"]
)
def test_an_installed_entry_point_is_served(
    folder: Path, start: Callable[..., Client], plugins: str, version: int
) -> None:
    command = serving(f"'test.launch', 'hello', plugins={plugins!r}, handshake='launch_sdk:HANDSHAKE'")
    client = start(command, {"PYTHONPATH": str(folder)})
    assert client.app_version == version
    assert client.dispense("greeter").greet() == "Hello, you!"


def test_every_version_that_the_entry_point_implements_is_served_and_no_other(folder: Path) -> None:
    command = serving("'test.launch', 'hello', plugins='launch_sdk:VERSIONS', handshake='launch_sdk:HANDSHAKE'")
    env = {**os.environ, "PYTHONPATH": str(folder), "BASIC_PLUGIN": "hello"}
    chosen = {}
    for listed in ("2", "1"):
        plugin = subprocess.Popen(
            command, env={**env, "PLUGIN_PROTOCOL_VERSIONS": listed}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert plugin.stdout is not None
        chosen[listed] = plugin.stdout.readline().split(b"|")[1]
        plugin.terminate()
        plugin.communicate(timeout=PATIENCE)
    assert chosen == {"2": b"2", "1": b"2"}


def test_an_entry_point_of_an_older_version_is_served_in_that_one(folder: Path, start: Callable[..., Client]) -> None:
    import launch_sdk

    command = serving(
        "'test.launch', 'hello', plugins='launch_sdk:NEWEST', handshake='launch_sdk:HANDSHAKE', kind='greeter'"
    )
    client = start(command, {"PYTHONPATH": str(folder)}, plugins=launch_sdk.NEWEST)
    assert client.app_version == 1
    assert client.dispense("greeter").greet() == "Hello, you!"


def test_what_is_logged_at_import_and_at_the_start_are_records_of_the_host(
    spec: LaunchSpec, start: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    code = """
    import logging
    log = logging.getLogger("launch_logs.module")
    log.warning("logged at import")
    class Logs:
        def __init__(self):
            log.info("logged in %s", "the constructor", extra={"field": 7})
        def greet(self, name=""):
            return "done"
        def close(self):
            log.error("logged at the end")
    """
    Path(spec.path[0], "launch_logs.py").write_text(textwrap.dedent(code))
    caplog.set_level(logging.DEBUG)
    spec = replace(spec, entry_point="launch_logs:Logs")
    client = start(spec.command(), spec.environment(), module_logger=logging.getLogger())
    assert client.dispense("greeter").greet() == "done"
    client.kill()
    records = [(each.levelname, each.getMessage()) for each in caplog.records if each.name == "launch_logs.module"]
    assert records == [
        ("WARNING", "logged at import"),
        ("INFO", "logged in the constructor"),
        ("ERROR", "logged at the end"),
    ]


def test_every_kind_that_the_entry_point_implements_is_served_and_no_other(
    folder: Path, start: Callable[..., Client]
) -> None:
    """Without saying which: hello has a method of one kind alone, `both` those of two."""
    import launch_sdk

    Path(folder, "launch_plugin.py").write_text(
        PLUGIN + "\nclass Both(Hello):\n    def hello(self): return 'hello as well'\n"
    )
    metadata = folder / "launch_dist-1.0.dist-info" / "entry_points.txt"
    metadata.write_text(metadata.read_text() + "both = launch_plugin:Both\n")
    told = {**launch_sdk.TWO, KINDS: kinds_contract()}
    for name, refused in (("hello", {"other"}), ("both", set())):
        command = serving(f"'test.launch', {name!r}, plugins='launch_sdk:TWO', handshake='launch_sdk:HANDSHAKE'")
        client = start(command, {"PYTHONPATH": str(folder)}, plugins=told)
        assert client.dispense("greeter").greet() == "Hello, you!"
        reasons = client.dispense(KINDS).refused()
        assert set(reasons) == refused
        if refused:
            assert "hello() is missing; define hello() -> str" in reasons["other"]
        else:
            assert client.dispense("other").hello() == "hello as well"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("'test.launch', 'hello', plugins='launch_sdk:NONE', handshake='launch_sdk:HANDSHAKE'", "hello() is missing"),
        ("'test.launch', 'hello', plugins='launch_sdk:NO', handshake='launch_sdk:HANDSHAKE'", "has no NO"),
        ("'test.launch', 'hello', plugins='launch_sdk:PLUGINS', handshake='nowhere:H'", "importing nowhere failed"),
        (
            "'test.launch', 'hello', plugins='launch_sdk:TWO', handshake='launch_sdk:HANDSHAKE', kind='third'",
            "no contract of kind 'third'; it has contracts of these kinds: greeter, other",
        ),
        ("'none', 'hello', plugins='launch_sdk:PLUGINS', handshake='launch_sdk:HANDSHAKE'", "(there: none)"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_said(folder: Path, arguments: str, reason: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(folder), "BASIC_PLUGIN": "hello"}
    done = subprocess.run(serving(arguments), env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stdout == ""
    assert reason in done.stderr.splitlines()[-1]


def test_a_person_is_told_that_it_is_a_plugin(folder: Path) -> None:
    command = serving("'test.launch', 'hello', plugins='launch_sdk:PLUGINS', handshake='launch_sdk:HANDSHAKE'")
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert "is a plugin and is not meant to be executed directly" in done.stderr
    assert "Traceback" not in done.stderr


def test_serving_loads_nothing_that_it_does_not_need(spec: LaunchSpec, start: Callable[..., Client]) -> None:
    code = """
    import sys
    heavy = ("grpc", "cryptography", "typer", "rich", "stevedore", "hybridload.goplugin.client")
    heavy += ("google.protobuf.descriptor_pb2", "google.protobuf.internal.python_message")
    class Tell:
        def greet(self, name=""):
            return " ".join(name for name in heavy if name in sys.modules)
    """
    Path(spec.path[0], "launch_modules.py").write_text(textwrap.dedent(code))
    spec = replace(spec, entry_point="launch_modules:Tell")
    assert start(spec.command(), spec.environment(), auto_mtls=False).dispense("greeter").greet() == ""
