from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest

from hybridload.goplugin.streams.base import Stream, StreamClosed, StreamError, StreamReset
from hybridload.goplugin.streams.sockets import (
    SocketListener,
    SocketStream,
    UnixAccess,
    connect,
    listen_tcp,
    listen_unix,
    socket_pair,
)

Pair = tuple[SocketStream, SocketStream]
ReceiveExactly = Callable[[Stream, int], bytes]


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    listener = listen_unix() if request.param == "unix" else listen_tcp()
    ours = connect(listener.network, listener.address, timeout=5)
    theirs = listener.accept(timeout=5)
    listener.close()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_bytes_arrive_in_order_in_both_directions_at_once(
    pair: Pair, pool: ThreadPoolExecutor, receive_exactly: ReceiveExactly
) -> None:
    data = os.urandom(3_000_000)
    results = [pool.submit(receive_exactly, stream, len(data)) for stream in pair]
    sends = [pool.submit(stream.send, data) for stream in pair]
    assert all(result.result() == data for result in results)
    assert all(send.result() is None for send in sends)


def test_send_all_sends_many_buffers_as_one(
    pair: Pair, pool: ThreadPoolExecutor, receive_exactly: ReceiveExactly
) -> None:
    ours, theirs = pair
    buffers = [os.urandom(size) for size in (0, 1, 70_000, 9, 3)] * 700
    expected = b"".join(buffers)
    result = pool.submit(receive_exactly, theirs, len(expected))
    ours.send_all([memoryview(buffer) for buffer in buffers])
    assert result.result() == expected
    ours.send_all([b"a", bytearray(b"b"), memoryview(b"c")])
    assert receive_exactly(theirs, 3) == b"abc"


def test_a_send_is_atomic_among_several_threads(
    pair: Pair, pool: ThreadPoolExecutor, receive_exactly: ReceiveExactly
) -> None:
    ours, theirs = pair
    size = 300_000
    sends = [pool.submit(ours.send, bytes([letter]) * size) for letter in b"abcd"]
    received = receive_exactly(theirs, 4 * size)
    assert sorted(received[start : start + size] for start in range(0, 4 * size, size)) == [
        bytes([letter]) * size for letter in b"abcd"
    ]
    assert all(send.result() is None for send in sends)


def test_receive_into_fills_the_callers_buffer(pair: Pair) -> None:
    ours, theirs = pair
    ours.send(b"hello")
    buffer = bytearray(10)
    assert theirs.receive_into(memoryview(buffer)[2:], timeout=5) == 5
    assert buffer == b"\0\0hello\0\0\0"
    ours.close_write()
    assert theirs.receive_into(memoryview(buffer)) == 0


def test_receive_times_out_and_the_stream_lives_on(pair: Pair) -> None:
    ours, theirs = pair
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        theirs.receive(timeout=0.01)
    with pytest.raises(TimeoutError):
        theirs.receive_into(memoryview(bytearray(1)), timeout=0)
    ours.send(b"late")
    assert theirs.receive(timeout=5) == b"late"


def test_a_time_out_that_is_asked_for_again_and_again_holds_for_itself_alone(
    pair: Pair, pool: ThreadPoolExecutor
) -> None:
    ours, theirs = pair
    buffer = bytearray(10)
    for _ in range(2):
        for receive in (theirs.receive, lambda timeout: theirs.receive_into(memoryview(buffer), timeout)):
            for _ in range(3):
                with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
                    receive(timeout=0.05)
            ours.send(b"here")
            assert receive(timeout=0.05) in (b"here", 4)
            with pytest.raises(TimeoutError):
                receive(timeout=0)
            for longer in (None, 20):
                waiting = pool.submit(receive, timeout=longer)
                with pytest.raises(TimeoutError):
                    waiting.result(0.3)
                ours.send(b"late")
                assert waiting.result(20) in (b"late", 4)
    waiting = pool.submit(theirs.receive)
    theirs.close()
    assert isinstance(waiting.exception(20), StreamClosed)
    with pytest.raises(StreamClosed):
        theirs.receive(timeout=0.05)


def test_half_close_ends_one_direction_only(pair: Pair, receive_exactly: ReceiveExactly) -> None:
    ours, theirs = pair
    ours.send(b"question")
    ours.close_write()
    assert receive_exactly(theirs, 8) == b"question"
    assert theirs.receive() == b""
    assert theirs.receive() == b""
    theirs.send(b"answer")
    assert ours.receive() == b"answer"
    with pytest.raises(StreamClosed):
        ours.send(b"more")


def test_close_wakes_a_blocked_receive_on_both_sides(pair: Pair, pool: ThreadPoolExecutor) -> None:
    ours, theirs = pair
    mine, other = pool.submit(ours.receive), pool.submit(theirs.receive)
    time.sleep(0.02)  # lets them block; the outcome is the same when they do not
    ours.close()
    with pytest.raises(StreamClosed, match="closed on this side"):
        mine.result(5)
    assert other.result(5) == b""


