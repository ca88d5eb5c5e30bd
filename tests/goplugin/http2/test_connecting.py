"""Connecting, and writing to a peer that does not read, have their own time: a call whose deadline comes ends alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from hybridload.goplugin.certificates import generate_certificate
from hybridload.goplugin.http2.channel import Channel
from hybridload.goplugin.http2.server import Server
from hybridload.goplugin.http2.status import RpcError
from hybridload.goplugin.streams.sockets import SocketListener, SocketStream, connect, listen_unix
from hybridload.goplugin.streams.tls import TLSListener, TLSStream, client_context, server_context
from tests.running_out import no_more_threads

PATIENCE = 20.0
BRIEF = 0.1

Call = Callable[[Channel, float], Any]

CALLS: dict[str, Call] = {
    "call": lambda channel, timeout: channel.unary_unary("/t.T/Echo")(b"x", timeout=timeout),
    "future": lambda channel, timeout: channel.unary_unary("/t.T/Echo").future(b"x", timeout=timeout).result(),
    "stream": lambda channel, timeout: list(channel.unary_stream("/t.T/Count")(b"1", timeout=timeout)),
    "stream of requests": lambda channel, timeout: channel.stream_unary("/t.T/Join")(iter([b"x"]), timeout=timeout),
    "coroutine": lambda channel, timeout: asyncio.run(channel.on_loops("/t.T/Echo").answer(b"x", timeout)),
}
each_call = pytest.mark.parametrize("opening", CALLS.values(), ids=CALLS)


class Gate:
    """A listener whose connections are accepted once it is opened."""

    def __init__(self, below: SocketListener) -> None:
        self._below = below
        self.open = threading.Event()
        self.network, self.address = below.network, below.address

    def accept(self, timeout: float | None = None) -> SocketStream:
        self.open.wait()
        return self._below.accept(timeout)

    def close(self) -> None:
        self._below.close()
        self.open.set()


@pytest.fixture
def gate(service: Any) -> Iterator[tuple[Gate, Channel]]:
    """A server under TLS that shakes hands when it is told to, and a channel of one connection to it."""
    certificate = generate_certificate("P-256")
    serving, calling = server_context(certificate, certificate.der), client_context(certificate, certificate.der)
    gate = Gate(listen_unix())
    server = Server((service,))
    server.add_listener(TLSListener(gate, serving))
    server.start()

    def dial(timeout: float | None) -> TLSStream:
        return TLSStream(connect("unix", gate.address, timeout), calling, "localhost")

    with Channel(dial, max_connections=1, dial_ahead=True) as channel:
        yield gate, channel
    assert server.stop(0).wait(PATIENCE)


@each_call
def test_a_deadline_that_comes_in_the_handshake_is_nobody_elses(gate: tuple[Gate, Channel], opening: Call) -> None:
    closed, channel = gate
    with ThreadPoolExecutor(1 + 2 * len(CALLS)) as pool:
        first = pool.submit(opening, channel, BRIEF)
        others = [pool.submit(call, channel, PATIENCE) for call in CALLS.values()]
        brief = [first, *(pool.submit(call, channel, BRIEF) for call in CALLS.values())]
        for each in brief:
            assert_late(each)
        assert not any(each.done() for each in others)
        closed.open.set()
        for each in others:
            assert each.result(PATIENCE)


@each_call
def test_the_handshake_goes_on_when_who_began_it_is_gone(gate: tuple[Gate, Channel], opening: Call) -> None:
    closed, channel = gate
    with ThreadPoolExecutor(1) as pool:
        assert_late(pool.submit(opening, channel, BRIEF))
    closed.open.set()
    assert channel.unary_unary("/t.T/Echo")(b"x", timeout=PATIENCE) == b"x"
    assert len(channel._pool._links) == 1


def assert_late(call: Future[Any]) -> None:
    error = call.exception(PATIENCE)
    assert isinstance(error, RpcError)
    assert error.code().name == "DEADLINE_EXCEEDED"


class Full:
    """A stream that takes nothing while it is full."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self.empty = threading.Event()
        self.empty.set()
        self.waited_on = threading.Event()

    def send(self, data: bytes) -> None:
        self.send_all((data,))

    def send_all(self, buffers: Any) -> None:
        if not self.empty.is_set():
            self.waited_on.set()
            self.empty.wait()
        self._stream.send_all(buffers)

    def writable(self) -> bool:
        return self.empty.is_set() and self._stream.writable()

    def close(self) -> None:
        self._stream.close()
        self.empty.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_a_deadline_that_comes_while_the_peer_does_not_read_is_nobody_elses(
    ours: tuple[Server, str], service: Any
) -> None:
    stream = Full(connect("unix", ours[1]))
    with Channel(lambda _: stream, max_connections=1) as channel:
        responses = channel.unary_stream("/t.T/HangStream")(b"", timeout=PATIENCE)
        assert next(responses) == b"first"
        stream.empty.clear()
        echo = channel.unary_unary("/t.T/Echo")
        with ThreadPoolExecutor(2) as pool:
            brief = pool.submit(echo, bytes(1 << 20), timeout=BRIEF)
            assert stream.waited_on.wait(PATIENCE)
            patient = pool.submit(echo, b"x", timeout=PATIENCE)
            assert_late(brief)
            stream.empty.set()
            assert patient.result(PATIENCE) == b"x"
        assert responses.is_active()
        responses.cancel()


def test_a_peer_that_does_not_read_holds_a_lone_call_up_until_its_deadline(ours: tuple[Server, str]) -> None:
    opened: list[Full] = []

    def dial(_: float | None) -> Full:
        opened.append(Full(connect("unix", ours[1])))
        return opened[-1]

    with Channel(dial) as channel:
        echo = channel.unary_unary("/t.T/Echo")
        assert echo(b"a", timeout=PATIENCE) == b"a"
        opened[0].empty.clear()
        began = time.monotonic()
        with pytest.raises(RpcError) as caught:
            echo(bytes(1 << 20), timeout=BRIEF)
        assert caught.value.code().name == "DEADLINE_EXCEEDED"
        assert time.monotonic() - began < PATIENCE / 2
        assert echo(b"b", timeout=PATIENCE) == b"b"
        assert len(opened) == 2


def test_a_call_that_was_read_is_not_sent_again_when_another_gives_up_writing(
    ours: tuple[Server, str], service: Any
) -> None:
    """Without a thread that could go on writing, the connection ends, and who knows how far the other call had come."""
    opened: list[Full] = []

    def dial(_: float | None) -> Full:
        opened.append(Full(connect("unix", ours[1])))
        return opened[-1]

    with Channel(dial, max_connections=1) as channel, ThreadPoolExecutor(2) as pool:
        running = pool.submit(channel.unary_unary("/t.T/Hang"), b"", timeout=PATIENCE)
        assert service.event("hanging").wait(PATIENCE)
        opened[0].empty.clear()
        with no_more_threads("hybridload-http2-call"):
            assert_late(pool.submit(channel.unary_unary("/t.T/Echo"), bytes(1 << 20), timeout=BRIEF))
        error = running.exception(PATIENCE)
        assert isinstance(error, RpcError)
        assert error.code().name == "UNAVAILABLE"
        assert len(opened) == 1
