"""Whoever is killed, at whatever moment, ends every call of the other side that waits for it, by a named error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import psutil
import pytest

from hybridload import Contract
from hybridload.errors import BrokerError, PluginClosed, PluginCrashed
from hybridload.goplugin import Client
from hybridload.goplugin.streams.base import StreamError

NewClient = Callable[..., Client]
HERE = Path(__file__).parent
PATIENCE = 30.0  # seconds, until a call is under way
AT_ONCE = 5.0  # seconds, until all are over: one, and what a busy machine adds to it

# What a Python plugin is asked for, by the same bytes as the Go one.
SLOW_PLUGIN = """
import sys, threading, time
from collections.abc import Iterator
from typing import Protocol
from brokering import BrokerKind, HANDSHAKE, greet
from hybridload import Contract, serve

class Torture(Protocol):
    def echo(self, data: bytes) -> bytes: ...
    def hang(self) -> None: ...
    def count(self, count: int, size: int = 0, pause: float = 0.0) -> Iterator[int]: ...
    def collect(self, items: Iterator[int]) -> int: ...
    def chat(self, data: Iterator[bytes]) -> Iterator[bytes]: ...

class Slow:
    def echo(self, data):
        return data
    def hang(self):
        threading.Event().wait()
    def count(self, count, size=0, pause=0.0):
        for number in range(count):
            yield number
            time.sleep(pause)
    def collect(self, items):
        return sum(1 for _ in items)
    def chat(self, data):
        yield from data

KIND = BrokerKind()
TORTURE = Contract(Torture, service="torture.Torture")
serve({"torture": TORTURE, "broker": KIND}, {"torture": Slow()}, handshake=HANDSHAKE)
"""


class Torture(Protocol):
    """The part of it that both plugins have; items are of no interest here."""

    def echo(self, data: bytes) -> bytes: ...
    def hang(self) -> None: ...
    def count(self, count: int, size: int = 0, pause: float = 0.0) -> Iterator[int]: ...
    def collect(self, items: Iterator[int]) -> int: ...
    def chat(self, data: Iterator[bytes]) -> Iterator[bytes]: ...


@pytest.fixture(params=["plain", "tls", "multiplex", "tls+multiplex"])
def connection(request: pytest.FixtureRequest) -> dict[str, bool]:
    return {"auto_mtls": "tls" in request.param, "multiplex": "multiplex" in request.param}


@pytest.fixture(params=["go", "python"])
def client(
    request: pytest.FixtureRequest,
    new_client: NewClient,
    go_plugins: Any,
    brokering: Any,
    connection: dict[str, bool],
    engine: str,
    tmp_path: Path,
) -> Client:
    plugins: dict[str, Any] = {"broker": brokering.BrokerKind()}
    command: list[str | Path] = []
    if request.param == "go":
        plugins["torture"] = go_plugins.plugins["torture"]
    else:
        program = tmp_path / "plugin.py"
        program.write_text(f"import sys; sys.path.insert(0, {str(HERE)!r})\n{SLOW_PLUGIN}")
        command = [sys.executable, program]
        plugins["torture"] = Contract(Torture, service="torture.Torture")
    client = new_client(*command, plugins=plugins, env={"HYBRIDLOAD_ENGINE": engine}, **connection)
    client.start()
    return client


class Blocked:
    """Calls that wait, each on a thread, and what becomes of them."""

    def __init__(self, client: Client) -> None:
        self.torture = client.dispense("torture")
        self.broker = client.dispense("broker")
        self.done = threading.Event()
        self._pool = ThreadPoolExecutor(16)
        self._futures: dict[str, Future[float]] = {}
        self._begun: list[threading.Event] = []

    def start(self) -> None:
        """Return when all are under way, as far as can be told."""
        for call in (
            self.unary,
            self.server_stream,
            self.client_stream,
            self.bidi,
            self.broker_dial,
            self.broker_accept,
        ):
            begun = threading.Event()
            self._begun.append(begun)
            self._futures[call.__name__] = self._pool.submit(self._until_it_ends, call, begun)
        for begun in self._begun:
            assert begun.wait(PATIENCE)

    def _until_it_ends(self, call: Callable[[threading.Event], None], begun: threading.Event) -> float:
        try:
            call(begun)
        except (PluginCrashed, PluginClosed, BrokerError, StreamError):
            return time.monotonic()
        raise AssertionError(f"{call.__name__} came to an end without an error")

    def ended(self) -> dict[str, float]:
        """When each ended, by the monotonic clock."""
        try:
            return {name: future.result(PATIENCE) for name, future in self._futures.items()}
        finally:
            self.done.set()
            self._pool.shutdown()

    def unary(self, begun: threading.Event) -> None:
        begun.set()
        self.torture.hang()

    def server_stream(self, begun: threading.Event) -> None:
        for _ in self.torture.count(2, pause=3600.0):
            begun.set()

    def client_stream(self, begun: threading.Event) -> None:
        self.torture.collect(self._items(begun))

    def _items(self, begun: threading.Event) -> Iterator[Any]:
        begun.set()
        self.done.wait()
        yield from ()

    def bidi(self, begun: threading.Event) -> None:
        for _ in self.torture.chat(self._words(begun)):
            begun.set()

    def _words(self, begun: threading.Event) -> Iterator[bytes]:
        yield b"word"
        self.done.wait()

    def broker_dial(self, begun: threading.Event) -> None:
        begun.set()
        self.broker.dial(4711)

    def broker_accept(self, begun: threading.Event) -> None:
        listener = self.broker.accept(self.broker.next_id())
        begun.set()
        try:
            listener.accept(PATIENCE)
        finally:
            listener.close()


def test_a_killed_plugin_ends_every_call(client: Client) -> None:
    blocked = Blocked(client)
    blocked.start()
    assert client.pid is not None
    killed = time.monotonic()
    os.kill(client.pid, signal.SIGKILL)
    ended = blocked.ended()
    print({name: round(at - killed, 3) for name, at in ended.items()})
    assert max(ended.values()) - killed < AT_ONCE
    with pytest.raises((PluginCrashed, PluginClosed)):
        blocked.torture.echo(b"")


def test_a_client_that_is_killed_ends_its_calls(client: Client) -> None:
    blocked = Blocked(client)
    blocked.start()
    client.kill()
    killed = time.monotonic()
    ended = blocked.ended()
    print({name: round(at - killed, 3) for name, at in ended.items()})
    assert max(ended.values()) - killed < AT_ONCE


HOST = """
import os, sys, threading
sys.path.insert(0, FOLDER)
import brokering
from hybridload.goplugin import Client

