"""Configurations: what a good one gives, and what each fault is answered with."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridload.config import HostSettings, PluginSettings, Settings, isolation_chain, load_settings
from hybridload.config.schema import DEFAULTS, HOST, PLUGIN
from hybridload.errors import ConfigError

DIGEST = "ab" * 32

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of TOML and returns its path."""

    def writer(text: str, name: str = "plugins.toml") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return writer


def read(path: Path, **environ: str) -> Settings:
    return load_settings(path, environ=environ)


def fault(path: Path, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, **environ)
    return str(caught.value)


COMPLETE = f"""
    [host]
    plugins = "greeter_sdk:PLUGINS"
    handshake = "greeter_sdk:HANDSHAKE"
    group = "hybridload.greeters"
    path = ["./plugins", "/opt/plugins"]
    pattern = "greeter-*"
    [defaults]
    isolation = ["external", "subprocess", "in-process"]
    start_timeout = 20
    env = {{ LANG = "C", GREETING = "default" }}
    [plugins.gopher]
    command = ["./bin/greeter-go", "--loud"]
    sha256 = "{DIGEST.upper()}"
    isolation = ["external", "in-process"]
    kind = "greeter"
    env = {{ GREETING = "hi" }}
    env_allow = ["PATH"]
    start_timeout = 10.0
    call_timeout = 30.0
    auto_mtls = true
    multiplex = true
    protocols = ["grpc"]
    cwd = "data"
    enabled = true
    fallback_on_checksum = true
    [plugins.hello]
    entry_point = "hello"
    options = {{ greeting = "hi", times = [1, 2.5, true], deep = {{ er = "x" }} }}
    python = "./venv/bin/python"
    isolation = "subprocess"
"""