def test_close_wakes_a_blocked_send(pair: Pair, pool: ThreadPoolExecutor) -> None:
    ours, _ = pair
    blocked = pool.submit(ours.send, bytes(50_000_000))
    time.sleep(0.02)
    ours.close()
    with pytest.raises(StreamClosed):
        blocked.result(5)


def test_the_peers_close_wakes_a_blocked_send(
    pair: Pair, pool: ThreadPoolExecutor, receive_exactly: ReceiveExactly
) -> None:
    ours, theirs = pair
    blocked = pool.submit(ours.send, bytes(50_000_000))
    receive_exactly(theirs, 1)
    theirs.close()
    with pytest.raises((StreamClosed, StreamReset)):
        blocked.result(5)


def test_a_closed_stream_refuses_everything_and_may_be_closed_again(pair: Pair) -> None:
    ours, _ = pair
    ours.close()
    ours.close()
    ours.close_write()
    for use in (
        lambda: ours.send(b"x"),
        lambda: ours.send_all([b"x", bytes(20_000)]),
        ours.receive,
        lambda: ours.receive(timeout=1),
        lambda: ours.receive_into(memoryview(bytearray(1))),
    ):
        with pytest.raises(StreamClosed):
            use()
    assert ours.readable()
    assert not ours.writable()
    assert ours.fileno() == -1


def test_closing_under_fire_lets_every_thread_out() -> None:
    """Whoever leaves last closes the descriptor, whatever the order; the leak check is the assertion."""
    for _ in range(200):
        ours, theirs = socket_pair()

        def use(operation: Callable[[], object]) -> None:
            try:
                while operation() != b"":
                    pass
            except StreamError:
                pass

        uses = [lambda s=ours: s.send(bytes(1000)), ours.receive, theirs.receive, lambda s=theirs: s.receive(timeout=5)]
        threads = [threading.Thread(target=use, args=(operation,)) for operation in uses]
        threads += [threading.Thread(target=ours.close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()
        theirs.close()
        assert ours.fileno() == theirs.fileno() == -1


def test_a_descriptor_that_somebody_else_has_closed_does_not_keep_it_from_being_closed(pair: Pair) -> None:
    ours, theirs = pair
    whole = ours._socket
    with whole:
        ours._socket = Mock(wraps=whole, close=Mock(side_effect=OSError(errno.EBADF, "Bad file descriptor")))
        ours.close()
        assert theirs.receive(timeout=5) == b""


def test_readable_notices_bytes_and_the_end_and_never_waits(pair: Pair) -> None:
    ours, theirs = pair
    assert not theirs.readable()
    ours.send(b"x")
    assert theirs.receive(timeout=5) == b"x"
    assert not theirs.readable()
    ours.close_write()
    assert theirs.receive(timeout=5) == b""
    assert theirs.readable()


def test_writable_until_the_peer_stops_reading(
    pair: Pair, pool: ThreadPoolExecutor, receive_exactly: ReceiveExactly
) -> None:
    ours, theirs = pair
    assert ours.writable()
    blocked = pool.submit(ours.send, bytes(20_000_000))
    first = theirs.receive(timeout=5)
    assert not ours.writable()
    receive_exactly(theirs, 20_000_000 - len(first))
    blocked.result(5)
    assert ours.writable()


def test_a_killed_peer_is_the_end_of_the_stream() -> None:
    listener = listen_unix()
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b'hello'); s.recv(1)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, listener.address])
    accepted = listener.accept(timeout=5)
    assert accepted.receive(timeout=5) == b"hello"
    child.kill()
    child.wait()
    assert accepted.receive(timeout=5) == b""
    with pytest.raises(StreamClosed, match="nobody receives"):
        accepted.send(b"x")
    accepted.close()
    listener.close()


def test_unread_bytes_at_the_peers_end_are_a_reset() -> None:
    ours, theirs = socket_pair()
    ours.send(b"unread")
    theirs.close()
    with pytest.raises(StreamReset):
        ours.receive()
    ours.close()


@pytest.mark.parametrize("listen", [listen_unix, listen_tcp])
def test_accept_times_out_and_close_wakes_it(listen: Callable[[], SocketListener], pool: ThreadPoolExecutor) -> None:
    listener = listen()
    with pytest.raises(TimeoutError, match=listener.network):
        listener.accept(timeout=0.01)
    accepts = [pool.submit(listener.accept), pool.submit(listener.accept, 10)]
    time.sleep(0.02)
    listener.close()
    listener.close()
    for accept in accepts:
        with pytest.raises(StreamClosed):
            accept.result(5)
    with pytest.raises(StreamClosed):
        listener.accept()
    with pytest.raises(StreamError, match="cannot connect"):
        connect(listener.network, listener.address, timeout=1)


