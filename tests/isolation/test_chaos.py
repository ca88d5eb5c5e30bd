"""Whatever befalls plugins, every call gets its own right answer or a named error in time, and nothing is left.

One host has a Python object in its own process and one in the host's, and a Go program over gRPC and over net/rpc; two
more, one of each language, have asynchronous methods. Eight threads and an event loop call them while they are killed,
stopped, cut off, silenced, switched, reloaded and reconfigured at random. The first round warms up, the second counts:

- Every answer is the one to its request, and every call ends by its deadline.
- A plugin that has been harmed answers again within the seconds that it takes to see that, and to start another. One is
  harmed again only when it has answered since, so that these seconds are of one harm.

`HYBRIDLOAD_CHAOS_SEED` repeats what was done (though not when: that is the machine's). The figures are printed, and
what went on in the longest silence.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import logging
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hybridload import Loader, PluginEvent, deadline
from hybridload.errors import PluginError
from tests.isolation.conftest import GROUP, Write, in_thread
from tests.isolation.memory import Memory

SDK = """
import os
from typing import Protocol
from hybridload import Contract, Handshake, idempotent
from hybridload.contract import NetRPC

class Work(Protocol):
    \"\"\"A part of tests/go/protocol/torture.proto.\"\"\"
    def echo(self, data: bytes) -> bytes: ...
    def write(self, target: int = 0, size: int = 0, line_length: int = 0) -> int: ...
    def exit(self, code: int = 0) -> None: ...

class AsyncWork(Protocol):
    async def echo(self, data: bytes) -> bytes: ...

class AsyncWorker:
    async def echo(self, data):
        return data

