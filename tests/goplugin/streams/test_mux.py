from __future__ import annotations

import os
import random
import struct
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridload.goplugin.certificates import Certificate, generate_certificate
from hybridload.goplugin.streams import reading, spinning
from hybridload.goplugin.streams.base import Buffer, Stream, StreamClosed, StreamError, StreamReset
from hybridload.goplugin.streams.mux import Mux, MuxConfig, MuxStream
from hybridload.goplugin.streams.reading import MOMENT, Reading
from hybridload.goplugin.streams.sockets import SocketStream, connect, listen_unix, socket_pair
from hybridload.goplugin.streams.tls import TLSStream, client_context, server_context
from hybridload.goplugin.streams.yamux import INITIAL_WINDOW, Config

Ends = tuple[Mux, Mux]
ReceiveExactly = Callable[[Stream, int], bytes]
ReceiveAll = Callable[[Stream], bytes]


@pytest.fixture
def ends() -> Iterator[Ends]:
    near, far = socket_pair()
    client, server = Mux(near, client=True), Mux(far, client=False)
    yield client, server
    client.close()
    server.close()


def stream_pair(ends: Ends) -> tuple[MuxStream, MuxStream]:
    ours = ends[0].open(timeout=5)
    theirs = ends[1].accept(timeout=5)
    assert ours.stream_id == theirs.stream_id
    return ours, theirs


def echo(stream: Stream) -> None:
    try:
        while data := stream.receive(timeout=20):
            stream.send(data)
        stream.close_write()
    except StreamError:
        pass
    stream.close()


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.002)


# Streams of a session


def test_either_end_opens_streams(ends: Ends, receive_exactly: ReceiveExactly) -> None:
    for opener, acceptor in (ends, ends[::-1]):
        opened = opener.open()
        opened.send(b"hello")
        accepted = acceptor.accept(timeout=5)
        assert receive_exactly(accepted, 5) == b"hello"
        accepted.send_all([b"wel", b"come"])
        assert receive_exactly(opened, 7) == b"welcome"
        opened.close()
        accepted.close()


def test_bytes_arrive_in_order_on_many_streams_at_once(
    ends: Ends, pool: ThreadPoolExecutor, receive_all: ReceiveAll
) -> None:
    def exchange(number: int) -> bool:
        stream = ends[number % 2].open(timeout=20)
        sent = random.Random(number).randbytes(200_000 + number)
        receiving = pool.submit(receive_all, stream)
        stream.send_all([sent[:100_000], sent[100_000:]])
        stream.close_write()
        same = receiving.result() == sent
        stream.close()
        return same

    def serve(mux: Mux) -> None:
        for _ in range(8):
            pool.submit(echo, mux.accept(timeout=20))

    serving = [pool.submit(serve, mux) for mux in ends]
    exchanges = [pool.submit(exchange, number) for number in range(16)]
    assert all(each.result() for each in exchanges)
    assert [each.result() for each in serving] == [None, None]


def test_a_send_is_atomic_among_several_threads(
    ends: Ends, pool: ThreadPoolExecutor, receive_exactly: ReceiveExactly
) -> None:
    ours, theirs = stream_pair(ends)
    size = 400_000
    sent = [pool.submit(ours.send, bytes([letter]) * size) for letter in b"abc"]
    received = receive_exactly(theirs, 3 * size)
    assert sorted(received[at : at + size] for at in range(0, 3 * size, size)) == [bytes([c]) * size for c in b"abc"]
    assert [each.result() for each in sent] == [None] * 3


def test_receive_takes_what_was_asked_for_and_no_more(ends: Ends) -> None:
    ours, theirs = stream_pair(ends)
    ours.send(b"abcdef")
    ours.send(b"")
    assert theirs.receive(2, timeout=5) == b"ab"
    buffer = bytearray(3)
    assert theirs.receive_into(memoryview(buffer), timeout=5) == 3
    assert buffer == b"cde"
    assert theirs.receive(timeout=0) == b"f"
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        theirs.receive(timeout=0.01)


def test_half_close_ends_one_direction_only(ends: Ends, receive_all: ReceiveAll) -> None:
    ours, theirs = stream_pair(ends)
    ours.send(b"question")
    ours.close_write()
    ours.close_write()
    assert receive_all(theirs) == b"question"
    assert theirs.receive() == b""
    theirs.send(b"answer")
    theirs.close_write()
    assert receive_all(ours) == b"answer"
    with pytest.raises(StreamClosed):
        ours.send(b"more")
    with pytest.raises(StreamClosed):
        ours.send(b"")


