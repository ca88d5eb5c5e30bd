"""Asynchronous methods: awaited, streamed, many at once, cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hybridload.errors import RemoteError

from .conftest import Row, ended_with_its_caller


async def numbers(*values: int) -> AsyncIterator[int]:
    for value in values:
        await asyncio.sleep(0)
        yield value


def test_a_method_is_awaited(everything: Any) -> None:
    assert asyncio.run(everything.slow_text("tea")) == "tea"


def test_many_are_in_flight_at_once(everything: Any) -> None:
    async def calls() -> list[str]:
        return await asyncio.gather(*(everything.slow_text(str(number)) for number in range(200)))

    assert asyncio.run(calls()) == [str(number) for number in range(200)]


def test_an_exception_is_raised_where_it_is_awaited(everything: Any, row: Row) -> None:
    if row.differs("go-errors"):
        with pytest.raises(RemoteError, match="bad value") as caught:
            asyncio.run(everything.slow_fail("value"))
        assert caught.value.code == ("UNKNOWN" if row.differs("text-errors") else "INVALID_ARGUMENT")
    else:
        with pytest.raises(ValueError, match="bad value"):
            asyncio.run(everything.slow_fail("value"))


def test_cancelling_the_task_cancels_the_plugins(everything: Any, row: Row, key: str) -> None:
    async def call() -> None:
        task = asyncio.create_task(everything.forever(key))
        assert await asyncio.to_thread(everything.ended, f"{key} begun")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(call())
    assert ended_with_its_caller(everything, row, key)


def test_a_timeout_of_asyncio_cancels_the_plugins(everything: Any, row: Row, key: str) -> None:
    async def call() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await everything.forever(key)

    asyncio.run(call())
    assert ended_with_its_caller(everything, row, key)


def test_results_stream(streaming: Any) -> None:
    async def collect() -> list[int]:
        return [number async for number in streaming.slow_count(50)]

    assert asyncio.run(collect()) == list(range(50))


def test_a_closed_stream_ends_the_plugins_generator(streaming: Any, key: str) -> None:
    async def first() -> int:
        stream = streaming.slow_endless(key)
        number = await anext(stream)
        await stream.aclose()
        return int(number)

    assert asyncio.run(first()) == 0
    assert streaming.ended(key)


def test_cancelling_a_stream_ends_the_plugins_generator(streaming: Any, key: str) -> None:
    async def take() -> None:
        begun = asyncio.Event()

        async def consume() -> None:
            async for _ in streaming.slow_endless(key):
                begun.set()

        task = asyncio.create_task(consume())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(take())
    assert streaming.ended(key)


def test_arguments_stream(streaming: Any) -> None:
    assert asyncio.run(streaming.slow_total(numbers(1, 2, 3))) == 6


def test_both_directions_stream(streaming: Any) -> None:
    async def collect() -> list[int]:
        return [number async for number in streaming.slow_scaled(2, numbers(1, 2, 3))]

    assert asyncio.run(collect()) == [2, 4, 6]


def test_an_argument_stream_that_fails_raises_its_own_error(streaming: Any) -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise LookupError("out of numbers")

    with pytest.raises(LookupError, match="out of numbers"):
        asyncio.run(streaming.slow_total(failing()))
