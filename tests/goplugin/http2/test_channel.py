"""The channel's connections: how many, which one, dead ones, and what is left when it is closed."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import copy
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest

from hybridload.goplugin.certificates import generate_certificate
from hybridload.goplugin.http2 import client_link, frames
from hybridload.goplugin.http2.channel import Channel
from hybridload.goplugin.http2.client_link import ClientLink
from hybridload.goplugin.http2.connection import Connection, Role
from hybridload.goplugin.http2.events import DataReceived, HeadersReceived, StreamEnded
from hybridload.goplugin.http2.header_blocks import encode
from hybridload.goplugin.http2.server import Server
from hybridload.goplugin.http2.server_link import ServerLink
from hybridload.goplugin.http2.status import RpcError, Status, StatusCode, rpc_error
from hybridload.goplugin.streams.base import StreamClosed, StreamError
from hybridload.goplugin.streams.sockets import SocketStream, connect, socket_pair
from hybridload.goplugin.streams.spinning import Spinning
from hybridload.goplugin.streams.tls import TLSStream, client_context
from tests.goplugin.http2.conftest import Handler
from tests.running_out import no_more_threads

OK_RESPONSE = encode(((b":status", b"200"), (b"content-type", b"application/grpc")))
OK_TRAILERS = encode(((b"grpc-status", b"0"),))


class Dialler:
    """Opens connections to a server, and remembers them."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.opened: list[SocketStream] = []

    def __call__(self, _: float | None = None) -> SocketStream:
        stream = connect("unix", self.address)
        self.opened.append(stream)
        return stream

    def once(self, _: float | None = None) -> SocketStream:
        """The same, but only the first time."""
        if self.opened:
            raise StreamError("no more")
        return self()


@pytest.fixture
def dial(ours: tuple[Server, str]) -> Dialler:
    return Dialler(ours[1])


def name_of(caught: Any) -> str:
    return str(caught.value.code().name)


