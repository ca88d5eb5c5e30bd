"""Calls from event loops, where connections are few, cannot be had, or are given up half-way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from hybridload.goplugin.http2 import frames
from hybridload.goplugin.http2.channel import Channel
from hybridload.goplugin.http2.frames import Setting
from hybridload.goplugin.http2.loop_channel import LoopCall
from hybridload.goplugin.http2.server import Server
from hybridload.goplugin.http2.status import RpcError
from hybridload.goplugin.streams.base import Stream
from hybridload.goplugin.streams.sockets import SocketStream, connect

from .conftest import Service, open_channel

_STEP = 1 << 20
ECHO, HANG = "/test.Service/Echo", "/test.Service/Hang"


def test_a_coroutine_shares_a_connection_whose_only_caller_waits_for_long(
    ours: tuple[Server, str], service: Service
) -> None:
    """As threads do: the one call may be waiting for what the other does."""
    with open_channel(ours[1], max_connections=1) as channel:
        caller = threading.Thread(target=_ignore(channel.unary_unary(HANG)), daemon=True)
        caller.start()
        assert service.event("hanging").wait(10)
        echo = channel.on_loops(ECHO)

        async def many() -> list[bytes]:
            return await asyncio.gather(*(echo.answer(b"%d" % number, timeout=10) for number in range(20)))

        assert asyncio.run(many()) == [b"%d" % number for number in range(20)]
    caller.join(10)


@pytest.mark.parametrize("name", ["hybridload-http2-call", "hybridload-http2-read"])
def test_a_thread_that_cannot_be_started_fails_the_call_and_not_the_next(
    ours: tuple[Server, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = ["can't start new thread"]
    start = threading.Thread.start

    def start_or_fail(thread: threading.Thread) -> None:
        if thread.name.startswith(name) and failures:
            raise RuntimeError(failures.pop())
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    with open_channel(ours[1]) as channel:
        echo = channel.on_loops(ECHO)

        async def calls() -> bytes:
            with pytest.raises((RuntimeError, RpcError), match="can't start new thread"):
                await asyncio.wait_for(echo.answer(b"1"), 10)
            return await echo.answer(b"2", timeout=10)

        assert asyncio.run(calls()) == b"2"


@pytest.mark.parametrize("failure", [OSError(24, "too many open files"), TimeoutError("no handshake")])
def test_whatever_keeps_a_connection_from_being_opened_fails_the_call_and_not_the_next(
    ours: tuple[Server, str], failure: Exception
) -> None:
    failures = [failure]

    def dial(_: float | None = None) -> Stream:
        if failures:
            raise failures.pop()
        return connect("unix", ours[1])

    with Channel(dial) as channel:
        echo = channel.on_loops(ECHO)

        async def calls() -> bytes:
            with pytest.raises(RpcError, match=rf"UNAVAILABLE: cannot connect: .*{failure.args[-1]}"):
                await asyncio.wait_for(echo.answer(b"1"), 10)
            return await echo.answer(b"2", timeout=10)

        assert asyncio.run(calls()) == b"2"


@pytest.mark.parametrize("answered", [False, True])
def test_a_stream_that_is_given_up_while_its_connection_is_opened_ends(
    ours: tuple[Server, str], service: Service, answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the server was quicker than whoever had yet to learn that it was given up."""
    dialling, may_dial = threading.Event(), threading.Event()
    begin = LoopCall.begin

    async def begin_slowly(call: LoopCall, *arguments: Any) -> None:
        await begin(call, *arguments)
        while answered and not call._call.messages:
            await asyncio.sleep(0.001)

    monkeypatch.setattr(LoopCall, "begin", begin_slowly)

    def dial(_: float | None = None) -> Stream:
        dialling.set()
        assert may_dial.wait(10)
        return connect("unix", ours[1])

    with Channel(dial) as channel:

        async def give_up() -> None:
            responses = channel.on_loops("/test.Service/HangStream").stream(b"")
            first = asyncio.create_task(anext(responses))
            await asyncio.to_thread(dialling.wait, 10)
            responses.cancel()
            may_dial.set()
            with pytest.raises(RpcError, match="Locally cancelled"):
                await asyncio.wait_for(first, 10)

        asyncio.run(give_up())


def test_of_a_stream_that_is_given_up_nothing_is_kept_until_its_deadline(ours: tuple[Server, str]) -> None:
    with open_channel(ours[1]) as channel:

        async def give_up() -> weakref.ref[Any]:
            responses = channel.on_loops("/test.Service/Count").stream(b"100000", timeout=3600)
            assert await anext(responses) == b"0"
            responses.cancel()
            return weakref.ref(responses._call)

        async def host() -> None:
            call = await give_up()
            await asyncio.sleep(0)
            gc.collect()
            assert call() is None

        asyncio.run(host())


def test_once_a_stream_has_answered_its_request_is_not_kept(ours: tuple[Server, str]) -> None:
    with open_channel(ours[1]) as channel:

        async def host() -> None:
            request = bytes(100_000)
            before = sys.getrefcount(request)
            responses = channel.on_loops("/test.Service/HangStream").stream(request)
            assert await anext(responses) == b"first"
            assert sys.getrefcount(request) == before
            responses.cancel()

        asyncio.run(host())


def test_a_stream_of_which_nothing_is_asked_is_not_begun(ours: tuple[Server, str]) -> None:
    async def host(channel: Channel) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # e.g. that a coroutine was never awaited
            channel.on_loops("/test.Service/HangStream").stream(b"")
            gc.collect()
        assert caught == []

    with open_channel(ours[1]) as channel:
        asyncio.run(host(channel))


@pytest.mark.parametrize("way", ["answer", "stream"])
def test_a_large_request_ends_with_its_deadline_though_the_server_that_grants_windows_never_reads(way: str) -> None:
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def grant() -> None:
        theirs.sendall(frames.settings({int(Setting.INITIAL_WINDOW_SIZE): _STEP}))
        theirs.sendall(frames.window_update(0, frames.LARGEST_WINDOW - frames.DEFAULT_WINDOW))
        with contextlib.suppress(OSError):
            while not stop.wait(0.02):
                if len(theirs.recv(1 << 15, socket.MSG_PEEK)) == 1 << 15:  # the stream is open
                    theirs.sendall(frames.window_update(1, _STEP))

    async def call(channel: Channel) -> None:
        method = channel.on_loops(ECHO)
        async with asyncio.timeout(20):
            if way == "answer":
                await method.answer(bytes(64 << 20), timeout=0.5)
            else:
                await anext(method.stream(bytes(64 << 20), timeout=0.5))

    granting = threading.Thread(target=grant)
    with theirs, Channel(lambda _: SocketStream(ours, "a server that never reads")) as channel:
        granting.start()
        try:
            with pytest.raises(RpcError) as failed:
                asyncio.run(call(channel))
        finally:
            stop.set()
            granting.join()
    assert failed.value.code().name == "DEADLINE_EXCEEDED"


def _ignore(call: Callable[[bytes], Any]) -> Callable[[], None]:
    def run() -> None:
        with contextlib.suppress(RpcError):
            call(b"")

    return run
