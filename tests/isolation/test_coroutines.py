"""Coroutines that call a plugin in its own process: no thread waits, on either side, and every end is orderly."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from hybridload import Loader, deadline
from hybridload.errors import CallTimeout, PluginCrashed, RemoteError

from ..conftest import KINDS, MARKER, Baseline, wait_until_nothing_is_left
from .conftest import GROUP

SDK = """
from collections.abc import AsyncIterator
from typing import Protocol
from hybridload import Contract, Handshake, idempotent

class Listener(Protocol):
    async def told(self, number: int) -> int: ...
    def heard(self) -> AsyncIterator[int]: ...

class Gate(Protocol):
    async def wait(self, number: int) -> int: ...
    async def leave(self) -> int: ...
    async def open(self, waiting: int) -> None: ...
    def usage(self) -> list[int]: ...
    async def fail(self, how: str) -> None: ...
    async def die(self) -> None: ...
    @idempotent
    async def die_once(self, mark: str) -> int: ...
    async def stuck(self, mark: str) -> None: ...
    async def echo(self, data: bytes) -> bytes: ...

class Streams(Gate, Protocol):
    def produce(self, mark: str, size: int) -> AsyncIterator[bytes]: ...
    async def made(self) -> int: ...
    def forever(self, mark: str) -> AsyncIterator[int]: ...
    async def total(self, numbers: AsyncIterator[int]) -> int: ...
    def each(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]: ...
    async def ignore(self, numbers: AsyncIterator[bytes]) -> int: ...
    async def tell(self, listener: Listener, times: int) -> int: ...
    async def hear(self, listener: Listener, times: int) -> int: ...

PLUGINS = {"gate": Contract(Gate), "streams": Contract(Streams)}
HANDSHAKE = Handshake("ISOLATION_TEST", "on")
"""

PLUGIN = """
import asyncio, os, signal, threading
from pathlib import Path

class Gate:
    def __init__(self):
        self.waiting, self.opened, self.produced = 0, None, 0
    def _gate(self):
        if self.opened is None:
            self.opened = asyncio.Event()  # one event loop for all calls: it holds for them all
        return self.opened
    async def wait(self, number):
        self.waiting += 1
        try:
            await self._gate().wait()
        finally:
            self.waiting -= 1
        return number
    async def leave(self):
        return self.waiting
    async def open(self, waiting):
        while self.waiting < waiting:
            await asyncio.sleep(0.001)
        self._gate().set()
        self.opened = None
    def usage(self):
        return [threading.active_count(), len(os.listdir("/proc/self/fd"))]
    async def fail(self, how):
        await asyncio.sleep(0)
        raise {"error": LookupError("no luck"), "exit": SystemExit(3), "cancel": asyncio.CancelledError()}[how]
    async def die(self):
        os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(3600)
    async def die_once(self, mark):
        if not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.sleep(3600)
        return 42
    async def stuck(self, mark):
        Path(mark + ".begun").touch()
        try:
            await asyncio.sleep(3600)
        finally:
            Path(mark).touch()
    async def echo(self, data):
        return data

class Streams(Gate):
    async def produce(self, mark, size):
        try:
            while True:
                self.produced += 1
                yield bytes(size)
        finally:
            Path(mark).touch()
    async def made(self):
        return self.produced
    async def forever(self, mark):
        number = 0
        try:
            while True:
                yield number
                number += 1
                await asyncio.sleep(0.001)
        finally:
            Path(mark).touch()
    async def total(self, numbers):
        return sum([number async for number in numbers])
    async def each(self, numbers):
        async for number in numbers:
            yield number
    async def ignore(self, numbers):
        await self._gate().wait()
        return len([number async for number in numbers])
    async def tell(self, listener, times):
        return sum(await asyncio.gather(*(listener.told(number) for number in range(times))))
    async def hear(self, listener, times):
        async def number():
            async for number in listener.heard():
                await listener.told(number)
                return number
        return sum(await asyncio.gather(*(number() for _ in range(times))))