def in_threads(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_calls_one_after_the_other_use_one_connection_and_no_thread(dial: Dialler) -> None:
    with Channel(dial) as channel:
        for _ in range(50):
            channel.unary_unary("/t.T/Echo")(b"x")
        assert len(dial.opened) == 1
        ours = [thread.name for thread in threading.enumerate() if "http2-read" in thread.name]
        assert ours == []


def test_connections_are_bounded(dial: Dialler) -> None:
    with Channel(dial, max_connections=3) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        in_threads(12, lambda: [echo(b"x", timeout=20) for _ in range(30)])  # type: ignore[arg-type, return-value]
        assert len(dial.opened) <= 3


def test_blocked_calls_do_not_starve_others_of_connections(dial: Dialler, service: Any) -> None:
    with Channel(dial, max_connections=2) as channel:
        results: list[str] = []

        def hang() -> None:
            try:
                channel.unary_unary("/t.T/Hang")(b"", timeout=3)
            except RpcError as error:
                results.append(error.code().name)

        threads = [threading.Thread(target=hang) for _ in range(5)]
        for thread in threads:
            thread.start()
        assert service.event("hanging").wait(5)
        began = time.monotonic()
        assert channel.unary_unary("/t.T/Echo")(b"x", timeout=2) == b"x"
        assert time.monotonic() - began < 1
        for thread in threads:
            thread.join()
        assert results == ["DEADLINE_EXCEEDED"] * 5


def test_one_connection_carries_streams_and_calls(dial: Dialler) -> None:
    with Channel(dial, max_connections=1) as channel:
        stream = channel.unary_stream("/t.T/HangStream")(b"")
        assert next(stream) == b"first"
        echo = channel.unary_unary("/t.T/Echo")
        began = time.monotonic()
        for _ in range(20):
            assert echo(b"x") == b"x"
        assert time.monotonic() - began < 1
        stream.cancel()
        assert echo(b"y") == b"y"
    assert len(dial.opened) == 1


def test_a_call_does_not_wait_for_a_connection_that_takes_long_to_open(dial: Dialler) -> None:
    slowly, opening = threading.Event(), threading.Event()

    def dial_slowly(_: float | None = None) -> SocketStream:
        if dial.opened:
            opening.set()
            assert slowly.wait(20)
        return dial()

    with Channel(dial_slowly, dial_ahead=True) as channel:
        stream = channel.unary_stream("/t.T/HangStream")(b"")
        assert next(stream) == b"first"
        echo = channel.unary_unary("/t.T/Echo")
        for _ in range(20):
            assert echo(b"x", timeout=20) == b"x"
        assert opening.wait(20)
        assert len(dial.opened) == 1
        slowly.set()
        while len(dial.opened) < 2:
            assert echo(b"x", timeout=20) == b"x"
        in_threads(4, lambda: [echo(b"x", timeout=20) for _ in range(30)])  # type: ignore[arg-type, return-value]
        stream.cancel()


def test_a_connection_that_cannot_be_opened_ahead_costs_no_call(dial: Dialler) -> None:
    with Channel(dial.once, dial_ahead=True) as channel:
        stream = channel.unary_stream("/t.T/HangStream")(b"")
        assert next(stream) == b"first"
        echo = channel.unary_unary("/t.T/Echo")
        for _ in range(50):
            assert echo(b"x", timeout=20) == b"x"
        stream.cancel()


@pytest.mark.parametrize(
    ("options", "opened"),
    [({"leaves_idle": True}, 2), ({"leaves_idle": True, "max_connections": 1}, 1), ({}, 1)],
    ids=str,
)
def test_the_first_stream_leaves_the_idle_connection_to_calls_where_that_is_asked_for(
    dial: Dialler, options: dict[str, Any], opened: int
) -> None:
    with Channel(dial, **options) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        assert echo(b"x") == b"x"
        streams = [channel.unary_stream("/t.T/HangStream")(b"") for _ in range(3)]
        assert [next(stream) for stream in streams] == [b"first"] * 3
        assert len(dial.opened) == opened
        if opened == 2:
            assert echo(b"y") == b"y"
            assert len(dial.opened) == 2
        for stream in streams:
            stream.cancel()


def test_streams_one_after_the_other_share_a_connection(dial: Dialler) -> None:
    with Channel(dial, leaves_idle=True) as channel:
        echo, count = channel.unary_unary("/t.T/Echo"), channel.unary_stream("/t.T/Count")
        for _ in range(10):
            assert echo(b"x") == b"x"
            assert len(list(count(b"3"))) == 3
        # One that has just ended may not be given back yet.
        assert len(dial.opened) <= 3
        assert sum("http2-read" in thread.name for thread in threading.enumerate()) <= 2


def test_a_stream_shares_a_connection_when_no_other_can_be_opened(dial: Dialler) -> None:
    with Channel(dial.once, leaves_idle=True) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        assert echo(b"x") == b"x"
        stream = channel.unary_stream("/t.T/HangStream")(b"")
        assert next(stream) == b"first"
        assert echo.future(b"y").result(20) == b"y"
        stream.cancel()


def test_an_idle_connection_that_died_is_replaced_before_it_is_used(dial: Dialler, ours: tuple[Server, str]) -> None:
    with Channel(dial) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        assert echo(b"1") == b"1"
        for link in ours[0]._snapshot():
            link.close()
        assert echo(b"2") == b"2"
        assert len(dial.opened) == 2


def test_a_connection_that_breaks_in_mid_call_is_unavailable(dial: Dialler, service: Any, ours: Any) -> None:
    with Channel(dial) as channel:
        future = channel.unary_unary("/t.T/Hang").future(b"")
        assert service.event("hanging").wait(5)
        for link in ours[0]._snapshot():
            link.close()
        with pytest.raises(RpcError) as caught:
            future.result(timeout=5)
        assert name_of(caught) == "UNAVAILABLE"


def test_nobody_to_connect_to_is_unavailable_and_says_why() -> None:
    def dial(_: float | None = None) -> SocketStream:
        raise StreamError("no such socket")

    with Channel(dial) as channel:
        for call in (channel.unary_unary("/t.T/Echo"), channel.unary_unary("/t.T/Echo").future):
            with pytest.raises(RpcError, match="no such socket") as caught:
                call(b"")
            assert name_of(caught) == "UNAVAILABLE"


def test_closing_ends_blocked_calls_and_leaves_nothing(dial: Dialler, service: Any) -> None:
    channel = Channel(dial)
    results: list[str] = []

    def hang(call: Any) -> None:
        try:
            call()
        except RpcError as error:
            results.append(error.code().name)

    calls = [
        lambda: channel.unary_unary("/t.T/Hang")(b""),
        lambda: list(channel.unary_stream("/t.T/HangStream")(b"")),
        lambda: channel.unary_unary("/t.T/Hang").future(b"").result(),
    ]
    threads = [threading.Thread(target=hang, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for _ in calls:
        assert service.hanging.acquire(timeout=5)
    channel.close()
    channel.close()
    for thread in threads:
        thread.join(5)
    assert results == ["CANCELLED"] * 3


def test_a_stream_that_is_dropped_is_cancelled(dial: Dialler, service: Any) -> None:
    with Channel(dial, max_connections=1) as channel:
        responses = channel.unary_stream("/t.T/Count")(b"1000000")
        assert next(responses) == b"0"
        del responses
        gc.collect()
        channel.unary_unary("/t.T/Echo")(b"")
        assert service.event("counted").wait(5)


def test_a_slow_consumer_holds_back_the_server_not_the_memory(dial: Dialler, service: Any) -> None:
    sent = 0

    def endless(request: bytes, context: Any) -> Any:
        nonlocal sent
        while context.is_active():
            sent += 1
            yield bytes(10000)

    handler = type(service.handlers["Echo"])
    service.handlers["Endless"] = handler(endless, response_streaming=True)
    with Channel(dial, max_connections=1) as channel:
        responses = channel.unary_stream("/t.T/Endless")(b"")
        next(responses)
        for _ in range(50):  # other calls go on meanwhile
            channel.unary_unary("/t.T/Echo")(b"")
        before = -1
        while before != sent:
            before = sent
            channel.unary_unary("/t.T/Echo")(b"")
            time.sleep(0.05)
        assert sent < 300  # 1 MiB of window and what the sockets hold
        for _ in range(1000):
            next(responses)
        responses.cancel()


def test_a_message_too_large_is_refused_on_either_side(dial: Dialler) -> None:
    with Channel(dial, max_receive=1000, max_send=2000) as channel:
        for request, code in ((b"x" * 2001, "RESOURCE_EXHAUSTED"), (b"x" * 1500, "RESOURCE_EXHAUSTED")):
            with pytest.raises(RpcError) as caught:
                channel.unary_unary("/t.T/Echo")(request)
            assert name_of(caught) == code
        assert channel.unary_unary("/t.T/Echo")(b"x" * 1000) == b"x" * 1000


def test_a_server_refuses_requests_that_are_too_large(service: Any) -> None:
    server = Server((service,), max_receive=1000)
    server.start()

    def dial(_: float | None = None) -> SocketStream:
        mine, theirs = socket_pair()
        server.serve(theirs)
        return mine

    with Channel(dial) as channel:
        with pytest.raises(RpcError, match=r"SERVER: .* max_message \(1001 vs. 1000\)") as caught:
            channel.unary_unary("/t.T/Echo")(b"x" * 1001)
        assert name_of(caught) == "RESOURCE_EXHAUSTED"
        with pytest.raises(RpcError):
            channel.unary_unary("/t.T/Echo")(b"x" * (100 << 20))
        assert channel.unary_unary("/t.T/Echo")(b"x") == b"x"
    assert server.stop(0).wait(5)


# A server by hand, which does what a good one never would.


def answering(script: Callable[[Connection, int], None]) -> tuple[Channel, list[threading.Thread]]:
    """A channel to a peer that answers each request by `script(connection, stream_id)`."""
    threads: list[threading.Thread] = []

    def answer(stream: SocketStream) -> None:
        connection = Connection(Role.SERVER)
        try:
            while data := stream.receive():
                for event in connection.receive(data):
                    if isinstance(event, HeadersReceived):
                        script(connection, event.stream_id)
                stream.send_all(connection.data_to_send())
        except StreamError:
            pass
        finally:
            stream.close()

    def dial(_: float | None = None) -> SocketStream:
        mine, theirs = socket_pair()
        threads.append(threading.Thread(target=answer, args=(theirs,)))
        threads[-1].start()
        return mine

    return Channel(dial), threads


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        (lambda c, s: c.send_headers(s, encode(((b":status", b"503"),)), True), "UNAVAILABLE", "HTTP 503"),
        (lambda c, s: c.send_headers(s, encode(((b":status", b"404"),)), True), "UNIMPLEMENTED", "HTTP 404"),
        (
            lambda c, s: c.send_headers(s, encode(((b":status", b"200"), (b"content-type", b"text/html")))),
            "UNKNOWN",
            "html",
        ),
        (lambda c, s: c.reset(s, frames.ErrorCode.INTERNAL_ERROR), "INTERNAL", "INTERNAL_ERROR"),
        (lambda c, s: c.reset(s, frames.ErrorCode.ENHANCE_YOUR_CALM), "RESOURCE_EXHAUSTED", "CALM"),
        (lambda c, s: c.reset(s, frames.ErrorCode.REFUSED_STREAM), "UNAVAILABLE", "REFUSED"),
        (lambda c, s: c.send_headers(s, OK_RESPONSE + OK_TRAILERS, True), "INTERNAL", "without a message"),
        (lambda c, s: (c.send_headers(s, OK_RESPONSE), c.send_data(s, bytes(5), True)), "INTERNAL", "without trailers"),
        (
            lambda c, s: (
                c.send_headers(s, OK_RESPONSE),
                c.send_data(s, bytes(3)),
                c.send_headers(s, OK_TRAILERS, True),
            ),
            "INTERNAL",
            "middle of a message",
        ),
        (
            lambda c, s: (
                c.send_headers(s, OK_RESPONSE),
                c.send_data(s, bytes(10)),
                c.send_headers(s, OK_TRAILERS, True),
            ),
            "INTERNAL",
            "several messages",
        ),
        (lambda c, s: (c.send_headers(s, OK_RESPONSE), c.send_data(s, b"\1\0\0\0\1x")), "INTERNAL", "compressed"),
        (lambda c, s: c.send_headers(s, OK_RESPONSE + encode(((b"grpc-status", b"x"),)), True), "UNKNOWN", ""),
        (lambda c, s: c.due.append(frames.header(3, frames.PING, 0, 0) + b"abc"), "UNAVAILABLE", "broke the protocol"),
    ],
)
def test_a_server_that_misbehaves_gives_a_status(script: Any, code: str, words: str) -> None:
    channel, threads = answering(script)
    with channel, pytest.raises(RpcError) as caught:
        channel.unary_unary("/t.T/Echo")(b"x", timeout=5)
    for thread in threads:
        thread.join()
    assert name_of(caught) == code
    assert words in caught.value.details()


def call_and_wait(channel: Channel) -> bytes:
    answer: bytes = channel.unary_unary("/t.T/Echo")(b"x", timeout=5)
    return answer


def await_answer(channel: Channel) -> bytes:
    return asyncio.run(channel.on_loops("/t.T/Echo").answer(b"x", timeout=5))


def await_responses(channel: Channel) -> bytes:
    async def received() -> list[bytes]:
        return [each async for each in channel.on_loops("/t.T/Echo").stream(b"x", timeout=5)]

    return b"".join(asyncio.run(received()))


def receive_responses(channel: Channel) -> bytes:
    return b"".join(channel.unary_stream("/t.T/Echo")(b"x", timeout=5))


def refuse(connection: Connection, stream_id: int) -> None:
    connection.reset(stream_id, frames.ErrorCode.REFUSED_STREAM)


def go_away_before(connection: Connection, stream_id: int) -> None:
    connection.due.append(frames.goaway(stream_id - 1, frames.ErrorCode.NO_ERROR, "restarting"))


@pytest.mark.parametrize("refusal", [refuse, go_away_before])
@pytest.mark.parametrize("call", [call_and_wait, receive_responses, await_answer, await_responses])
def test_a_call_that_was_refused_is_made_again(
    call: Callable[[Channel], bytes], refusal: Callable[[Connection, int], None]
) -> None:
    """As is every one beyond a limit that the client has not heard of yet."""
    refused: list[int] = []

    def script(connection: Connection, stream_id: int) -> None:
        if not refused:
            refused.append(stream_id)
            refusal(connection, stream_id)
            return
        connection.send_headers(stream_id, OK_RESPONSE)
        connection.send_data(stream_id, bytes(5))
        connection.send_headers(stream_id, OK_TRAILERS, True)

    channel, threads = answering(script)
    with channel:
        assert call(channel) == b""
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("call", [call_and_wait, receive_responses, await_answer, await_responses])
def test_a_call_that_is_refused_again_and_again_fails(call: Callable[[Channel], bytes]) -> None:
    seen: list[int] = []

    def script(connection: Connection, stream_id: int) -> None:
        seen.append(stream_id)
        refuse(connection, stream_id)

    channel, threads = answering(script)
    with channel, pytest.raises(RpcError, match="REFUSED_STREAM") as caught:
        call(channel)
    assert len(seen) == 3
    assert not caught.value.status.lost
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("code", [each for each in frames.ErrorCode if each is not frames.ErrorCode.REFUSED_STREAM])
@pytest.mark.parametrize("call", [call_and_wait, receive_responses, await_answer, await_responses])
def test_a_call_that_a_server_may_have_looked_at_is_made_once(
    call: Callable[[Channel], bytes], code: frames.ErrorCode
) -> None:
    seen: list[int] = []

    def script(connection: Connection, stream_id: int) -> None:
        seen.append(stream_id)
        connection.reset(stream_id, code)

    channel, threads = answering(script)
    with channel, pytest.raises(RpcError):
        call(channel)
    assert len(seen) == 1
    for thread in threads:
        thread.join()


def test_a_stream_that_is_cancelled_is_not_made_again() -> None:
    seen: list[int] = []

    def script(connection: Connection, stream_id: int) -> None:
        seen.append(stream_id)
        refuse(connection, stream_id)

    channel, threads = answering(script)
    with channel:
        responses = channel.unary_stream("/t.T/Echo")(b"x", timeout=5)
        responses.cancel()
        with pytest.raises(RpcError):
            next(responses)
    assert len(seen) <= 1
    for thread in threads:
        thread.join()


def test_a_connection_that_breaks_says_so_of_its_calls_and_is_told_apart_from_an_answer() -> None:
    def script(connection: Connection, stream_id: int) -> None:
        connection.send_headers(stream_id, OK_RESPONSE)
        raise StreamError("gone")

    channel, threads = answering(script)
    with channel, pytest.raises(RpcError) as caught:
        channel.unary_unary("/t.T/Echo")(b"x", timeout=5)
    assert (name_of(caught), caught.value.status.lost) == ("UNAVAILABLE", True)
    for thread in threads:
        thread.join()


def test_calls_go_on_another_connection_before_a_server_loses_its_patience(dial: Dialler) -> None:
    with Channel(dial) as channel:
        beside = channel.unary_stream("/t.T/HangStream")(b"")
        assert next(beside) == b"first"
        for _ in range(600):
            given_up = channel.unary_stream("/t.T/HangStream")(b"")
            assert next(given_up) == b"first"
            given_up.cancel()
        assert len(dial.opened) >= 3
        assert beside.is_active()
        assert channel.unary_unary("/t.T/Echo")(b"x", timeout=5) == b"x"
        assert len(channel._pool._parting) <= 1  # the one that `beside` is on


def test_the_only_connection_there_can_be_is_used_on(dial: Dialler) -> None:
    with Channel(dial, max_connections=1) as channel:
        for _ in range(600):
            given_up = channel.unary_stream("/t.T/HangStream")(b"")
            assert next(given_up) == b"first"
            given_up.cancel()
        assert len(dial.opened) == 1


def give_up(channel: Channel) -> None:
    responses = channel.unary_stream("/t.T/Count")(b"")
    assert next(responses) == b"x"
    responses.cancel()


def drop(channel: Channel) -> None:
    responses = channel.unary_stream("/t.T/Count")(b"")
    assert next(responses) == b"x"
    del responses
    gc.collect()
    assert channel.unary_unary("/t.T/Echo").future(b"x", timeout=20).result() == b"x"  # the connection hears of it now


def give_up_beside_a_call_that_reads(channel: Channel) -> None:
    with ThreadPoolExecutor(1) as others:
        echoing = others.submit(channel.unary_unary("/t.T/Echo"), b"x", timeout=20)
        while not any(link._reading for link in channel._pool._links):
            time.sleep(0.001)
        give_up(channel)
        assert echoing.result() == b"x"


def give_up_in_a_task(channel: Channel) -> None:
    async def host() -> None:
        responses = channel.on_loops("/t.T/Count").stream(b"")
        assert await anext(responses) == b"x"
        responses.cancel()

    asyncio.run(host())


@pytest.mark.parametrize("leave", [give_up, drop, give_up_beside_a_call_that_reads, give_up_in_a_task])
def test_a_server_can_write_until_it_has_heard_that_nobody_wants_a_stream(leave: Callable[[Channel], None]) -> None:
    mine, theirs = socket_pair()
    written = threading.Event()

    def serve() -> None:
        connection = Connection(Role.SERVER)
        paths: dict[int, bytes] = {}
        given_up = False
        while data := theirs.receive():
            late: list[bytes] = []
            for event in connection.receive(data):
                if isinstance(event, HeadersReceived):
                    paths[event.stream_id] = dict(event.headers)[b":path"]
                elif isinstance(event, StreamEnded):
                    given_up = True
                    late = [frames.header(8192, frames.DATA, 0, event.stream_id) + bytes(8192)] * 100
                elif isinstance(event, DataReceived) and paths.get(event.stream_id, b"").endswith(b"Count"):
                    connection.send_headers(event.stream_id, OK_RESPONSE)
                    connection.send_data(event.stream_id, b"\0\0\0\0\1x")
            if given_up:
                for each in [each for each, path in paths.items() if path.endswith(b"Echo")]:
                    del paths[each]
                    connection.send_headers(each, OK_RESPONSE)
                    connection.send_data(each, b"\0\0\0\0\1x")
                    connection.send_headers(each, OK_TRAILERS, True)
            theirs.send_all([*connection.data_to_send(), *late])
            if late:
                written.set()

    def run() -> None:
        with contextlib.suppress(StreamError):  # the channel is closed
            serve()

    serving = threading.Thread(target=run)
    serving.start()
    with Channel(lambda _: mine, max_connections=1) as channel:
        leave(channel)
        assert written.wait(20)
    serving.join()
    theirs.close()


def test_calls_that_follow_each_other_closely_carry_the_question_whether_a_stream_is_given_up(
    dial: Dialler, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that is to ask may find a caller reading whenever it wakes."""
    go_on, ended = threading.Event(), threading.Event()
    service.handlers["Wait"] = Handler(lambda request, _: go_on.wait(20) and request)
    monkeypatch.setattr(ClientLink, "_read_in_background", lambda link: ended.wait(20))
    with Channel(dial, max_connections=1) as channel, ThreadPoolExecutor(1) as others:
        reading = others.submit(channel.unary_unary("/t.T/Wait"), b"x", timeout=20)
        while not any(link._reading for link in channel._pool._links):
            time.sleep(0.001)
        stream = channel.unary_stream("/t.T/HangStream")(b"")
        assert next(stream) == b"first"
        stream.cancel()
        go_on.set()
        assert reading.result() == b"x"
        connection = channel._pool._links[0].connection
        assert connection.unheard
        for _ in range(3):
            channel.unary_unary("/t.T/Echo")(b"x", timeout=5)
        assert not connection.unheard
        ended.set()


def test_a_connection_that_is_handed_over_reaches_who_waits_for_it(
    dial: Dialler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybridload.goplugin.http2.pool.PATIENCE", 60.0)
    with Channel(dial, max_connections=1) as channel, ThreadPoolExecutor(1) as others:
        pool = channel._pool
        link = pool.take()
        waiting = others.submit(pool.take)
        while not pool._turns:
            time.sleep(0.001)
        pool.give_back(link)
        assert waiting.result(10) is link
        assert (link.users, pool._idle) == (1, [])
        pool.give_back(link)
        assert (link.users, pool._idle) == (0, [link])


def test_a_connection_that_goes_away_is_left_and_its_calls_end_well() -> None:
    def script(connection: Connection, stream_id: int) -> None:
        connection.go_away()
        connection.send_headers(stream_id, OK_RESPONSE)
        connection.send_data(stream_id, bytes(5))
        connection.send_headers(stream_id, OK_TRAILERS, True)

    channel, threads = answering(script)
    with channel:
        for _ in range(3):
            assert channel.unary_unary("/t.T/Echo")(b"x", timeout=5) == b""
    assert len(threads) == 3
    for thread in threads:
        thread.join()


def test_a_deadline_ends_a_call_whose_request_is_not_read() -> None:
    mine, theirs = socket_pair()
    with Channel(lambda _: mine) as channel:
        theirs.send(frames.settings({4: (1 << 31) - 1}) + frames.window_update(0, (1 << 30)))
        began = time.monotonic()
        with pytest.raises(RpcError) as caught:
            channel.unary_unary("/t.T/Echo")(bytes(8 << 20), timeout=0.3)
        assert name_of(caught) == "DEADLINE_EXCEEDED"
        assert time.monotonic() - began < 3
    theirs.close()


# Threads that run out on the client's side

OURS = ("hybridload-http2-read", "hybridload-http2-call", "hybridload-http2-deadlines")


def ask_for_a_future(channel: Channel) -> bytes:
    answer: bytes = channel.unary_unary("/t.T/Echo").future(b"x", timeout=20).result()
    return answer


def send_requests(channel: Channel) -> bytes:
    answer: bytes = channel.stream_unary("/t.T/Join")(iter([b"x"]), timeout=20)
    return answer


def send_much(channel: Channel) -> bytes:
    answer: bytes = channel.unary_unary("/t.T/Echo")(bytes(3 << 20), timeout=20)
    return answer[:0] + b"x"


@pytest.mark.parametrize(
    "call",
    [call_and_wait, receive_responses, ask_for_a_future, send_requests, send_much, await_answer, await_responses],
)
def test_a_call_that_needs_a_thread_is_refused_and_the_channel_lives(
    dial: Dialler, service: Any, call: Callable[[Channel], bytes]
) -> None:
    service.handlers["Echo"].response_streaming = call in (receive_responses, await_responses)
    if service.handlers["Echo"].response_streaming:
        service.handlers["Echo"].unary_stream = lambda request, context: iter([request])
    with Channel(dial, max_connections=2) as channel:
        with no_more_threads(*OURS):
            for _ in range(3):
                try:
                    assert call(channel) == b"x"
                except RpcError as error:
                    if error.code().name != "RESOURCE_EXHAUSTED":
                        raise
        assert call(channel) == b"x"
        deadline = time.monotonic() + 10
        while any(link.users or link.calls for link in channel._pool._links):
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_who_leaves_the_reading_role_without_an_heir_leaves_it_to_who_waits(dial: Dialler, service: Any) -> None:
    """And with its own answer."""
    with Channel(dial, max_connections=1) as channel, ThreadPoolExecutor(8) as callers:
        hang, echo = channel.unary_unary("/t.T/Hang"), channel.unary_unary("/t.T/Echo")
        echo(b"x", timeout=5)
        with no_more_threads("hybridload-http2-read"):
            slow = [callers.submit(hang, b"", timeout=1.0) for _ in range(4)]
            for _ in range(4):
                service.hanging.acquire(timeout=10)
            assert [echo(b"%d" % number, timeout=20) for number in range(50)] == [b"%d" % n for n in range(50)]
            assert {each.exception(20).code().name for each in slow} == {"DEADLINE_EXCEEDED"}
        assert len(dial.opened) == 1
        assert echo(b"x", timeout=5) == b"x"


def test_an_answer_is_read_by_who_waits_for_it_when_the_reader_has_left(dial: Dialler, service: Any) -> None:
    released = [threading.Event(), threading.Event()]
    service.handlers["Block"] = Handler(lambda request, context: request if released[int(request)].wait(60) else b"")
    with Channel(dial, max_connections=1) as channel, ThreadPoolExecutor(2) as callers:
        channel.unary_unary("/t.T/Echo")(b"x", timeout=5)
        block = channel.unary_unary("/t.T/Block")
        with no_more_threads("hybridload-http2-read"):
            first = callers.submit(block, b"0", timeout=50)
            (link,) = channel._pool._links
            while not link.calls:
                time.sleep(0.001)
            second = callers.submit(block, b"1", timeout=50)
            while len(link.calls) < 2 or next(reversed(link.calls.values()))._news is None:
                time.sleep(0.001)
            released[0].set()
            assert first.result(20) == b"0"
            released[1].set()
            assert second.result(20) == b"1"


# The same on the server's side


def test_a_leader_without_an_heir_keeps_the_role_until_there_is_one(dial: Dialler, service: Any) -> None:
    released = threading.Event()
    service.handlers["Block"] = Handler(lambda request, context: request if released.wait(20) else b"late")
    with Channel(dial, max_connections=1) as channel, ThreadPoolExecutor(1) as callers:
        echo = channel.unary_unary("/t.T/Echo")
        echo(b"x", timeout=5)
        with no_more_threads("hybridload-http2-serve") as refused:
            blocked = callers.submit(channel.unary_unary("/t.T/Block"), b"answer", timeout=20)
            deadline = time.monotonic() + 10
            while len(refused) < 3:  # the watchdog does not give up
                assert time.monotonic() < deadline
                time.sleep(0.001)
        assert echo(b"y", timeout=10) == b"y"
        assert not blocked.done()
        released.set()
        assert blocked.result(10) == b"answer"
        assert len(dial.opened) == 1


def test_a_leader_that_had_no_heir_goes_on_when_its_handler_has_returned(dial: Dialler, service: Any) -> None:
    released = threading.Event()
    service.handlers["Block"] = Handler(lambda request, context: request if released.wait(20) else b"late")
    with Channel(dial, max_connections=1) as channel, ThreadPoolExecutor(1) as callers:
        echo = channel.unary_unary("/t.T/Echo")
        echo(b"x", timeout=5)
        with no_more_threads("hybridload-http2-serve") as refused:
            blocked = callers.submit(channel.unary_unary("/t.T/Block"), b"answer", timeout=20)
            deadline = time.monotonic() + 10
            while not refused:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            released.set()
            assert blocked.result(10) == b"answer"
            assert echo(b"y", timeout=10) == b"y"
        assert len(dial.opened) == 1


def test_an_answer_that_waits_for_the_client_is_refused_where_nobody_else_can_read(dial: Dialler) -> None:
    with Channel(dial, max_connections=1) as channel:
        zeros = channel.unary_unary("/t.T/Zeros")
        zeros(b"1", timeout=5)
        with no_more_threads("hybridload-http2-serve"), pytest.raises(RpcError, match="No thread") as caught:
            zeros(b"50000000", timeout=20)
        assert name_of(caught) == "RESOURCE_EXHAUSTED"
        assert len(zeros(b"50000000", timeout=20)) == 50000000
        assert len(dial.opened) == 1


def test_a_connection_for_which_a_server_has_no_thread_waits(dial: Dialler) -> None:
    with ThreadPoolExecutor(1) as callers, Channel(dial) as channel:
        with no_more_threads("hybridload-http2-serve") as refused:
            call = callers.submit(channel.unary_unary("/t.T/Echo"), b"x", timeout=20)
            deadline = time.monotonic() + 10
            while len(refused) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        assert call.result(20) == b"x"


def test_a_server_stops_without_a_thread_for_it(dial: Dialler, ours: tuple[Server, str]) -> None:
    with Channel(dial) as channel:
        channel.unary_unary("/t.T/Echo")(b"x", timeout=5)
        with no_more_threads():
            assert ours[0].stop(0).is_set()
            assert ours[0].stop(0).wait(0)


# grpc, if anybody has imported it


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_neither_end_imports_grpc() -> None:
    code = (
        "import sys, hybridload.goplugin.http2.channel, hybridload.goplugin.http2.server\n"
        "print([name for name in ('grpc', 'google.protobuf', 'hpack', 'cryptography', 'ssl') if name in sys.modules])\n"
        "from hybridload.goplugin.http2.status import *\n"
        "error = rpc_error(Status(StatusCode.NOT_FOUND, 'x'))\n"
        "print(error.code() is StatusCode.NOT_FOUND, type(error) is RpcError)\n"
        "import grpc\n"
        "error = rpc_error(Status(StatusCode.NOT_FOUND, 'x'))\n"
        "print(error.code() is grpc.StatusCode.NOT_FOUND)\n"
        "print(isinstance(error, grpc.RpcError), isinstance(error, RpcError))\n"
    )
    assert run_python(code).splitlines() == ["[]", "True True", "True", "True True"]


def test_status_codes_are_grpcs() -> None:
    grpc = pytest.importorskip("grpc")
    assert {code.name: code.value for code in StatusCode} == {code.name: code.value for code in grpc.StatusCode}
    for code in grpc.StatusCode:
        assert StatusCode.of(code) is StatusCode[code.name]
        assert StatusCode.of(code.value[0]) is StatusCode[code.name]
    assert StatusCode.of(99) is StatusCode.UNKNOWN


def test_an_error_says_which_call_ended_how() -> None:
    assert str(rpc_error(Status(StatusCode.NOT_FOUND, "no such thing"), (), "/t.T/Get")) == (
        "/t.T/Get: NOT_FOUND: no such thing"
    )


class Piecewise:
    """A stream whose reader gets 30 bytes at a time, and none before the peer has said all and hung up."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self.hung_up = threading.Event()

    def receive(self, max_bytes: int = 65536, timeout: float | None = None) -> bytes:
        assert self.hung_up.wait(10)
        return self._stream.receive(min(max_bytes, 30), timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_an_answer_counts_though_the_peer_hung_up_before_it_was_read() -> None:
    mine, theirs = socket_pair()
    stream = Piecewise(mine)

    def run() -> None:
        answer_and_hang_up(theirs, calls=1)
        stream.hung_up.set()

    peer = threading.Thread(target=run)
    peer.start()
    with Channel(lambda _: stream) as channel:
        assert channel.unary_unary("/t.T/Echo")(b"x", timeout=10) == b"x"
    peer.join()


def answer_and_hang_up(theirs: SocketStream, calls: int) -> None:
    """Be a server that answers the first of so many calls, and is gone."""
    connection = Connection(Role.SERVER)
    opened: list[int] = []
    while len(opened) < calls:
        events = connection.receive(theirs.receive())
        opened += [event.stream_id for event in events if isinstance(event, HeadersReceived)]
    theirs.send_all(connection.data_to_send())
    connection.ping(b"are-you?")  # one more thing that the client owes an answer
    connection.send_headers(opened[0], OK_RESPONSE)
    connection.send_data(opened[0], b"\0\0\0\0\x01x")
    connection.send_headers(opened[0], OK_TRAILERS, end_stream=True)
    theirs.send_all(connection.data_to_send())
    theirs.close()


def test_an_answer_counts_though_another_call_is_cancelled_when_the_peer_has_hung_up() -> None:
    mine, theirs = socket_pair()
    stream = Piecewise(mine)
    peer = threading.Thread(target=answer_and_hang_up, args=(theirs, 2))
    peer.start()
    with Channel(lambda _: stream, max_connections=1) as channel:
        answered, other = (channel.unary_stream("/t.T/Count")(b"x", timeout=10) for _ in range(2))
        peer.join()
        other.cancel()
        stream.hung_up.set()
        assert list(answered) == [b"x"]


class Watched:
    """A stream that counts what is written, and in which Ctrl-C may be pressed."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self.writes = 0
        self.interrupted = ""

    def _note(self, what: str) -> None:
        self.writes += what == "send"
        if self.interrupted == what:
            self.interrupted = ""
            raise KeyboardInterrupt

    def send(self, data: bytes) -> None:
        self._note("send")
        self._stream.send(data)

    def send_all(self, buffers: Any) -> None:
        self._note("send")
        self._stream.send_all(buffers)

    def receive(self, max_bytes: int = 65536, timeout: float | None = None) -> bytes:
        self._note("receive")
        return self._stream.receive(max_bytes, timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@pytest.mark.parametrize("where", ["send", "receive"])
def test_ctrl_c_in_a_call_costs_its_connection_and_nothing_else(dial: Dialler, where: str) -> None:
    opened: list[Watched] = []

    def open_watched(_: float | None = None) -> Watched:
        opened.append(Watched(dial()))
        return opened[-1]

    with Channel(open_watched) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        assert echo(b"a") == b"a"
        opened[0].interrupted = where
        with pytest.raises(KeyboardInterrupt):
            echo(b"b")
        assert echo(b"c", timeout=10) == b"c"
        assert len(opened) == 2


def test_ctrl_c_in_the_call_that_reads_ends_those_that_it_read_for(dial: Dialler, service: Any) -> None:
    opened: list[Watched] = []

    def open_watched(_: float | None = None) -> Watched:
        opened.append(Watched(dial()))
        return opened[-1]

    with Channel(open_watched, max_connections=1) as channel, ThreadPoolExecutor(2) as pool:
        hang = channel.unary_unary("/t.T/Hang")
        reading = pool.submit(hang, b"")
        assert service.hanging.acquire(timeout=10)
        sharing = pool.submit(hang, b"")
        assert service.hanging.acquire(timeout=10)
        opened[0].interrupted = "receive"  # once it has read what is next
        assert channel.unary_unary("/t.T/Echo")(b"x", timeout=10) == b"x"
        assert isinstance(reading.exception(10), KeyboardInterrupt)
        ended = sharing.exception(10)
        assert isinstance(ended, RpcError)
        assert ended.code().name == "UNAVAILABLE"
        assert channel.unary_unary("/t.T/Echo")(b"y", timeout=10) == b"y"
        assert channel._pool._parting == set()


class Lingering:
    """A stream whose reader does not notice at once that it was closed here."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def send(self, data: bytes) -> None:
        if self.closed:
            raise StreamClosed("closed here")
        self._stream.send(data)

    def send_all(self, buffers: Any) -> None:
        self.send(b"".join(buffers))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_what_ctrl_c_has_spoiled_is_not_shared_by_the_next_call(dial: Dialler) -> None:
    opened: list[Lingering] = []

    def open_lingering(_: float | None = None) -> Lingering:
        opened.append(Lingering(dial()))
        return opened[-1]

    with Channel(open_lingering, max_connections=2) as channel:
        stream = channel.unary_stream("/t.T/HangStream")(b"")
        assert next(stream) == b"first"
        (link,) = channel._pool._links
        link.spoil()
        assert channel.unary_unary("/t.T/Echo").future(b"x").result(10) == b"x"
        assert channel.unary_unary("/t.T/Echo")(b"y", timeout=10) == b"y"
        assert len(opened) == 2
        for each in opened:
            each._stream.close()


def test_what_is_no_message_fails_its_call_alone(dial: Dialler, service: Any) -> None:
    service.handlers["Text"] = copy.copy(service.handlers["Echo"])
    service.handlers["Text"].unary_unary = lambda request, context: "text"
    with Channel(dial) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        assert echo(b"a") == b"a"
        with pytest.raises(RpcError) as caught:
            channel.unary_unary("/t.T/Text")(b"")
        assert name_of(caught) == "UNKNOWN"
        with pytest.raises(TypeError):
            echo("text")
        assert echo(b"b") == b"b"
        assert len(dial.opened) == 1


def test_a_call_is_one_write_and_a_large_one_hardly_more(dial: Dialler) -> None:
    stream = Watched(dial())
    with Channel(lambda _: stream) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        writes = []
        for size in (1, 1, 1, 1 << 20, 1 << 20):
            before = stream.writes
            assert len(echo(bytes(size))) == size
            writes.append(stream.writes - before)
    # The server's window takes a quarter of a mebibyte at once, and it is told that all of the answer may come.
    assert writes[1:3] == [1, 1]
    assert max(writes[3:]) <= 4


def test_a_connection_that_takes_no_more_calls_ends_with_the_channel_too() -> None:
    def stream_then_go_away(connection: Connection, stream_id: int) -> None:
        connection.send_headers(stream_id, OK_RESPONSE)
        if stream_id > 1:
            connection.go_away()
            connection.send_data(stream_id, b"\0\0\0\0\x01x")
            connection.send_headers(stream_id, OK_TRAILERS, end_stream=True)

    channel, peers = answering(stream_then_go_away)
    endless = channel.unary_stream("/t.T/Endless")(b"")
    assert channel.unary_unary("/t.T/Echo").future(b"x").result() == b"x"
    deadline = time.monotonic() + 10
    while channel._pool._links and time.monotonic() < deadline:  # a worker of the channel takes it out
        time.sleep(0.001)
    assert not channel._pool._links
    channel.close()
    peers[0].join(10)
    assert len(peers) == 1
    assert not peers[0].is_alive()
    with pytest.raises(RpcError, match="Channel closed"):
        next(endless)


@pytest.mark.parametrize("future", [False, True], ids=["call", "future"])
def test_a_peer_that_is_stopped_in_the_handshake_holds_a_call_up_until_its_deadline(future: bool) -> None:
    certificate = generate_certificate()
    context = client_context(certificate, certificate.der)
    silent: list[SocketStream] = []

    def dial(_: float | None = None) -> TLSStream:
        near, far = socket_pair()
        silent.append(far)
        return TLSStream(near, context, "localhost")

    with Channel(dial, dial_ahead=True) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        began = time.monotonic()
        with pytest.raises(RpcError) as caught:
            echo.future(b"x", timeout=0.2).result() if future else echo(b"x", timeout=0.2)
        assert time.monotonic() - began < 5  # the stream itself would wait for ten
        assert name_of(caught) == "DEADLINE_EXCEEDED"
    for stream in silent:
        stream.close()


def until_it_ends(call: Any) -> None:
    with contextlib.suppress(RpcError, ValueError):
        call(b"x")


def test_who_shares_a_connection_in_its_handshake_has_a_deadline_of_its_own() -> None:
    certificate = generate_certificate()
    context = client_context(certificate, certificate.der)
    near, far = socket_pair()
    dialled = threading.Event()

    def dial(_: float | None = None) -> TLSStream:
        dialled.set()
        return TLSStream(near, context, "localhost")

    with Channel(dial, max_connections=1) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        patient = threading.Thread(target=until_it_ends, args=(echo,))
        patient.start()
        assert dialled.wait(10)
        began = time.monotonic()
        with pytest.raises(RpcError):
            echo(b"x", timeout=0.2)
        assert time.monotonic() - began < 5
        channel.close()
        patient.join()
    far.close()


def test_whoever_is_interrupted_before_it_reads_hears_of_nothing_else(
    dial: Dialler, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Channel(dial, max_connections=1) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        echo(b"x", timeout=5)
        with monkeypatch.context() as patched:
            patched.setattr(client_link, "_remaining", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                echo(b"x", timeout=5)
        assert echo(b"y", timeout=5) == b"y"


def until_another_waits(channel: Channel) -> None:
    """Until a call waits for what another thread reads."""
    deadline = time.monotonic() + 20
    while not any(call._news is not None for link in channel._pool._links for call in list(link.calls.values())):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def break_off(monkeypatch: pytest.MonkeyPatch, channel: Channel, step: str, error: BaseException) -> threading.Event:
    """Have a step of this thread's reading raise, once another call waits for what it reads.

    :returns: set when this thread has the role.
    """
    original, here, has_role = getattr(ClientLink, step), threading.current_thread(), threading.Event()

    def broken_off(link: ClientLink, *args: Any) -> Any:
        if threading.current_thread() is here:
            has_role.set()
            until_another_waits(channel)
            raise error
        return original(link, *args)

    monkeypatch.setattr(ClientLink, step, broken_off)
    return has_role


def test_whoever_is_interrupted_before_it_reads_leaves_that_to_those_who_count_on_it(
    dial: Dialler, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Channel(dial, max_connections=1) as channel, ThreadPoolExecutor(1) as others:
        echo = channel.unary_unary("/t.T/Echo")
        echo(b"x", timeout=5)
        has_role = break_off(monkeypatch, channel, "_read_in_role", KeyboardInterrupt())
        other = others.submit(lambda: has_role.wait(20) and echo(b"y", timeout=5))
        with pytest.raises(KeyboardInterrupt):
            echo(bytes(60_000), timeout=5)
        assert other.result() == b"y"


def test_a_call_that_comes_while_somebody_looks_whether_its_connection_lives_is_read_for(
    dial: Dialler, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = threading.current_thread()
    with Channel(dial, max_connections=1) as channel, ThreadPoolExecutor(1) as others:
        echo = channel.unary_unary("/t.T/Echo")
        echo(b"x", timeout=5)
        has_role = break_off(monkeypatch, channel, "receive", TimeoutError())
        monkeypatch.setattr(SocketStream, "readable", lambda _: threading.current_thread() is looking)
        other = others.submit(lambda: has_role.wait(20) and echo(b"y", timeout=5))
        assert channel._pool._links[0].still_usable()
        assert other.result() == b"y"


def test_whoever_is_interrupted_while_it_sends_ends_the_connection(
    dial: Dialler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have sent half a frame."""
    with Channel(dial, max_connections=1) as channel:
        other = channel.unary_stream("/t.T/HangStream")(b"")
        assert next(other) == b"first"
        assert (
            channel.unary_unary("/t.T/Echo")(b"w") == b"w"
        )  # nothing is owed now that another thread might be sending
        send_all, caller = SocketStream.send_all, threading.current_thread()

        def interrupted(stream: SocketStream, buffers: Any) -> None:
            if threading.current_thread() is caller:  # the server's end is of the same class
                raise KeyboardInterrupt
            send_all(stream, buffers)

        with monkeypatch.context() as patched:
            patched.setattr(SocketStream, "send_all", interrupted)
            with pytest.raises(KeyboardInterrupt):
                channel.unary_unary("/t.T/Echo").future(b"x")
        with pytest.raises(RpcError) as caught:
            next(other)
        assert name_of(caught) == "UNAVAILABLE"
        assert channel.unary_unary("/t.T/Echo")(b"y", timeout=5) == b"y"


def server_links() -> int:
    gc.collect()
    return sum(isinstance(each, ServerLink) for each in gc.get_objects())


def test_a_server_keeps_nothing_of_a_connection_that_has_ended(dial: Dialler) -> None:
    before = server_links()
    with Channel(dial) as channel:
        for _ in range(3):
            channel.unary_unary("/t.T/Echo")(b"x")
        assert server_links() > before
    deadline = time.monotonic() + 10
    while server_links() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def thread_kind() -> str:
    return threading.current_thread().name.rstrip("-_0123456789")


class Looks(Spinning):
    """Counts whose receives look before they sleep."""

    by: ClassVar[collections.Counter[str]] = collections.Counter()

    def receive(self, max_bytes: int, timeout: float | None) -> bytes:
        self.by[thread_kind()] += 1
        return super().receive(max_bytes, timeout)


def test_a_lone_caller_and_its_server_look_for_what_comes_soon(dial: Dialler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridload.goplugin.http2.link.Spinning", Looks)
    with Channel(dial) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        echo(b"")
        Looks.by.clear()
        for _ in range(20):
            echo(b"again")
        assert Looks.by[thread_kind()] == 20
        assert Looks.by["hybridload-http2-serve"] >= 19  # one may have left the role to another