class TestAGoodFile:
    def test_gives_every_value_with_paths_relative_to_the_file(self, write: Write, tmp_path: Path) -> None:
        settings = read(write(COMPLETE))
        assert settings.host == HostSettings(
            plugins="greeter_sdk:PLUGINS",
            handshake="greeter_sdk:HANDSHAKE",
            group="hybridload.greeters",
            path=(tmp_path / "plugins", Path("/opt/plugins")),
            pattern="greeter-*",
        )
        assert settings.for_plugin("gopher") == PluginSettings(
            isolation=("external", "in-process"),
            isolation_from=f"{tmp_path}/plugins.toml: plugins.gopher.isolation",
            command=(f"{tmp_path}/bin/greeter-go", "--loud"),
            sha256=DIGEST,
            kind="greeter",
            env={"LANG": "C", "GREETING": "hi"},
            env_allow=("PATH",),
            start_timeout=10.0,
            call_timeout=30.0,
            auto_mtls=True,
            multiplex=True,
            protocols=("grpc",),
            cwd=tmp_path / "data",
            fallback_on_checksum=True,
        )
        hello = settings.for_plugin("hello")
        assert hello.isolation == ("subprocess",)
        assert hello.python == f"{tmp_path}/venv/bin/python"
        assert hello.options == {"greeting": "hi", "times": [1, 2.5, True], "deep": {"er": "x"}}

    def test_gives_its_defaults_to_plugins_that_it_does_not_name(self, write: Write, tmp_path: Path) -> None:
        other = read(write(COMPLETE)).for_plugin("other")
        assert other.isolation == ("external", "subprocess", "in-process")
        assert other.isolation_from == f"{tmp_path}/plugins.toml: defaults.isolation"
        assert other.start_timeout == 20.0
        assert other.env == {"LANG": "C", "GREETING": "default"}

    def test_may_be_the_table_of_a_pyproject(self, write: Write, tmp_path: Path) -> None:
        path = write('[tool.hybridload.plugins.hello]\nkind = "greeter"\n[tool.other]\nx = 1\n', "pyproject.toml")
        settings = read(path)
        assert settings.for_plugin("hello").kind == "greeter"
        assert settings.key("plugins", "my plugin", "kind") == (
            f'{tmp_path}/pyproject.toml: tool.hybridload.plugins."my plugin".kind'
        )

    def test_may_be_empty(self, write: Write) -> None:
        assert read(write("")).for_plugin("hello") == PluginSettings()

    def test_may_begin_with_a_byte_order_mark_and_have_windows_line_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "plugins.toml"
        path.write_bytes(b'\xef\xbb\xbf[plugins.hello]\r\nkind = "greeter"\r\n')
        assert read(path).for_plugin("hello").kind == "greeter"

    def test_may_be_given_relative_to_the_current_folder(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write('[plugins.gopher]\ncommand = "./gopher"\n')
        monkeypatch.chdir(tmp_path)
        settings = load_settings("plugins.toml", environ={})
        monkeypatch.chdir("/")
        assert settings.for_plugin("gopher").command == (f"{tmp_path}/gopher",)

    def test_leaves_bare_names_for_the_path_and_arguments_alone(self, write: Write) -> None:
        path = write('[plugins.gopher]\ncommand = ["go", "./run", "x"]\npython = "python3.12"\n')
        gopher = read(path).for_plugin("gopher")
        assert gopher.command == ("go", "./run", "x")
        assert gopher.python == "python3.12"

    def test_may_use_the_home_folder(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/someone")
        assert read(write('[plugins.gopher]\ncommand = "~/gopher"\n')).for_plugin("gopher").command == (
            "/home/someone/gopher",
        )

    def test_may_disable_a_plugin_or_all_but_one(self, write: Write) -> None:
        settings = read(write("[defaults]\nenabled = false\n[plugins.hello]\nenabled = true\n"))
        assert settings.for_plugin("hello").enabled
        assert not settings.for_plugin("other").enabled

    def test_may_inherit_no_variable_at_all(self, write: Write) -> None:
        assert read(write("[defaults]\nenv_allow = []\n")).for_plugin("x").env_allow == ()


VALUES = (
    "5",
    "-1",
    "0",
    "1.5",
    "nan",
    "1" + "0" * 400,
    "inf",
    "true",
    '""',
    '"  "',
    '"a\\u0000b"',
    '"fast"',
    "[]",
    "[[]]",
    "[1]",
    '["a\\u0000b"]',
    "{}",
    "{ a = 1 }",
    '{ "a=b" = "c" }',
    "1979-05-27T07:32:00Z",
    "1979-05-27",
    "07:32:00",
)
# What each key takes of these.
GOOD: dict[str, set[str]] = {
    "plugins": {'"a:b"'},
    "handshake": {'"a:b"'},
    "group": {'"fast"'},
    "path": {'"fast"'},
    "pattern": set(),
    "isolation": set(),
    "kind": {'"fast"'},
    "python": {'"fast"'},
    "env": {"{}"},
    "env_allow": {"[]"},
    "cwd": {'"fast"'},
    "start_timeout": {"5", "1.5"},
    "call_timeout": {"5", "1.5"},
    "auto_mtls": {"true"},
    "multiplex": {"true"},
    "protocols": set(),
    "max_restarts": {"5", "0"},
    "restart_window": {"5", "1.5"},
    "backoff": {"5", "1.5"},
    "backoff_max": {"5", "1.5"},
    "retry_after": {"5", "1.5"},
    "health_interval": {"5", "1.5", "0"},
    "health_timeout": {"5", "1.5"},
    "max_concurrency": {"5"},
    "when_busy": set(),
    "after_fork": set(),
    "watch": {"true"},
    "limits": {"{}"},
    "max_message": {"5"},
    "strict": {"true"},
    "prefork": {"true"},
    "fallback_on_checksum": {"true"},
    "enabled": {"true"},
    "command": {'"fast"'},
    "sha256": set(),
    "entry_point": {'"fast"'},
    "options": {"{}", "{ a = 1 }", '{ "a=b" = "c" }'},
}
KEYS = [
    *(("host", key) for key in HOST),
    *(("defaults", key) for key in DEFAULTS),
    *(("plugins.gopher", key) for key in PLUGIN),
]


class TestEveryKey:
    """A configuration with every key wrong in turn."""

    def test_of_the_settings_is_known_to_the_schema(self) -> None:
        assert {field.name for field in dataclasses.fields(HostSettings)} == set(HOST)
        assert {field.name for field in dataclasses.fields(PluginSettings)} - {"isolation_from"} == set(PLUGIN)

    @pytest.mark.parametrize(("table", "key"), KEYS)
    def test_refuses_wrong_values_and_names_file_and_key(
        self, write: Write, tmp_path: Path, table: str, key: str
    ) -> None:
        extra = 'path = "x"\n' if key == "pattern" else ""
        for value in VALUES:
            path = write(f"[{table}]\n{extra}{key} = {value}\n")
            if value in GOOD[key]:
                read(path)
                continue
            message = fault(path)
            assert message.startswith(f"{tmp_path}/plugins.toml: {table}.{key}"), value
            assert re.search("xpected|JSON cannot", message), value

    @pytest.mark.parametrize("table", ["host", "defaults", "plugins", "plugins.gopher"])
    @pytest.mark.parametrize("value", ["5", '"x"', "[]", "true", "1979-05-27"])
    def test_table_has_to_be_a_table(self, write: Write, tmp_path: Path, table: str, value: str) -> None:
        message = fault(write(f"{table} = {value}\n"))
        assert message.startswith(f"{tmp_path}/plugins.toml: {table}: expected a table, found ")

    @pytest.mark.parametrize(("table", "key"), KEYS)
    def test_misspelt_is_answered_with_the_right_one(self, write: Write, table: str, key: str) -> None:
        wrong = f"{key[:-1]}-{key[-1]}"
        assert f"Did you mean {key!r}?" in fault(write(f"[{table}]\n{wrong} = 1\n"))


class TestAFaultNames:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('[plugins.g]\nstart_timeout = "fast"', "plugins.g.start_timeout: expected a number of seconds greater"),
            ('[plugins.g]\nstart_timeout = "fast"', "found 'fast' (a string)"),
            ("[plugins.g]\nstart_timeout = -1", "found -1 (an integer)"),
            ('[plugins.g]\nisolation = "in_process"', "'in_process' is not an isolation. Did you mean 'in-process'?"),
            ('[plugins.g]\nisolation = ["extern"]', "Did you mean 'external'?"),
            ('[plugins.g]\nisolation = "qqqqq"', "Expected one of 'in-process', 'subprocess', 'external'"),
            ("[plugins.g]\nisolation = []", "plugins.g.isolation: the list is empty"),
            ('[plugins.g]\nisolation = ["external", "external"]', "'external' is listed twice"),
            ('[plugins.g]\nprotocols = ["grpc", "grcp"]', "plugins.g.protocols[1]: expected a list with"),
            ('[plugins.g]\nprotocols = ["grpc", "grpc"]', "plugins.g.protocols: 'grpc' is listed twice"),
            ('[plugins.g]\ncommand = ["a", 1]', "plugins.g.command[1]: expected a program"),
            ('[plugins.g]\ncommand = ["", "x"]', "plugins.g.command: the program's name is empty"),
            ("[plugins.g]\nenv = { A = 'x', B = 7 }", "plugins.g.env.B: expected a table of strings, by variable"),
            ("[plugins.g]\noptions = { a = { b = [2020-01-01] } }", "options: a.b[0] is a date or time, which JSON"),
            ('[plugins.g]\nsha256 = "abc"', "plugins.g.sha256: expected 64 hexadecimal digits"),
            ('[plugins.g]\nentry_point = "a:b:c"', "plugins.g.entry_point: expected the name of an entry point"),
            ('[plugins.g]\nentry_point = "a:1b"', "plugins.g.entry_point: expected the name of an entry point"),
            ('[plugins."my plugin"]\nkind = 1', 'plugins."my plugin".kind: expected'),
            (
                "[plugins.g]\nsandwich = 1",
                "plugins.g: sandwich is not a key of this table. The keys here are isolation,",
            ),
            ("[defaults]\ncommand = 'x'", "defaults: command is not a key of this table."),
            ("[plugin.g]\nkind = 'x'", "plugin is not a key of this table. Did you mean 'plugins'?"),
            ('[plugins.""]', "'' is not a name of a plugin"),
            ('[plugins." a"]', "' a' is not a name of a plugin"),
            ('[plugins."a\\nb"]', "'a\\nb' is not a name of a plugin"),
            ('[host]\npattern = "a*b*"\npath = "."', "host.pattern: expected a file name with exactly one *"),
            ('[host]\npattern = "bin/*"\npath = "."', "host.pattern: expected a file name with exactly one *"),
            ('[host]\npattern = "greeter-*"', "host.pattern: it has no effect without host.path"),
            ('[host]\nplugins = "greeter_sdk.PLUGINS"', 'host.plugins: expected where the plugin set is, as "module:'),
            ("[plugins.a-b]\n[plugins.a_b]", "HYBRIDLOAD_ISOLATION_A_B"),
        ],
    )
    def test_what_is_wrong(self, write: Write, tmp_path: Path, text: str, said: str) -> None:
        message = fault(write(text))
        assert said in message
        assert message.startswith(f"{tmp_path}/plugins.toml")

    def test_no_values_that_may_be_secret(self, write: Write) -> None:
        assert "12345" not in fault(write("[plugins.g]\nenv = { TOKEN = 12345 }\n"))

    def test_long_values_in_short(self, write: Write) -> None:
        assert len(fault(write(f"[plugins.g]\nkind = {list(range(1000))}\n"))) < 300