def test_without_half_close_a_finished_stream_is_finished_in_return(receive_all: ReceiveAll) -> None:
    near, far = socket_pair()
    with closing(Mux(near, client=True, config=MuxConfig(half_close=False))) as client:
        with closing(Mux(far, client=False)) as server:
            ours, theirs = stream_pair((client, server))
            theirs.send(b"last words")
            theirs.close_write()
            assert receive_all(theirs) == b""  # nobody receives at the other end
            assert receive_all(ours) == b"last words"
            with pytest.raises(StreamClosed):
                ours.send(b"too late")


def test_a_stream_blocks_its_sender_and_no_other(
    ends: Ends, pool: ThreadPoolExecutor, receive_exactly: ReceiveExactly
) -> None:
    slow, unread = stream_pair(ends)
    fast, read = stream_pair(ends)
    data = os.urandom(3 * INITIAL_WINDOW)
    sending = pool.submit(slow.send, data)
    eventually(lambda: not slow.writable(), "the window is used up")
    for _ in range(50):
        fast.send(b"x" * 10_000)
        assert receive_exactly(read, 10_000)
    assert not sending.done()
    assert fast.writable()
    assert receive_exactly(unread, len(data)) == data
    sending.result(5)


def test_close_wakes_blocked_threads_on_both_sides(ends: Ends, pool: ThreadPoolExecutor) -> None:
    ours, theirs = stream_pair(ends)
    mine, other = pool.submit(ours.receive), pool.submit(theirs.receive)
    full, unread = stream_pair(ends)
    sending, waiting = pool.submit(full.send, bytes(2 * INITIAL_WINDOW)), pool.submit(full.receive)
    eventually(lambda: not full.writable(), "the window is used up")
    for stream in (ours, full):
        stream.close()
        stream.close()
    for future in (mine, sending, waiting):
        with pytest.raises(StreamClosed, match="closed on this side"):
            future.result(5)
    assert other.result(5) == b""
    for use in (lambda: ours.send(b"x"), ours.receive, lambda: ours.receive(timeout=1)):
        with pytest.raises(StreamClosed, match="closed on this side"):
            use()
    assert ours.readable()
    assert not ours.writable()
    while unread.receive(timeout=5):
        pass
    with pytest.raises(StreamClosed):
        full.send(b"x")


def test_close_wakes_the_thread_that_reads_for_all_within_a_moment(ends: Ends, pool: ThreadPoolExecutor) -> None:
    ours, _ = stream_pair(ends)
    for _ in range(20):
        stream, _ = stream_pair(ends)
        waiting = pool.submit(stream.receive)
        stream.close()
        start = time.monotonic()
        with pytest.raises(StreamClosed):
            waiting.result(5)
        assert time.monotonic() - start < 1
    assert ends[0].ping() < 1
    ours.close()


def test_the_peers_close_is_the_end_of_the_stream_and_keeps_what_was_sent(ends: Ends, receive_all: ReceiveAll) -> None:
    ours, theirs = stream_pair(ends)
    theirs.send(b"last words")
    theirs.close()
    ours.send(b"nobody reads this")
    assert receive_all(ours) == b"last words"
    ours.close()
    eventually(lambda: not ends[0]._streams and not ends[1]._streams, "both ends have forgotten the stream")


def test_a_sender_that_nobody_reads_any_more_is_told(ends: Ends) -> None:
    ours, theirs = stream_pair(ends)
    theirs.close()
    with pytest.raises(StreamReset, match="reset"):
        ours.send(bytes(3 * INITIAL_WINDOW))
    with pytest.raises(StreamReset):
        ours.send(b"x")
    assert ours.receive() == b""


def test_readable_and_writable_never_wait(ends: Ends) -> None:
    ours, theirs = stream_pair(ends)
    assert not ours.readable()
    assert ours.writable()
    theirs.send(b"x")
    eventually(ours.readable, "it has arrived")
    assert ours.receive(timeout=0) == b"x"
    assert not ours.readable()
    theirs.close()
    eventually(ours.readable, "the end has arrived")
    assert ours.receive() == b""


def test_a_slow_reader_costs_no_more_than_its_windows(ends: Ends, pool: ThreadPoolExecutor) -> None:
    pairs = [stream_pair(ends) for _ in range(4)]
    tracemalloc.start()
    try:
        data = bytes(8_000_000)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        sending = [pool.submit(ours.send, data) for ours, _ in pairs]
        eventually(lambda: not any(ours.writable() for ours, _ in pairs), "the windows are used up")
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < 4 * 2 * INITIAL_WINDOW + 500_000
        for _, theirs in pairs:
            theirs.close()
        for each in sending:
            with pytest.raises(StreamReset):
                each.result(5)
    finally:
        tracemalloc.stop()


