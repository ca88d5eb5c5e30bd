"""What was got from a plugin's object is as good as the object: a method, a stream, a call that is under way."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from hybridload import Loader
from hybridload.goplugin import Client
from tests.isolation.conftest import Write, wait_until

SDK = """
import asyncio, os, time
from collections.abc import AsyncIterator, Iterator
from typing import Protocol
from hybridload import Contract, Handshake

class Work(Protocol):
    def pid(self, seconds: float = 0.0) -> int: ...
    async def apid(self, seconds: float = 0.0) -> int: ...
    def pids(self, n: int) -> Iterator[int]: ...
    def apids(self, n: int) -> AsyncIterator[int]: ...

class Worker:
    def pid(self, seconds=0.0):
        time.sleep(seconds)
        return os.getpid()
    async def apid(self, seconds=0.0):
        await asyncio.sleep(seconds)
        return os.getpid()
    def pids(self, n):
        for _ in range(n):
            time.sleep(0.1)
            yield os.getpid()
    async def apids(self, n):
        for _ in range(n):
            await asyncio.sleep(0.1)
            yield os.getpid()

PLUGINS = {"work": Contract(Work)}
HANDSHAKE = Handshake("KEPT", "on")
"""
SERVE = """
import hybridload, kept_sdk
hybridload.serve(kept_sdk.PLUGINS, {"work": kept_sdk.Worker()}, handshake=kept_sdk.HANDSHAKE)
"""
CONFIG = """
[host]
plugins = "kept_sdk:PLUGINS"
handshake = "kept_sdk:HANDSHAKE"
[plugins.worker]
entry_point = "kept_sdk:Worker"
isolation = "subprocess"
"""


@pytest.fixture(params=["loader", "client"])
def work(
    request: pytest.FixtureRequest, write_module: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Any]:
    """Gives a plugin's object, which is all that there is of its loader or client."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write_module("kept_sdk", SDK)
    (tmp_path / "plugins.toml").write_text(CONFIG)

    def make() -> Any:
        if request.param == "loader":
            return Loader(config=tmp_path / "plugins.toml").load("worker")
        import kept_sdk  # type: ignore[import-not-found]

        command = [sys.executable, "-c", SERVE]
        return Client(command, plugins=kept_sdk.PLUGINS, handshake=kept_sdk.HANDSHAKE).dispense("work")

    return make


async def _calls(begin: Callable[..., Any]) -> list[int]:
    return [await begin(3.0)]


async def _items(stream: Any) -> list[int]:
    gc.collect()
    return [item async for item in stream]


CALLS: dict[str, Callable[[Any], list[int]]] = {
    "call": lambda work: [work().pid(3.0)],
    "async call": lambda work: asyncio.run(_calls(work().apid)),
    "stream": lambda work: list(work().pids(30)),
    "async stream": lambda work: asyncio.run(_items(work().apids(30))),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("what", CALLS)
def test_what_is_under_way_is_not_ended_with_the_object_that_it_came_from(work: Any, what: str) -> None:
    pids = CALLS[what](work)
    assert len(set(pids)) == 1
    gc.collect()
    wait_until(lambda: not psutil.pid_exists(pids[0]))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_method_is_as_good_as_the_object_that_it_came_from(work: Any) -> None:
    method = work().pid
    gc.collect()
    pid = method()
    assert method(3.0) == pid
    del method
    gc.collect()
    wait_until(lambda: not psutil.pid_exists(pid))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_stream_that_is_dropped_before_its_end_keeps_nothing(work: Any) -> None:
    stream = work().pids(1000)
    pid = next(stream)
    gc.collect()
    assert next(stream) == pid
    del stream
    gc.collect()
    wait_until(lambda: not psutil.pid_exists(pid))
