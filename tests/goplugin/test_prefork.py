"""A forked plugin is what one started by itself is, its end is known as that one's, and nothing of either is left."""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hybridload import Contract, platforms
from hybridload.errors import ConfigError, ExitedBeforeHandshake, PluginCrashed, ProcessError, StartTimeout
from hybridload.goplugin.client import Client
from hybridload.goplugin.launch_spec import LaunchSpec, PluginSetReference, import_path
from hybridload.goplugin.lifeline import Lifeline
from hybridload.goplugin.prefork import host as prefork
from hybridload.goplugin.prefork.host import ForkServer
from hybridload.goplugin.prefork.messages import receive, send
from hybridload.goplugin.process import ProcessSpec
from hybridload.goplugin.runner import LocalRunner
from hybridload.handshake import Handshake
from hybridload.limits import Limits

HANDSHAKE = Handshake("PREFORK_TEST", "on")
PATIENCE = 20.0  # seconds
pytestmark = pytest.mark.skipif(not platforms.has_fork_server(), reason="plugins are not forked on this system")

SDK = """
from typing import Protocol

class Looker(Protocol):
    def look(self, expression: str) -> str: ...
"""
PLUGIN = """
import gc, os, random, resource, signal, stat, sys, threading, uuid

class Looks:
    def __init__(self):
        self.found = {
            "argv": sys.argv, "path": sys.path, "flags": list(sys.flags), "main": sorted(vars(sys.modules["__main__"])),
            "stack": [frame for frame in traceback_of() if "prefork" not in frame][-1],
            "group": (os.getpid() == os.getpgrp() == os.getsid(0)),
            "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())
                        if number not in (signal.SIGINT,)],
            "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            "wakeup": signal.set_wakeup_fd(-1),
            "cwd": os.getcwd(), "umask": os.umask(0o22), "nice": os.nice(0), "gc": (gc.isenabled(), gc.get_threshold()),
            "limits": [resource.getrlimit(each) for each in range(16)],
            "input": os.readlink("/proc/self/fd/0"), "stdin": repr(sys.stdin),
            "buffered": (sys.__stdout__.line_buffering, sys.__stderr__.line_buffering, sys.__stdout__.encoding),
            "own": "prefork_plugin" in sys.modules, "locale": sys.getfilesystemencoding(),
            "launch": sorted(key for key in os.environ if key.startswith("HYBRIDLOAD_LAUNCH")),
        }
    def look(self, expression):
        return str(eval(expression))

class Bare:
    look = Looks.look

def traceback_of():
    frame, names = sys._getframe(1), []
    while frame:
        names.append(frame.f_code.co_filename)
        frame = frame.f_back
    return names
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("prefork")
    (folder / "prefork_sdk.py").write_text(SDK)
    (folder / "prefork_plugin.py").write_text(PLUGIN)
    (folder / "prefork_broken.py").write_text("import sys\nsys.exit('cannot be had here')")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def lifeline() -> Iterator[Lifeline]:
    lifeline = Lifeline()
    lifeline.open()
    yield lifeline
    lifeline.close()


@pytest.fixture(scope="module")
def server(folder: Path, lifeline: Lifeline) -> Iterator[ForkServer]:
    """One that runs, for all tests."""
    server = ForkServer()
    try:
        with forked(server, lifeline):
            pass
        yield server
    finally:
        server.close()


def forked(
    server: ForkServer | None, lifeline: Lifeline, entry: str = "prefork_plugin:Looks", **options: Any
) -> Client:
    import prefork_sdk  # type: ignore[import-not-found]

    spec = LaunchSpec(
        plugin="looker",
        kind="looker",
        handshake=HANDSHAKE,
        plugins=PluginSetReference.of({1: {"looker": Contract(prefork_sdk.Looker)}}, kind="looker", plugin="looker"),
        entry_point=entry,
        path=import_path(),
    )
    env = {**spec.environment(), **options.pop("env", {})}
    return Client(
        spec.command(),
        plugins={"looker": prefork_sdk.Looker},
        handshake=HANDSHAKE,
        name="looker",
        env=env,
        lifeline=lifeline,
        runner=None if server is None else LocalRunner(functools.partial(server.start, lifeline=lifeline)),
        **{"auto_mtls": False, **options},
    )


Look = Callable[[str], str]
Start = Callable[..., tuple[Client, Look]]


@pytest.fixture
def start(server: ForkServer, lifeline: Lifeline) -> Iterator[Start]:
    """Starts a plugin and gives what looks into it; forked, unless another way is asked for."""
    clients: list[Client] = []

    def begin(how: ForkServer | None = server, **options: Any) -> tuple[Client, Look]:
        client = forked(how, lifeline, **options)
        clients.append(client)
        return client, client.dispense("looker").look

    yield begin
    for client in clients:
        client.kill()


def parent(client: Client) -> int:
    return psutil.Process(client.pid).ppid()


def test_it_finds_what_one_started_by_itself_finds(
    start: Start, server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours, alone = start(), start(None)
    assert (parent(ours[0]), parent(alone[0])) == (server.pid, os.getpid())
    mine, others = (eval(look("self.found")) for _, look in (ours, alone))  # text of a test's own plugin
    assert mine.pop("stdin") is not None
    others.pop("stdin")
    # What the ordinary program's own bootstrap leaves behind there is nobody's to rely on.
    assert set(mine.pop("main")) <= set(others.pop("main"))
    assert mine == others
    assert mine["cwd"] == str(tmp_path)


def test_no_descriptor_of_the_fork_server_reaches_it(start: Start) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    listing = "[os.readlink(each.path) for each in os.scandir('/proc/self/fd') if os.path.lexists(each.path)]"

    def listed(look: Look) -> tuple[set[str], set[str]]:
        """The files among its descriptors, and its pipes and sockets: of those it has as many as it needs just now."""
        found = set(eval(look(listing)))
        channels = {each for each in found if each.startswith(("pipe:", "socket:"))}
        return {re.sub(r"\d+", "N", each) for each in found - channels}, channels

    try:
        client, look = start()
        files, channels = listed(look)
        alone, _ = listed(start(None)[1])
        of_test = {os.readlink(f"/proc/self/fd/{writer}")}
    finally:
        os.close(reader)
        os.close(writer)
    assert files == alone
    of_server = {os.readlink(each.path) for each in os.scandir(f"/proc/{parent(client)}/fd")}
    assert any(each.startswith("socket:") for each in of_server)
    assert channels
    assert not channels & (of_server | of_test)


def test_its_environment_is_the_one_that_was_asked_for(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET_SINCE", "yes")
    _, look = start(env={"ADDED": "a=b\udc80"}, inherit_env=("SET_SINCE", "PATH", *os.environ))
    assert look("os.environ['SET_SINCE'], ascii(os.environ['ADDED']), os.getenvb(b'ADDED')") == str(
        ("yes", r"'a=b\udc80'", b"a=b\x80")
    )
    kept = tuple(key for key in os.environ if key not in ("SET_SINCE", "HOME"))
    _, look = start(inherit_env=kept)
    assert look("'SET_SINCE' in os.environ, 'HOME' in os.environ") == "(False, False)"


def test_its_time_zone_is_that_of_its_environment(start: Start) -> None:
    _, look = start(env={"TZ": "ABC-3"})
    assert look("(time := __import__('time')).tzname[0], time.localtime().tm_gmtoff") == "('ABC', 10800)"


def test_one_that_needs_another_interpreter_is_started_by_itself(start: Start) -> None:
    client, look = start(env={"PYTHONHASHSEED": "0"})
    assert parent(client) == os.getpid()
    assert look("sys.flags.hash_randomization") == "0"


def test_a_host_that_has_changed_what_it_hands_on_starts_it_by_itself(start: Start, server: ForkServer) -> None:
    start()
    before = os.umask(0o77)
    try:
        os.umask(before ^ 0o100)
        client, look = start()
    finally:
        os.umask(before)
    assert (parent(client), look("self.found['umask']")) == (os.getpid(), str(before ^ 0o100))
    assert parent(start()[0]) == server.pid


def test_limits_hold(start: Start) -> None:
    _, look = start(limits=Limits(open_files=64, cpu_seconds=600))
    assert look("resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CPU)[0]") == (
        "((64, 64), 600)"
    )


def test_two_are_two(start: Start) -> None:
    looks = [start()[1] for _ in range(2)]
    for expression in ("random.random()", "uuid.uuid4()", "os.getpid()", "os.urandom(8)"):
        assert len({look(expression) for look in looks}) == 2


def test_side_by_side(start: Start) -> None:
    pids: list[str] = []
    threads = [threading.Thread(target=lambda: pids.append(start()[1]("os.getpid()"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pids)) == 4


@pytest.mark.parametrize(
    ("end", "code"),
    [("os._exit(7)", 7), ("signal.raise_signal(signal.SIGSEGV)", -signal.SIGSEGV), ("os.abort()", -signal.SIGABRT)],
)
def test_its_exit_status_and_last_words_are_known(start: Start, end: str, code: int) -> None:
    client, look = start()
    look("sys.__stderr__.write('the last words\\n'), sys.__stderr__.flush()")
    with pytest.raises(PluginCrashed) as caught:
        look(end)
    assert (caught.value.returncode, caught.value.stderr) == (code, ("the last words",))
    assert client.pid is not None
    assert not psutil.pid_exists(client.pid)


def test_what_it_started_goes_with_it(start: Start) -> None:
    _, look = start()
    grandchild = int(look("__import__('subprocess').Popen(['/bin/sleep', '600']).pid"))
    with pytest.raises(PluginCrashed):
        look("os.kill(os.getpid(), 9)")
    psutil.wait_procs([psutil.Process(grandchild)] if psutil.pid_exists(grandchild) else [], timeout=10)
    assert not psutil.pid_exists(grandchild)


def test_what_ends_it_before_the_line_is_told(server: ForkServer, lifeline: Lifeline) -> None:
    with pytest.raises(ExitedBeforeHandshake, match="cannot be had here") as caught:
        forked(server, lifeline, "prefork_broken:x").start()
    assert caught.value.returncode == 1


def test_a_host_whose_folder_was_removed_starts_plugins(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend("")
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    for how in (start, functools.partial(start, None)):
        assert how(entry="prefork_plugin:Bare")[1]("os.readlink('/proc/self/cwd').endswith(' (deleted)')") == "True"


def test_a_folder_that_is_missing_is_named(server: ForkServer, lifeline: Lifeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"its working directory .* does not exist"):
        forked(server, lifeline, cwd=tmp_path / "missing").start()


def test_the_fork_server_has_one_thread_and_neither_grpc_nor_the_plugins_modules(
    start: Start, server: ForkServer
) -> None:
    start()
    process = psutil.Process(server.pid)
    assert process.num_threads() == 1
    mapped = {Path(each.path).name for each in process.memory_maps()}
    assert any(name.startswith("_message") for name in mapped)
    assert not any(name.startswith("cygrpc") for name in mapped)
    # A fresh fork has what the fork server has, and its own on top.
    _, look = start()
    assert look("sorted(name for name in sys.modules if name.startswith('prefork_'))") == (
        "['prefork_plugin', 'prefork_sdk']"
    )


def test_a_killed_fork_server_ends_its_plugins_and_the_next_start_makes_another(
    folder: Path, lifeline: Lifeline, start: Start
) -> None:
    server = ForkServer()
    try:
        client, _ = start(server)
        first = server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert client.wait(30)
        gone = client.gone()
        assert isinstance(gone, PluginCrashed)
        assert gone.returncode is None
        client, look = start(server)
        assert server.pid != first
        assert look("os.getppid()") == str(server.pid)
        client.kill()
    finally:
        server.close()
    assert server.pid is None


def test_a_fork_server_that_does_not_answer_holds_up_no_start_for_longer_than_its_time(
    folder: Path, lifeline: Lifeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platforms, "is_stopped", lambda pid: False)  # it hangs: a stopped one is replaced
    server = ForkServer()
    try:
        with forked(server, lifeline):
            os.kill(server.pid or 0, signal.SIGSTOP)
        spec = ProcessSpec(["python", "looker"], dict(os.environ))
        with pytest.raises(StartTimeout, match=r"was not forked within 0\.1 s: the fork server did not answer"):
            server.start(spec, "looker", lifeline=lifeline, timeout=0.1)
        with forked(server, lifeline) as client:
            assert client.dispense("looker").look("os.getppid()") == str(server.pid)
    finally:
        server.close()


def test_the_reply_to_a_start_that_was_interrupted_is_not_taken_for_the_next_ones(
    folder: Path, lifeline: Lifeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(connection: socket.socket) -> None:
        raise KeyboardInterrupt

    server = ForkServer()
    try:
        with forked(server, lifeline):
            pass
        with monkeypatch.context() as patch:
            patch.setattr("hybridload.goplugin.prefork.messages.receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                forked(server, lifeline).start()
        with forked(server, lifeline) as client:
            assert client.dispense("looker").look("os.getpid()") == str(client.pid)
    finally:
        server.close()


def test_one_that_does_not_start_is_an_error_that_says_what_to_do(
    folder: Path, lifeline: Lifeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybridload.goplugin.launch_spec.fork_server_command", lambda descriptor: ["/bin/false"])
    server = ForkServer()
    try:
        with pytest.raises(ProcessError, match=r"the fork server .*set prefork = false"):
            forked(server, lifeline).start()
    finally:
        server.close()


def test_where_plugins_cannot_be_forked_they_are_started(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms, "has_fork_server", lambda: False)
    client, _ = start()
    assert parent(client) == os.getpid()


ADOPTS = """
import ctypes, os, signal, sys
sys.path.insert(0, sys.argv[1])
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
from tests.goplugin.test_prefork import ForkServer, Lifeline, forked
lifeline, server = Lifeline(), ForkServer()
with forked(server, lifeline) as client:
    look = client.dispense("looker").look
    grandchild = int(look("__import__('subprocess').Popen(['/bin/sleep', '600']).pid"))
    os.kill(server.pid, signal.SIGKILL)
    client.wait()
    _, status = os.waitpid(grandchild, 0)
    print(os.path.exists(f"/proc/{client.pid}"), os.waitstatus_to_exitcode(status), client.gone().returncode is None)
