"""Callers who share a plugin share nothing of each other's deadlines, whatever its connections are just doing."""

from __future__ import annotations

import asyncio
import collections
import os
import random
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

import hybridload
from hybridload import Loader
from hybridload.errors import PluginError
from tests.isolation.conftest import PATIENCE, Open, Write

SDK = """
import asyncio, time
from typing import Protocol
from hybridload import Contract, Handshake

class Napping(Protocol):
    def nap(self, seconds: float) -> int: ...
    async def doze(self, seconds: float) -> int: ...

class Napper:
    def nap(self, seconds):
        time.sleep(seconds)
        return 1
    async def doze(self, seconds):
        await asyncio.sleep(seconds)
        return 1

PLUGINS = {"napping": Contract(Napping)}
HANDSHAKE = Handshake("ISOLATION_TEST", "on")
"""
CONFIG = """
[host]
plugins = "napping_sdk:PLUGINS"
handshake = "napping_sdk:HANDSHAKE"
[plugins.napper]
entry_point = "napping_sdk:Napper"
isolation = "subprocess"
max_restarts = 1000
backoff = 0.01
backoff_max = 0.02
"""
WAYS = {
    "grpc": 'protocols = ["grpc"]',
    "multiplexed": 'protocols = ["grpc"]\nmultiplex = true',
    "netrpc": 'protocols = ["netrpc"]',
}
CALLS, KILLS = 60, 4


class Crowd:
    """Threads and coroutines that call until they are told to stop, and what they were told."""

    def __init__(self, napper: Any) -> None:
        self.napper = napper
        self.enough = threading.Event()
        self.told: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.threads = [
            *(threading.Thread(target=self.be, args=("impatient", self.nap_briefly)) for _ in range(5)),
            *(threading.Thread(target=self.be, args=("patient", self.nap)) for _ in range(4)),
            threading.Thread(target=asyncio.run, args=(self.loop(),)),
        ]

    def nap(self) -> None:
        self.napper.nap(random.uniform(0, 0.01))

    def nap_briefly(self) -> None:
        with hybridload.deadline(random.choice([0.001, 0.003, 0.01])):
            self.nap()

    async def doze(self) -> None:
        await self.napper.doze(random.uniform(0, 0.01))

    async def doze_briefly(self) -> None:
        with hybridload.deadline(random.choice([0.001, 0.003, 0.01])):
            await self.doze()

    def be(self, what: str, call: Callable[[], None]) -> None:
        while not self.enough.is_set():
            try:
                call()
                self.told[what]["ok"] += 1
            except PluginError as error:
                self.told[what][f"{type(error).__name__}: {error}"[:200]] += 1

    async def loop(self) -> None:
        async def be(what: str, call: Any) -> None:
            while not self.enough.is_set():
                try:
                    await call()
                    self.told[what]["ok"] += 1
                except PluginError as error:
                    self.told[what][f"{type(error).__name__}: {error}"[:200]] += 1

        brief = [be("impatient coroutine", self.doze_briefly) for _ in range(5)]
        await asyncio.gather(*brief, *(be("patient coroutine", self.doze) for _ in range(4)))

    def called(self, who: str, times: int) -> bool:
        return self.told[who]["ok"] >= times

    def until(self, condition: Callable[[], bool]) -> None:
        poll = threading.Event()
        for _ in range(int(PATIENCE / 0.01)):
            if condition():
                return
            poll.wait(0.01)
        raise AssertionError(f"not within {PATIENCE:g} s: {self.told}")

    def __enter__(self) -> Crowd:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.enough.set()
        for thread in self.threads:
            thread.join(PATIENCE)

    def only(self, who: str, *allowed: str) -> None:
        others = [told for told in self.told[who] if told.partition(":")[0] not in ("ok", *allowed)]
        assert others == []


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def loader(request: pytest.FixtureRequest, write_module: Write, open_loader: Open) -> Loader:
    write_module("napping_sdk", SDK)
    return open_loader(config=CONFIG + request.param, handshake=None)


def test_a_callers_deadline_is_nobody_elses(loader: Loader) -> None:
    with Crowd(loader.load("napper")) as crowd:
        for who in ("patient", "patient coroutine"):
            crowd.until(lambda who=who: crowd.called(who, CALLS))  # type: ignore[misc]
    for who in ("patient", "patient coroutine"):
        crowd.only(who)
    for who in ("impatient", "impatient coroutine"):
        crowd.only(who, "CallTimeout")


def test_a_crash_is_a_crash_for_all_whose_calls_are_in_flight(loader: Loader) -> None:
    with Crowd(loader.load("napper")) as crowd:
        for _ in range(KILLS):
            before = crowd.told["patient"]["ok"]
            crowd.until(lambda before=before: crowd.called("patient", before + CALLS // KILLS))  # type: ignore[misc]
            pid = loader.status("napper").pid
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
    assert any(told.startswith("PluginCrashed") for told in crowd.told["patient"])
    for who in ("patient", "patient coroutine"):
        crowd.only(who, "PluginCrashed")
    for who in ("impatient", "impatient coroutine"):
        crowd.only(who, "PluginCrashed", "CallTimeout")