class Worker:
    def echo(self, data):
        return data
    def write(self, target=0, size=0, line_length=0):
        for _ in range(0 if self.is_host() else size // line_length):
            os.write(2, b"x" * (line_length - 1) + b"\\n")
        return size
    def exit(self, code=0):
        if not self.is_host():
            os._exit(code)
    def is_host(self):
        return os.environ["CHAOS_HOST"] == str(os.getpid())

PLUGINS = {
    "torture": Contract(Work, service="torture.Torture", netrpc=NetRPC(arguments="struct")),
    "async": Contract(AsyncWork, service="torture.Torture"),
}
HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")
"""
CONFIG = """
[host]
plugins = "chaos_sdk:PLUGINS"
handshake = "chaos_sdk:HANDSHAKE"
watch = true
[defaults]
max_restarts = 5
restart_window = 2.0
backoff = 0.02
retry_after = 1.0
health_interval = 0.2
health_timeout = 1.0
call_timeout = 4.0
kind = "torture"
[plugins.local]
entry_point = "chaos_sdk:Worker"
isolation = "in-process"
[plugins.python]
entry_point = "chaos_sdk:Worker"
isolation = ["subprocess", "in-process"]
[plugins.gopher]
entry_point = "chaos_sdk:Worker"
command = ["@GO@"]
isolation = ["external", "subprocess", "in-process"]
[plugins.netrpc]
entry_point = "chaos_sdk:Worker"
command = ["@GO@"]
env = { TORTURE_PROTOCOL = "netrpc" }
isolation = ["external", "in-process"]
[plugins.async_python]
entry_point = "chaos_sdk:AsyncWorker"
kind = "async"
isolation = ["subprocess", "in-process"]
[plugins.async_gopher]
entry_point = "chaos_sdk:AsyncWorker"
command = ["@GO@"]
kind = "async"
isolation = ["external", "in-process"]
"""
CALLED = ("python", "gopher", "netrpc", "local")
AWAITED = ("async_python", "async_gopher")
NAMES = (*CALLED, *AWAITED)
TASKS = 4
CALL_TIMEOUT = 4.0  # seconds, as in the configuration
SHORT = 0.2
PACE = 0.001  # seconds between two calls of a caller, or calls in-process would leave nobody else a processor
LATE = 1.0  # seconds that a call may take beyond its deadline
SILENCE = 5.0  # seconds without any answer of a plugin: signs of life that are missed twice, and a start
_PATIENCE = 60.0
_RAW_STDERR = 3


class Valve(logging.Handler):
    """Takes what plugins write on standard error, and while it is shut nothing: their pipes fill."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = threading.Event()
        self.opened.set()

    def createLock(self) -> None:
        """One plugin's shut valve is not another's."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        self.opened.wait()


class Answers:
    """When each plugin has answered last, the longest that it did not, and what was done and told meanwhile."""

    def __init__(self) -> None:
        now = time.monotonic()
        self.began = now
        self.last = dict.fromkeys(NAMES, now)
        self.longest: dict[str, tuple[float, float]] = dict.fromkeys(NAMES, (0.0, now))
        self.story: list[tuple[float, str, str]] = []
        self._lock = threading.Lock()

    def came(self, name: str) -> None:
        with self._lock:
            now = time.monotonic()
            self.longest[name] = max(self.longest[name], (now - self.last[name], self.last[name]))
            self.last[name] = now

    def note(self, name: str, what: str) -> None:
        self.story.append((time.monotonic(), name, what))

    def end(self) -> None:
        for name in NAMES:
            self.came(name)

    def in_the_longest(self) -> str:
        """What was done to the plugin that was silent for the longest time, and told of it."""
        (silence, since), name = max((longest, name) for name, longest in self.longest.items())
        lines = [
            f"    {when - since:+.2f} s: {what}"
            for when, whose, what in self.story
            if whose in (name, "") and since - 2 < when < since + silence + 0.5
        ]
        return f"  {name} was silent for {silence:.2f} s, from {since - self.began:.1f} s on:\n" + "\n".join(lines)


class Chaos:
    """What is done to the plugins, at random."""

    def __init__(
        self, loader: Loader, workers: dict[str, Any], config: Path, valve: Valve, seed: int, answers: Answers
    ) -> None:
        self.loader = loader
        self.workers = workers
        self.config = config
        self.valve = valve
        self.answers = answers
        self.random = random.Random(seed)
        self.done: collections.Counter[str] = collections.Counter()
        self._harmed = dict.fromkeys(NAMES, 0.0)
        self._text = config.read_text()
        self._acts: list[Callable[[str], object]] = [
            *(self.kill, self.stop, self.close_sockets, self.fill_stderr, self.exit_in_mid_call),
            *(self.switch, self.reload, self.change_config, self.break_config),
        ]

    def act(self) -> None:
        act, name = self.random.choice(self._acts), self.random.choice(NAMES)
        concerned = NAMES if act == self.change_config else (name,)
        if any(self.answers.last[each] <= self._harmed[each] for each in concerned):
            return
        self.done[act.__name__] += 1
        self.answers.note("" if act == self.change_config else name, act.__name__)
        began = time.monotonic()
        try:
            act(name)
        except PluginError as error:
            self.done[f"{act.__name__}: {type(error).__name__}"] += 1
        for each in concerned:
            self._harmed[each] = time.monotonic()
        self.answers.note(name, f"{act.__name__} took {time.monotonic() - began:.2f} s")

    def kill(self, name: str) -> None:
        self._signal(name, signal.SIGKILL)

    def stop(self, name: str) -> None:
        self._signal(name, signal.SIGSTOP)

    def close_sockets(self, name: str) -> None:
        """Both ends of its connections see an end, at whatever byte they are."""
        for each in sockets_to(self._process(name)):
            with each, contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def fill_stderr(self, name: str) -> None:
        if name in AWAITED:
            return
        self.valve.opened.clear()
        try:
            with deadline(0.5):
                self.workers[name].write(_RAW_STDERR, 1 << 20, 1 << 14)
        finally:
            self.valve.opened.set()

    def exit_in_mid_call(self, name: str) -> None:
        if name in AWAITED:
            return
        with deadline(1.0):
            self.workers[name].exit(0)

    def switch(self, name: str) -> None:
        chains = [["subprocess", "in-process"], ["in-process"]]
        if name in ("gopher", "netrpc", "async_gopher"):
            chains += [["external", "subprocess", "in-process"], ["external", "in-process"]]
        self.loader.switch(name, self.random.choice(chains))

    def reload(self, name: str) -> None:
        self.loader.reload(name)

    def change_config(self, name: str) -> None:
        """Either what is applied to plugins that run, or what takes a new start of all."""
        new = self.random.choice(["max_restarts = 5", "max_restarts = 7", 'max_restarts = 5\ncwd = "."'])
        self.config.write_text(self._text.replace("max_restarts = 5", new))

    def break_config(self, name: str) -> None:
        self.config.write_text("[plugins.python\n")

    def _process(self, name: str) -> int | None:
        pid = self.loader.status(name).pid
        return None if pid == os.getpid() else pid

    def _signal(self, name: str, number: int) -> None:
        pid = self._process(name)
        if pid is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.ppid() == os.getpid():  # and not somebody else's by now
                    process.send_signal(number)


def sockets_to(pid: int | None) -> list[socket.socket]:
    """Copies of this process's sockets that are connected to a unix socket which that process listens on."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        copy = None
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                copy = os.dup(int(name))
                each = socket.socket(fileno=copy)
                copy = None
                credentials = each.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                if each.family == socket.AF_UNIX and struct.unpack("iii", credentials)[0] == pid:
                    found.append(each)
                else:
                    each.close()
        except OSError:  # closed meanwhile
            if copy is not None:
                os.close(copy)
    return found


def family() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


class Caller:
    """Calls plugins in turn, with data of its own."""

    def __init__(
        self, number: int, names: tuple[str, ...], workers: dict[str, Any], answers: Answers, ends: float
    ) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.latest = 0.0
        """The most that a call has taken beyond its deadline."""
        self._number = number
        self._names = names
        self._workers = workers
        self._answers = answers
        self._ends = ends

    def run(self) -> None:
        for name, data, limit in self._calls():
            with self._call(name, data, limit) as answer:
                answer.append(self._workers[name].echo(data))
            time.sleep(PACE)

    async def run_async(self) -> None:
        for name, data, limit in self._calls():
            with self._call(name, data, limit) as answer:
                answer.append(await self._workers[name].echo(data))
            await asyncio.sleep(PACE)  # a call in-process may come back without the loop having had a turn

    def _calls(self) -> Iterator[tuple[str, bytes, float]]:
        for number in itertools.count():
            if time.monotonic() >= self._ends:
                return
            name = self._names[(number + self._number) % len(self._names)]
            data = f"{self._number} {name} {number}".encode()
            if number % 50 == 0:
                data *= 10_000  # more than a socket takes at once
            # One in ten has less time than a plugin takes to start.
            yield name, data, SHORT if number % 10 == 0 else CALL_TIMEOUT

    @contextlib.contextmanager
    def _call(self, name: str, data: bytes, limit: float) -> Iterator[list[bytes]]:
        answer: list[bytes] = []
        began = time.monotonic()
        try:
            with deadline(limit):
                yield answer
        except PluginError as error:
            self.counts[type(error).__name__] += 1
        else:
            assert answer == [data], f"{answer[0][:50]!r} in answer to {data[:50]!r}"
            self.counts["right"] += 1
            self._answers.came(name)
        took = time.monotonic() - began
        if took - limit > max(self.latest, LATE):
            self._answers.note(name, f"a call took {took:.2f} s, {limit:g} s were given")
        self.latest = max(self.latest, took - limit)


def test_chaos_for_seconds(chaos_config: Path) -> None:
    run_chaos(chaos_config, warm_up=4, seconds=11)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_chaos_for_minutes(chaos_config: Path) -> None:
    run_chaos(chaos_config, warm_up=60, seconds=300)


@pytest.fixture
def chaos_config(
    write_module: Write, go_build: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    write_module("chaos_sdk", SDK)
    monkeypatch.setenv("CHAOS_HOST", str(os.getpid()))
    # Not in the folder that modules are imported from: importlib_metadata remembers each state of such a folder.
    path = tmp_path / "host" / "plugins.toml"
    path.parent.mkdir()
    path.write_text(CONFIG.replace("@GO@", str(go_build("tests/go/greeter"))))
    return path


def run_chaos(config: Path, *, warm_up: float, seconds: float) -> None:
    seed = int(os.environ.get("HYBRIDLOAD_CHAOS_SEED", random.SystemRandom().randrange(1_000_000)))
    print(f"HYBRIDLOAD_CHAOS_SEED={seed}")
    with quiet_logging() as valve:
        one_round(config, valve, seed, warm_up)
        before = Memory.of_this_process()
        calls = one_round(config, valve, seed + 1, seconds)
        after = Memory.of_this_process()
    print(f"memory: {after - before}")
    assert calls["right"] > 10
    (after - before).is_next_to_nothing()


def one_round(config: Path, valve: Valve, seed: int, seconds: float) -> collections.Counter[str]:
    text = config.read_text()
    descriptors, threads_before = len(os.listdir("/proc/self/fd")), threading.active_count()
    children = family()  # a fixture of a wider scope may have some
    told: collections.Counter[str] = collections.Counter()
    answers = Answers()

    def tell(event: PluginEvent) -> None:
        told[event.what] += 1
        answers.note(event.plugin or "", f"told: {event.what} ({event.isolation}, {event.message[:90]})")

    with Loader(config=config, group=GROUP) as loader:
        loader.on_event(tell)
        workers = loader.load_all(NAMES)
        answers.last = dict.fromkeys(NAMES, time.monotonic())
        chaos = Chaos(loader, workers, config, valve, seed, answers)
        ends = time.monotonic() + seconds
        threads = [Caller(number, CALLED, workers, answers, ends) for number in range(8)]
        tasks = [Caller(number, AWAITED, workers, answers, ends) for number in range(8, 8 + TASKS)]
        runs = [in_thread(caller.run) for caller in threads]
        runs.append(in_thread(lambda: asyncio.run(all_of(tasks))))
        while time.monotonic() < ends:
            chaos.act()
            time.sleep(chaos.random.uniform(0, 0.3))
        for run in runs:
            run.result(_PATIENCE)
        answers.end()
    config.write_text(text)
    callers = [*threads, *tasks]
    calls = sum((caller.counts for caller in callers), collections.Counter())
    latest = max(caller.latest for caller in callers)
    silences = {name: round(longest[0], 2) for name, longest in answers.longest.items()}
    print(f"chaos for {seconds:g} s: {calls.total()} calls {dict(calls)}")
    print(f"  the latest ended {latest:+.2f} s after its deadline; seconds without an answer: {silences}")
    print(f"  done: {dict(chaos.done)}")
    print(f"  told: {dict(told)}")
    print(answers.in_the_longest())
    assert latest < LATE
    assert max(silences.values()) < SILENCE
    assert family() <= children
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert threading.active_count() <= threads_before
    assert list(Path(os.environ["TMPDIR"]).glob("hybridload-*")) == []
    return calls


async def all_of(callers: list[Caller]) -> None:
    await asyncio.gather(*(caller.run_async() for caller in callers))


@contextlib.contextmanager
def quiet_logging() -> Iterator[Valve]:
    """What plugins write goes to a valve, and nothing of what happens to them to pytest, which keeps it in memory."""
    ours, plugins, valve = logging.getLogger("hybridload"), logging.getLogger("hybridload.plugin"), Valve()
    before = ours.level, plugins.level
    ours.setLevel(logging.CRITICAL)
    plugins.setLevel(logging.DEBUG)
    plugins.propagate = False
    plugins.addHandler(valve)
    try:
        yield valve
    finally:
        plugins.removeHandler(valve)
        plugins.propagate = True
        ours.setLevel(before[0])
        plugins.setLevel(before[1])