def test_tiny_frames_cost_no_more_than_the_window(ends: Ends) -> None:
    ours, theirs = stream_pair(ends)
    tracemalloc.start()
    try:
        for _ in range(20_000):
            ours.send(b"x")
        eventually(lambda: len(theirs._received) == 20_000, "all has arrived")
        size, _ = tracemalloc.get_traced_memory()
        assert size < 500_000
    finally:
        tracemalloc.stop()


# Opening and accepting


def test_accept_and_open_time_out(ends: Ends) -> None:
    with pytest.raises(TimeoutError, match="opened no stream"):
        ends[0].accept(timeout=0.01)
    for _ in range(256):
        ends[0].open(timeout=5)
    with pytest.raises(TimeoutError, match="accepted none"):
        ends[0].open(timeout=0.05)
    ends[1].accept(timeout=5)
    ends[0].open(timeout=5)


def test_a_thousand_streams_one_after_the_other_and_fifty_at_once(ends: Ends, pool: ThreadPoolExecutor) -> None:
    def serve() -> None:
        for _ in range(1050):
            pool.submit(echo, ends[1].accept(timeout=20))

    def call(number: int) -> bool:
        stream = ends[0].open(timeout=20)
        stream.send(number.to_bytes(4, "big"))
        answer = stream.receive(timeout=20)
        stream.close()
        return answer == number.to_bytes(4, "big")

    serving = pool.submit(serve)
    assert all(call(number) for number in range(1000))
    assert all(pool.map(call, range(50)))
    serving.result()
    eventually(lambda: not ends[0]._streams and not ends[1]._streams, "all streams are forgotten")


def test_going_away_refuses_new_streams_and_keeps_the_old(ends: Ends) -> None:
    ours, theirs = stream_pair(ends)
    ends[1].go_away()
    eventually(lambda: ends[0]._session.peer_leaving, "the message has come")
    with pytest.raises(StreamClosed, match="going away"):
        ends[0].open()
    theirs.send(b"still here")
    assert ours.receive(timeout=5) == b"still here"


def test_a_stream_that_nobody_accepts_is_given_up() -> None:
    near, far = socket_pair()
    client, server = Mux(near, client=True, config=MuxConfig(open_timeout=0.05)), Mux(far, client=False)
    stream = client.open()
    with pytest.raises(StreamReset, match="did not accept it in time"):
        stream.receive(timeout=5)
    accepted = server.accept(timeout=5)
    with pytest.raises(StreamReset, match="the peer reset it"):
        accepted.receive(timeout=5)
    client.close()
    server.close()


def test_a_closed_stream_that_the_peer_never_closes_is_given_up() -> None:
    near, far = socket_pair()
    client, server = Mux(near, client=True, config=MuxConfig(close_timeout=0.05)), Mux(far, client=False)
    stream, left_open = client.open(), server.accept(timeout=5)
    stream.close()
    eventually(lambda: not client._streams, "the stream is forgotten")
    with pytest.raises(StreamReset):
        eventually(lambda: left_open.send(b"x") is not None, "it is told")
    client.close()
    server.close()


# The session's end


def test_closing_the_session_ends_everything_on_both_sides(ends: Ends, pool: ThreadPoolExecutor) -> None:
    ours, theirs = stream_pair(ends)
    blocked = pool.submit(stream_pair(ends)[0].send, bytes(2 * INITIAL_WINDOW))
    here = [pool.submit(ours.receive), pool.submit(ends[0].accept)]
    there = [pool.submit(theirs.receive), pool.submit(ends[1].accept)]
    eventually(lambda: ends[0]._reading._reader is not None, "somebody reads")
    ends[0].close()
    ends[0].close()
    for future in here:
        with pytest.raises(StreamClosed, match="closed on this side"):
            future.result(5)
    for future in there:
        with pytest.raises(StreamReset):
            future.result(5)
    with pytest.raises(StreamClosed):
        blocked.result(5)
    with pytest.raises(StreamClosed):
        ends[0].open()
    with pytest.raises(StreamReset):
        ends[1].open()
    assert isinstance(ends[1].ended, StreamReset)


def test_what_came_before_the_end_can_still_be_received(ends: Ends) -> None:
    ours, theirs = stream_pair(ends)
    ours.send(b"last words")
    eventually(lambda: bool(theirs._received), "it has arrived")
    ends[0].close()
    eventually(lambda: ends[1].ended is not None, "the end has come")
    assert theirs.receive() == b"last words"
    with pytest.raises(StreamReset):
        theirs.receive()


