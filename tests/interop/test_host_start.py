"""A host and real plugins come to terms: line, network, version, environment, folder for sockets."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from hybridload import Contract, Handshake
from hybridload.errors import ConfigError, PluginClosed, VersionMismatch
from hybridload.goplugin import Client

NewClient = Callable[..., Client]


@pytest.fixture(params=["direct", "grpcio", "netrpc"])
def engine(request: pytest.FixtureRequest) -> str:
    """What carries the calls: all this holds for both protocols."""
    found: str = request.param
    return found


@pytest.fixture
def greets(new_client: NewClient) -> Callable[..., str]:
    """What a plugin's greeter says, after a start of its own."""

    def run(*command: str | Path, **options: Any) -> str:
        with new_client(*command, **options) as client:
            greeting: str = client.dispense("greeter").greet()
        assert client.returncode == 0 or command
        return greeting

    return run


@pytest.fixture
def bare(greets: Callable[..., str], go_build: Callable[[str], Path]) -> Callable[..., str]:
    """The same of `tests/go/bareplugin` with flags."""
    program = go_build("tests/go/bareplugin")
    return lambda *flags, **options: greets(program, *flags, **{"auto_mtls": False, **options})


# The line


@pytest.mark.parametrize("network", ["unix", "tcp"])
@pytest.mark.parametrize("fields", [5, 6, 7, 8, 9])
def test_a_line_of_any_length_will_do(bare: Callable[..., str], network: str, fields: int) -> None:
    assert bare(f"-network={network}", f"-fields={fields}") == "Hello from a bare server!"


@pytest.mark.parametrize("ending", ["\r\n", " \n", "\n\n", "\nmore\nlines\n"])
def test_what_ends_the_line_does_not_matter(bare: Callable[..., str], ending: str) -> None:
    assert bare(f"-ending={ending}") == "Hello from a bare server!"


def test_a_line_that_nothing_ends_counts_once_standard_output_is_closed(
    greets: Callable[..., str], go_build: Callable[[str], Path], tmp_path: Path
) -> None:
    """As in Go, whose scanner takes what is left at the end of the output for a line."""
    program = tmp_path / "closes-stdout"
    bare = go_build("tests/go/bareplugin")
    program.write_text(
        f"#!/bin/sh\nmkfifo {tmp_path}/line\n{bare} > {tmp_path}/line &\n"
        f'read -r line < {tmp_path}/line\nprintf %s "$line"\nexec >&-\nwait\n'
    )
    program.chmod(0o755)
    assert greets(program, auto_mtls=False) == "Hello from a bare server!"


def test_the_first_connection_may_be_accepted_late(bare: Callable[..., str]) -> None:
    assert bare("-linger=700ms") == "Hello from a bare server!"


def test_a_plugin_needs_no_health_service(bare: Callable[..., str]) -> None:
    assert bare("-health=false") == "Hello from a bare server!"


@pytest.mark.parametrize("flag", ["-stderr-before", "-stdout-after"])
def test_megabytes_around_the_line_do_not_hold_it_up(bare: Callable[..., str], flag: str) -> None:
    assert bare(f"{flag}={10 * 1024 * 1024}") == "Hello from a bare server!"


def test_a_slow_start_is_waited_for(greets: Callable[..., str]) -> None:
    assert greets(env={"TORTURE_START_SECONDS": "0.5"}, start_timeout=30) == "Hello from Go!"


# Cookie and version


def test_the_handshake_is_what_the_plugin_expects(greets: Callable[..., str]) -> None:
    handshake = Handshake("OTHER_COOKIE", "a value with = and spaces")
    assert greets(handshake=handshake, env={"TORTURE_COOKIE": "OTHER_COOKIE=a value with = and spaces"})


