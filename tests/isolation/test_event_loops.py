"""A loader used from an event loop, which goes on while plugins start, move and end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hybridload import Loader
from hybridload.errors import PluginClosed, PluginNotFound
from tests.isolation.conftest import PATIENCE, WORK, WORK_CONFIG

# Built only when the test says so; both have to be built at once.
SLOW = """
import threading
from work_sdk import Worker
go, both = threading.Event(), threading.Barrier(2)

class Slow(Worker):
    def __init__(self, **options):
        if not go.wait(60):
            raise TimeoutError
        super().__init__(**options)

class SideBySide(Worker):
    def __init__(self, **options):
        both.wait(60)
        super().__init__(**options)

class Faulty(Worker):
    def close(self):
        raise ValueError("cannot close")
"""
MORE = """
[plugins.slow]
entry_point = "slow_work:Slow"
isolation = "in-process"
[plugins.left]
entry_point = "slow_work:SideBySide"
isolation = "in-process"
[plugins.right]
entry_point = "slow_work:SideBySide"
isolation = "in-process"
[plugins.faulty]
entry_point = "slow_work:Faulty"
isolation = "in-process"
"""

New = Callable[[], Loader]


@pytest.fixture
def new_loader(write_module: Any, open_loader: Callable[..., Loader]) -> New:
    write_module("work_sdk", WORK)
    write_module("slow_work", SLOW)
    return lambda: open_loader(config=WORK_CONFIG + MORE)


@pytest.mark.parametrize("isolation", ["in-process", "subprocess"])
def test_async_with_loads_serves_and_closes(new_loader: New, isolation: str) -> None:
    async def host() -> Any:
        async with new_loader() as loader:
            worker = await loader.aload("worker", isolation=isolation)
            assert worker is loader.load("worker") is (await loader.aload_all(["worker"]))["worker"]
            assert await asyncio.gather(*(worker.async_double(number) for number in range(20))) == list(range(0, 40, 2))
            assert [item async for item in worker.async_count(3)] == [0, 1, 2]
            return worker

    worker = asyncio.run(host())
    with pytest.raises(PluginClosed):
        worker.pid()


def test_the_event_loop_goes_on_while_a_plugin_starts(new_loader: New) -> None:
    async def host() -> int:
        async with new_loader() as loader:
            loading = asyncio.create_task(loader.aload("slow"))
            while loader.status("slow").state == "unloaded" and not _is_building():
                await asyncio.sleep(0.001)
            import slow_work

            slow_work.go.set()  # on the loop: were it blocked, this would never come
            return (await asyncio.wait_for(loading, PATIENCE)).double(4)

    assert asyncio.run(host()) == 8


def _is_building() -> bool:
    return any(thread.name == "hybridload slow load" for thread in threading.enumerate())


def test_plugins_start_side_by_side(new_loader: New) -> None:
    async def host() -> list[int]:
        async with new_loader() as loader:
            plugins = await asyncio.wait_for(asyncio.gather(loader.aload("left"), loader.aload("right")), PATIENCE)
            return [plugin.double(1) for plugin in plugins]

    assert asyncio.run(host()) == [2, 2]


@pytest.mark.parametrize("how", ["switch", "reload"])
def test_a_call_in_flight_on_the_loop_ends_where_it_began(new_loader: New, how: str) -> None:
    async def host() -> None:
        async with new_loader() as loader:
            worker = await loader.aload("worker")
            before = loader.status("worker").pid
            stream = worker.async_count(20_000)
            assert await anext(stream) == 0
            move = loader.aswitch("worker", "in-process") if how == "switch" else loader.areload("worker")
            moving = asyncio.create_task(move)
            while loader.status("worker").pid == before:
                await asyncio.sleep(0.001)
            assert [item async for item in stream] == list(range(1, 20_000))
            await asyncio.wait_for(moving, PATIENCE)
            assert (worker.pid() == os.getpid()) == (how == "switch")

    asyncio.run(host())


def test_a_load_that_is_cancelled_goes_on(new_loader: New) -> None:
    async def host() -> None:
        async with new_loader() as loader:
            loading = asyncio.create_task(loader.aload("slow"))
            while not _is_building():
                await asyncio.sleep(0.001)
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
            import slow_work

            slow_work.go.set()
            assert (await loader.aload("slow")).double(4) == 8

    asyncio.run(host())


def test_closing_goes_on_when_whoever_waits_is_cancelled(new_loader: New) -> None:
    async def host() -> Any:
        loader = new_loader()
        worker = await loader.aload("worker")
        closing = asyncio.create_task(loader.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        await loader.aclose()
        await loader.aclose()
        loader.close()
        return worker

    with pytest.raises(PluginClosed):
        asyncio.run(host()).pid()


def test_errors_are_those_of_load_and_close(new_loader: New) -> None:
    async def host() -> None:
        async with new_loader() as loader:
            with pytest.raises(PluginNotFound):
                await loader.aload("nobody")
            await loader.aload("faulty")

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(host())
    assert "cannot close" in str(caught.value.exceptions[0])


def test_an_error_of_the_body_closes_it_as_well(new_loader: New) -> None:
    seen: list[Any] = []

    async def host() -> None:
        async with new_loader() as loader:
            seen.append(await loader.aload("worker"))
            raise LookupError("of the body")

    with pytest.raises(LookupError, match="of the body"):
        asyncio.run(host())
    with pytest.raises(PluginClosed):
        seen[0].pid()
