"""How a host's plugins end when nobody closes them: with the interpreter, when they are dropped, when it is killed."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from hybridload import Loader
from hybridload.goplugin import Client
from tests.isolation.conftest import Write, wait_until

SDK = """
import os, subprocess, sys
from typing import Protocol
from hybridload import Contract, Handshake

class Greeter(Protocol):
    def greet(self) -> str: ...

class Hello:
    def greet(self):
        return "Hello from Python!"

class Parent:
    # Starts one process in its own group and one in a session of its own, which outlives its parent's output.
    def greet(self):
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        started = [subprocess.Popen(["sleep", "600"], start_new_session=own, **quiet) for own in (False, True)]
        return " ".join(str(each.pid) for each in started)

PLUGINS = {"greeter": Contract(Greeter, service="proto.GreeterService")}
HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")
"""
CONFIG = """
[host]
plugins = "ends_sdk:PLUGINS"
handshake = "ends_sdk:HANDSHAKE"
[defaults]
isolation = ["external", "subprocess"]
[plugins.gopher]
command = ["@GO@"]
[plugins.multiplexed]
command = ["@GO@"]
multiplex = true
[plugins.netrpc]
command = ["@GO@"]
env = { TORTURE_PROTOCOL = "netrpc" }
[plugins.python]
entry_point = "ends_sdk:Hello"
[plugins.forked]
entry_point = "ends_sdk:Hello"
prefork = true
[plugins.parent]
entry_point = "ends_sdk:Parent"
"""
NAMES = ("gopher", "multiplexed", "netrpc", "python", "forked")

Site = Callable[..., Path]


@pytest.fixture
def config(write_module: Write, tmp_path: Path, go_build: Any) -> Path:
    write_module("ends_sdk", SDK)
    path = tmp_path / "plugins.toml"
    path.write_text(CONFIG.replace("@GO@", str(go_build("tests/go/greeter"))))
    return path


def python(config: Path, program: str, *arguments: str) -> list[str]:
    path = f"import sys; sys.path.insert(0, {str(config.parent)!r})\n"
    return [sys.executable, "-c", path + textwrap.dedent(program), str(config), *arguments]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def nothing_runs(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any(is_running(pid) for pid in pids)


# With the interpreter

ENDS = """
import atexit, json, logging
from hybridload import Loader
from hybridload.errors import PluginError
from hybridload.goplugin import Client
logging.disable()  # what a plugin writes about its end is its own
from ends_sdk import PLUGINS, HANDSHAKE
config, name, when = sys.argv[1:]

class Session:
    def __init__(self):
        self.loader = Loader(config=config)
        self.greeter = self.loader.load(name)
        self.another = self.loader.load("gopher" if name != "gopher" else "netrpc")
        command = self.loader.sources.describe("gopher").external
        self.client = Client(command, plugins=PLUGINS, handshake=HANDSHAKE)
        self.bare = self.client.dispense("greeter")
        names = [name, "gopher" if name != "gopher" else "netrpc"]
        print(json.dumps([self.loader.status(each).pid for each in names] + [self.client.pid]), flush=True)

    def end(self):
        told = {}
        for what, act in (
            ("call", self.greeter.greet),
            ("call of a client", self.bare.greet),
            ("reload", lambda: self.loader.reload(name)),
            ("load", lambda: self.loader.load("python").greet()),
            ("start", Client(self.client.command, plugins=PLUGINS, handshake=HANDSHAKE).start),
            ("kill", self.client.kill),
            ("close", self.loader.close),
        ):
            try:
                act()
                told[what] = "done"
            except Exception as error:
                told[what] = "refused" if isinstance(error, PluginError) else type(error).__name__
        print(json.dumps(told), flush=True)

session = Session()
if when == "atexit":
    atexit.register(session.end)
else:
    Session.__del__ = Session.end
