"""An object that a plugin returns is dialled in the time of the call that returned it, and holds up nobody else's."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pytest

from hybridload import Contract, Handshake, deadline
from hybridload.errors import BrokerError, CallTimeout
from hybridload.goplugin import Client

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