@pytest.mark.parametrize(
    ("theirs", "ours", "agreed"),
    [("1", [1], 1), ("2,5", [1, 2, 3], 2), ("1,2,3", [2, 3, 4], 3), ("0,7", [0], 0), ("10,9", [9, 10], 10)],
)
def test_the_highest_version_that_both_know_is_spoken(
    new_client: NewClient, go_plugins: Any, theirs: str, ours: list[int], agreed: int
) -> None:
    client = new_client(plugins=dict.fromkeys(ours, go_plugins.plugins), env={"TORTURE_VERSIONS": theirs})
    client.start()
    assert client.app_version == agreed
    assert client.dispense("greeter").greet() == f"Hello from Go, version {agreed}!"


@pytest.mark.parametrize("engine", ["direct", "grpcio"])  # over net/rpc the plugin has to know the kind as well
def test_kinds_are_those_of_the_version_that_is_spoken(new_client: NewClient, go_plugins: Any) -> None:
    client = new_client(
        plugins={1: {"old": go_plugins.plugins["greeter"]}, 2: {"greeter": go_plugins.plugins["greeter"]}},
        env={"TORTURE_VERSIONS": "1"},
    )
    with pytest.raises(ConfigError, match="no kind 'greeter'; it has old"):
        client.dispense("greeter")
    assert client.dispense("old").greet() == "Hello from Go, version 1!"


def test_no_version_in_common_is_a_mismatch_and_nothing_is_dialled(new_client: NewClient, go_plugins: Any) -> None:
    client = new_client(plugins={7: go_plugins.plugins, 9: go_plugins.plugins}, env={"TORTURE_VERSIONS": "3,4"})
    with pytest.raises(VersionMismatch, match=r"serves version 3 .* this host knows 7, 9"):
        client.start()


# Environment


def environment(client: Client) -> dict[str, str]:
    found: dict[str, str] = client.dispense("torture").process().environment
    return found