class TestAFileThatCannotBeRead:
    def test_because_it_is_missing(self, tmp_path: Path) -> None:
        assert fault(tmp_path / "no.toml") == (
            f"There is no configuration file {tmp_path}/no.toml. Create it, or correct the path."
        )

    def test_because_it_is_a_directory(self, tmp_path: Path) -> None:
        assert fault(tmp_path).startswith(f"{tmp_path} is a directory.")

    def test_because_it_lies_in_a_file(self, write: Write) -> None:
        assert "cannot be read: Not a directory" in fault(write("") / "plugins.toml")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
    def test_because_it_is_locked(self, write: Write) -> None:
        path = write("")
        path.chmod(0)
        assert "cannot be read: Permission denied" in fault(path)

    def test_because_its_name_has_a_nul(self) -> None:
        assert re.search("cannot be read: .*embedded null", fault(Path("a\0b")))

    @pytest.mark.parametrize("config", [5, b"plugins.toml", ["plugins.toml"], {}])
    def test_because_it_is_no_path(self, config: object) -> None:
        with pytest.raises(ConfigError, match="give the path of a TOML file"):
            load_settings(config, environ={})  # type: ignore[arg-type]

    def test_because_it_is_not_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "plugins.toml"
        path.write_bytes('[host]\ngroup = "grüße"\n'.encode("latin-1"))
        assert fault(path).startswith(f"{path}, line 2: byte 0xfc is not UTF-8")

    @pytest.mark.parametrize(
        ("text", "line"),
        [("[host\n", 1), ("[host]\n\nx = \n", 3), ('[host]\ngroup = "a"\ngroup = "b"\n', 3), ("a = 1\n[a]\n", 2)],
    )
    def test_because_it_is_not_toml(self, write: Write, tmp_path: Path, text: str, line: int) -> None:
        message = fault(write(text))
        assert message.startswith(f"{tmp_path}/plugins.toml is not valid TOML: ")
        assert f"at line {line}, " in message

    def test_because_it_has_a_number_without_end(self, write: Write) -> None:
        assert "is not valid TOML" in fault(write(f"x = {'9' * 10_000}"))

    def test_because_it_is_nested_beyond_reason(self, write: Write) -> None:
        assert "nested too deeply" in fault(write("x = " + "[" * 100_000))

    @pytest.mark.parametrize("text", ["", "[tool.other]\n", "tool = 5\n"])
    def test_because_a_pyproject_has_no_table_for_it(self, write: Write, text: str) -> None:
        assert "there is no table [tool.hybridload]" in fault(write(text, "pyproject.toml"))

    def test_because_the_table_of_a_pyproject_is_none(self, write: Write, tmp_path: Path) -> None:
        message = fault(write("tool.hybridload = 5\n", "pyproject.toml"))
        assert message == f"{tmp_path}/pyproject.toml: [tool.hybridload]: expected a table, found 5 (an integer)."