client = Client(COMMAND, plugins=brokering.PLUGINS, handshake=brokering.HANDSHAKE, **OPTIONS)
client.start()
broker, torture = client.dispense("broker"), client.dispense("torture")

def serve(server):
    import grpc
    def never(request, context):
        print(client.pid, flush=True)
        threading.Event().wait()
    handler = grpc.unary_unary_rpc_method_handler(never)
    handlers = (grpc.method_handlers_generic_handler("proto.GreeterService", {"Greet": handler}),)
    server.add_generic_rpc_handlers(handlers)

service_id = broker.next_id()
broker.accept_and_serve(service_id, serve)
torture.call_back(service_id, 1)
"""


@pytest.mark.leaves(
    "files", reason="nobody is left who could remove the folder that a killed host made for Go's sockets"
)
@pytest.mark.parametrize("language", ["go", "python"])
def test_a_plugin_that_waits_for_a_killed_host_goes_away(
    go_build: Callable[[str], Path],
    start_python: Callable[[str], Any],
    connection: dict[str, bool],
    engine: str,
    language: str,
) -> None:
    command = [str(go_build("tests/go/greeter"))]
    if language == "python":
        command = [sys.executable, str(HERE / "brokering.py")]
    settings = f"FOLDER, COMMAND, OPTIONS = {str(HERE)!r}, {command!r}, {connection!r}\n"
    host = start_python(settings + textwrap.dedent(HOST), engine)
    plugin = psutil.Process(int(host.stdout.readline()))
    killed = time.monotonic()
    host.kill()
    plugin_ends(plugin)
    print(round(time.monotonic() - killed, 3))


def plugin_ends(plugin: psutil.Process) -> None:
    deadline = time.monotonic() + PATIENCE
    while plugin.is_running() and plugin.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"{plugin} lives on without its host"
        time.sleep(0.01)


@pytest.fixture
def start_python() -> Iterator[Callable[[str, str], Any]]:
    with ExitStack() as stack:

        def start(source: str, engine: str) -> Any:
            process = subprocess.Popen(
                [sys.executable, "-c", source],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "HYBRIDLOAD_ENGINE": engine},
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start
