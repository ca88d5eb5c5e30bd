"""The client of net/rpc on a yamux session, against a peer that decides in which order, and when, it answers."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar
from unittest.mock import Mock

import pytest

from hybridload.errors import RemoteError
from hybridload.goplugin.netrpc.client import NetRPCClient, PendingCall
from hybridload.goplugin.netrpc.gob import ANYTHING, String
from hybridload.goplugin.netrpc.rpc import Call, Received, Reply, RpcServer
from hybridload.goplugin.streams.base import StreamClosed, StreamError, StreamReset
from hybridload.goplugin.streams.mux import Mux, MuxStream
from hybridload.goplugin.streams.sockets import SocketStream, socket_pair
from hybridload.goplugin.streams.yamux import DataReceived, PongReceived, Session, StreamOpened

TEXT = String()
T = TypeVar("T")
SERVICES = {"Echo": {"Say": TEXT, "Fail": TEXT}}


class Peer:
    """The far end of one stream: takes calls, and answers those that it is told to."""

    def __init__(self, stream: MuxStream) -> None:
        self.stream = stream
        self._rpc = RpcServer(SERVICES)
        self._received: list[Received] = []

    def next_call(self) -> Call:
        while not self._received:
            self._received += self._rpc.receive(self.stream.receive(timeout=20))
        call = self._received.pop(0)
        assert isinstance(call, Call)
        return call

    def answer(self, *calls: Call) -> None:
        """All in one frame."""
        self.stream.send(b"".join(map(self._answer, calls)))

    def _answer(self, call: Call) -> bytes:
        if call.method == "Fail":
            return self._rpc.error(call, f"no {call.argument}")
        return self._rpc.reply(call, f"re {call.argument}", TEXT)

    def serve(self) -> None:
        """Answer whatever has come, last come first served, until the connection ends."""
        try:
            while data := self.stream.receive():
                calls = [call for call in self._rpc.receive(data) if isinstance(call, Call)]
                if calls:
                    self.answer(*reversed(calls))
        except StreamError:
            pass


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=16) as executor:
        yield executor


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.002)


@pytest.fixture
def ends() -> Iterator[tuple[NetRPCClient, Peer]]:
    near, far = socket_pair()
    with closing(Mux(near, client=True)) as ours, closing(Mux(far, client=False)) as theirs:
        with closing(NetRPCClient(ours.open())) as client:
            yield client, Peer(theirs.accept(timeout=20))


def say(client: NetRPCClient, text: str, timeout: float | None = 20) -> str:
    said: str = client.call("Echo.Say", text, TEXT, TEXT, timeout=timeout)
    return said


def test_eight_threads_get_their_own_answers(ends: tuple[NetRPCClient, Peer], pool: ThreadPoolExecutor) -> None:
    client, peer = ends
    serving = pool.submit(peer.serve)

    def work(number: int) -> int:
        right = 0
        for turn in range(400):
            text = f"{number}.{turn} " + "x" * (turn * 37 % 6000)
            if turn % 7 == number % 7:
                with pytest.raises(RemoteError, match=f"^no {number}.{turn} "):
                    client.call("Echo.Fail", text, TEXT, TEXT, timeout=20)
                right += 1
            else:
                right += say(client, text) == f"re {text}"
        return right

    assert list(pool.map(work, range(8))) == [400] * 8
    client.close()
    serving.result(timeout=20)


def test_threads_and_a_loop_share_a_connection(ends: tuple[NetRPCClient, Peer], pool: ThreadPoolExecutor) -> None:
    client, peer = ends
    serving = pool.submit(peer.serve)
    loop_calls, per_thread = 400, 200

    def work(number: int) -> int:
        return sum(say(client, f"{number}.{turn}") == f"re {number}.{turn}" for turn in range(per_thread))

    async def from_a_loop() -> int:
        async def one(number: int) -> bool:
            loop = asyncio.get_running_loop()
            done = asyncio.Event()

            def wake(_: PendingCall) -> None:
                loop.call_soon_threadsafe(done.set)

            pending = client.begin("Echo.Say", f"loop {number}", TEXT, TEXT, wake)
            async with asyncio.timeout(20):
                await done.wait()
            return bool(pending.outcome().value == f"re loop {number}")

        return sum([sum(await asyncio.gather(*(one(n) for n in range(8)))) for _ in range(loop_calls // 8)])

    threads = [pool.submit(work, number) for number in range(4)]
    assert asyncio.run(from_a_loop()) == loop_calls
    assert [thread.result(timeout=20) for thread in threads] == [per_thread] * 4
    client.close()
    serving.result(timeout=20)


def test_a_caller_reads_on_when_the_call_that_was_followed_is_answered(
    ends: tuple[NetRPCClient, Peer], pool: ThreadPoolExecutor
) -> None:
    client, peer = ends
    answered = threading.Event()
    followed = client.begin("Echo.Say", "followed", TEXT, TEXT, lambda _: answered.set())
    first = peer.next_call()
    eventually(lambda: client._reader is not None, "the follower reads")
    waiting = pool.submit(say, client, "waiting")
    second = peer.next_call()
    eventually(lambda: bool(client._asleep), "the caller sleeps")
    peer.answer(first)
    assert answered.wait(20)
    assert followed.outcome().value == "re followed"
    peer.answer(second)
    assert waiting.result(timeout=10) == "re waiting"


def test_a_caller_that_gives_up_hands_the_role_on(ends: tuple[NetRPCClient, Peer], pool: ThreadPoolExecutor) -> None:
    client, peer = ends
    impatient = pool.submit(say, client, "impatient", timeout=0.5)
    late = peer.next_call()
    eventually(lambda: client._reader is not None, "the first caller reads")
    waiting = pool.submit(say, client, "waiting")
    call = peer.next_call()
    with pytest.raises(TimeoutError):
        impatient.result(timeout=20)
    peer.answer(late, call)
    assert waiting.result(timeout=10) == "re waiting"
    assert not client._calls


def test_a_thread_that_cannot_be_started_fails_the_call_and_not_the_next(
    ends: tuple[NetRPCClient, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, peer = ends
    answered = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError, match="can't start new thread"):
            client.begin("Echo.Say", "first", TEXT, TEXT, lambda _: None)
    second = client.begin("Echo.Say", "second", TEXT, TEXT, lambda _: answered.set())
    peer.answer(peer.next_call(), peer.next_call())
    assert answered.wait(20)
    assert second.outcome().value == "re second"


def test_all_who_wait_learn_of_the_end(ends: tuple[NetRPCClient, Peer], pool: ThreadPoolExecutor) -> None:
    client, peer = ends
    ended: list[PendingCall] = []
    client.begin("Echo.Say", "followed", TEXT, ANYTHING, ended.append)
    callers = [pool.submit(say, client, str(number), timeout=None) for number in range(5)]
    for _ in range(6):
        peer.next_call()
    client.close()
    for caller in callers:
        with pytest.raises(StreamClosed):
            caller.result(timeout=10)
    assert len(ended) == 1
    with pytest.raises(StreamClosed):
        ended[0].outcome()
    with pytest.raises(StreamClosed):
        say(client, "too late")


class Interrupting:
    """A lock. Whoever lets go of it for a while is interrupted, once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._interrupts = True
        self.acquire, self.locked = self._lock.acquire, self._lock.locked

    def release(self) -> None:
        self._lock.release()
        if self._interrupts:
            self._interrupts = False
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def failing(data: bytes) -> list[Reply]:
    raise ZeroDivisionError


