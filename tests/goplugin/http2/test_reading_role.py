"""Nothing that one call does holds up another call, a stream, a ping or a cancellation on the same connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hybridload.goplugin.http2 import frames
from hybridload.goplugin.http2.channel import Channel
from hybridload.goplugin.http2.connection import Connection, Role
from hybridload.goplugin.http2.events import HeadersReceived, PingAnswered
from hybridload.goplugin.http2.header_blocks import encode
from hybridload.goplugin.http2.server import Server
from hybridload.goplugin.streams.base import StreamClosed
from hybridload.goplugin.streams.sockets import socket_pair

from .test_connection import data_frame, request_frame


class Peer:
    """A client by hand on one connection, so that nothing but the server decides what waits for what."""

    def __init__(self, server: Server) -> None:
        self.stream, theirs = socket_pair()
        self.connection = Connection(Role.CLIENT)
        server.serve(theirs)
        self.events: list[Any] = []

    def call(self, path: bytes, message: bytes = b"") -> int:
        stream_id = self.connection.open_stream()
        fields = (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path),
            (b"content-type", b"application/grpc"),
        )
        self.connection.send_headers(stream_id, encode(fields))
        self.connection.send_data(stream_id, b"\0" + len(message).to_bytes(4, "big") + message, end_stream=True)
        self.send()
        return stream_id

    def send(self) -> None:
        due = self.connection.data_to_send()
        if due:
            self.stream.send_all(due)

    def acknowledge(self) -> None:
        """Send what reading made due; a server that has hung up does not want it, and may have said more before."""
        try:
            self.send()
        except StreamClosed:
            pass

    def until(self, found: Any, timeout: float = 5.0) -> float:
        """Read until an event satisfies `found`; returns the seconds that took."""
        began = time.monotonic()
        while not any(found(event) for event in self.events):
            received = self.stream.receive(65536, began + timeout - time.monotonic())
            assert received, f"the server hung up after {self.events}"
            self.events += self.connection.receive(received)
            self.acknowledge()
        return time.monotonic() - began

    def until_answered(self, stream_id: int, timeout: float = 5.0) -> float:
        return self.until(lambda event: getattr(event, "end_stream", False) and event.stream_id == stream_id, timeout)

    def until_ponged(self) -> float:
        self.connection.ping(b"are-you?")
        self.send()
        return self.until(lambda event: event == PingAnswered(b"are-you?"))


@pytest.fixture
def server(service: Any) -> Iterator[Server]:
    server = Server((service,))
    server.start()
    yield server
    assert server.stop(0).wait(10)


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[[], Peer]]:
    peers: list[Peer] = []

    def connect() -> Peer:
        peers.append(Peer(server))
        return peers[-1]

    yield connect
    for peer in peers:
        peer.stream.close()


@pytest.fixture
def peer(connect: Callable[[], Peer]) -> Peer:
    return connect()


def test_quick_calls_are_answered_by_the_thread_that_reads(peer: Peer, service: Any) -> None:
    service.handlers["Who"] = type(service.handlers["Echo"])(lambda *_: threading.current_thread().name.encode())
    for _ in range(20):
        peer.until_answered(peer.call(b"/t.T/Who"))
    names = {bytes(event.data[5:]) for event in peer.events if getattr(event, "data", b"")}
    assert len(names) == 1


def test_a_blocked_handler_holds_up_neither_calls_nor_pings_nor_its_own_cancellation(peer: Peer, service: Any) -> None:
    blocked = peer.call(b"/t.T/Hang")
    assert service.event("hanging").wait(5)
    assert peer.until_answered(peer.call(b"/t.T/Echo", b"x")) < 1
    assert peer.until_ponged() < 1
    peer.connection.reset(blocked)
    peer.send()
    assert service.event("hung").wait(5)
    assert service.seen == [True]


def test_requests_that_came_with_a_blocking_one_are_not_held_up(peer: Peer, service: Any) -> None:
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/t.T/Hang"),
        (b"content-type", b"application/grpc"),
    )
    wire = b"".join(peer.connection.data_to_send())
    ids = [peer.connection.open_stream() for _ in range(5)]
    for stream_id in ids:
        path = b"/t.T/Hang" if stream_id == ids[0] else b"/t.T/Echo"
        these = tuple((name, path if name == b":path" else value) for name, value in fields)
        wire += request_frame(stream_id, fields=these) + data_frame(stream_id, bytes(5), frames.END_STREAM)
    peer.stream.send(wire)
    for stream_id in ids[1:]:
        peer.until(lambda event, wanted=stream_id: isinstance(event, HeadersReceived) and event.stream_id == wanted)
    assert not service.event("hung").is_set()


def test_a_slow_method_is_run_elsewhere_from_then_on(peer: Peer, service: Any, server: Server) -> None:
    blocked = [peer.call(b"/t.T/Hang")]
    assert service.event("hanging").wait(5)
    peer.until_answered(peer.call(b"/t.T/Echo"))
    assert "/t.T/Hang" in server.slow
    threads = set(threading.enumerate())
    blocked += [peer.call(b"/t.T/Hang") for _ in range(3)]
    peer.until_answered(peer.call(b"/t.T/Echo"))
    assert len(set(threading.enumerate()) - threads) >= 2
    for stream_id in blocked:
        peer.connection.reset(stream_id)
    peer.send()


def test_a_method_that_becomes_quick_is_forgiven(peer: Peer, service: Any, server: Server) -> None:
    server.slow["/t.T/Echo"] = 3
    for _ in range(3):
        peer.until_answered(peer.call(b"/t.T/Echo"))
    deadline = time.monotonic() + 5
    while "/t.T/Echo" in server.slow and time.monotonic() < deadline:
        peer.until_answered(peer.call(b"/t.T/Echo"))
    assert server.slow == {}


def test_an_answer_that_waits_for_the_window_holds_up_nothing(peer: Peer) -> None:
    peer.connection.receive(b"")
    large = peer.call(b"/t.T/Zeros", b"3000000")  # the client's window is 256 KiB
    quick = peer.call(b"/t.T/Echo", b"x")
    peer.until_answered(quick)
    peer.connection.expect(large, 4000000)
    peer.send()
    peer.until_answered(large)
    received = [event.data for event in peer.events if getattr(event, "data", b"") and event.stream_id == large]
    assert sum(map(len, received)) == 3000005


def test_a_client_that_does_not_read_blocks_only_its_own_answers(connect: Callable[[], Peer]) -> None:
    deaf = connect()
    deaf.connection.receive(b"")
    for _ in range(40):
        deaf.call(b"/t.T/Zeros", b"200000")
    other = connect()
    assert other.until_answered(other.call(b"/t.T/Echo")) < 2


def test_a_callback_into_the_host_may_call_the_plugin_again(server: Server, service: Any) -> None:
    """Host -> plugin -> host -> plugin, on one connection each way, while another call is blocked and one is slow."""
    handler = type(service.handlers["Echo"])
    host = Server((service,))
    host.start()

    def connect_to(target: Server) -> Any:
        mine, theirs = socket_pair()
        target.serve(theirs)
        return mine

    to_plugin = Channel(lambda _: connect_to(server), max_connections=1)
    to_host = Channel(lambda _: connect_to(host), max_connections=1)
    service.handlers["CallHost"] = handler(
        lambda request, _: to_host.unary_unary("/t.T/CallPlugin")(request, timeout=9)
    )
    service.handlers["CallPlugin"] = handler(lambda request, _: to_plugin.unary_unary("/t.T/Echo")(request, timeout=9))
    service.handlers["Slow"] = handler(lambda request, _: time.sleep(0.05) or request)
    stdio = to_plugin.unary_stream("/t.T/HangStream")(b"")
    try:
        assert next(stdio) == b"first"
        blocked = to_plugin.unary_unary("/t.T/Hang").future(b"")
        slow = to_plugin.unary_unary("/t.T/Slow").future(b"slow")
        for _ in range(20):
            assert to_plugin.unary_unary("/t.T/CallHost")(b"deep", timeout=9) == b"deep"
        assert slow.result(timeout=9) == b"slow"
        assert blocked.cancel()
        stdio.cancel()
    finally:
        to_plugin.close()
        to_host.close()
        assert host.stop(0).wait(10)


def test_a_broken_client_does_not_take_the_server_along(connect: Callable[[], Peer]) -> None:
    broken = connect()
    broken.stream.send(b"GET / HTTP/1.1\r\n\r\n" * 100)
    while broken.stream.receive():
        pass
    other = connect()
    other.until_answered(other.call(b"/t.T/Echo"))


def test_a_stopping_server_lets_calls_end_within_the_grace(peer: Peer, server: Server, service: Any) -> None:
    handler = type(service.handlers["Echo"])
    begun = threading.Event()
    go_on = threading.Event()
    service.handlers["Wait"] = handler(lambda request, _: (begun.set(), go_on.wait(5), request)[2])
    stream_id = peer.call(b"/t.T/Wait", b"done")
    assert begun.wait(5)
    stopped = server.stop(5)
    assert not stopped.wait(0.05)
    go_on.set()
    peer.until_answered(stream_id)
    assert stopped.wait(5)
    assert peer.stream.receive() == b""


def test_a_server_may_be_stopped_from_a_handler(peer: Peer, server: Server, service: Any) -> None:
    handler = type(service.handlers["Echo"])
    service.handlers["Stop"] = handler(lambda request, _: server.stop(1) and request)
    stopping = peer.call(b"/t.T/Stop")
    assert not server.wait_for_termination(5)
    assert server.stop(None).wait(5)
    peer.until_answered(stopping)
