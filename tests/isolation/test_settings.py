"""Every key of a plugin's table does what it says, for programs and for Python objects in processes of their own."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hybridload import Loader
from hybridload.config import settings as config_settings
from hybridload.errors import (
    CallTimeout,
    ChecksumMismatch,
    NoUsableIsolation,
    PluginError,
    PluginNotFound,
    RemoteError,
    StartTimeout,
)
from hybridload.supervise import Policy

Open = Callable[..., Loader]

SDK = """
from typing import Protocol
from hybridload import Handshake

class Reporter(Protocol):
    def environment(self) -> dict[str, str]: ...
    def place(self) -> list[str]: ...
    def wait(self, seconds: float) -> None: ...
    def fill(self, size: int) -> bytes: ...
    def measure(self, data: bytes) -> int: ...

PLUGINS = {"reporter": Reporter}
HANDSHAKE = Handshake("ISOLATION_TEST", "on")
"""

# Both a module with an entry point and a program: the environment is that of the start, before `serve` forgets it.
PLUGIN = """
import os, sys, time
started_with = dict(os.environ)
if started_with.get("SLOW_START"):
    time.sleep(float(started_with["SLOW_START"]))

class Reporter:
    def __init__(self, **options):
        self.options = options
    def environment(self):
        return started_with
    def place(self):
        return [os.getcwd(), sys.executable, repr(self.options), repr(sys.argv[1:])]
    def wait(self, seconds):
        time.sleep(seconds)
    def fill(self, size):
        return bytes(size)
    def measure(self, data):
        return len(data)

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from hybridload import serve
    from reporter_sdk import HANDSHAKE, PLUGINS
    serve(PLUGINS, {"reporter": Reporter()}, handshake=HANDSHAKE)