def test_a_peer_that_breaks_the_protocol_is_told_and_left() -> None:
    near, far = socket_pair()
    server = Mux(far, client=False)
    near.send(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(StreamReset, match="is it yamux"):
        server.accept(timeout=5)
    assert near.receive(timeout=5) == struct.pack(">BBHII", 0, 3, 0, 0, 1)
    assert near.receive(timeout=5) == b""
    near.close()
    server.close()


def accept_for_ever(mux: Mux) -> None:
    while True:
        mux.accept(timeout=5)


def send_for_ever(stream: Stream, data: bytes) -> None:
    while True:
        stream.send(data)


@settings(max_examples=60)
@given(st.binary(min_size=1, max_size=200))
def test_hostile_bytes_neither_hang_nor_crash_a_session(hostile: bytes) -> None:
    near, far = socket_pair()
    server = Mux(far, client=False)
    near.send(hostile)
    near.close_write()
    with pytest.raises(StreamReset):
        accept_for_ever(server)
    assert isinstance(server.ended, StreamReset)
    near.close()
    server.close()


def test_a_flood_of_pings_whose_answers_nobody_reads_ends_the_session() -> None:
    near, far = socket_pair()
    server = Mux(far, client=False, config=MuxConfig(session=Config(chatter=1 << 40)))
    pings = struct.pack(">BBHII", 0, 2, 1, 0, 7) * 5000
    with pytest.raises(StreamError):
        send_for_ever(near, pings)
    eventually(lambda: server.ended is not None, "the session is over")
    assert "provokes answers" in str(server.ended)
    near.close()
    server.close()


# Signs of life


def test_pings_are_answered_while_nobody_waits(ends: Ends) -> None:
    assert ends[0].ping(timeout=5) < 5
    stream_pair(ends)
    assert ends[1].ping(timeout=5) < 5


# Races that a busy machine brings about


def test_a_session_whose_threads_start_slowly_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watching thread reads by itself after a moment, which may be before whoever made it goes on."""
    near, far = socket_pair()
    with closing(Mux(near, client=True)) as client:
        opened = [client.open() for _ in range(3)]
        start = threading.Thread.start

        def start_slowly(thread: threading.Thread) -> None:
            start(thread)
            time.sleep(5 * MOMENT)

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start_slowly)
            server = Mux(far, client=False)
        with closing(server):
            assert [server.accept(timeout=5).stream_id for _ in opened] == [each.stream_id for each in opened]


def test_a_session_that_cannot_begin_closes_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = socket_pair()
    with closing(far):
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
            with pytest.raises(RuntimeError, match="can't start new thread"):
                Mux(near, client=True)
        assert far.receive(timeout=5) == b""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_in_the_watching_thread_ends_the_session(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = socket_pair()
    with closing(Mux(near, client=True)) as client, closing(far):
        accepting = pool.submit(client.accept)
        time.sleep(5 * MOMENT)  # now nobody reads but the watching thread
        monkeypatch.setattr(client._session, "receive_data", lambda data: 1 / 0)
        far.send(bytes(12))
        with pytest.raises(StreamReset, match=r"failed on this side: ZeroDivisionError"):
            accepting.result(5)


@pytest.mark.parametrize("at_most", [65536, 100], ids=["for itself", "for all"])
def test_whoever_is_interrupted_while_it_reads_ends_the_session(monkeypatch: pytest.MonkeyPatch, at_most: int) -> None:
    """It may have taken bytes that nobody will see."""
    near, far = socket_pair()
    with monkeypatch.context() as patched:
        patched.setattr(Reading, "start", lambda reading: None)  # so that nobody else reads
        client = Mux(near, client=True)
    with closing(far), closing(client):
        stream = client.open()
        with monkeypatch.context() as patched:
            patched.setattr(SocketStream, "receive", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                stream.receive(at_most, timeout=5)
        with pytest.raises(StreamReset, match="KeyboardInterrupt"):
            client.accept()
        client._reading.start()


class Hooked:
    """A lock with something to be done when it has just been taken, just before it is released, and just after."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.taken: Callable[[], None] = lambda: None
        self.releasing: Callable[[], None] = lambda: None
        self.released: Callable[[], None] = lambda: None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        got = self._lock.acquire(blocking, timeout)
        if got:
            self.taken()
        return got

    def release(self) -> None:
        self.releasing()
        self._lock.release()
        self.released()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def test_whoever_is_interrupted_while_it_sends_ends_the_session(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have sent half a frame."""
    ours, _ = stream_pair(ends)
    with monkeypatch.context() as patched:
        patched.setattr(SocketStream, "send_all", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ours.send(b"data")
    with pytest.raises(StreamReset, match="KeyboardInterrupt"):
        ends[0].accept(timeout=5)


def receive_all_there_is(stream: MuxStream) -> object:
    return stream.receive(timeout=5)


def receive_a_little(stream: MuxStream) -> object:
    return stream.receive(1, timeout=5)


def for_ever(ask: Callable[[MuxStream], object], stream: MuxStream) -> None:
    while True:
        ask(stream)


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[MuxStream, MuxStream]]:
    """A stream with nobody who reads for it at this end."""
    near, far = socket_pair()
    with monkeypatch.context() as patched:
        patched.setattr(Reading, "start", lambda reading: None)
        client = Mux(near, client=True)
    with closing(Mux(far, client=False)) as server, closing(client):
        yield stream_pair((client, server))
        client._reading.start()


@pytest.mark.parametrize("ask", [receive_all_there_is, receive_a_little, MuxStream.readable])
def test_whoever_is_interrupted_when_it_has_let_go_of_the_lock_takes_it_back(
    unwatched: tuple[MuxStream, MuxStream], ask: Callable[[MuxStream], object]
) -> None:
    """Where Python looks for signals: right after the call that lets it go."""
    ours, theirs = unwatched
    theirs.send(b"data")
    client = ours._mux
    client._lock = client._reading._lock = lock = Hooked()  # type: ignore[assignment]

    def interrupt() -> None:
        lock.released = lambda: None
        raise KeyboardInterrupt

    lock.released = interrupt
    with pytest.raises(KeyboardInterrupt):
        ask(ours)
    assert not lock.locked()


@pytest.mark.parametrize("ask", [receive_all_there_is, receive_a_little, MuxStream.readable])
def test_whoever_is_interrupted_while_it_passes_the_role_on_does_not_keep_it(
    unwatched: tuple[MuxStream, MuxStream], ask: Callable[[MuxStream], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = unwatched
    theirs.send(b"data")
    with monkeypatch.context() as patched:
        patched.setattr(Reading, "_heir", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            for_ever(ask, ours)  # what comes first may be for the session
    theirs.send(b"more")
    while not ours.receive(timeout=5).endswith(b"more"):
        pass


def test_what_is_queued_just_when_the_writing_thread_is_done_is_sent(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = socket_pair()
    monkeypatch.setattr(SocketStream, "writable", lambda stream: stream is not near)
    with closing(Mux(near, client=True)) as client, closing(Mux(far, client=False)) as server:
        client._writing = writing = Hooked()  # type: ignore[assignment]

        def open_one_more() -> None:
            if client._drain is threading.current_thread() and not client._draining:
                writing.releasing = lambda: None
                pool.submit(client.open).result(5)

        writing.releasing = open_one_more
        client.open()
        # The answer to an accepted stream would send what is queued as well.
        eventually(lambda: len(server._offered) == 2, "both streams have come")


def test_a_close_just_when_a_sender_begins_is_told_to_the_peer(ends: Ends, pool: ThreadPoolExecutor) -> None:
    ours, theirs = stream_pair(ends)
    ours.wait_accepted(5)
    ends[0]._writing = writing = Hooked()  # type: ignore[assignment]

    def close() -> None:
        writing.taken = lambda: None
        pool.submit(ours.close).result(5)

    writing.taken = close
    with pytest.raises(StreamClosed):
        ours.send(b"too late")
    assert theirs.receive(timeout=5) == b""


def test_keepalive_notices_a_peer_that_is_stuck() -> None:
    near, far = socket_pair()
    client = Mux(near, client=True, config=MuxConfig(keepalive=0.02, keepalive_timeout=0.05))
    stream = client.open()
    with pytest.raises(StreamReset, match="answers no pings"):
        stream.receive(timeout=5)
    client.close()
    far.close()


def test_keepalive_lets_a_lively_peer_be() -> None:
    near, far = socket_pair()
    config = MuxConfig(keepalive=0.005, keepalive_timeout=5)
    client, server = Mux(near, client=True, config=config), Mux(far, client=False, config=config)
    ours, theirs = client.open(), server.accept(timeout=5)
    eventually(lambda: client._session._next_ping > 10 and server._session._next_ping > 10, "ten pings were sent")
    ours.send(b"x")
    assert theirs.receive(timeout=5) == b"x"
    client.close()
    server.close()


def test_control_frames_never_wait_for_a_peer_that_does_not_read(pool: ThreadPoolExecutor) -> None:
    """A reader that owes answers goes on reading; they are sent when the peer reads again."""
    near, far = socket_pair()
    server = Mux(far, client=False)
    near.send(struct.pack(">BBHII", 0, 1, 1, 1, 2**31))
    theirs = server.accept(timeout=5)
    blocked = pool.submit(theirs.send, bytes(5_000_000))
    eventually(lambda: not near.readable() or not far.writable(), "the connection is full")
    near.send(struct.pack(">BBHII", 0, 2, 1, 0, 99) * 10 + struct.pack(">BBHII", 0, 0, 0, 1, 5) + b"hello")
    assert theirs.receive(timeout=5) == b"hello"
    received = bytearray()
    while received.count(struct.pack(">BBHII", 0, 2, 2, 0, 99)) < 10 or len(received) < 5_000_000:
        received += near.receive(timeout=5)
    blocked.result(5)
    near.close()
    server.close()


# Who reads


class Watched:
    """A stream that remembers which thread received."""

    def __init__(self, below: SocketStream) -> None:
        self.below = below
        self.peer = below.peer
        self.receivers: list[str] = []

    def receive(self, max_bytes: int = 65536, timeout: float | None = None) -> bytes:
        data = self.below.receive(max_bytes, timeout)
        self.receivers.append(threading.current_thread().name)
        return data

    def receive_into(self, buffer: memoryview, timeout: float | None = None) -> int:
        raise NotImplementedError

    def send(self, data: Buffer) -> None:
        self.below.send(data)

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        self.below.send_all(buffers)

    def close_write(self) -> None:
        self.below.close_write()

    def close(self) -> None:
        self.below.close()

    def readable(self) -> bool:
        return self.below.readable()

    def looker(self) -> Callable[[], bool]:
        return self.below.looker()

    def writable(self) -> bool:
        return self.below.writable()


@pytest.fixture
def watched() -> Iterator[tuple[Watched, Mux, Mux]]:
    near, far = socket_pair()
    below = Watched(near)
    client, server = Mux(below, client=True), Mux(far, client=False)
    yield below, client, server
    client.close()
    server.close()


@pytest.mark.parametrize("looks", [False, True])
def test_a_lone_caller_reads_its_own_answers(
    watched: tuple[Watched, Mux, Mux], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    below, client, server = watched
    monkeypatch.setattr(spinning, "LOOK", 5.0)  # which is long enough on any machine
    ours, theirs = stream_pair((client, server))
    pool.submit(echo, theirs)
    caller = spinning.Spinning(ours) if looks else ours
    me = threading.current_thread().name
    eventually(lambda: client._reading._reader is client._reading._watcher, "the watching thread reads")
    monkeypatch.setattr(reading, "MOMENT", 5.0)  # a machine may be so busy that an echo takes longer than a moment

    def readers_of_an_answer() -> set[str]:
        below.receivers.clear()
        ours.send(b"x")
        caller.receive(65536, 5)
        return set(below.receivers)

    # It leaves the role to a caller that it finds waiting. One that comes when the answer is there does not wait.
    eventually(lambda: readers_of_an_answer() == {me}, "the caller reads")
    assert all(readers_of_an_answer() == {me} for _ in range(200))
    ours.close_write()


def test_a_patient_waiter_does_not_read_for_an_active_caller(
    watched: tuple[Watched, Mux, Mux], pool: ThreadPoolExecutor
) -> None:
    below, client, server = watched
    output, their_output = stream_pair((client, server))
    copier = pool.submit(output.receive)
    ours, theirs = stream_pair((client, server))
    pool.submit(echo, theirs)
    eventually(lambda: client._reading._reader is client._reading._watcher, "the copier has become patient")
    for _ in range(20):
        ours.send(b"x")
        ours.receive(timeout=5)
    below.receivers.clear()
    for _ in range(200):
        ours.send(b"x")
        ours.receive(timeout=5)
    assert below.receivers.count(threading.current_thread().name) >= 190, below.receivers
    ours.close_write()
    their_output.send(b"a line")
    assert copier.result(5) == b"a line"


def test_the_role_passes_on_among_many_callers(ends: Ends, pool: ThreadPoolExecutor) -> None:
    def call(pair: tuple[MuxStream, MuxStream]) -> bool:
        pool.submit(echo, pair[1])
        for number in range(300):
            data = number.to_bytes(4, "big")
            pair[0].send(data)
            assert pair[0].receive(timeout=10) == data
        pair[0].close_write()
        return pair[0].receive(timeout=10) == b""

    pairs = [stream_pair(ends) for _ in range(12)]
    assert all(pool.map(call, pairs))


def test_a_reader_that_gives_up_leaves_the_role_to_others(ends: Ends, pool: ThreadPoolExecutor) -> None:
    first, _ = stream_pair(ends)
    second, theirs = stream_pair(ends)
    with ThreadPoolExecutor() as own_pool:
        giving_up = own_pool.submit(first.receive, timeout=0.01)
        waiting = own_pool.submit(second.receive, timeout=5)
        with pytest.raises(TimeoutError):
            giving_up.result()
        theirs.send(b"x")
        assert waiting.result() == b"x"


# Towers


@pytest.fixture(scope="module")
def certificates() -> tuple[Certificate, Certificate]:
    return generate_certificate(), generate_certificate()


def test_tls_over_yamux(
    ends: Ends, certificates: tuple[Certificate, Certificate], pool: ThreadPoolExecutor, receive_all: ReceiveAll
) -> None:
    host, plugin = certificates
    for _ in range(3):
        below, far_below = stream_pair(ends)
        ours = TLSStream(below, client_context(host, plugin.der), "localhost")
        theirs = TLSStream(far_below, server_context(plugin, host.der))
        pool.submit(echo, theirs)
        sent = os.urandom(1_000_000)
        receiving = pool.submit(receive_all, ours)
        ours.send(sent)
        ours.close_write()
        assert receiving.result() == sent
        ours.close()


def test_yamux_over_tls(
    certificates: tuple[Certificate, Certificate], pool: ThreadPoolExecutor, receive_all: ReceiveAll
) -> None:
    host, plugin = certificates
    near, far = socket_pair()
    client = Mux(TLSStream(near, client_context(host, plugin.der), "localhost"), client=True)
    server = Mux(TLSStream(far, server_context(plugin, host.der)), client=False)
    for _ in range(3):
        ours, theirs = stream_pair((client, server))
        pool.submit(echo, theirs)
        sent = os.urandom(1_000_000)
        receiving = pool.submit(receive_all, ours)
        ours.send(sent)
        ours.close_write()
        assert receiving.result() == sent
        ours.close()
    assert client.ping() < 5
    client.close()
    server.close()


def test_yamux_over_yamux(ends: Ends, pool: ThreadPoolExecutor, receive_exactly: ReceiveExactly) -> None:
    outer = stream_pair(ends)
    inner = Mux(outer[0], client=True), Mux(outer[1], client=False)
    ours, theirs = stream_pair(inner)
    sending = pool.submit(ours.send, bytes(1_000_000))
    assert receive_exactly(theirs, 1_000_000) == bytes(1_000_000)
    sending.result(5)
    inner[0].close()
    inner[1].close()


# Against the Go library


class GoSession:
    """A session with yamuxpeer at the other end."""

    def __init__(self, go_peer: Callable[..., Any], role: str, *arguments: str) -> None:
        if role == "server":
            address = os.path.join(tempfile.gettempdir(), "socket")
            self.peer = go_peer("yamuxpeer", "-role=server", f"-address={address}", *arguments)
            assert self.peer.line() == "listening"
            self.mux = Mux(connect("unix", address), client=True)
        else:
            listener = listen_unix()
            self.peer = go_peer("yamuxpeer", "-role=client", f"-address={listener.address}", *arguments)
            self.mux = Mux(listener.accept(timeout=10), client=False)
            listener.close()

    def tell(self, command: str) -> dict[str, Any]:
        self.peer.tell(command + "\n")
        report: dict[str, Any] = self.peer.report()
        return report


@pytest.fixture(params=["server", "client"])
def go(request: pytest.FixtureRequest, go_peer: Callable[..., Any]) -> Iterator[Callable[..., GoSession]]:
    """Makes a session with the Go library in either role."""
    sessions = []

    def make(*arguments: str) -> GoSession:
        sessions.append(GoSession(go_peer, request.param, *arguments))
        return sessions[-1]

    yield make
    for session in sessions:
        session.mux.close()


def serve_echo(mux: Mux, pool: ThreadPoolExecutor, count: int) -> None:
    for _ in range(count):
        pool.submit(echo, mux.accept(timeout=30))


def test_go_echoes_a_thousand_streams_of_ours(
    go: Callable[..., GoSession], pool: ThreadPoolExecutor, receive_all: ReceiveAll
) -> None:
    session = go()

    def exchange(number: int) -> bool:
        stream = session.mux.open(timeout=30)
        sent = random.Random(number).randbytes(1 + number * 37 % 5000)
        stream.send(sent)
        stream.close_write()
        same = receive_all(stream) == sent
        stream.close()
        return same

    assert all(pool.map(exchange, range(1000)))
    assert session.tell("streams")["count"] == 0
    assert not session.mux._streams


def test_we_echo_a_thousand_streams_of_go(go: Callable[..., GoSession], pool: ThreadPoolExecutor) -> None:
    session = go()
    serving = pool.submit(serve_echo, session.mux, pool, 1000)
    report = session.tell("open 1000 1000")
    assert (report["count"], report["failed"], report["error"]) == (1000, 0, "")
    serving.result()
    assert session.tell("streams")["count"] == 0
    eventually(lambda: not session.mux._streams, "all streams are forgotten")


def test_windows_agree_with_go_under_load(
    go: Callable[..., GoSession], pool: ThreadPoolExecutor, receive_all: ReceiveAll
) -> None:
    session = go()

    def exchange(number: int) -> bool:
        stream = session.mux.open(timeout=30)
        sent = random.Random(number).randbytes(4_000_000)
        receiving = pool.submit(receive_all, stream)
        stream.send(sent)
        stream.close_write()
        same = receiving.result() == sent
        stream.close()
        return same

    serving = pool.submit(serve_echo, session.mux, pool, 4)
    ours = [pool.submit(exchange, number) for number in range(4)]
    report = session.tell("open 4 4000000")
    assert (report["count"], report["failed"], report["error"]) == (4, 0, "")
    assert all(each.result() for each in ours)
    serving.result()


def test_a_stream_that_go_does_not_read_blocks_at_the_window(
    go: Callable[..., GoSession], pool: ThreadPoolExecutor
) -> None:
    session = go()
    session.tell("stall")
    stalled = session.mux.open()
    sending = pool.submit(stalled.send, bytes(1_000_000))
    eventually(lambda: not stalled.writable(), "the window is used up")
    other = session.mux.open()
    other.send(b"goes through")
    assert other.receive(timeout=5) == b"goes through"
    assert not sending.done()
    session.peer.tell("resume\n")
    sending.result(10)
    stalled.close_write()
    assert session.peer.report()["count"] == 1_000_000


def test_pings_are_answered_both_ways(go: Callable[..., GoSession]) -> None:
    session = go("-keepalive=20ms")
    for _ in range(5):
        assert session.mux.ping(timeout=5) < 5
        assert session.tell("ping")["error"] == ""
    time.sleep(0.1)  # several of Go's own
    assert session.tell("ping")["error"] == ""


def test_go_away_of_go_is_understood(go: Callable[..., GoSession]) -> None:
    session = go()
    stream = session.mux.open()
    stream.send(b"before")
    assert stream.receive(timeout=5) == b"before"
    assert session.tell("goaway")["error"] == ""
    with pytest.raises(StreamError):  # either it came already, or the stream is refused
        session.mux.open().receive(timeout=5)
    stream.send(b"goes on")
    assert stream.receive(timeout=5) == b"goes on"


def test_go_understands_our_going_away(go: Callable[..., GoSession]) -> None:
    session = go()
    session.mux.go_away()
    assert session.tell("ping")["error"] == ""
    assert session.tell("open 1 1")["error"] == "remote end is not accepting connections"


def test_a_reset_of_go_is_understood(go: Callable[..., GoSession]) -> None:
    """Go resets a stream that it closed and that we do not close in time."""
    session = go("-close-timeout=50ms")
    session.peer.tell("open 1 10\n")
    stream = session.mux.accept(timeout=5)
    while stream.receive(timeout=5):
        pass
    eventually(lambda: not session.mux._streams, "the reset has come")
    with pytest.raises(StreamReset, match="the peer reset it"):
        stream.send(b"x")
    assert session.peer.report()["failed"] == 1


def test_a_stream_beyond_gos_backlog_waits(go: Callable[..., GoSession]) -> None:
    session = go("-accept=false")
    for _ in range(256):
        session.mux.open(timeout=5)
    with pytest.raises(TimeoutError):
        session.mux.open(timeout=0.05)
    assert session.tell("ping")["error"] == ""


def test_a_stream_beyond_a_smaller_backlog_is_refused_by_go(go: Callable[..., GoSession]) -> None:
    session = go("-accept=false", "-backlog=1")
    session.mux.open()
    refused = session.mux.open()
    with pytest.raises(StreamReset, match="the peer reset it"):
        refused.receive(timeout=5)


def test_the_end_of_go_ends_everything(go: Callable[..., GoSession], pool: ThreadPoolExecutor) -> None:
    session = go()
    stream = session.mux.open()
    waiting = [pool.submit(stream.receive), pool.submit(session.mux.accept)]
    session.tell("close")
    for each in waiting:
        with pytest.raises(StreamReset):
            each.result(5)


def test_go_dying_ends_everything(go: Callable[..., GoSession], pool: ThreadPoolExecutor) -> None:
    session = go()
    session.tell("stall")
    stream = session.mux.open()
    waiting = [pool.submit(stream.receive), pool.submit(stream.send, bytes(1_000_000)), pool.submit(session.mux.accept)]
    eventually(lambda: not stream.writable(), "the window is used up")
    start = time.monotonic()
    session.peer.process.kill()
    for each in waiting:
        with pytest.raises(StreamReset):
            each.result(5)
    assert time.monotonic() - start < 1
