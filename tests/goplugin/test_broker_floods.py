"""Broker messages and streams that nobody asked for, any number: they cost neither memory, nor threads, nor time.

A row of `FLOODS` is one message of a flood over gRPC, as the number of the message makes it; each is sent by a plugin
to its host and by a host to its plugin, with a socket for each connection and multiplexed.
"""

from __future__ import annotations

import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import psutil
import pytest

from hybridload import Contract, Handshake
from hybridload.errors import BrokerError, RemoteError
from hybridload.goplugin import Client
from hybridload.goplugin.grpc import broker as module
from hybridload.goplugin.grpc.broker import GRPCBroker
from hybridload.goplugin.grpc.messages import ConnInfo
from hybridload.goplugin.netrpc.client import NetRPCClient
from hybridload.goplugin.netrpc.gob import String, Uint
from hybridload.goplugin.pending import AT_MOST, Pending
from hybridload.goplugin.streams.base import StreamError
from hybridload.goplugin.streams.mux import Mux
from hybridload.goplugin.streams.sockets import connect
from hybridload.goplugin.transport import MultiplexedTransport

PATIENCE = 30.0  # seconds
MIB = 1 << 20
MANY = 4 * AT_MOST
FLOODS: dict[str, Callable[[int], dict[str, Any]]] = {
    "offers": lambda i: {"service_id": i + 1000, "network": "unix", "address": "/x"},
    "large offers": lambda i: {"service_id": i + 1000, "network": "unix", "address": "x" * 4096},
    "offers of one id": lambda i: {"service_id": 1000, "network": "unix", "address": "/x"},
    "knocks": lambda i: {"service_id": i + 1000, "knock": {"knock": True}},
    "knocks of one id": lambda i: {"service_id": 1000, "knock": {"knock": True}},
    "acknowledgements": lambda i: {"service_id": i + 1000, "knock": {"knock": True, "ack": True}},
    "refusals": lambda i: {"service_id": i + 1000, "knock": {"knock": True, "ack": True, "error": "no"}},
}
each_flood = pytest.mark.parametrize("flood", FLOODS)
each_way = pytest.mark.parametrize("multiplex", [False, True], ids=["plain", "multiplexed"])

# What a peer says that floods: first the flood, then what it has to say.
FLOODED = """
class Flooded:
    def __init__(self, outgoing, message, many):
        self.close, self.messages = outgoing.close, self.flood(outgoing, message, many)
    def __iter__(self):
        return self
    def __next__(self):
        return next(self.messages)
    def flood(self, outgoing, message, many):
        number = 0
        while number < many and not outgoing._closed:
            yield ConnInfo(**message(number))
            number += 1
        yield from outgoing
"""
PROGRAM = f"""
import sys
from typing import Protocol
from hybridload import Contract, Handshake, serve
from hybridload.goplugin.grpc.broker import GRPCBroker
from hybridload.goplugin.grpc.messages import ConnInfo
sys.path.insert(0, {str(Path(__file__).parent)!r})
{FLOODED}
if len(sys.argv) > 3:
    from test_broker_floods import FLOODS
    outgoing = GRPCBroker.outgoing
    GRPCBroker.outgoing = lambda self: Flooded(outgoing(self), FLOODS[sys.argv[3]], float(sys.argv[2]))

class Listener(Protocol):
    def hear(self, text: str) -> str: ...

class Greeter(Protocol):
    def greet(self) -> str: ...
    def tell(self, listener: Listener) -> str: ...

class Hello:
    def greet(self):
        return "hello"
    def tell(self, listener):
        return listener.hear("hello")

serve({{"greeter": Contract(Greeter)}}, {{"greeter": Hello()}}, handshake=Handshake("BASIC_PLUGIN", "hello"),
      protocols=(sys.argv[1],))
"""
exec(FLOODED)  # the host floods as the plugin does


class Listener(Protocol):
    def hear(self, text: str) -> str: ...


class Greeter(Protocol):
    def greet(self) -> str: ...

    def tell(self, listener: Listener) -> str: ...


class Ears:
    def hear(self, text: str) -> str:
        return f"heard {text}"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    clients = []

    def start(*arguments: str, multiplex: bool = False) -> Client:
        (tmp_path / "plugin.py").write_text(PROGRAM)
        client = Client(
            [sys.executable, str(tmp_path / "plugin.py"), *arguments],
            plugins={"greeter": Contract(Greeter)},
            handshake=Handshake("BASIC_PLUGIN", "hello"),
            auto_mtls=False,
            multiplex=multiplex,
        )
        clients.append(client)
        client.start()
        return client

    yield start
    for client in clients:
        client.kill()


def resident(pid: int | None = None) -> int:
    size: int = psutil.Process(pid).memory_info().rss
    return size


