"""Asynchronous streams, in both directions, are the same in a process as in the host."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hybridload import Loader

Open = Callable[..., Loader]

SDK = """
from collections.abc import AsyncIterator
from typing import Protocol

class Adder(Protocol):
    async def total(self, start: int, numbers: AsyncIterator[int]) -> int: ...
    async def first(self, numbers: AsyncIterator[int]) -> int: ...
    def running(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]: ...
    async def stuck(self, mark: str, numbers: AsyncIterator[int]) -> int: ...
"""

PLUGIN = """
import asyncio
from pathlib import Path

class Adder:
    async def total(self, start, numbers):
        async for number in numbers:
            start += number
        return start
    async def first(self, numbers):
        return await anext(numbers)
    async def running(self, numbers):
        total = 0
        async for number in numbers:
            total += number
            yield total
    async def stuck(self, mark, numbers):
        Path(mark + ".begun").touch()
        try:
            async for number in numbers:
                pass
            await asyncio.sleep(3600)
        finally:
            Path(mark).touch()
"""


IN_PROCESSES = ["subprocess direct", "subprocess grpcio"]


@pytest.fixture(params=["in-process", *IN_PROCESSES])
def adder(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    write_module: Any,
    install: Any,
    open_loader: Open,
) -> Any:
    isolation, _, engine = request.param.partition(" ")
    if engine:
        monkeypatch.setenv("HYBRIDLOAD_ENGINE", engine)
    write_module("adder_sdk", SDK)
    write_module("adder_plugin", PLUGIN)
    install(adder="adder_plugin:Adder")
    interface = importlib.import_module("adder_sdk").Adder
    return open_loader({"adder": interface}).load("adder", interface, isolation=isolation)


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number


async def wait_for(mark: Path) -> None:
    async with asyncio.timeout(20):
        while not mark.exists():
            await asyncio.sleep(0.01)


def test_items_go_in_and_come_out(adder: Any) -> None:
    async def main() -> None:
        assert await adder.total(1000, numbers(100)) == 1000 + sum(range(100))
        assert await adder.total(start=7, numbers=numbers(0)) == 7
        assert [total async for total in adder.running(numbers(5))] == [0, 1, 3, 6, 10]
        assert [total async for total in adder.running(numbers=numbers(0))] == []

    asyncio.run(main())


def test_many_calls_share_an_event_loop(adder: Any) -> None:
    async def main() -> list[int]:
        return list(await asyncio.gather(*(adder.total(each, numbers(20)) for each in range(20))))

    assert asyncio.run(main()) == [each + 190 for each in range(20)]


def test_answers_come_while_items_are_still_being_made(adder: Any) -> None:
    async def main() -> None:
        due: asyncio.Queue[int] = asyncio.Queue()

        async def made() -> AsyncIterator[int]:
            while True:
                yield await due.get()

        totals = adder.running(made())
        for number, total in ((1, 1), (10, 11), (100, 111)):
            await due.put(number)
            assert await anext(totals) == total
        await totals.aclose()

    asyncio.run(main())


def test_a_stream_that_is_made_outside_a_loop_runs_on_the_one_that_asks_for_it(adder: Any) -> None:
    totals = adder.running(numbers(3))

    async def main() -> list[int]:
        return [total async for total in totals]

    assert asyncio.run(main()) == [0, 1, 3]


def test_what_the_iterator_raises_reaches_its_own_caller(adder: Any) -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise LookupError("no more numbers")

    async def main() -> None:
        with pytest.raises(LookupError, match="no more numbers"):
            await adder.total(0, failing())
        totals = adder.running(failing())
        with pytest.raises(LookupError, match="no more numbers"):
            async for _ in totals:
                pass
        assert await adder.total(1, numbers(2)) == 2

    asyncio.run(main())


def test_a_plugin_may_answer_before_it_has_taken_everything(adder: Any) -> None:
    async def endless() -> AsyncIterator[int]:
        number = 42
        while True:
            yield number
            await asyncio.sleep(0.001)

    async def main() -> None:
        async with asyncio.timeout(20):
            assert await adder.first(endless()) == 42

    asyncio.run(main())


def test_an_iterator_that_waits_for_ever_keeps_nobody_when_the_answer_is_there(adder: Any) -> None:
    async def main() -> None:
        async def once() -> AsyncIterator[int]:
            yield 42
            await asyncio.Event().wait()

        async with asyncio.timeout(20):
            assert await adder.first(once()) == 42

    asyncio.run(main())


def test_cancelling_the_caller_cancels_the_call(adder: Any, tmp_path: Path) -> None:
    async def main() -> None:
        for made in (numbers(3), numbers(10**9)):
            mark = tmp_path / str(id(made))
            call = asyncio.ensure_future(adder.stuck(str(mark), made))
            await wait_for(Path(f"{mark}.begun"))
            assert not mark.exists()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await wait_for(mark)

    asyncio.run(main())


@pytest.mark.parametrize("adder", IN_PROCESSES, indirect=True)
def test_an_argument_that_is_no_async_iterator_is_a_type_error(adder: Any) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match=r"argument 'numbers' must be an async iterator, not list"):
            await adder.total(0, [1, 2])
        with pytest.raises(TypeError, match="missing a required argument"):
            adder.running()

    asyncio.run(main())
