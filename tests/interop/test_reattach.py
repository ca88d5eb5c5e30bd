"""A plugin outlives the host that started it, and another process takes it up: in Go and in Python, under AutoMTLS."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from hybridload.errors import ConfigError, HandshakeError, PluginCrashed, PluginNotFound
from hybridload.goplugin import Client, ReattachConfig

PYTHON_PLUGIN = Path(__file__).parent.parent / "goplugin" / "torture_plugin.py"
PATIENCE = 30.0

FIRST_HOST = """
import json, os, sys, time
from hybridload import Contract, Handshake
from hybridload.goplugin import Client
from typing import Protocol

class Greeter(Protocol):
    def greet(self) -> str: ...

command, path, options = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
client = Client(command, plugins={"greeter": Contract(Greeter, service="proto.GreeterService")},
                handshake=Handshake("BASIC_PLUGIN", "hello"), outlive_host=True, **options)
client.start()
assert client.dispense("greeter").greet().startswith("Hello")
client.reattach_config.save(path)
print(client.pid, flush=True)
sys.stdin.readline()
if sys.stdin.readline():
    os._exit(0)
"""


@dataclass(frozen=True, slots=True)
class Outliving:
    """A plugin whose host has died."""

    config: ReattachConfig
    path: Path
    language: str


Outlive = Callable[..., Outliving]


@pytest.fixture
def outlive(go_build: Callable[[str], Path], tmp_path: Path) -> Iterator[Outlive]:
    """Has a host in a process of its own start a plugin and die."""
    pids: list[int] = []

    def begin(language: str, *, killed: bool = True, **options: Any) -> Outliving:
        if language.startswith("go"):
            command = [str(go_build("tests/go/netrpc" if language == "go over net/rpc" else "tests/go/greeter"))]
        else:
            program = tmp_path / "outliving.py"
            program.write_text(
                f"import sys; sys.path.insert(0, {str(PYTHON_PLUGIN.parent)!r})\n"
                "from torture_plugin import *\nmain(outlive_host=True)\n"
            )
            command = [sys.executable, str(program)]
        path = tmp_path / f"reattach-{len(pids)}.json"
        host = subprocess.Popen(
            [sys.executable, "-c", FIRST_HOST, json.dumps(command), path, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert host.stdin is not None
        assert host.stdout is not None
        with host.stdin, host.stdout:
            pids.append(int(host.stdout.readline()))
            if killed:
                host.kill()
            else:
                host.stdin.write("end\nnow\n")
                host.stdin.flush()
            host.wait(PATIENCE)
        return Outliving(ReattachConfig.load(path), path, language)

    yield begin
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.fixture
def attach(go_plugins: Any) -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def begin(config: ReattachConfig, **options: Any) -> Client:
        clients.append(Client.reattach(config, plugins=go_plugins.plugins, handshake=go_plugins.handshake, **options))
        return clients[-1]

    yield begin
    for client in clients:
        client.kill()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


LEAVES = pytest.mark.leaves("files", reason="a plugin of Go's that outlives its host has its socket in the temp folder")


@LEAVES
@pytest.mark.parametrize("killed", [True, False], ids=["host killed", "host exits"])
@pytest.mark.parametrize("auto_mtls", [True, False], ids=["mtls", "plain"])
@pytest.mark.parametrize("language", ["go", "python"])
def test_another_process_takes_up_what_outlived_its_host(
    outlive: Outlive, attach: Callable[..., Client], go_plugins: Any, language: str, auto_mtls: bool, killed: bool
) -> None:
    left = outlive(language, auto_mtls=auto_mtls, killed=killed)
    assert stat.S_IMODE(left.path.stat().st_mode) == 0o600
    out, err = io.BytesIO(), io.BytesIO()
    client = attach(left.config, sync_stdout=out, sync_stderr=err)
    client.start()
    assert client.dispense("greeter").greet().startswith("Hello")
    torture = client.dispense("torture")
    # What it prints arrives again; and what it writes to the pipes of the dead host neither blocks nor kills it.
    for target in (go_plugins.raw_stdout, go_plugins.raw_stderr, go_plugins.os_stdout, go_plugins.os_stderr):
        assert torture.write(target=target, size=300_000) == 300_000
    assert client.pid == left.config.pid
    client.kill()
    assert gone(left.config.pid)
    if language == "python":
        assert len(out.getvalue()) == 300_000 + len(b"closing\n")
        assert len(err.getvalue()) == 300_000


@LEAVES
@pytest.mark.parametrize("language", ["go", "go over net/rpc", "python"])
def test_released_it_runs_on_and_is_taken_up_again(
    outlive: Outlive, attach: Callable[..., Client], language: str
) -> None:
    left = outlive(language)
    for _ in range(3):
        client = attach(left.config)
        client.start()
        assert client.dispense("greeter").greet().startswith("Hello")
        client.release()
        assert not client.exited
    assert psutil.pid_exists(left.config.pid)


@LEAVES
def test_the_end_of_what_was_taken_up_is_seen(outlive: Outlive, attach: Callable[..., Client]) -> None:
    left = outlive("go")
    client = attach(left.config)
    client.start()
    greeter = client.dispense("greeter")
    os.kill(left.config.pid, signal.SIGKILL)
    assert client.wait(PATIENCE)
    assert client.exited
    with pytest.raises(PluginCrashed):
        greeter.greet()


@LEAVES
def test_a_process_that_has_the_pid_by_now_is_never_killed(outlive: Outlive, attach: Callable[..., Client]) -> None:
    left = outlive("go")
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        for started in (left.config.started, None):
            stale = replace(left.config, pid=bystander.pid, started=started)
            client = attach(stale)
            with pytest.raises(PluginNotFound, match="is another one by now"):
                client.start()
            client.kill()
            assert bystander.poll() is None
        # Nothing can tell whose the pid is: there is no socket and no time. It is not killed either.
        unknown = replace(left.config, pid=bystander.pid, started=None, address="/nowhere/socket")
        client = attach(unknown, start_timeout=1.0)
        with pytest.raises(HandshakeError):
            client.start()
        client.kill()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    with pytest.raises(PluginNotFound, match="no longer runs"):
        attach(replace(left.config, pid=bystander.pid)).start()


@LEAVES
def test_a_plugin_in_test_mode_is_never_killed(outlive: Outlive, attach: Callable[..., Client]) -> None:
    left = outlive("go")
    client = attach(replace(left.config, test=True))
    client.start()
    client.condemn("does not answer")
    client.kill()
    assert psutil.Process(left.config.pid).status() != psutil.STATUS_ZOMBIE
    assert not client.exited
    # As one of one's own it is.
    other = attach(left.config)
    other.start()
    other.kill()
    assert gone(left.config.pid)


@LEAVES
def test_the_key_is_in_the_file_and_nowhere_else(
    outlive: Outlive, attach: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    left = outlive("go")
    assert "BEGIN" in left.path.read_text()
    assert left.config.certificate is not None
    secret = left.config.certificate.key_pem.decode().splitlines()[1]
    with caplog.at_level(logging.DEBUG):
        client = attach(left.config)
        client.start()
        shown = f"{left.config!r} {left.config} {client} {client!r} {client.__dict__['_certificate']!r}"
        client.kill()
    assert secret not in shown
    assert secret not in caplog.text
    # Without the key nobody is let in.
    keyless = replace(left.config, certificate=None, plugin_certificate=None)
    with pytest.raises((HandshakeError, PluginNotFound)):
        attach(keyless, start_timeout=2.0).start()


@LEAVES
def test_a_stranger_without_the_key_is_refused_and_the_plugin_goes_on(
    outlive: Outlive, attach: Callable[..., Client]
) -> None:
    left = outlive("go")
    keyless = replace(left.config, certificate=None, plugin_certificate=None)
    with pytest.raises(HandshakeError):
        attach(keyless, start_timeout=2.0).start()
    client = attach(left.config)
    client.start()
    assert client.dispense("greeter").greet() == "Hello from Go!"


def test_a_multiplexed_plugin_has_no_reattach_config(go_build: Callable[[str], Path], go_plugins: Any) -> None:
    client = Client(
        [sys.executable, PYTHON_PLUGIN],
        plugins={"greeter": go_plugins.plugins["greeter"]},
        handshake=go_plugins.handshake,
        multiplex=True,
    )
    with client, pytest.raises(ConfigError, match="nobody can reattach"):
        _ = client.reattach_config


def test_what_this_client_started_cannot_be_let_go_of(go_plugins: Any) -> None:
    client = Client(
        [sys.executable, PYTHON_PLUGIN],
        plugins={"greeter": go_plugins.plugins["greeter"]},
        handshake=go_plugins.handshake,
    )
    with client, pytest.raises(ConfigError, match="only what was reattached"):
        client.release()