"""


@pytest.mark.parametrize("when", ["atexit", "__del__"])
@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_asked_while_the_interpreter_ends_it_ends_and_so_does_every_plugin(
    config: Path, name: str, when: str
) -> None:
    done = subprocess.run(python(config, ENDS, name, when), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    pids, told = map(json.loads, done.stdout.splitlines())
    wait_until(nothing_runs(pids))
    works = ("kill", "close") if when == "__del__" else ("kill", "close", "call")
    assert {told.pop(each) for each in works} == {"done"}
    # Python 3.12 starts no thread any more when it calls what `atexit` knows of; others do.
    assert set(told.values()) <= ({"refused"} if when == "__del__" else {"refused", "done"})


# When nobody has it any more


@pytest.mark.parametrize("name", NAMES)
def test_a_loader_that_is_dropped_ends_its_plugins_once_their_objects_are_gone_as_well(
    config: Path, name: str, recwarn: pytest.WarningsRecorder
) -> None:
    loader = Loader(config=config)
    greeter = loader.load(name)
    pid = loader.status(name).pid
    assert pid is not None
    del loader
    gc.collect()
    assert greeter.greet().startswith("Hello")
    recwarn.clear()
    del greeter
    gc.collect()
    assert f"dropped without close(): its plugins end now ({name!r})" in str(recwarn.pop(ResourceWarning).message)
    wait_until(nothing_runs([pid]))


@pytest.mark.parametrize("netrpc", [False, True], ids=["grpc", "netrpc"])
def test_a_client_that_is_dropped_ends_its_plugin_once_its_objects_are_gone_as_well(
    config: Path, netrpc: bool, recwarn: pytest.WarningsRecorder
) -> None:
    from ends_sdk import HANDSHAKE, PLUGINS  # type: ignore[import-not-found]

    with Loader(config=config) as loader:
        command = loader.sources.describe("gopher").external
    env = {"TORTURE_PROTOCOL": "netrpc"} if netrpc else {}
    client = Client(command, plugins=PLUGINS, handshake=HANDSHAKE, env=env)
    greeter = client.dispense("greeter")
    pid = client.pid
    assert pid is not None
    del client
    gc.collect()
    assert greeter.greet().startswith("Hello")
    recwarn.clear()
    del greeter
    gc.collect()
    assert "dropped without kill()" in str(recwarn.pop(ResourceWarning).message)
    wait_until(nothing_runs([pid]))


def test_a_loader_that_is_dropped_when_it_has_failed_over_starts_nothing_any_more(
    config: Path, recwarn: pytest.WarningsRecorder
) -> None:
    thread, watcher = _failed_over(Loader(config=config))
    gc.collect()
    assert "dropped without close()" in str(recwarn.pop(ResourceWarning).message)
    wait_until(lambda: not thread.is_alive() and watcher.poll() is not None)


def _failed_over(loader: Loader) -> tuple[threading.Thread, subprocess.Popen[bytes]]:
    """What is left to a loader whose plugin runs in-process by now, because its process was killed too often."""
    loader.load("python", isolation=["subprocess", "in-process"])
    while (pid := loader.status("python").pid) != os.getpid():
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: loader.status("python").pid not in (pid, None))
    assert loader.status("python").next_retry is not None
    wait_until(lambda: not loader._loaded["python"].runs_elsewhere)
    thread, watcher = loader._host.loop._thread, loader._host.lifeline._watcher
    assert thread is not None
    assert watcher is not None
    return thread, watcher


def test_a_loader_that_is_dropped_with_nothing_to_end_says_nothing(
    config: Path, recwarn: pytest.WarningsRecorder
) -> None:
    loader = Loader(config=config)
    loader.load("python", isolation="in-process")
    del loader
    gc.collect()
    assert not [each for each in recwarn if each.category is ResourceWarning]


# What a plugin has started


@pytest.mark.skipif(sys.platform != "linux", reason="nothing tells what a process has started")
@pytest.mark.parametrize("end", ["close", "crash", "the host is killed"])
def test_what_a_plugin_started_ends_with_it_also_in_a_session_of_its_own(config: Path, end: str) -> None:
    program = """
    from hybridload import Loader
    with Loader(config=sys.argv[1]) as loader:
        started = loader.load("parent").greet()
        print(loader.status("parent").pid, started, flush=True)
        sys.stdin.readline()
    """
    host = subprocess.Popen(python(config, program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with host:
        assert host.stdin is not None
        assert host.stdout is not None
        plugin, *started = map(int, host.stdout.readline().split())
        assert all(map(is_running, started))
        if end == "the host is killed":
            host.kill()
        elif end == "crash":
            os.kill(plugin, signal.SIGKILL)
        else:
            host.stdin.write("\n")
            host.stdin.flush()
        wait_until(nothing_runs(started))
        if end == "crash":
            host.stdin.write("\n")
            host.stdin.flush()
        assert host.wait(60) == (-signal.SIGKILL if end == "the host is killed" else 0)


# What a host that is killed had made

DIES = """
import os, signal
from hybridload.goplugin import Client
from ends_sdk import PLUGINS, HANDSHAKE