"""

CONFIG = '[host]\nplugins = "reporter_sdk:PLUGINS"\nhandshake = "reporter_sdk:HANDSHAKE"\n[plugins.reporter]\n'
ISOLATIONS = ["external", "subprocess", "preforked"]


@pytest.fixture
def reporter(write_module: Any, install: Any, open_loader: Open, tmp_path: Path) -> Callable[..., tuple[Loader, Any]]:
    """Loads the reporter with the given lines in its table."""
    write_module("reporter_sdk", SDK)
    write_module("reporter_plugin", PLUGIN)
    program = tmp_path / "reporter_plugin.py"
    program.write_text(f"#!{sys.executable}\n{program.read_text()}")
    program.chmod(0o755)
    install(reporter="reporter_plugin:Reporter")

    def load(isolation: str, *lines: str) -> tuple[Loader, Any]:
        preforked = isolation == "preforked"
        table = ['isolation = "subprocess"', "prefork = true"] if preforked else [f'isolation = "{isolation}"']
        if isolation == "external" and not any(line.startswith("command") for line in lines):
            table.append('command = "./reporter_plugin.py"')
        loader = open_loader(config=CONFIG + "\n".join([*table, *lines]))
        return loader, loader.load("reporter")

    return load


def test_each_key_has_a_test() -> None:
    """So that a key that nothing passes on is noticed here."""
    here = Path(__file__).read_text()
    elsewhere = {"isolation", "isolation_from", "kind", "entry_point", "fallback_on_checksum"}  # of the loader
    # Of test_supervision.py and its neighbours.
    supervision = {each.name for each in fields(Policy)} | {
        "limits",
        "max_concurrency",
        "when_busy",
        "after_fork",
        "watch",
    }
    keys = set(config_settings.PluginSettings.__dataclass_fields__) - elsewhere - supervision
    assert [key for key in sorted(keys) if f"{key} = " not in here] == []


def test_a_command_is_relative_to_the_file_and_has_its_arguments(
    reporter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    _, plugin = reporter("external", 'command = ["./reporter_plugin.py", "--loud", "a b"]')
    assert plugin.place()[3] == "['--loud', 'a b']"


def test_a_checksum_is_that_of_the_file(reporter: Any, tmp_path: Path) -> None:
    digest = hashlib.sha256((tmp_path / "reporter_plugin.py").read_bytes()).hexdigest()
    # The bytes that were checked run from a memory file, so Python does not find what lies beside the program.
    _, plugin = reporter("external", f'sha256 = "{digest.upper()}"', f'env = {{ PYTHONPATH = "{tmp_path}" }}')
    assert plugin.place()
    with pytest.raises(ChecksumMismatch):
        reporter("external", f'sha256 = "{"0" * 64}"')


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_env_is_added_to_what_is_inherited(reporter: Any, isolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HOST", "host")
    monkeypatch.setenv("OVERRIDDEN", "host")
    _, plugin = reporter(isolation, 'env = { ADDED = "x = y", OVERRIDDEN = "config" }')
    found = plugin.environment()
    assert (found["FROM_HOST"], found["ADDED"], found["OVERRIDDEN"]) == ("host", "x = y", "config")


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_env_allow_names_all_that_is_inherited(reporter: Any, isolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HOST", "host")
    monkeypatch.setenv("SECRET", "host")
    # Plugins of tests are told apart by a variable of the tests' own.
    allowed = 'env_allow = ["PATH", "FROM_HOST", "ABSENT", "HYBRIDLOAD_TEST_ID"]'
    _, plugin = reporter(isolation, allowed, 'env = { ADDED = "x" }')
    found = plugin.environment()
    assert (found["FROM_HOST"], found["ADDED"]) == ("host", "x")
    assert not {"SECRET", "ABSENT", "HOME"} & set(found)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_cwd_is_relative_to_the_file(reporter: Any, isolation: str, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    _, plugin = reporter(isolation, 'cwd = "place"')
    assert plugin.place()[0] == str(tmp_path / "place")


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_start_may_take_so_long(reporter: Any, isolation: str) -> None:
    began = time.monotonic()
    late = r"(no handshake line|not forked) within 0\.5 s.*start_timeout"
    with pytest.raises(NoUsableIsolation, match=late) as caught:
        reporter(isolation, "start_timeout = 0.5", 'env = { SLOW_START = "60" }')
    assert isinstance(caught.value.__cause__, StartTimeout)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_call_may_take_so_long(reporter: Any, isolation: str) -> None:
    _, plugin = reporter(isolation, "call_timeout = 1.5")
    plugin.wait(0.0)
    with pytest.raises(CallTimeout, match=r"'reporter' did not answer within 1.5 s"):
        plugin.wait(60.0)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_message_may_be_so_large(reporter: Any, isolation: str) -> None:
    loader, plugin = reporter(isolation, 'max_message = "64KiB"')
    with pytest.raises(RemoteError, match="Raise the host's limit"):
        plugin.fill(1 << 17)
    if isolation == "external":  # a program says by itself what it takes
        assert plugin.measure(bytes(1 << 17)) == 1 << 17
    else:
        with pytest.raises(RemoteError, match="Raise the plugin's limit"):
            plugin.measure(bytes(1 << 17))
    assert len(plugin.fill(1 << 15)) == plugin.measure(bytes(1 << 15)) == 1 << 15
    assert loader.status("reporter").restarts == 0


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("on", [True, False])
def test_certificates_are_made_or_not(reporter: Any, isolation: str, on: bool) -> None:
    _, plugin = reporter(isolation, "auto_mtls = true" if on else "auto_mtls = false")
    assert ("PLUGIN_CLIENT_CERT" in plugin.environment()) == on


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("on", [True, False])
def test_connections_share_a_socket_or_not(reporter: Any, isolation: str, on: bool) -> None:
    _, plugin = reporter(isolation, "multiplex = true" if on else "multiplex = false")
    assert ("PLUGIN_MULTIPLEX_GRPC" in plugin.environment()) == on


def test_a_protocol_that_is_not_allowed_is_refused(reporter: Any) -> None:
    loader, plugin = reporter("external", 'protocols = ["grpc"]')
    assert plugin.place()
    assert loader.status("reporter").protocol == "grpc"
    with pytest.raises(PluginError, match="grpc"):
        reporter("external", 'protocols = ["netrpc"]')


@pytest.mark.parametrize("isolation", ["in-process", *ISOLATIONS])
def test_a_plugin_that_is_switched_off_is_not_loaded(reporter: Any, open_loader: Open, isolation: str) -> None:
    with pytest.raises(PluginNotFound, match=r"'reporter' is disabled.*plugins\.reporter\.enabled"):
        reporter(isolation, "enabled = false")
    assert open_loader(config=CONFIG + "enabled = false").names() == []


@pytest.mark.parametrize("isolation", ["in-process", "subprocess"])
def test_options_are_the_arguments_of_the_class(reporter: Any, isolation: str) -> None:
    _, plugin = reporter(isolation, "options = { a = 1, b = [true, 2.5], c = { d = 'ü' } }")
    assert plugin.place()[2] == "{'a': 1, 'b': [True, 2.5], 'c': {'d': 'ü'}}"


@pytest.mark.parametrize("strict", [True, False])
def test_in_process_calls_travel_through_the_contract_or_not(reporter: Any, strict: bool) -> None:
    loader, plugin = reporter("in-process", "strict = true" if strict else "strict = false")
    assert (plugin.environment() is plugin.environment()) is not strict
    assert plugin.environment() == plugin.environment()
    assert inspect.ismethod(plugin.environment) is not strict
    if strict:
        with pytest.raises(TypeError, match="seconds"):
            plugin.wait("0")
    loader.switch("reporter", "subprocess")
    loader.switch("reporter", "in-process")
    assert (plugin.environment() is plugin.environment()) is not strict


@pytest.mark.parametrize("strict", [True, False])
def test_a_loaders_strict_wins_over_the_configs(reporter: Any, open_loader: Open, strict: bool) -> None:
    config = CONFIG + ("strict = false" if strict else "strict = true")
    plugin = open_loader(config=config, strict=strict).load("reporter")
    assert (plugin.environment() is plugin.environment()) is not strict


def test_options_of_a_program_are_json_in_a_variable(reporter: Any) -> None:
    _, plugin = reporter("external", "options = { a = 1, b = [true, 2.5], c = { d = 'ü' } }")
    found = json.loads(plugin.environment()["HYBRIDLOAD_OPTIONS"])
    assert found == {"a": 1, "b": [True, 2.5], "c": {"d": "ü"}}


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_options_of_the_host_itself_are_not_handed_on(
    reporter: Any, isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYBRIDLOAD_OPTIONS", '{"of": "the host"}')
    _, plugin = reporter(isolation)
    assert plugin.environment().get("HYBRIDLOAD_OPTIONS", "{}") == "{}"


def test_a_subprocess_may_have_another_interpreter(reporter: Any, tmp_path: Path) -> None:
    other = tmp_path / "venv" / "bin" / "python"
    other.parent.mkdir(parents=True)
    other.symlink_to(sys.executable)
    _, plugin = reporter("subprocess", 'python = "./venv/bin/python"')
    assert plugin.place()[1] == str(other)
