"""Loaders whose plugins run in processes of their own: modules and distributions that are written for each test."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hybridload import Handshake, Loader, PluginEvent, PluginStatus

HANDSHAKE = Handshake("ISOLATION_TEST", "on")
GROUP = "test.isolation"

GREETER_SDK = """
from typing import Protocol
from hybridload import Contract, Handshake

class Greeter(Protocol):
    def greet(self) -> str: ...

class Hello:
    def greet(self):
        return "Hello from Python!"

PLUGINS = {"greeter": Contract(Greeter, service="proto.GreeterService")}
HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")
"""
"""A module with go-plugin's greeter and its plugin, for tests that need no more."""
PATIENCE = 60.0  # seconds

Write = Callable[[str, str], None]
Open = Callable[..., Loader]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module that this process and its children can import."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))

    return write


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., None]:
    """Installs a distribution with the given entry points."""

    def write(**entry_points: str) -> None:
        info = tmp_path / "isolation_test-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: isolation-test\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))

    return write


@pytest.fixture
def open_loader(tmp_path: Path) -> Iterator[Open]:
    """Opens a loader; a configuration is given as its text."""
    loaders: list[Loader] = []

    def begin(plugins: Any = None, config: str | None = None, **options: Any) -> Loader:
        if config is not None:
            options["config"] = tmp_path / "plugins.toml"
            options["config"].write_text(textwrap.dedent(config))
        loaders.append(Loader(plugins, group=GROUP, **{"handshake": HANDSHAKE, **options}))
        return loaders[-1]

    yield begin
    for loader in loaders:
        loader.close()


# What the tests of supervision have in common


WORK = """
import asyncio, os, signal, socket, sys, threading, time
from collections.abc import AsyncIterator, Iterator
from typing import Protocol
from hybridload import Handshake, idempotent

class Work(Protocol):
    def double(self, number: int) -> int: ...
    def pid(self) -> int: ...
    def note(self, number: int) -> int: ...
    def wait_for(self, file: str) -> int: ...
    @idempotent
    def wait_again(self, file: str) -> int: ...
    @idempotent
    def die(self) -> int: ...
    def last_words(self, words: str) -> int: ...
    def close_sockets(self) -> int: ...
    def close_sockets_at(self, file: str) -> int: ...
    def drop_connections(self) -> int: ...
    def say(self, text: str) -> int: ...
    def harm(self, how: str, host: int) -> int: ...
    def count(self, items: int) -> Iterator[int]: ...
    async def async_double(self, number: int) -> int: ...
    def async_count(self, items: int) -> AsyncIterator[int]: ...

class Worker:
    def __init__(self, notes="", offset=0):
        self.notes, self.offset = notes, offset
    def double(self, number):
        return 2 * number + self.offset
    def pid(self):
        return os.getpid()
    def note(self, number):
        descriptor = os.open(self.notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, b"%d\\n" % number)
        os.close(descriptor)
        return os.getpid()
    def wait_for(self, file):
        with open(file + ".entered", "a") as entered:
            entered.write(f"{os.getpid()}\\n")
        while not os.path.exists(file):
            time.sleep(0.002)
        return os.getpid()
    wait_again = wait_for
    def die(self):
        self.note(os.getpid())
        os._exit(7)
    def last_words(self, words):
        sys.__stderr__.write(words + "\\n")
        sys.__stderr__.flush()
        os.kill(os.getpid(), signal.SIGTERM if words == "ask" else signal.SIGKILL)
        time.sleep(60)
    def harm(self, how, host):
        if os.getpid() == host:
            return 0
        if how == "full_stderr":
            for _ in range(64):
                os.write(2, b"x" * 16384 + b"\\n")
            return 0
        return os._exit(0) if how == "exit" else self.close_sockets()
    def close_sockets(self):
        # Those that listen first: the host connects again as soon as it sees the end of the first of the others.
        self.close_these(listening=True)
        self.close_these(listening=False)
        threading.Thread(target=self.close_more, daemon=True).start()
        return 0
    def close_sockets_at(self, file):
        def wait():
            while not os.path.exists(file):
                time.sleep(0.002)
            self.close_sockets()
        threading.Thread(target=wait, daemon=True).start()
        return 0
    def drop_connections(self):
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                    each = socket.socket(fileno=os.dup(int(name)))
                    with each:
                        if each.family == socket.AF_UNIX and each.getsockname():  # accepted, or its own end of a bridge
                            each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) or each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        return 0
    def say(self, text):
        print(text, flush=True)
        return 0
    def close_more(self):
        while True:  # what was being accepted meanwhile
            time.sleep(0.005)
            self.close_these(listening=False)
    def close_these(self, listening):
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                    each = socket.socket(fileno=int(name))
                    if listening and not each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        each.detach()
                        continue
                    with each:  # a thread in `accept` would keep what is closed alone, and take one more
                        each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
    def count(self, items):
        yield from range(items)
    async def async_double(self, number):
        await asyncio.sleep(0)
        return 2 * number
    async def async_count(self, items):
        for item in range(items):
            yield item

PLUGINS = {"work": Work}
HANDSHAKE = Handshake("ISOLATION_TEST", "on")
"""
WORK_CONFIG = """
[host]
plugins = "work_sdk:PLUGINS"
handshake = "work_sdk:HANDSHAKE"
[defaults]
isolation = "subprocess"
[plugins.worker]
entry_point = "work_sdk:Worker"
"""


