"""Calls that are awaited on an event loop which is closed under them: they are counted no more, collected or not."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from hybridload import Loader, deadline
from tests.isolation.conftest import PATIENCE, Open, Write, wait_until

SDK = """
import asyncio
from collections.abc import AsyncIterator
from typing import Protocol
from hybridload import Handshake

class Calls(Protocol):
    async def nap(self, seconds: float) -> str: ...
class Streams(Protocol):
    async def nap(self, seconds: float) -> str: ...
    def naps(self, seconds: float) -> AsyncIterator[str]: ...

class Sleeper:
    async def nap(self, seconds):
        await asyncio.sleep(seconds)
        return "napped"
    async def naps(self, seconds):
        yield "first"
        await asyncio.sleep(seconds)
        yield "second"

HANDSHAKE = Handshake("CLOSED_LOOPS", "on")
PLUGINS = {"calls": Calls, "streams": Streams}
"""
CONFIG = """
[host]
plugins = "closing_sdk:PLUGINS"
handshake = "closing_sdk:HANDSHAKE"
[plugins.sleeper]
entry_point = "closing_sdk:Sleeper"
max_concurrency = 3
"""
WAYS = {
    "in-process": 'isolation = "in-process"\nkind = "streams"',
    "gRPC": 'isolation = "subprocess"\nkind = "streams"',
    "net/rpc": 'isolation = "subprocess"\nprotocols = ["netrpc"]\nkind = "calls"',
}


@pytest.fixture(params=WAYS)
def sleeping(request: pytest.FixtureRequest, write_module: Write, open_loader: Open) -> tuple[Loader, Any]:
    source = SDK if request.param != "net/rpc" else SDK.replace(', "streams": Streams', "")
    write_module("closing_sdk", source)
    loader = open_loader(config=f"{CONFIG}{WAYS[request.param]}\n")
    return loader, loader.load("sleeper")


def abandoned(*begun: Any) -> list[Any]:
    """Coroutines that are left suspended when their event loop is closed; they live as long as what is returned."""
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(each) for each in begun]
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.call_later(0.2, loop.stop)
    loop.run_forever()
    loop.close()
    return tasks


async def second(sleeper: Any) -> str:
    async for nap in sleeper.naps(PATIENCE):
        if nap == "second":
            return str(nap)
    raise AssertionError


def test_a_permit_comes_back_when_its_event_loop_is_closed(sleeping: tuple[Loader, Any]) -> None:
    loader, sleeper = sleeping
    streams = hasattr(sleeper, "naps")
    for _ in range(2):
        kept = abandoned(*(second(sleeper) if streams and n == 2 else sleeper.nap(PATIENCE) for n in range(3)))
        with deadline(PATIENCE):
            assert asyncio.run(sleeper.nap(0.0)) == "napped"
        assert loader.status("sleeper").in_flight == 0
        assert not any(task.done() for task in kept)


def test_nobody_waits_for_what_is_never_gone_on_with(sleeping: tuple[Loader, Any]) -> None:
    loader, sleeper = sleeping
    kept = abandoned(sleeper.nap(PATIENCE), sleeper.nap(PATIENCE))
    began = time.monotonic()
    loader.reload("sleeper")
    kept += abandoned(sleeper.nap(PATIENCE))
    loader.close()
    assert time.monotonic() - began < 20  # and not the 30 that calls may take to end
    assert loader.status("sleeper").in_flight == 0
    for task in kept:
        task.get_coro().close()  # as when it is collected: nothing is counted twice
    wait_until(lambda: loader.status("sleeper").in_flight == 0)