OUT_OF_DESCRIPTORS = """
import logging, os, resource, socket, threading
from hybridload.goplugin.http2.server import Server
from hybridload.goplugin.streams.sockets import listen_unix

class Noticed(logging.Handler):
    event = threading.Event()

    def emit(self, record):
        assert "trying again" in record.getMessage(), record.getMessage()
        self.event.set()

logging.getLogger("hybridload").addHandler(Noticed())
listener = listen_unix()
server = Server()
server.add_listener(listener)
server.start()
late = socket.socket(socket.AF_UNIX)
late.settimeout(30)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
hoard = []
try:
    while True:
        hoard.append(os.dup(0))
except OSError:
    pass
late.connect(listener.address)
assert Noticed.event.wait(30)
for each in hoard:
    os.close(each)
late.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes(3) + b"\\4" + bytes(5))
assert late.recv(9)[3] == 4  # the server's settings
late.close()
assert server.stop(0).wait(10)
"""


def test_running_out_of_descriptors_ends_no_listener() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_DESCRIPTORS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_a_unix_socket_without_a_folder_sits_in_a_private_one_that_goes_with_it() -> None:
    listener = listen_unix()
    folder = Path(listener.address).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(listener.address).stat().st_mode) == 0o600
    listener.close()
    assert not folder.exists()


def test_a_unix_socket_goes_into_the_given_folder_with_the_given_group() -> None:
    folder = Path(tempfile.mkdtemp())
    group = os.getgroups()[-1] if os.getgroups() else os.getgid()
    listener = listen_unix(folder, UnixAccess.for_group(str(group)))
    facts = Path(listener.address).stat()
    assert Path(listener.address).parent == folder
    assert stat.S_IMODE(facts.st_mode) == 0o660
    assert facts.st_gid == group
    listener.close()
    folder.rmdir()


def test_listening_says_why_it_cannot() -> None:
    with pytest.raises(StreamError, match="/nowhere/plugin"):
        listen_unix("/nowhere")
    with pytest.raises(StreamError, match="no-such-group"):
        listen_unix(access=UnixAccess(group="no-such-group"))
    long = Path(tempfile.mkdtemp()) / ("x" * 120)
    long.mkdir()
    with pytest.raises(StreamError, match="too long"):
        listen_unix(long)
    long.rmdir()
    long.parent.rmdir()


def test_tcp_takes_the_first_free_port_of_a_range() -> None:
    first = listen_tcp()
    port = int(first.address.rpartition(":")[2])
    with pytest.raises(StreamError, match="widen"):
        listen_tcp(min_port=port, max_port=port)
    second = listen_tcp(min_port=port, max_port=port + 50)
    assert port < int(second.address.rpartition(":")[2]) <= port + 50
    first.close()
    second.close()


def test_connect_says_who_could_not_be_reached() -> None:
    with pytest.raises(StreamError, match="unix:/nowhere/socket"):
        connect("unix", "/nowhere/socket")
    with pytest.raises(StreamError, match="expected unix and a path"):
        connect("udp", "localhost:1")
    with pytest.raises(StreamError, match="host:port"):
        connect("tcp", "localhost")


def test_connect_says_so_when_there_are_no_more_file_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(StreamError, match="Too many open files"):
            connect("unix", "/nowhere")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connect_gives_up_on_a_listener_that_never_accepts() -> None:
    listening = socket.socket(socket.AF_UNIX)
    path = os.path.join(tempfile.mkdtemp(), "s")
    listening.bind(path)
    listening.listen(0)
    connected = []

    def connect_ten_times() -> None:
        for _ in range(10):
            connected.append(connect("unix", path, timeout=0.05))

    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        connect_ten_times()
    for stream in connected:
        stream.close()
    listening.close()
    os.unlink(path)
    os.rmdir(os.path.dirname(path))


def test_a_default_socket_timeout_of_the_program_changes_nothing() -> None:
    socket.setdefaulttimeout(0.01)
    try:
        ours, theirs = socket_pair()
    finally:
        socket.setdefaulttimeout(None)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ours.receive)
        time.sleep(0.05)
        theirs.send(b"x")
        assert waiting.result(5) == b"x"
    ours.close()
    theirs.close()


def test_a_listener_outlives_a_shortage_of_descriptors(pool: ThreadPoolExecutor) -> None:
    listener = listen_unix()
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(client.fileno())
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        accepting = pool.submit(listener.accept)
        client.connect(listener.address)
        with pytest.raises(TimeoutError):
            accepting.result(0.2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    accepting.result(10).close()
    client.close()
    listener.close()


def test_a_listener_that_waits_for_descriptors_can_be_closed(pool: ThreadPoolExecutor) -> None:
    listener = listen_unix()
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(client.fileno())
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        accepting = pool.submit(listener.accept)
        client.connect(listener.address)
        listener.close()
        assert isinstance(accepting.exception(10), StreamClosed)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    client.close()