"""

CONFIG = """
[host]
plugins = "coroutines_sdk:PLUGINS"
handshake = "coroutines_sdk:HANDSHAKE"
[defaults]
isolation = "subprocess"
max_restarts = 1000
[plugins.grpc]
entry_point = "coroutines_plugin:Gate"
kind = "gate"
[plugins.netrpc]
entry_point = "coroutines_plugin:Gate"
kind = "gate"
protocols = ["netrpc"]
[plugins.streams]
entry_point = "coroutines_plugin:Streams"
kind = "streams"
[plugins.narrow]
entry_point = "coroutines_plugin:Gate"
kind = "gate"
max_concurrency = 2
"""

FEW = 24
"""Threads or descriptors that are not one for each call: those of connections, of asyncio's executor, and idle workers,
of which a busy machine makes some more."""

pytestmark = pytest.mark.leaves(*KINDS, reason="the plugins live through all tests; their fixture checks them")


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    site = tmp_path_factory.mktemp("coroutines")
    (site / "coroutines_sdk.py").write_text(SDK)
    (site / "coroutines_plugin.py").write_text(PLUGIN)
    (site / "plugins.toml").write_text(CONFIG)
    folder = Path(tempfile.mkdtemp(prefix="hl-", dir="/tmp"))
    before = Baseline.take(uuid.uuid4().hex, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv(MARKER, before.marker)
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        with Loader(config=site / "plugins.toml", group=GROUP) as opened:
            opened.load_all()
            yield opened
    left = wait_until_nothing_is_left(before, KINDS)
    shutil.rmtree(folder)
    assert not left, "the plugins left behind:\n  " + "\n  ".join(left)


@pytest.fixture(params=["grpc", "netrpc"])
def protocol(request: pytest.FixtureRequest, loader: Loader) -> str:
    found: str = request.param
    loader.load(found)
    assert loader.status(found).protocol == found
    return found


@pytest.fixture
def gate(loader: Loader, protocol: str) -> Any:
    return emptied(loader.load(protocol))


@pytest.fixture
def narrow(loader: Loader) -> Any:
    return emptied(loader.load("narrow"))


@pytest.fixture
def streams(loader: Loader) -> Any:
    return emptied(loader.load("streams"))


def emptied(gate: Any) -> Any:
    """A gate at which nobody waits any more; net/rpc cannot cancel those whom nobody waits for."""

    async def empty() -> None:
        while await gate.leave():
            await gate.open(0)

    asyncio.run(empty())
    return gate


def usage() -> tuple[int, int]:
    """Threads and descriptors of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


async def appears(mark: Path) -> None:
    async with asyncio.timeout(30):
        while not mark.exists():
            await asyncio.sleep(0.002)