class TestTheEnvironment:
    def test_overrides_the_file_and_the_own_variable_that_for_all(self, write: Write) -> None:
        path = write('[plugins.hello]\nisolation = "external"\n')
        settings = read(path, HYBRIDLOAD_ISOLATION="in-process", HYBRIDLOAD_ISOLATION_HELLO="subprocess, in-process")
        hello, other = settings.for_plugin("hello"), settings.for_plugin("other")
        assert hello.isolation == ("subprocess", "in-process")
        assert hello.isolation_from == "environment variable HYBRIDLOAD_ISOLATION_HELLO"
        assert other.isolation == ("in-process",)
        assert other.isolation_from == "environment variable HYBRIDLOAD_ISOLATION"

    def test_counts_without_a_file(self) -> None:
        settings = load_settings(None, environ={"HYBRIDLOAD_ISOLATION_MY_PLUGIN_2_": "external"})
        assert settings.for_plugin("my plugin-2.").isolation == ("external",)
        assert settings.for_plugin("other").isolation is None

    def test_does_not_count_when_it_is_empty(self) -> None:
        assert load_settings(None, environ={"HYBRIDLOAD_ISOLATION": " "}).for_plugin("x").isolation is None

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ("in_process", "Did you mean 'in-process'?"),
            ("external,", "'' is not an isolation"),
            ("external,external", "listed twice"),
        ],
    )
    def test_is_checked(self, value: str, said: str) -> None:
        with pytest.raises(ConfigError, match="Environment variable HYBRIDLOAD_ISOLATION_X: ") as caught:
            load_settings(None, environ={"HYBRIDLOAD_ISOLATION_X": value})
        assert said in str(caught.value)

    def test_may_not_mean_two_plugins(self) -> None:
        settings = load_settings(None, environ={"HYBRIDLOAD_ISOLATION_A_B": "external"})
        settings.check_variable("a-b", ["a-b", "c"])
        with pytest.raises(ConfigError, match=r"HYBRIDLOAD_ISOLATION_A_B could mean plugin 'a-b' or plugin 'a\.b'"):
            settings.check_variable("a-b", ["a-b", "a.b"])


class TestAChain:
    @pytest.mark.parametrize("value", ["external", ["external"], ("external",)])
    def test_is_one_isolation_or_a_list(self, value: object) -> None:
        assert isolation_chain(value) == ("external",)

    @pytest.mark.parametrize("value", [None, 5, b"external", {"external": 1}, {"external"}, [None], [["external"]], []])
    def test_is_nothing_else(self, value: object) -> None:
        with pytest.raises(ConfigError, match=r"^isolation: "):
            isolation_chain(value)


def test_nothing_heavy_is_imported_without_a_file() -> None:
    code = (
        "import sys\n"
        "from hybridload.config import load_settings\n"
        "load_settings(None, environ={'HYBRIDLOAD_ISOLATION': 'external'})\n"
        "heavy = ('msgspec', 'grpc', 'google.protobuf', 'cryptography', 'typer', 'stevedore', 'importlib_metadata')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