def test_the_environment_is_inherited_and_added_to(new_client: NewClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HOST", "host")
    monkeypatch.setenv("BOTH", "host")
    got = environment(new_client(env={"BOTH": "plugin", "ADDED": "ü=1"}))
    assert (got["FROM_HOST"], got["BOTH"], got["ADDED"]) == ("host", "plugin", "ü=1")
    assert (got["BASIC_PLUGIN"], got["PLUGIN_PROTOCOL_VERSIONS"]) == ("hello", "1")
    assert (got["PLUGIN_MIN_PORT"], got["PLUGIN_MAX_PORT"]) == ("10000", "25000")


@pytest.mark.parametrize("engine", ["direct", "grpcio"])  # the plugin is told to speak net/rpc by its environment
def test_nothing_is_inherited_when_that_is_asked_for(new_client: NewClient) -> None:
    got = environment(new_client(inherit_env=False, env={"ADDED": "1"}))
    ours = {name for name in got if not name.startswith("PLUGIN_")}
    assert ours <= {"ADDED", "BASIC_PLUGIN", "HYBRIDLOAD_ENGINE", "HYBRIDLOAD_TEST_ID", "HYBRIDLOAD_PROCESS"}


def test_only_the_variables_named_are_inherited(new_client: NewClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_HOST", "host")
    monkeypatch.setenv("SECRET", "hidden")
    got = environment(new_client(inherit_env=["FROM_HOST", "NOT_SET"], env={"ADDED": "1"}))
    assert got["FROM_HOST"] == "host"
    assert "NOT_SET" not in got
    assert "SECRET" not in got


def test_what_a_host_was_told_as_a_plugin_is_not_handed_on(
    new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale certificate or multiplex wish breaks a child that nobody asked for TLS or multiplexing."""
    for name in (
        "PLUGIN_CLIENT_CERT",
        "PLUGIN_MULTIPLEX_GRPC",
        "PLUGIN_UNIX_SOCKET_DIR",
        "PLUGIN_UNIX_SOCKET_GROUP",
        "PLUGIN_PROTOCOL_VERSIONS",
        "PLUGIN_MIN_PORT",
        "HYBRIDLOAD_REATTACH",
    ):
        monkeypatch.setenv(name, "stale")
    client = new_client(auto_mtls=False)
    got = environment(client)
    assert "stale" not in got.values()
    assert "PLUGIN_CLIENT_CERT" not in got
    assert client.dispense("greeter").greet() == "Hello from Go!"


def test_it_runs_in_the_folder_it_is_given(new_client: NewClient, tmp_path: Path) -> None:
    assert new_client(cwd=tmp_path).dispense("torture").process().folder == str(tmp_path)


def test_it_gets_the_arguments_and_is_found_on_the_path(
    new_client: NewClient, go_build: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = go_build("tests/go/greeter")
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    info = new_client(program.name, "one", "two words", "").dispense("torture").process()
    assert info.arguments == [str(program), "one", "two words", ""]


# Sockets


@pytest.mark.parametrize("name", ["plain", "with space", "100%41#?&", "tür", "a'b\"c", "x" * 150])
def test_the_temporary_folder_may_have_any_name(
    greets: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    assert greets() == "Hello from Go!"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("end", ["kill", "SIGKILL"])
def test_sockets_are_in_a_private_folder_that_goes_with_the_plugin(new_client: NewClient, end: str) -> None:
    client = new_client()
    client.start()
    assert client.pid is not None
    folders = [Path(each) for each in Path(tempfile.gettempdir()).glob("hybridload-*")]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700]
    assert [stat.S_ISSOCK(each.stat().st_mode) for each in folders[0].iterdir()] == [True]
    if end == "SIGKILL":
        psutil.Process(client.pid).kill()
        assert client.wait(10)
    client.kill()
    assert not folders[0].exists()


# One client


def test_a_client_says_what_it_came_to_terms_on(new_client: NewClient, engine: str) -> None:
    client = new_client()
    for missing in ("protocol", "app_version"):
        with pytest.raises(PluginClosed, match="has not been started"):
            getattr(client, missing)
    assert client.pid is None
    client.start()
    assert (client.protocol, client.app_version) == ("netrpc" if engine == "netrpc" else "grpc", 1)
    assert client.dispense("torture").process().pid == client.pid


def test_starting_twice_starts_once(new_client: NewClient) -> None:
    client = new_client()
    client.start()
    pid = client.pid
    client.start()
    assert client.pid == pid


def test_starting_on_many_threads_starts_once(new_client: NewClient) -> None:
    client = new_client()
    pids: list[int] = []
    threads = [
        threading.Thread(target=lambda: pids.append(client.dispense("torture").process().pid)) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pids == [client.pid] * 16


def test_a_client_starts_only_once(new_client: NewClient) -> None:
    client = new_client()
    with client:
        pass
    with pytest.raises(PluginClosed):
        client.start()


def test_dispensing_starts_it(new_client: NewClient) -> None:
    client = new_client()
    first, second = client.dispense("greeter"), client.dispense("greeter")
    assert first is not second
    assert first.greet() == second.greet() == "Hello from Go!"


def test_an_object_is_of_its_interface_and_says_whose_it_is(new_client: NewClient, go_plugins: Any) -> None:
    contract = go_plugins.plugins["greeter"]
    assert isinstance(contract, Contract)
    client = new_client(name="gopher")
    greeter = client.dispense("greeter")
    assert contract.interface in type(greeter).__mro__
    assert repr(greeter) == f"<Greeter 'gopher' (pid {client.pid})>"


def test_a_kind_that_nobody_has_is_named(new_client: NewClient) -> None:
    with pytest.raises(ConfigError, match="no kind 'nothing'; it has greeter, torture"):
        new_client().dispense("nothing")


def test_a_terminals_interrupt_does_not_reach_the_plugin(new_client: NewClient) -> None:
    client = new_client()
    client.start()
    assert client.pid is not None
    assert os.getpgid(client.pid) == client.pid
    assert os.getsid(client.pid) != os.getsid(0)
