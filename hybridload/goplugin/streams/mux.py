"""A yamux session over a stream: what `yamux.Session` decides, done with threads.

Reading is a role that waiting threads take (see `reading.py`), so that a caller reads its own answer. Writing is done
by whoever has something to say: a frame of data is made and sent with `_writing` held in between, so that frames leave
in the order in which the session made them. Control frames (window updates, answers to pings) go along with the next
data, or at once by whoever caused them if that cannot block. Nobody waits for the peer to read but senders of data:
what else cannot be sent is left to a thread that is started for it and ends with it.

A caller that is interrupted (Ctrl-C) ends nothing but its own call: what it does here is done as a whole, and it is
interrupted where it waits (see `hybridload.interrupts`). Only what is interrupted while the connection below takes half
a frame ends the session.

Locks are taken in this order: a stream's `_sending`, `_writing`, `_lock`. `_lock` guards everything that is not marked
otherwise, and is never held during a call on the stream below.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hybridload.goplugin.streams.base import ROOM, Buffer, Stream, StreamClosed, StreamError, StreamReset, again
from hybridload.goplugin.streams.reading import MOMENT, Reading, Waiter
from hybridload.goplugin.streams.spinning import Spinning
from hybridload.goplugin.streams.yamux import (
    Config,
    DataReceived,
    Event,
    PongReceived,
    Session,
    SessionFailed,
    StreamAborted,
    StreamAcknowledged,
    StreamFinished,
    StreamOpened,
    WentAway,
    WindowGrew,
)
from hybridload.goplugin.threads import SMALL_STACK, OutOfThreads, Thread
from hybridload.interrupts import held

_CHUNK = 65536  # bytes per receive from below, and at most per frame of data, so that streams take turns
_SMALL = 1024  # bytes of control frames that are sent by whoever has caused them
_LOOKS = 16  # reads of what came for others, before it is said that there is nothing for a stream
_LOOK = 30.0  # seconds; the clock is looked at that often at least
_LINGERING = 1024  # streams that were closed here and not by the peer; of more, the oldest are reset


@dataclass(frozen=True, slots=True)
class MuxConfig:
    """Times are in seconds; their defaults are those of hashicorp/yamux.

    :param session: backlog and window.
    :param keepalive: between pings; 0 sends none.
    :param keepalive_timeout: for the answer to one, after which the session is over.
    :param open_timeout: for the peer to accept a stream that was opened, after which the stream is reset. This and the
        next are kept to half a minute.
    :param close_timeout: for the peer to finish a stream that was closed here, after which it is reset.
    :param half_close: whether a stream can still be sent on when the peer has finished it. Without, it is finished in
        return at once: who serves gRPC on it waits for that when it stops, and nobody may be reading here who would
        learn of the end and close it.
    """

    session: Config = field(default_factory=Config)
    keepalive: float = 30.0
    keepalive_timeout: float = 10.0
    open_timeout: float = 75.0
    close_timeout: float = 300.0
    half_close: bool = True


class Mux:
    """One end of a yamux session. Its streams are opened and accepted here.

    :param below: carries the session, which owns it: it is closed also where the session cannot begin.
    :param client: whether this is the end that made the connection; the two ends must differ.
    :param name: of the watching thread.
    """

    network = "yamux"

    def __init__(self, below: Stream, client: bool, config: MuxConfig = MuxConfig(), name: str = "yamux") -> None:
        self.peer = below.peer
        self._below = below
        self._config = config
        self._name = name
        self._session = Session(client, config.session)
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        self._streams: dict[int, MuxStream] = {}
        self._offered: deque[MuxStream] = deque()  # opened by the peer, not accepted yet
        self._accepting: list[Waiter] = []
        self._opening: list[Waiter] = []
        self._pinging: list[Waiter] = []
        self._unacknowledged: dict[int, float] = {}  # stream -> deadline, earliest first
        self._lingering: dict[int, float] = {}  # closed here but not by the peer: stream -> deadline, earliest first
        self._pings: set[int] = set()  # values of those that are under way
        self._keepalive: int | None = None  # the value of the one that is under way for its sake
        self._keepalive_due = time.monotonic() + config.keepalive if config.keepalive else float("inf")
        self._next_look = 0.0
        self._ended: StreamError | None = None
        self._drain: threading.Thread | None = None
        self._draining = False
        self._spinning = Spinning(below)  # for whoever has the role of reading
        self._reading = Reading(self._lock, self._read, self._on_time, self._on_failure, name)
        try:
            self._reading.start()
        except BaseException:  # there is no thread to be had
            below.close()
            raise

    def __repr__(self) -> str:
        return f"<Mux with {self.peer}, {len(self._streams)} streams{', over' if self._ended else ''}>"

    @property
    def address(self) -> str:
        return self.peer

    @property
    def ended(self) -> StreamError | None:
        """Why the session is over; `None` while it lives."""
        return self._ended

    def open(self, timeout: float | None = None) -> MuxStream:
        """Open a stream. The peer need not have accepted it yet; data may be sent at once.

        :param timeout: in seconds, for a place in the peer's backlog (256 streams that it has not accepted).
        :raises TimeoutError: there was none in time.
        :raises StreamClosed: the session was closed on this side, or the peer takes no new streams.
        :raises StreamReset: the session broke off.
        """
        with held:
            with self._lock:
                if not self._reading.wait(self._may_open, self._opening, _deadline(timeout)):
                    raise TimeoutError(
                        f"{self.peer} accepted none of the streams that wait for it within {timeout:g} s"
                    )
                if self._ended is not None:
                    raise again(self._ended)
                stream = MuxStream(self, self._session.open())
                self._streams[stream.stream_id] = stream
                self._unacknowledged[stream.stream_id] = time.monotonic() + self._config.open_timeout
            self._flush()
            return stream

    def _may_open(self) -> bool:
        return self._ended is not None or self._session.peer_leaving or self._session.can_open

    def accept(self, timeout: float | None = None) -> MuxStream:
        """The next stream that the peer opened.

        :param timeout: in seconds; `None` waits for ever.
        :raises TimeoutError: it opened none in time.
        :raises StreamClosed: the session was closed on this side.
        :raises StreamReset: the session broke off.
        """
        with held:
            with self._lock:
                ready = self._reading.wait(lambda: self._offered or self._ended, self._accepting, _deadline(timeout))
                if not ready:
                    raise TimeoutError(f"{self.peer} opened no stream within {timeout:g} s")
                if self._ended is not None:
                    raise again(self._ended)
                stream = self._offered.popleft()
                self._session.acknowledge(stream.stream_id)
            self._flush()
            return stream

    def ping(self, timeout: float = 10.0) -> float:
        """Ask the peer for a sign of life and return the seconds that it took.

        :raises TimeoutError: none came in time.
        """
        with held:
            return self._ping(timeout)

    def _ping(self, timeout: float) -> float:
        start = time.monotonic()
        with self._lock:
            value = self._session.ping()
            self._pings.add(value)
        self._flush()
        with self._lock:
            answered = self._reading.wait(
                lambda: value not in self._pings or self._ended, self._pinging, start + timeout
            )
            if value not in self._pings:
                return time.monotonic() - start
            self._pings.discard(value)
            if self._ended is not None:
                raise again(self._ended)
        assert not answered
        raise TimeoutError(f"{self.peer} did not answer a ping within {timeout:g} s")

    def go_away(self) -> None:
        """Refuse streams that the peer opens from now on; those that exist live on."""
        with held:
            with self._lock:
                self._session.go_away()
            self._flush()

    def close(self) -> None:
        """End the session and all its streams, and what is below. Idempotent, from any thread, joins its threads."""
        with held:
            with self._lock:
                if self._ended is None:
                    self._session.go_away()
            self._end(StreamClosed(f"the yamux session with {self.peer} was closed on this side"))
        self._reading.join()
        with self._lock:
            drain = self._drain
        if drain is not None:
            drain.join()

    # Reading

    def _read(self, timeout: float) -> None:
        """Receive once and hand out what came. Called by whoever has the role, without `_lock`."""
        try:
            data = self._below.receive(_CHUNK, timeout)
        except TimeoutError:
            return
        except OSError as error:
            self._end(self._broken(error))
            return
        self._take_in(data)

    def _take_in(self, data: bytes) -> None:
        """Hand out what was received. Called by whoever has the role, without `_lock`."""
        if not data:
            self._end(StreamReset(f"{self.peer} ended the connection under the yamux session"))
            return
        with self._lock:
            events = self._session.receive_data(data)
            for event in events:
                self._hand_out(event)
            for event in events:  # only now, because the session was ahead of us
                if isinstance(event, StreamFinished) and not self._config.half_close:
                    self._session.close_write(event.stream_id)
                if isinstance(event, StreamFinished | StreamAborted):
                    self._forget_if_over(event.stream_id)
            failure = self._session.failure
        if failure is not None:
            self._end(StreamReset(f"the yamux session with {self.peer} is over: {failure.message}"))
        elif self._session.has_data_to_send:
            self._flush()

    def _read_only(self, stream: MuxStream, timeout: float | None, soon: bool) -> bytes | None:
        """Read once for a stream that waits for an answer, past all that is for others. Called with `_lock` held.

        :param soon: see `MuxStream.receive_soon`.
        :return: what came for it; `None` when it was anything but one frame of its data. That has been handed out.
        """
        timeout = MOMENT if timeout is None else min(timeout, MOMENT)
        if not self._reading.take():
            return None
        try:
            try:
                self._lock.release()
                below, spinning = self._below, self._spinning
                data = (spinning if soon else below).receive(_CHUNK, timeout)
                if self._session.awaits_body(stream.stream_id, data):
                    try:
                        data += (spinning.receive_rest if soon else below.receive)(_CHUNK, timeout)
                    except TimeoutError:
                        pass
                plain = None
                with self._lock:
                    if not stream._closed:
                        plain = self._session.receive_only(stream.stream_id, data)
                if plain is None:
                    self._take_in(data)
            except TimeoutError:
                return None
            except OSError as error:
                self._end(self._broken(error))
                return None
            except BaseException as error:  # Ctrl-C: some bytes may be lost, and with them the thread of what follows
                self._on_failure(error)
                raise
        finally:
            try:
                self._lock.acquire()
            finally:
                self._reading.give_back()
        return plain

    def _hand_out(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            if (stream := self._streams.get(event.stream_id)) is not None:
                stream._store(event.data)
                self._reading.wake(stream._waiters)
        elif isinstance(event, WindowGrew):
            if (stream := self._streams.get(event.stream_id)) is not None:
                self._reading.wake(stream._waiters)
        elif isinstance(event, StreamOpened):
            stream = self._streams[event.stream_id] = MuxStream(self, event.stream_id)
            self._offered.append(stream)
            self._reading.wake(self._accepting)
        elif isinstance(event, StreamAcknowledged):
            self._unacknowledged.pop(event.stream_id, None)
            self._reading.wake(self._opening)
        elif isinstance(event, StreamFinished):
            if (stream := self._streams.get(event.stream_id)) is not None:
                stream._finished = True
                self._reading.wake(stream._waiters)
        elif isinstance(event, StreamAborted):
            self._abort(event.stream_id, "the peer reset it")
        elif isinstance(event, PongReceived):
            self._on_pong(event.value)
        elif isinstance(event, WentAway):
            self._reading.wake(self._opening)
        else:
            assert isinstance(event, SessionFailed)  # `_read` looks at the session

    def _on_pong(self, value: int) -> None:
        self._pings.discard(value)
        self._reading.wake(self._pinging)
        if value == self._keepalive:
            self._keepalive = None
            self._keepalive_due = time.monotonic() + self._config.keepalive
            self._next_look = min(self._next_look, self._keepalive_due)

    def _abort(self, stream_id: int, reason: str) -> None:
        if (stream := self._streams.get(stream_id)) is not None:
            stream._aborted = reason
            self._reading.wake(stream._waiters)
        self._reading.wake(self._opening)

    def _forget_if_over(self, stream_id: int) -> None:
        if not self._session.exists(stream_id):
            self._streams.pop(stream_id, None)
            self._unacknowledged.pop(stream_id, None)
            self._lingering.pop(stream_id, None)

    # Writing

    def _flush(self) -> None:
        """Send control frames, if that cannot block and nobody is sending; whoever is sends them when it is done.

        Called without `_lock`.
        """
        while self._session.has_data_to_send and self._writing.acquire(blocking=False):
            try:
                if self._session.queued > _SMALL or not self._below.writable():
                    self._drain_later()
                    return
                with self._lock:
                    frames = self._session.data_to_send()
                self._send_below(frames)
            except StreamError:
                return  # the session has ended, and whoever uses it is told
            finally:
                self._writing.release()

    def _send_below(self, frames: Sequence[Buffer]) -> None:
        """Called with `_writing` held, and without `_lock`."""
        try:
            self._below.send_all(frames)
        except OSError as error:
            raise again(self._end(self._broken(error))) from error
        except BaseException as error:  # Ctrl-C: half a frame may have been sent, and nothing can follow it
            self._on_failure(error)
            raise

    def _broken(self, error: OSError) -> StreamReset:
        return StreamReset(f"the connection under the yamux session with {self.peer} broke off: {error}")

    def _drain_later(self) -> None:
        """Have control frames sent by a thread that may wait for the peer to read. Called with `_writing` held."""
        with self._lock:
            if self._draining or self._ended is not None:
                return
            done = self._drain
            drain = Thread(target=self._drain_control, name=f"{self._name} writer", daemon=True, stack=SMALL_STACK)
            try:
                drain.start()
            except OutOfThreads:  # they go along with the next data, or when the clock is looked at next
                self._next_look = min(self._next_look, time.monotonic() + MOMENT)
                return
            self._drain, self._draining = drain, True
        if done is not None:
            done.join()  # it sent everything, and leaves what came since to the new one

    def _drain_control(self) -> None:
        while True:
            with self._writing:
                with self._lock:
                    frames = self._session.data_to_send()
                    self._draining = bool(frames)
                if frames:
                    try:
                        self._send_below(frames)
                    except StreamError:
                        return
            if not frames:
                with self._lock:  # what was queued while `_writing` was still held here was left to this thread
                    if self._draining or not self._session.has_data_to_send:
                        return
                    self._draining = True

    def _write(self, stream: MuxStream, data: Buffer) -> int:
        """Send one frame of data, as much as the windows allow. Returns the number of bytes, 0 after having waited."""
        try:
            if not self._writing.acquire(False):
                held.acquire(self._writing)
            try:
                with self._lock:
                    stream._check_sendable()
                    size = self._session.send(stream.stream_id, data)
                    frames = self._session.data_to_send() if size else []
                if size:
                    self._send_below(frames)
            finally:
                self._writing.release()
        finally:  # others left theirs to whoever has `_writing`, also when that is of no avail
            if self._session.has_data_to_send:
                self._flush()
        if not size and data:
            with self._lock:
                self._reading.wait(stream._may_send, stream._waiters)
        return size

    # Time and end

    def _on_time(self) -> float:
        """What is due by the clock. Called by the watching thread, without `_lock`."""
        now = time.monotonic()
        if now >= self._next_look:
            with self._lock:
                silent = self._check_keepalive(now)
                self._reset_expired(self._unacknowledged, now, "the peer did not accept it in time")
                self._reset_expired(self._lingering, now, "")
                self._next_look = now + min(_LOOK, self._config.open_timeout, self._config.close_timeout)
                self._next_look = min(self._next_look, self._keepalive_due)
            if silent:
                self._end(StreamReset(f"{self.peer} answers no pings: the yamux session is over"))
            self._flush()
        return max(0.0, self._next_look - now)

    def _on_failure(self, error: BaseException) -> None:
        self._end(StreamReset(f"the yamux session with {self.peer} failed on this side: {error!r}"))

    def _check_keepalive(self, now: float) -> bool:
        """Returns whether the peer has been silent for too long."""
        if now < self._keepalive_due or self._ended is not None:
            return False
        if self._keepalive is not None:
            return True
        self._keepalive = self._session.ping()
        self._keepalive_due = now + self._config.keepalive_timeout
        return False

    def _reset_expired(self, deadlines: dict[int, float], now: float, reason: str) -> None:
        while deadlines and (stream_id := next(iter(deadlines))) and deadlines[stream_id] <= now:
            self._give_up(stream_id, reason)

    def _give_up(self, stream_id: int, reason: str) -> None:
        self._session.reset(stream_id)
        self._abort(stream_id, reason)
        self._forget_if_over(stream_id)

    def _end(self, why: StreamError) -> StreamError:
        """The session is over; the first reason counts, and is returned. Called without `_lock`."""
        with self._lock:
            first = self._ended is None
            if self._ended is None:
                self._ended = why
                for stream in self._streams.values():
                    self._reading.wake(stream._waiters)
                self._reading.end()
            why = self._ended
        if first:
            self._flush()  # a last go away
            self._below.close()
        return why


class MuxStream:
    """One stream of a session. Made by `Mux.open` and `Mux.accept`.

    Closing it ends it for both sides, except for a sender that is waiting for the connection below to take bytes: that
    one is as stuck as the connection, which keepalive ends.
    """

    __slots__ = ("_aborted", "_closed", "_finished", "_mux", "_received", "_sending", "_waiters", "stream_id")

    def __init__(self, mux: Mux, stream_id: int) -> None:
        self.stream_id = stream_id
        self._mux = mux
        self._received: bytes | bytearray = b""  # at most a window
        self._waiters: list[Waiter] = []
        self._sending = threading.Lock()  # from the first to the last frame of one send
        self._finished = False  # by the peer
        self._aborted: str | None = None  # why
        self._closed = False

    def __repr__(self) -> str:
        return f"<MuxStream {'closed ' if self._closed else ''}{self.peer}>"

    @property
    def peer(self) -> str:
        return f"yamux stream {self.stream_id} with {self._mux.peer}"

    def wait_accepted(self, timeout: float) -> None:
        """Wait until the peer has taken a stream that was opened here off its backlog.

        :raises TimeoutError: it did not within so many seconds.
        :raises StreamClosed, StreamReset: the stream is over.
        """
        mux = self._mux
        with held, mux._lock:
            if not mux._reading.wait(self._is_accepted, mux._opening, _deadline(timeout)):
                raise TimeoutError(f"{self.peer} was not accepted within {timeout:g} s")
            self._check_sendable()

    def send(self, data: Buffer) -> None:
        self.send_all((data,))

    def send_all(self, buffers: Sequence[Buffer]) -> None:
        with held:
            self.send_within(buffers)

    def send_within(self, buffers: Sequence[Buffer]) -> None:
        """As `send_all`, for whoever is in a section of `held` already."""
        if not self._sending.acquire(False):
            held.acquire(self._sending)
        begun = False
        try:
            if len(buffers) > 1 and sum(map(len, buffers)) <= _CHUNK:
                buffers = (b"".join(buffers),)
            for buffer in buffers:
                rest = buffer if len(buffer) <= _CHUNK else memoryview(buffer)
                while (sent := self._mux._write(self, rest if len(rest) <= _CHUNK else rest[:_CHUNK])) < len(rest):
                    begun = begun or sent > 0
                    rest = memoryview(rest)[sent:]
                begun = True
        except BaseException:
            if begun:
                held.harmless = False  # the peer has half of it
            raise
        finally:
            self._sending.release()

    def receive(self, max_bytes: int = 65536, timeout: float | None = None) -> bytes:
        with held:
            return self._receive(max_bytes, timeout, soon=False)

    def receive_soon(self, max_bytes: int = 65536, timeout: float | None = None) -> bytes:
        """As `receive`, for whoever is alone in waiting for a peer that may answer at once: see `spinning`.

        With others about, who have something to send, not to sleep would keep the interpreter from them. Called in a
        section of `held`.
        """
        return self._receive(max_bytes, timeout, soon=True)

    def _receive(self, max_bytes: int, timeout: float | None, soon: bool) -> bytes:
        mux = self._mux
        with mux._lock:
            data = None
            if not self._has_news():
                deadline = _deadline(timeout)
                if max_bytes >= _CHUNK:
                    data = mux._read_only(self, timeout, soon)
                if data is None and not mux._reading.wait(self._has_news, self._waiters, deadline):
                    raise TimeoutError(f"nothing came on {self.peer} within {timeout:g} s")
            if data is None:
                data = self._take(max_bytes)
        if mux._session.has_data_to_send:
            mux._flush()
        return data

    def receive_into(self, buffer: memoryview, timeout: float | None = None) -> int:
        data = self.receive(len(buffer), timeout)
        buffer[: len(data)] = data
        return len(data)

    def close_write(self) -> None:
        with held:
            held.acquire(self._sending)
            try:
                with self._mux._lock:
                    self._mux._session.close_write(self.stream_id)
                    self._mux._forget_if_over(self.stream_id)
                self._mux._flush()
            finally:
                self._sending.release()

    def close(self) -> None:
        mux = self._mux
        with held:
            with mux._lock:
                if self._closed:
                    return
                self._closed = True
                self._received = b""
                mux._session.close(self.stream_id)
                mux._lingering[self.stream_id] = time.monotonic() + mux._config.close_timeout
                mux._forget_if_over(self.stream_id)
                if len(mux._lingering) > _LINGERING:
                    mux._give_up(next(iter(mux._lingering)), "")
                mux._reading.wake(self._waiters)
            mux._flush()

    def readable(self) -> bool:
        mux = self._mux
        with held, mux._lock:
            for _ in range(_LOOKS):
                if self._has_news():
                    break
                try:
                    mux._lock.release()
                    more = mux._below.readable()
                finally:
                    mux._lock.acquire()
                if not more or not mux._reading.try_read():
                    break
            return self._has_news()

    def looker(self) -> Callable[[], bool]:
        return self._look

    def _look(self) -> bool:
        # Who reads for others leaves the role to whoever waits in `receive`, but would never learn of one that looks.
        return self._mux._reading.taken or self.readable()

    def is_quiet(self) -> bool:
        """Whether nobody sends on the session just now, so that whoever does need not wait for that."""
        return not (self._sending.locked() or self._mux._writing.locked())

    def writable(self) -> bool:
        if not self.is_quiet():
            return False
        with held, self._mux._lock:
            if self._failure() is not None or not self._mux._session.can_send(self.stream_id, ROOM):
                return False
        return self._mux._below.writable()

    # With the session's lock held

    def _store(self, data: bytes) -> None:
        if not self._received:
            self._received = data
            return
        if isinstance(self._received, bytes):
            self._received = bytearray(self._received)
        self._received += data

    def _take(self, max_bytes: int) -> bytes:
        if not self._received:
            failure = self._failure()
            if failure is not None and (self._closed or not self._finished):
                raise failure
            return b""
        data, self._received = _split(self._received, max_bytes)
        self._mux._session.consumed(self.stream_id, len(data))
        return data

    def _has_news(self) -> bool:
        return bool(self._received) or self._finished or self._is_over()

    def _is_accepted(self) -> bool:
        return self._failure() is not None or self.stream_id not in self._mux._unacknowledged

    def _may_send(self) -> bool:
        return self._failure() is not None or self._mux._session.can_send(self.stream_id)

    def _check_sendable(self) -> None:
        if self._is_over() and (failure := self._failure()) is not None:
            raise failure

    def _is_over(self) -> bool:
        return self._closed or self._aborted is not None or self._mux._ended is not None

    def _failure(self) -> StreamError | None:
        if self._closed:
            return StreamClosed(f"{self.peer} was closed on this side")
        if self._aborted is not None:
            return StreamReset(f"{self.peer} is over: {self._aborted}")
        return None if self._mux._ended is None else again(self._mux._ended)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _split(received: bytes | bytearray, size: int) -> tuple[bytes, bytes | bytearray]:
    """The first so many bytes, and the rest, which is made cheap to split again."""
    if len(received) <= size:
        return bytes(received), b""
    rest = received if isinstance(received, bytearray) else bytearray(received)
    data = bytes(memoryview(rest)[:size])
    del rest[:size]
    return data, rest