def test_a_caller_that_is_interrupted_while_it_reads_ends_the_connection(
    ends: tuple[NetRPCClient, Peer], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, peer = ends
    monkeypatch.setattr(client._rpc, "receive", failing)
    callers = [pool.submit(say, client, "x") for _ in range(3)]
    peer.answer(*(peer.next_call() for _ in callers))
    failures = [caller.exception(10) for caller in callers]
    assert sorted(type(failure).__name__ for failure in failures) == ["StreamReset", "StreamReset", "ZeroDivisionError"]
    with pytest.raises(StreamReset, match="ZeroDivisionError"):
        say(client, "too late")


def test_a_caller_that_is_interrupted_while_it_sends_ends_the_connection(
    ends: tuple[NetRPCClient, Peer], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, peer = ends
    other = pool.submit(say, client, "x")
    peer.next_call()
    eventually(lambda: client._reader is not None, "it waits, and sends for nobody else")
    monkeypatch.setattr(client, "_send_all", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        say(client, "y")
    with pytest.raises(StreamReset, match="KeyboardInterrupt"):
        other.result(10)


def test_a_caller_that_is_interrupted_when_it_has_let_go_of_the_lock_takes_it_back(
    ends: tuple[NetRPCClient, Peer],
) -> None:
    """Where Python looks for signals: right after the call that lets it go."""
    client, _ = ends
    client._lock = lock = Interrupting()  # type: ignore[assignment]
    client._may_follow = threading.Condition(lock)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        say(client, "x")
    assert not lock.locked()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_while_calls_are_followed_ends_the_connection(
    ends: tuple[NetRPCClient, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, peer = ends
    monkeypatch.setattr(client._rpc, "receive", failing)
    ended = threading.Event()
    call = client.begin("Echo.Say", "followed", TEXT, TEXT, lambda _: ended.set())
    peer.answer(peer.next_call())
    assert ended.wait(10)
    with pytest.raises(StreamReset, match="ZeroDivisionError"):
        call.outcome()


class RawPeer:
    """The far end of a whole session, without a thread: nothing happens on it but what a test does."""

    def __init__(self, below: SocketStream) -> None:
        self.below = below
        self.session = Session(client=False)

    def flush(self) -> None:
        self.below.send_all(self.session.data_to_send())

    def receive(self, wanted: type[T]) -> T:
        """The next event of a kind; others before it are let go."""
        while True:
            for event in self.session.receive_data(self.below.receive(timeout=5)):
                if isinstance(event, wanted):
                    return event

    def ping(self) -> None:
        """:raises TimeoutError: no answer within 5 seconds."""
        value = self.session.ping()
        self.flush()
        assert self.receive(PongReceived) == PongReceived(value)


def test_pings_are_answered_before_during_and_after_a_call(pool: ThreadPoolExecutor) -> None:
    near, far = socket_pair()
    peer = RawPeer(far)
    with closing(far), closing(Mux(near, client=True)) as mux, closing(NetRPCClient(mux.open())) as client:
        stream_id = peer.receive(StreamOpened).stream_id
        peer.session.acknowledge(stream_id)
        rpc = RpcServer(SERVICES)
        peer.ping()  # nobody has called yet
        for number in range(3):
            calling = pool.submit(say, client, str(number))
            call = next(rpc.receive(peer.receive(DataReceived).data))
            assert isinstance(call, Call)
            peer.ping()  # its caller waits
            # The answer in the company of a ping, cut in the middle: nothing that the short way in could take.
            value = peer.session.ping()
            peer.session.send(stream_id, rpc.reply(call, f"re {number}", TEXT))
            data = b"".join(peer.session.data_to_send())
            far.send(data[:17])
            far.send(data[17:])
            assert calling.result(timeout=10) == f"re {number}"
            assert peer.receive(PongReceived) == PongReceived(value)
            peer.ping()  # idle again


def test_a_broken_connection_keeps_nothing_of_whoever_found_it_broken(ends: tuple[NetRPCClient, Peer]) -> None:
    client, peer = ends
    peer.stream.close()

    class Held:
        """What a caller has in hand."""

    def fail() -> weakref.ref[Held]:
        held = Held()
        with pytest.raises(StreamError):
            say(client, "hello")
        return weakref.ref(held)

    before = [fail(), fail()]
    gc.collect()
    assert [each() for each in before] == [None, None]
    with pytest.raises(StreamError, match="ended by the other side"):
        say(client, "again")


def test_a_deadline_holds_while_a_peer_that_reads_nothing_takes_no_more(ends: tuple[NetRPCClient, Peer]) -> None:
    client, peer = ends
    large = "x" * 1_000_000  # more than a window
    began = time.monotonic()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            say(client, large, timeout=0.1)
    with pytest.raises(TimeoutError):
        say(client, "small", timeout=0.1)
    assert time.monotonic() - began < 10  # half a minute, until the session gives its peer up
    # What was begun is sent once the peer reads, and the connection is as good as ever.
    serving = threading.Thread(target=peer.serve)
    serving.start()
    assert say(client, "hello") == "re hello"
    client.close()
    serving.join()


def test_an_event_loop_is_not_held_up_by_a_peer_that_reads_nothing(ends: tuple[NetRPCClient, Peer]) -> None:
    client, peer = ends
    answered = threading.Event()
    pending = [client.begin("Echo.Say", "x" * 400_000, TEXT, TEXT, lambda _: answered.set()) for _ in range(3)]
    assert not answered.is_set()
    serving = threading.Thread(target=peer.serve)
    serving.start()
    eventually(lambda: all(call.done for call in pending), "all are answered")
    assert {call.outcome().value for call in pending} == {"re " + "x" * 400_000}
    client.close()
    serving.join()