def told(greeter: Any) -> str:
    """What comes of a callback, which takes the broker. It may have to wait until the flood is over."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            said: str = greeter.tell(Ears())
        except (BrokerError, RemoteError):
            if time.monotonic() > deadline:
                raise
        else:
            return said


@each_way
@each_flood
def test_a_host_bears_a_flood_of_its_plugin(start: Callable[..., Client], flood: str, multiplex: bool) -> None:
    before = resident()
    client = start("grpc", str(MANY), flood, multiplex=multiplex)
    greeter = client.dispense("greeter")
    assert greeter.greet() == "hello"
    assert told(greeter) == "heard hello"
    assert greeter.greet() == "hello"
    assert resident() - before < 64 * MIB


@each_way
@each_flood
def test_a_plugin_bears_a_flood_of_its_host(
    start: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, flood: str, multiplex: bool
) -> None:
    outgoing = GRPCBroker.outgoing
    made = globals()["Flooded"]
    monkeypatch.setattr(GRPCBroker, "outgoing", lambda self: made(outgoing(self), FLOODS[flood], MANY))
    client = start("grpc", multiplex=multiplex)
    greeter = client.dispense("greeter")
    assert greeter.greet() == "hello"
    before = resident(client.pid)
    assert told(greeter) == "heard hello"
    assert greeter.greet() == "hello"
    assert resident(client.pid) - before < 64 * MIB
    client.kill()
    assert client.returncode == 0


@each_way
@each_flood
def test_a_flood_that_does_not_end_holds_up_no_close(start: Callable[..., Client], flood: str, multiplex: bool) -> None:
    client = start("grpc", "inf", flood, multiplex=multiplex)
    assert client.dispense("greeter").greet() == "hello"
    began = time.monotonic()
    client.kill()
    assert time.monotonic() - began < 10


def test_acknowledgements_that_nobody_asked_for_open_no_streams(
    start: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 1.0)
    opened = []
    real = MultiplexedTransport.open
    monkeypatch.setattr(MultiplexedTransport, "open", lambda self, timeout: (opened.append(1), real(self, timeout))[1])
    client = start("grpc", str(MANY), "acknowledgements", multiplex=True)
    assert client.dispense("greeter").greet() == "hello"
    broker = client._connection._broker  # type: ignore[union-attr]
    opened.clear()
    assert isinstance(broker, GRPCBroker)
    with pytest.raises(BrokerError):
        broker.dial(7)
    assert not opened


@each_way
@each_flood
def test_what_a_flood_leaves_behind_is_bounded(flood: str, multiplex: bool) -> None:
    transport: Any = SimpleNamespace(multiplexed=multiplex, expect=lambda listener: True)
    with closing(GRPCBroker(transport, SimpleNamespace(), None, name="test")) as broker:  # type: ignore[arg-type]
        if multiplex:
            broker.accept(1000)
        tracemalloc.start()
        try:
            broker.receive(ConnInfo(**FLOODS[flood](number)) for number in range(MANY * 2))
            left, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert left < 6 * MIB


# net/rpc


class Host:
    """A host of a plugin over net/rpc that does as it likes."""

    def __init__(self, client: Client) -> None:
        attach = client.reattach_config
        self.mux = Mux(connect(attach.network, attach.address, PATIENCE), client=True)
        self.control, *self.output = (self.mux.open(PATIENCE) for _ in range(3))
        self.calls = NetRPCClient(self.control)

    def dispense(self) -> int:
        service_id: int = self.calls.call("Dispenser.Dispense", "greeter", String(), Uint(32), timeout=PATIENCE)
        return service_id

    def flood_of_dispenses(self) -> None:
        """Kinds are dispensed that nobody connects to, until the plugin makes no more."""
        for _ in range(AT_MOST * 4):
            try:
                self.dispense()
            except RemoteError:
                return

    def flood_of_streams(self) -> None:
        """Streams are opened that say no id."""
        for _ in range(4000):
            try:
                self.mux.open(0.05)
            except TimeoutError:
                return

    def flood_of_ids(self) -> None:
        """Streams are opened for ids that nobody accepts."""
        for number in range(4000):
            try:
                self.mux.open(0.05).send((1_000_000 + number).to_bytes(4, "little"))
            except (TimeoutError, StreamError):
                return

    def flood_of_closed_streams(self) -> None:
        """As before, and they are given up by one side only."""
        for _ in range(4000):
            try:
                self.mux.open(0.05).close_write()
            except TimeoutError:
                return

    def close(self) -> None:
        self.mux.close()
        self.calls.close()


@pytest.mark.parametrize(
    "flood", [Host.flood_of_dispenses, Host.flood_of_streams, Host.flood_of_ids, Host.flood_of_closed_streams]
)
def test_a_plugin_over_netrpc_bears_a_flood_of_its_host(start: Callable[..., Client], flood: Any) -> None:
    client = start("netrpc")
    greeter = client.dispense("greeter")
    assert greeter.greet() == "hello"
    process = psutil.Process(client.pid)
    before = resident(client.pid)
    host = Host(client)
    try:
        flood(host)
        assert greeter.greet() == "hello"
        assert told(greeter) == "heard hello"
        assert resident(client.pid) - before < 128 * MIB
        assert process.num_threads() < 400
    finally:
        host.close()
    client.kill()
    assert client.returncode == 0


# What is remembered


def test_pending_is_bounded_and_forgets_in_order() -> None:
    now = 0.0
    pending = Pending[str](5.0, 3, lambda: now)
    assert [pending.put(key, str(key)) for key in (1, 2, 3)] == [[], [], []]
    assert pending.full
    assert pending.put(4, "4") == [1]
    now = 1.0
    assert pending.put(2, "again") == []
    assert (pending.pop(1), pending.pop(3), len(pending)) == (None, "3", 2)
    now = 5.0
    assert pending.next_stale == 5.0
    assert pending.forget_stale() == [4]
    assert 2 in pending
    now = 6.0
    assert pending.pop(2) is None
    assert pending.next_stale is None


def test_forgetting_what_is_stale_does_not_look_at_the_rest() -> None:
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return 0.0

    pending = Pending[int](5.0, clock=clock)
    threads = threading.active_count()
    began = time.perf_counter()
    for key in range(100 * AT_MOST):
        pending.put(key, key)
    assert len(pending) == AT_MOST
    assert looks <= 200 * AT_MOST
    assert time.perf_counter() - began < PATIENCE
    assert threading.active_count() == threads
