"""A call's deadline holds for what the method calls, whatever streams: in each step of it, and no longer than that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol

import pytest

from hybridload import Contract
from hybridload.deadlines import end_of_calls
from hybridload.goplugin.event_loop import EventLoop
from hybridload.goplugin.grpc.contract_server import contract_service
from hybridload.goplugin.grpc.threads import CallThreads
from hybridload.goplugin.grpc.waiting import waiting_behavior

CENTURY = 36_525 * 86_400.0


class Clock(Protocol):
    def ask(self) -> bool: ...
    def ask_often(self, times: int) -> Iterator[bool]: ...
    def take(self, numbers: Iterator[int]) -> bool: ...
    def exchange(self, numbers: Iterator[int]) -> Iterator[bool]: ...
    async def slow_ask(self) -> bool: ...
    def slow_ask_often(self, times: int) -> AsyncIterator[bool]: ...
    async def slow_take(self, numbers: AsyncIterator[int]) -> bool: ...
    def slow_exchange(self, numbers: AsyncIterator[int]) -> AsyncIterator[bool]: ...


def limited() -> bool:
    return end_of_calls(None) is not None


class Watch:
    """Tells whether what it called now would be held to a deadline."""

    def ask(self) -> bool:
        return limited()

    def ask_often(self, times: int) -> Iterator[bool]:
        for _ in range(times):
            yield limited()

    def take(self, numbers: Iterator[int]) -> bool:
        return bool(sum(numbers)) and limited()

    def exchange(self, numbers: Iterator[int]) -> Iterator[bool]:
        for _ in numbers:
            yield limited()

    async def slow_ask(self) -> bool:
        await asyncio.sleep(0)
        return limited()

    async def slow_ask_often(self, times: int) -> AsyncIterator[bool]:
        for _ in range(times):
            await asyncio.sleep(0)
            yield limited()

    async def slow_take(self, numbers: AsyncIterator[int]) -> bool:
        return bool(sum([number async for number in numbers])) and limited()

    async def slow_exchange(self, numbers: AsyncIterator[int]) -> AsyncIterator[bool]:
        async for _ in numbers:
            yield limited()


class Context:
    """One call's, in the shape of grpcio's."""

    def __init__(self, left: float | None) -> None:
        self._left = left

    def time_remaining(self) -> float | None:
        return self._left

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return True


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    assert made.close(20.0)


@pytest.fixture
def threads() -> Iterator[CallThreads]:
    made = CallThreads("requests", None)
    yield made
    assert made.close(20.0)


@pytest.mark.parametrize(("left", "held"), [(20.0, True), (None, False), (CENTURY, False)])
@pytest.mark.parametrize("name", [name for name in vars(Watch) if not name.startswith("_")])
def test_what_a_method_calls_is_held_to_the_calls_deadline(
    loop: EventLoop, threads: CallThreads, name: str, left: float | None, held: bool
) -> None:
    service = Contract(Clock, service="test.Clock").complete()
    engine: Any = None  # nothing fails
    handlers = contract_service(service, Watch(), engine=engine, loop=loop)
    method = next(each for each in service.methods if each.name == name)
    handler = handlers.methods()[method.path]
    wire = service.wire().methods[name]
    many = method.kind.streams_result
    if method.kind.streams_arguments:
        request: Any = wire.encode_argument_stream((iter([1, 2]),), {}, None)
    else:
        request = wire.encode_arguments((2,) if many else (), {}, None)
    behavior: Any = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
    if handler.loop is not None:
        behavior = waiting_behavior(handler, threads)
    answer = behavior(request, Context(left))
    found = []
    for chunk in answer if many else [answer]:
        found.append(wire.decode_result(chunk, None))
        assert not limited()  # between two steps it is nobody's
    assert found == [held] * (2 if many else 1)
