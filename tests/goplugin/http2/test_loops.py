"""Calls that coroutines make on a channel: they share what connections there are, and wait for room in them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from hybridload.goplugin.http2.channel import Channel
from hybridload.goplugin.http2.limits import Limits
from hybridload.goplugin.http2.server import Server
from hybridload.goplugin.http2.status import RpcError, StatusCode
from hybridload.goplugin.streams.sockets import connect, listen_unix


@pytest.fixture
def crowded(service: Any) -> Iterator[Channel]:
    """A channel of one connection, on which the server allows four calls at once."""
    server = Server((service,), limits=Limits(max_streams=4))
    listener = listen_unix()
    server.add_listener(listener)
    server.start()
    with Channel(lambda _: connect("unix", listener.address), max_connections=1) as channel:
        yield channel
    assert server.stop(0).wait(10)


def test_calls_beyond_what_the_server_allows_wait_for_room(crowded: Channel) -> None:
    echo, count = crowded.on_loops("/t.T/Echo"), crowded.on_loops("/t.T/Count")

    async def counted() -> int:
        responses = count.stream(b"5")
        return len([response async for response in responses])

    async def host() -> None:
        before = threading.enumerate()  # a fixture of a wider scope may have a channel too
        calls = [asyncio.create_task(echo.answer(b"%d" % number)) for number in range(100)]
        streams = [asyncio.create_task(counted()) for _ in range(20)]
        await asyncio.sleep(0)
        ours = ("hybridload-http2-call", "hybridload-http2-read")  # the server has threads here, too
        new = [each.name for each in threading.enumerate() if each not in before and each.name.startswith(ours)]
        assert len(new) <= 3  # one opens the connection, one reads, one writes; not one for each call
        assert await asyncio.gather(*calls) == [b"%d" % number for number in range(100)]
        assert await asyncio.gather(*streams) == [5] * 20

    asyncio.run(host())


def test_a_wait_for_room_ends_with_the_deadline(crowded: Channel, service: Any) -> None:
    hang, echo = crowded.on_loops("/t.T/Hang"), crowded.on_loops("/t.T/Echo")

    async def host() -> None:
        hanging = [asyncio.create_task(hang.answer(b"")) for _ in range(4)]
        for _ in hanging:
            await asyncio.to_thread(service.hanging.acquire)
        with pytest.raises(RpcError) as caught:
            await echo.answer(b"", 0.1)
        assert caught.value.code().name == "DEADLINE_EXCEEDED"
        for call in hanging:
            call.cancel()
        await asyncio.wait(hanging)
        assert await echo.answer(b"room") == b"room"

    asyncio.run(host())


def test_requests_stream_and_end_early(crowded: Channel) -> None:
    join, first = crowded.on_loops("/t.T/Join"), crowded.on_loops("/t.T/FirstOnly")

    async def words(count: int) -> AsyncIterator[bytes]:
        for number in range(count):
            yield b"%d" % number

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"again"

    async def failing() -> AsyncIterator[bytes]:
        yield b"one"
        raise LookupError("no more")

    async def host() -> None:
        assert await join.answer(words(4)) == b"0+1+2+3"
        assert await first.answer(endless()) == b"again"
        with pytest.raises(RpcError, match="no more"):
            await join.answer(failing())

    asyncio.run(host())


def test_closing_the_channel_ends_the_calls(crowded: Channel, service: Any) -> None:
    hang = crowded.on_loops("/t.T/Hang")

    async def host() -> None:
        hanging = asyncio.create_task(hang.answer(b""))
        await asyncio.to_thread(service.hanging.acquire)
        await asyncio.to_thread(crowded.close)
        with pytest.raises(RpcError) as caught:
            await hanging
        assert StatusCode[caught.value.code().name] is StatusCode.CANCELLED
        with pytest.raises(ValueError, match="closed channel"):
            await hang.answer(b"")

    asyncio.run(host())
