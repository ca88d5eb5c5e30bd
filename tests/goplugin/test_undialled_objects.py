"""An object that a plugin returns is dialled in the time of the call that returned it, and holds up nobody else's."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest

from hybridload import Contract, Handshake, deadline
from hybridload.errors import BrokerError, CallTimeout
from hybridload.goplugin import Client
from hybridload.goplugin.grpc.broker import GRPCBroker
from hybridload.goplugin.grpc.messages import ConnInfo
from hybridload.goplugin.netrpc.broker import MuxBroker
from hybridload.goplugin.netrpc.server import NetRPCServer
from hybridload.goplugin.streams.base import Stream, StreamError
from hybridload.goplugin.streams.mux import Mux
from hybridload.goplugin.streams.sockets import SocketStream

HANDSHAKE = Handshake("UNDIALLED_PLUGIN", "hello")
CALL_TIMEOUT = 1.0
SOON = 0.25
LATE = 1.5
"""Seconds beyond a deadline, on a machine that has much to do; nobody's dial would be given up for five."""

PROGRAM = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_undialled_objects
test_undialled_objects.main()
"""


class Counter(Protocol):
    def add(self, number: int) -> int: ...


class Unary(Protocol):
    def counter(self) -> Counter: ...
    def counters_at_once(self) -> list[Counter]: ...
    async def counter_soon(self) -> Counter: ...
    def echo(self, text: str) -> str: ...


class Streaming(Unary, Protocol):
    def counters(self) -> Iterator[Counter]: ...
    def counters_soon(self) -> AsyncIterator[Counter]: ...


class Count:
    def add(self, number: int) -> int:
        return number + 1


class Impl:
    def counter(self) -> Counter:
        return Count()

    def counters_at_once(self) -> list[Counter]:
        return [Count(), Count()]

    async def counter_soon(self) -> Counter:
        return Count()

    def echo(self, text: str) -> str:
        return text

    def counters(self) -> Iterator[Counter]:
        yield Count()

    async def counters_soon(self) -> AsyncIterator[Counter]:
        yield Count()


def plugins(way: str) -> dict[str, Any]:
    return {"unary": Contract(Unary)} if way == "netrpc" else {"unary": Contract(Streaming)}


def main() -> None:
    """The plugin, which offers its objects or, when it was told so, does not."""
    from hybridload import serve
    from hybridload.goplugin.grpc.objects import BrokerObjects
    from hybridload.goplugin.netrpc.objects import MuxObjects

    way, offers = sys.argv[1:]
    if offers == "never":
        for kind in (BrokerObjects, MuxObjects):
            kind.export = lambda self, *_: self._broker.next_id() + 1000  # type: ignore[method-assign]
    serve(plugins(way), {"unary": Impl()}, handshake=HANDSHAKE, protocols=("netrpc" if way == "netrpc" else "grpc",))


async def first(items: AsyncIterator[Counter]) -> Counter:
    return await anext(items)


UNARY: dict[str, Callable[[Any], object]] = {
    "call": lambda plugin: plugin.counter(),
    "list": lambda plugin: plugin.counters_at_once(),
    "async call": lambda plugin: asyncio.run(plugin.counter_soon()),
}
STREAMS: dict[str, Callable[[Any], object]] = {
    "stream": lambda plugin: next(plugin.counters()),
    "async stream": lambda plugin: asyncio.run(first(plugin.counters_soon())),
}
CASES = [
    (way, call)
    for way in ("grpc", "multiplexed", "netrpc")
    for call in (UNARY if way == "netrpc" else {**UNARY, **STREAMS})
]
each_way = pytest.mark.parametrize("way", ["grpc", "multiplexed", "netrpc"])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    clients = []

    def start(way: str, offers: str = "never", call_timeout: float | None = CALL_TIMEOUT) -> Any:
        (tmp_path / "plugin.py").write_text(PROGRAM)
        client = Client(
            [sys.executable, str(tmp_path / "plugin.py"), way, offers],
            plugins=plugins(way),
            handshake=HANDSHAKE,
            multiplex=way == "multiplexed",
            call_timeout=call_timeout,
        )
        clients.append(client)
        plugin = client.dispense("unary")
        assert plugin.echo("begun") == "begun"
        return plugin

    yield start
    for client in clients:
        client.kill()


@pytest.mark.parametrize(("way", "call"), CASES, ids=[f"{way}-{call}" for way, call in CASES])
def test_a_call_whose_object_nobody_offers_ends_with_its_own_time(
    start: Callable[..., Any], way: str, call: str
) -> None:
    plugin = start(way)
    begun = time.monotonic()
    with pytest.raises(CallTimeout):
        {**UNARY, **STREAMS}[call](plugin)
    assert time.monotonic() - begun < CALL_TIMEOUT + LATE
    with deadline(CALL_TIMEOUT + LATE):
        assert plugin.echo("after it") == "after it"


@each_way
def test_a_call_whose_object_nobody_offers_ends_with_its_callers_deadline(start: Callable[..., Any], way: str) -> None:
    plugin = start(way, call_timeout=None)
    begun = time.monotonic()
    with deadline(SOON), pytest.raises(CallTimeout):
        plugin.counter()
    assert time.monotonic() - begun < SOON + LATE


@each_way
def test_whoever_waits_for_an_object_holds_up_nobody_else(start: Callable[..., Any], way: str) -> None:
    plugin = start(way, call_timeout=None)

    def wait_long() -> None:
        with suppress(BrokerError):
            plugin.counter()

    waiting = threading.Thread(target=wait_long)
    waiting.start()
    try:
        begun = time.monotonic()
        with deadline(SOON), pytest.raises(CallTimeout):
            plugin.counter()
        with deadline(LATE):
            assert plugin.echo("beside it") == "beside it"
        assert time.monotonic() - begun < SOON + LATE
        assert waiting.is_alive()
    finally:
        waiting.join()


@each_way
def test_objects_that_are_offered_are_dialled_within_the_deadline(start: Callable[..., Any], way: str) -> None:
    plugin = start(way, "at once", call_timeout=None)
    with deadline(30.0):
        counters = [plugin.counter(), *plugin.counters_at_once(), asyncio.run(plugin.counter_soon())]
        assert [counter.add(number) for number, counter in enumerate(counters)] == [1, 2, 3, 4]
    assert counters[0].add(5) == 6


@pytest.fixture
def unread() -> Iterator[tuple[Mux, MuxBroker]]:
    """A broker of a session whose other side reads nothing more."""
    ours, theirs = socket.socketpair()
    with theirs:
        mux = Mux(SocketStream(ours, "a peer that does not read"), client=True)
        filling = threading.Thread(target=fill, args=(mux.open(),))
        filling.start()
        broker = MuxBroker(mux, NetRPCServer("test"), name="test")
        while mux._below.writable():
            time.sleep(0.001)
        yield mux, broker
        mux.close()
        broker.close()
        filling.join()


def fill(stream: Stream) -> None:
    with suppress(StreamError):
        while True:
            stream.send(bytes(1 << 18))


def test_a_dial_ends_with_its_deadline_though_the_other_side_does_not_read(unread: tuple[Mux, MuxBroker]) -> None:
    begun = time.monotonic()
    with deadline(SOON), pytest.raises(CallTimeout):
        unread[1].dial(5)
    assert time.monotonic() - begun < SOON + LATE


def test_a_dial_that_waits_for_the_other_side_to_read_ends_with_the_session(unread: tuple[Mux, MuxBroker]) -> None:
    mux, broker = unread
    closing = threading.Timer(0.1, mux.close)
    closing.start()
    begun = time.monotonic()
    with pytest.raises(BrokerError, match="closed on this side"):
        broker.dial(5)
    assert time.monotonic() - begun < LATE
    closing.join()


def test_a_dial_does_not_wait_behind_anothers_for_longer_than_its_deadline() -> None:
    """Multiplexed, there is one knock at a time, and the other side may take five seconds to accept its stream."""
    opening, over = threading.Event(), threading.Event()

    def open_never(timeout: float) -> Stream:
        opening.set()
        over.wait(timeout)
        raise TimeoutError("it was not accepted")

    transport: Any = SimpleNamespace(multiplexed=True, open=open_never)
    engine: Any = SimpleNamespace()
    with closing(GRPCBroker(transport, engine, None, name="test")) as broker, ThreadPoolExecutor(1) as pool:
        first = pool.submit(broker.dial, 7)
        info = next(broker.outgoing())
        broker.receive([ConnInfo(service_id=info.service_id, knock={"knock": True, "ack": True})])
        assert opening.wait(LATE)
        begun = time.monotonic()
        with deadline(SOON), pytest.raises(CallTimeout):
            broker.dial(8)
        assert time.monotonic() - begun < SOON + LATE
        over.set()
        assert isinstance(first.exception(), BrokerError)
