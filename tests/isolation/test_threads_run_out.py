"""Plugins that cannot start another thread: the calls that need one are refused, and all else goes on."""

from __future__ import annotations

import asyncio
import collections
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hybridload import deadline
from hybridload.errors import RemoteError
from tests.isolation.conftest import Open, Write

PATIENCE = 60.0
SDK = """
import threading, time
from collections.abc import AsyncIterator, Iterator
from typing import Protocol
from hybridload import Handshake

class Crowd(Protocol):
    def run_out(self, left: int) -> int: ...
    def recover(self) -> int: ...
    def double(self, number: int) -> int: ...
    def nap(self, seconds: float) -> int: ...
    def count(self, items: int) -> Iterator[int]: ...
    def total(self, numbers: Iterator[int]) -> int: ...
    async def slow_double(self, number: int) -> int: ...
    def slow_count(self, items: int) -> AsyncIterator[int]: ...

start, room = threading.Thread.start, []

def refuse(self):
    try:
        room.pop()
    except IndexError:
        raise RuntimeError("can't start new thread") from None
    start(self)

class Everybody:
    def run_out(self, left):
        room[:] = [None] * left
        threading.Thread.start = refuse
        return left
    def recover(self):
        threading.Thread.start = start
        return 0
    def double(self, number): return 2 * number
    def nap(self, seconds):
        time.sleep(seconds)
        return 0
    def count(self, items): yield from range(items)
    def total(self, numbers): return sum(numbers)
    async def slow_double(self, number): return 2 * number
    async def slow_count(self, items):
        for item in range(items):
            yield item

PLUGINS = {"crowd": Crowd}
HANDSHAKE = Handshake("ISOLATION_TEST", "on")
"""
CONFIG = """
[host]
plugins = "crowd_sdk:PLUGINS"
handshake = "crowd_sdk:HANDSHAKE"
[plugins.crowd]
entry_point = "crowd_sdk:Everybody"
isolation = "subprocess"
protocols = ["grpc"]
"""


@pytest.fixture(params=["direct", "grpcio"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, write_module: Write) -> str:
    monkeypatch.setenv("HYBRIDLOAD_ENGINE", request.param)
    write_module("crowd_sdk", SDK)
    name: str = request.param
    return name


def outcome(call: Any, *args: Any) -> str:
    """`"answered"`, or the status of who was refused; anything else is a failure."""
    try:
        with deadline(PATIENCE):
            call(*args)
    except RemoteError as error:
        if "No thread can be started" not in str(error):
            raise
        return str(error.code)
    return "answered"


async def collected(stream: Any) -> list[int]:
    return [item async for item in stream]


KINDS = {
    "unary": lambda crowd: crowd.double(3),
    "slow": lambda crowd: crowd.nap(0.1),
    "responses": lambda crowd: list(crowd.count(3)),
    "requests": lambda crowd: crowd.total(iter([1, 2, 3])),
    "asynchronous": lambda crowd: asyncio.run(crowd.slow_double(3)),
    "asynchronous responses": lambda crowd: asyncio.run(collected(crowd.slow_count(3))),
}
"""A row for each kind of call; all of them must do with what threads there are, or be refused."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_needs_a_thread_is_refused_and_its_connection_lives(
    engine: str, open_loader: Open, kind: str
) -> None:
    loader = open_loader(config=CONFIG)
    crowd = loader.load("crowd")
    pid = loader.status("crowd").pid
    crowd.run_out(0)
    with ThreadPoolExecutor(12) as callers:
        for _ in range(2):
            outcomes = set(callers.map(lambda _: outcome(KINDS[kind], crowd), range(12)))
            assert outcomes <= {"answered", "RESOURCE_EXHAUSTED"}
    assert outcome(crowd.recover) == "answered"
    with ThreadPoolExecutor(12) as callers:
        assert set(callers.map(lambda _: outcome(KINDS[kind], crowd), range(12))) == {"answered"}
    assert (loader.status("crowd").pid, loader.status("crowd").restarts) == (pid, 0)


def test_a_limit_on_memory_refuses_calls_and_no_more(engine: str, open_loader: Open) -> None:
    """As many as there is room for are answered, whatever that is; nobody waits for ever, and the plugin lives."""
    loader = open_loader(config=CONFIG + 'limits = { memory = "300MB" }')
    crowd = loader.load("crowd")
    pid = loader.status("crowd").pid
    with ThreadPoolExecutor(80) as callers:
        outcomes = collections.Counter(callers.map(lambda _: outcome(crowd.nap, 1.0), range(80)))
    assert set(outcomes) <= {"answered", "RESOURCE_EXHAUSTED"}
    assert outcomes["answered"] >= 8
    assert outcome(crowd.nap, 0.0) == "answered"
    assert (loader.status("crowd").pid, loader.status("crowd").restarts) == (pid, 0)
