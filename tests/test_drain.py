"""Counting calls: what a gate and a limit keep to, whatever comes in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future

import pytest

from hybridload.drain import CountedAsyncStream, CountedStream, Limit


def test_a_call_that_ends_while_turns_are_handed_out_lets_nobody_in_too_many() -> None:
    """The garbage collector may end a dropped stream at any step, in the very thread that hands out."""
    limit = Limit(2)

    class Collecting(Future[list[object]]):
        """A turn that is being handed out while a stream is collected."""

        def set_running_or_notify_cancel(self) -> bool:
            seats.pop().clear()
            limit.left()
            return super().set_running_or_notify_cancel()

    seats = [limit.seat(), limit.seat()]
    turns: list[Future[list[object]]] = [Collecting(), Future(), Future()]
    limit._turns.extend(turns)
    seats.pop().clear()
    limit.left()
    assert [turn.done() for turn in turns] == [True, True, False]
    assert limit.inside == 2


def test_a_turn_that_nobody_waits_for_takes_no_place() -> None:
    limit = Limit(1)
    seat = limit.seat()
    given_up, waiting = limit.queue(), limit.queue()
    assert given_up.cancel()
    seat.clear()
    limit.left()
    assert waiting.done()
    assert limit.inside == 1


class Generators:
    """An in-process plugin's streams, of both kinds, and whether they were ended."""

    def __init__(self) -> None:
        self.ended = 0
        self.left = 0

    def leave(self) -> None:
        self.left += 1

    def items(self, fails: bool) -> Iterator[int]:
        try:
            yield 1
            if fails:
                raise LookupError("no more")
            yield 2
        finally:
            self.ended += 1

    async def async_items(self, fails: bool) -> AsyncIterator[int]:
        try:
            yield 1
            if fails:
                raise LookupError("no more")
            yield 2
        finally:
            self.ended += 1

    async def stream(self, kind: str, fails: bool, end: str) -> None:
        """Take one item, and end the stream in a way."""
        if kind == "sync":
            stream = CountedStream(self.items(fails), self.leave)
            assert next(stream) == 1
            if end == "closed":
                stream.close()
                stream.close()
            elif end == "used up":
                list(stream)
        else:
            later = CountedAsyncStream(self.async_items(fails), self.leave)
            assert await anext(later) == 1
            if end == "closed":
                await later.aclose()
                await later.aclose()
            elif end == "used up":
                assert [item async for item in later] == [2]
        assert self.left == (end != "dropped")


@pytest.mark.parametrize("end", ["closed", "used up", "dropped"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stream_is_counted_until_it_ends_and_its_generator_ends_with_it(kind: str, end: str) -> None:
    generators = Generators()
    asyncio.run(generators.stream(kind, False, end))
    assert (generators.left, generators.ended) == (1, 1)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_stream_that_fails_is_counted_no_more(kind: str) -> None:
    generators = Generators()
    with pytest.raises(LookupError):
        asyncio.run(generators.stream(kind, True, "used up"))
    assert (generators.left, generators.ended) == (1, 1)