def dies(owner, name, when):
    real = getattr(owner, name)
    def call(*args, **kwargs):
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        made = real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, call)

import subprocess
from hybridload.goplugin import lifeline, process, socket_folder
owner, name, when = sys.argv[2:]
owners = {"os": os, "folder": socket_folder, "lifeline": lifeline.Lifeline, "process": process, "client": Client}
dies(owners[owner], name, when)
Client([os.environ["GREETER"]], plugins=PLUGINS, handshake=HANDSHAKE).dispense("greeter").greet()
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("os", "mkdir"),
        ("folder", "private_folder"),
        ("lifeline", "guard_folder"),
        ("lifeline", "guard_mark"),
        ("process", "start_program"),
        ("lifeline", "guard"),
        ("client", "_accept"),
        ("client", "_connect"),
    ],
)
def test_a_host_that_is_killed_at_any_step_of_a_start_leaves_nothing(
    config: Path, go_build: Any, monkeypatch: pytest.MonkeyPatch, owner: str, name: str, when: str
) -> None:
    monkeypatch.setenv("GREETER", str(go_build("tests/go/greeter")))
    done = subprocess.run(python(config, DIES, owner, name, when), capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until(lambda: not list(Path(tempfile.gettempdir()).glob("hybridload-*")))  # the fixture finds its processes


OLD = """
import os, socket, tempfile
# As go-plugin 1.0 does: a socket in the temporary folder, whatever the host says of another.
from hybridload.goplugin import entrance
from hybridload.goplugin.streams import sockets
def listen_unix(folder, access):
    listener = socket.socket(socket.AF_UNIX)
    path = os.path.join(tempfile.gettempdir(), f"plugin{os.getpid()}")
    listener.bind(path)
    listener.listen()
    return sockets.SocketListener(listener, "unix", path, lambda: None)
entrance.listen_unix = listen_unix
from hybridload import serve
from ends_sdk import HANDSHAKE, PLUGINS, Hello
serve(PLUGINS, {"greeter": Hello()}, handshake=HANDSHAKE)
"""


@pytest.mark.parametrize("end", ["kill", "crash", "the host is killed"])
def test_a_socket_that_an_old_plugin_put_elsewhere_goes_with_it(config: Path, end: str) -> None:
    old = config.parent / "old.py"
    old.write_text(OLD)
    program = """
    from hybridload.goplugin import Client
    from ends_sdk import PLUGINS, HANDSHAKE
    with Client([sys.executable, sys.argv[2]], plugins=PLUGINS, handshake=HANDSHAKE) as client:
        print(client.pid, client.dispense("greeter").greet(), flush=True)
        sys.stdin.readline()
    """
    host = subprocess.Popen(
        python(config, program, str(old)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(config.parent)},
    )
    sockets = lambda: list(Path(tempfile.gettempdir()).glob("plugin*"))  # noqa: E731
    with host:
        assert host.stdin is not None
        assert host.stdout is not None
        plugin = int(host.stdout.readline().split()[0])
        assert sockets()
        if end == "the host is killed":
            host.kill()
        elif end == "crash":
            os.kill(plugin, signal.SIGKILL)
        host.stdin.close()
    wait_until(lambda: not sockets())