class Story:
    """Every event of a loader, to wait for."""

    def __init__(self, loader: Loader) -> None:
        self.events: list[PluginEvent] = []
        self._news = threading.Condition()
        self.unsubscribe = loader.on_event(self._take)

    def _take(self, event: PluginEvent) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()

    def wait_for(self, what: str, times: int = 1) -> PluginEvent:
        """The event of that kind that came for the nth time."""
        with self._news:
            came = self._news.wait_for(lambda: len(self.named(what)) >= times, PATIENCE)
            assert came, f"no {what!r} (time {times}) in {self.told()}"
            return self.named(what)[times - 1]

    def named(self, what: str) -> list[PluginEvent]:
        return [event for event in self.events if event.what == what]

    def told(self) -> list[str]:
        return [event.what for event in self.events]


@dataclass
class Workplace:
    """A loader with the worker, and what happened to it."""

    folder: Path
    loader: Loader
    worker: Any
    story: Story

    @property
    def config(self) -> Path:
        return self.folder / "plugins.toml"

    def status(self) -> PluginStatus:
        return self.loader.status("worker")

    def kill(self, number: int = signal.SIGKILL) -> int:
        pid = self.status().pid
        assert pid is not None
        assert pid != os.getpid()
        os.kill(pid, number)
        return pid

    def in_the_middle(self, method: Any) -> tuple[Future[Any], str]:
        """A call that was entered, on a thread of its own, and goes on until there is a file."""
        file = str(self.folder / f"go{next(_NUMBERS)}")
        call = in_thread(method, file)
        wait_until(lambda: os.path.exists(f"{file}.entered") and os.path.getsize(f"{file}.entered") > 0)
        return call, file


_NUMBERS = itertools.count()
Employ = Callable[..., Workplace]


@pytest.fixture
def employ(write_module: Write, open_loader: Open, tmp_path: Path) -> Employ:
    """Loads the worker with the given lines in its table."""
    write_module("work_sdk", WORK)

    def begin(*lines: str, watch: bool = False, **options: Any) -> Workplace:
        notes = f'options = {{ notes = "{tmp_path}/notes" }}'
        given = [notes, *lines] if not any(line.startswith("options") for line in lines) else list(lines)
        begun = WORK_CONFIG.replace("[host]", "[host]\nwatch = true") if watch else WORK_CONFIG
        loader = open_loader(config="\n".join([begun, *given]))
        worker = loader.load("worker", **options)
        return Workplace(tmp_path, loader, worker, Story(loader))

    return begin


def in_thread(work: Callable[..., Any], *args: Any) -> Future[Any]:
    """Call something on a thread of its own."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work(*args))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run).start()
    return done


def wait_until(holds: Callable[[], Any]) -> None:
    """Wait for what nobody tells about."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)