server.close()
lifeline.close()
"""


def test_a_host_that_adopts_orphans_reaps_those_of_a_killed_fork_server(folder: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", ADOPTS, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=root, timeout=60, check=True)
    assert done.stdout == b"False -9 False\n"


HOST = """
import sys, time
sys.path.insert(0, sys.argv[1])
from tests.goplugin.test_prefork import ForkServer, Lifeline, forked
lifeline, server = Lifeline(), ForkServer()
client = forked(server, lifeline)
client.start()
print("ready", flush=True)
time.sleep(600)
"""


def test_nothing_outlives_a_host_that_is_killed(folder: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", HOST, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as host:
        try:
            assert host.stdout is not None
            assert host.stdout.readline() == b"ready\n"
            family = psutil.Process(host.pid).children(recursive=True)
        finally:
            host.kill()
    assert len(family) == 3  # the watcher, the fork server, the plugin
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_a_forked_child_of_the_host_lets_go_of_the_fork_server(server: ForkServer) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        os.write(writer, b"gone" if server.pid is None else b"there")
        server.close()
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as said:
        assert said.read() == b"gone"
    os.waitpid(pid, 0)
    assert server.pid is not None
    assert psutil.pid_exists(server.pid)


# What they say to each other


def test_a_message_arrives_with_its_descriptors_however_it_is_cut() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    with ours, theirs, open(reader, "rb") as said:
        message = {"text": "ü\udc80" * 300_000}
        thread = threading.Thread(target=send, args=(ours, message, [writer]))
        thread.start()
        received = receive(theirs)
        thread.join()
        os.close(writer)
        assert received is not None
        assert received[0] == message
        (copy,) = received[1]
        os.write(copy, b"through it")
        os.close(copy)
        assert said.read() == b"through it"
        ours.close()
        assert receive(theirs) is None


@pytest.mark.parametrize("data", [b"\0\0", b"\0\0\0\5{}", b"\0\0\0\2[]"[:5]])
def test_a_message_that_is_cut_off_is_the_end_of_the_connection(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(ours, [data], [0])
        ours.close()
        before = os.listdir("/proc/self/fd")
        with pytest.raises(ConnectionResetError):
            receive(theirs)
        assert os.listdir("/proc/self/fd") == before


def test_what_an_interpreter_reads_at_its_start_is_not_what_a_fork_has() -> None:
    found = prefork._read_at_start({"PYTHONPATH": "a", "LANG": "C", "LC_ALL": "C", "HOME": "/", "LANGUAGE": "de"})
    assert found == {"PYTHONPATH": "a", "LANG": "C", "LC_ALL": "C"}