async def drained(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


# Unary calls


def test_a_thousand_calls_wait_without_threads_or_connections_of_their_own(gate: Any) -> None:
    async def host() -> tuple[tuple[int, int], list[int], list[int]]:
        waiting = [asyncio.create_task(gate.wait(number)) for number in range(1000)]
        while await gate.leave() < 1000:
            await asyncio.sleep(0.01)
        during = usage(), await asyncio.to_thread(gate.usage)
        await gate.open(1000)
        return *during, await asyncio.gather(*waiting)

    asyncio.run(gate.echo(b""))
    before, plugin_before = usage(), gate.usage()
    during, plugin_during, answers = asyncio.run(host())
    assert answers == list(range(1000))
    assert during[0] - before[0] < FEW
    assert during[1] - before[1] < FEW
    assert plugin_during[0] - plugin_before[0] < FEW
    assert plugin_during[1] - plugin_before[1] < FEW


def test_event_loops_in_several_threads_share_a_plugin(gate: Any) -> None:
    async def host(first: int) -> list[int]:
        return await asyncio.gather(*(gate.wait(number) for number in range(first, first + 50)))

    with ThreadPoolExecutor(3) as threads:
        found = [threads.submit(asyncio.run, host(first)) for first in (0, 50, 100)]
        asyncio.run(gate.open(150))
        assert [number for each in found for number in each.result(60)] == list(range(150))


def test_what_a_coroutine_raises_fails_its_call_alone(gate: Any) -> None:
    async def host() -> bytes:
        waiting = asyncio.create_task(gate.wait(7))
        with pytest.raises(LookupError, match="no luck"):
            await gate.fail("error")
        with pytest.raises(RemoteError, match="SystemExit"):
            await gate.fail("exit")
        with pytest.raises(RemoteError):
            await gate.fail("cancel")
        await gate.open(1)
        assert await waiting == 7
        return bytes(await gate.echo(b"still here"))

    assert asyncio.run(host()) == b"still here"


def test_large_values_pass_without_holding_the_loop_up(gate: Any) -> None:
    async def host() -> None:
        data = os.urandom(3 << 20)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        assert await asyncio.gather(*(gate.echo(data) for _ in range(4))) == [data] * 4
        ticking.cancel()
        assert ticks > 4

    asyncio.run(host())


def test_a_call_is_cancelled_at_whatever_moment(gate: Any, tmp_path: Path) -> None:
    async def host() -> None:
        for turns in range(12):
            call = asyncio.create_task(gate.wait(turns))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        big = asyncio.create_task(gate.echo(bytes(8 << 20)))
        await asyncio.sleep(0)
        big.cancel()
        await asyncio.wait([big])
        answered = asyncio.create_task(gate.echo(b"x"))
        await asyncio.wait([answered])
        assert not answered.cancel()
        assert await answered == b"x"

    asyncio.run(host())
    assert asyncio.run(gate.echo(b"on")) == b"on"


def test_a_deadline_ends_the_wait(gate: Any) -> None:
    async def host() -> None:
        with deadline(0.2), pytest.raises(CallTimeout):
            await gate.wait(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gate.wait(2), 0.2)
        assert await gate.echo(b"on") == b"on"

    asyncio.run(host())


def test_a_loop_that_is_closed_with_a_call_in_flight_leaves_nothing(gate: Any) -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(gate.wait(1))
    loop.run_until_complete(asyncio.sleep(0.01))
    while loop.run_until_complete(gate.leave()) < 1:
        pass
    loop.close()
    task._log_destroy_pending = False
    del task
    gc.collect()
    assert asyncio.run(gate.echo(b"on")) == b"on"


def test_a_loop_that_is_closed_misses_the_answer(gate: Any) -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(gate.wait(1))
    while loop.run_until_complete(gate.leave()) < 1:
        pass
    loop.close()
    asyncio.run(gate.open(1))
    assert asyncio.run(gate.echo(b"on")) == b"on"
    task._log_destroy_pending = False
    del task
    gc.collect()


def test_turns_are_waited_for_on_any_loop(narrow: Any) -> None:
    async def host() -> list[bytes]:
        return await asyncio.gather(*(narrow.echo(b"%d" % number) for number in range(100)))

    with ThreadPoolExecutor(2) as threads:
        for found in [threads.submit(asyncio.run, host()) for _ in range(2)]:
            assert found.result(60) == [b"%d" % number for number in range(100)]


def test_who_waits_for_a_turn_holds_no_thread_and_may_give_it_up(narrow: Any) -> None:
    async def host() -> None:
        inside = [asyncio.create_task(narrow.wait(number)) for number in range(2)]
        await asyncio.sleep(0)
        before = threading.active_count()
        waiting = [asyncio.create_task(narrow.echo(b"%d" % number)) for number in range(100)]
        await asyncio.sleep(0)
        assert threading.active_count() == before
        for call in waiting[:-1]:
            call.cancel()
        await asyncio.wait(waiting[:-1])
        inside[0].cancel()
        assert await asyncio.wait_for(waiting[-1], 60) == b"99"
        inside[1].cancel()

    asyncio.run(host())


# Streams


def test_a_hundred_streams_are_open_without_threads_of_their_own(streams: Any, tmp_path: Path) -> None:
    async def host() -> tuple[int, list[int]]:
        opened = [streams.forever(str(tmp_path / str(number))) for number in range(100)]
        assert await asyncio.gather(*(anext(stream) for stream in opened)) == [0] * 100
        during = threading.active_count(), await asyncio.to_thread(streams.usage)
        await asyncio.gather(*(stream.aclose() for stream in opened))
        for number in range(100):
            await appears(tmp_path / str(number))
        return during

    asyncio.run(streams.echo(b""))
    before, plugin_before = threading.active_count(), streams.usage()
    during, plugin_during = asyncio.run(host())
    assert during - before < FEW
    assert plugin_during[0] - plugin_before[0] < FEW


def test_what_nobody_takes_is_not_made(streams: Any, tmp_path: Path) -> None:
    async def host() -> None:
        stream = streams.produce(str(tmp_path / "closed"), 10_000)
        assert len(await anext(stream)) == 10_000
        before, after = -1, 0
        while before != after:  # the plugin has stopped making them
            await asyncio.sleep(0.05)
            before, after = after, await streams.made()
        assert after < 1000
        for _ in range(after + 10):
            await anext(stream)
        await stream.aclose()
        await appears(tmp_path / "closed")

    asyncio.run(host())


def test_what_the_plugin_does_not_take_is_not_made(streams: Any) -> None:
    made = 0

    async def numbers() -> AsyncIterator[bytes]:
        nonlocal made
        while made < 2000:
            made += 1
            yield bytes(10_000)

    async def host() -> None:
        call = asyncio.create_task(streams.ignore(numbers()))
        before = -1
        while before != made or not made:
            before = made
            await asyncio.sleep(0.05)
        assert made < 1000
        await streams.open(0)
        assert await call == 2000

    asyncio.run(host())


def test_a_stream_is_cancelled_at_whatever_moment(streams: Any, tmp_path: Path) -> None:
    async def host() -> None:
        for turns in range(12):
            stream = streams.forever(str(tmp_path / str(turns)))
            task = asyncio.create_task(anext(stream))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await stream.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        stream = streams.forever(str(tmp_path / "half"))
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(drained(stream), 0.1)
        await appears(tmp_path / "half")

    asyncio.run(host())


def test_a_stream_that_is_dropped_ends(streams: Any, tmp_path: Path) -> None:
    async def host() -> None:
        stream = streams.forever(str(tmp_path / "dropped"))
        assert await anext(stream) == 0
        del stream
        gc.collect()
        await appears(tmp_path / "dropped")

    asyncio.run(host())


def test_a_deadline_ends_a_stream(streams: Any, tmp_path: Path) -> None:
    async def host() -> None:
        with deadline(2.0), pytest.raises(CallTimeout):
            await drained(streams.forever(str(tmp_path / "late")))
        await appears(tmp_path / "late")

    asyncio.run(host())


def test_both_directions_keep_step(streams: Any) -> None:
    async def numbers(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    async def host() -> None:
        assert await streams.total(numbers(2000)) == sum(range(2000))
        assert [number async for number in streams.each(numbers(2000))] == list(range(2000))

    asyncio.run(host())


def test_the_plugin_awaits_the_hosts_coroutines(streams: Any) -> None:
    class Listener:
        async def told(self, number: int) -> int:
            await asyncio.sleep(0)
            return number

        def heard(self) -> AsyncIterator[int]:
            raise NotImplementedError

    assert asyncio.run(streams.tell(Listener(), 200)) == sum(range(200))


def test_the_plugin_hears_from_one_of_the_hosts_streams_while_the_others_are_silent(streams: Any) -> None:
    class Listener:
        def __init__(self) -> None:
            self.heard_from, self.last = 0, asyncio.Event()

        async def told(self, number: int) -> int:
            self.last.set()
            return number

        async def heard(self) -> AsyncIterator[int]:
            self.heard_from += 1
            if self.heard_from < 50:
                await self.last.wait()
            yield 1

    assert asyncio.run(asyncio.wait_for(streams.hear(Listener(), 50), 20)) == 50


def test_a_coroutines_context_is_its_own(streams: Any) -> None:
    name: ContextVar[str] = ContextVar("name", default="nobody")
    seen: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        seen.append(name.get())
        yield 1

    async def call(own: str) -> None:
        name.set(own)
        assert await streams.total(numbers()) == 1
        assert name.get() == own

    async def host() -> None:
        await asyncio.gather(call("left"), call("right"))

    asyncio.run(host())
    assert sorted(seen) == ["left", "right"]


# New processes: last, for what a test starts the check for leftovers ends behind it


def test_every_call_that_waits_hears_of_the_crash(gate: Any) -> None:
    async def host() -> None:
        waiting = [asyncio.create_task(gate.wait(number)) for number in range(50)]
        while await gate.leave() < 50:
            await asyncio.sleep(0.002)
        with pytest.raises(PluginCrashed):
            await gate.die()
        for call in waiting:
            with pytest.raises(PluginCrashed):
                await call

    asyncio.run(host())


def test_an_idempotent_coroutine_is_called_again_after_a_crash(gate: Any, tmp_path: Path) -> None:
    async def host() -> None:
        mark = str(tmp_path / "mark")
        assert await asyncio.gather(gate.die_once(mark), gate.die_once(mark)) == [42, 42]

    asyncio.run(host())


def test_a_call_stays_where_it_began_and_others_go_where_the_plugin_is(
    loader: Loader, gate: Any, protocol: str
) -> None:
    async def host() -> None:
        before = loader.status(protocol).pid
        waiting = asyncio.create_task(gate.wait(5))
        while await gate.leave() < 1:
            await asyncio.sleep(0.002)
        moving = asyncio.create_task(loader.areload(protocol))
        while loader.status(protocol).pid == before:
            assert await gate.echo(b"on") == b"on"
        assert await gate.leave() == 0
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait_for(moving, 60)

    asyncio.run(host())


def test_a_stream_hears_of_the_crash(streams: Any, tmp_path: Path) -> None:
    async def host() -> None:
        stream = streams.forever(str(tmp_path / "crashed"))
        assert await anext(stream) == 0
        with pytest.raises(PluginCrashed):
            await streams.die()
        with pytest.raises(PluginCrashed):
            await drained(stream)

    asyncio.run(host())
