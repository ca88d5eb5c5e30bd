"""The client's end of one connection: which calls are on it, and which thread reads for them.

**The reading role.** One thread at a time reads, and what it reads it hands to all calls. A thread that waits for its
own unary call takes the role when it is free: with one call on the connection, the common case, the caller writes its
request and reads the answer itself, and no other thread is ever woken. Whoever finds the role taken waits until its
call has news. Calls that nobody may be waiting for (streams, futures) and those that are left when a caller has its
answer are read for by a background thread, which holds the role while there are calls and then rests, so that the next
caller finds the role free. It also reads until the peer has heard of streams that were given up: a server that cannot
write does not come to end what makes the responses.

Only callers who wait for nothing but their own answer read: a thread blocked in `receive` cannot be told that its call
was cancelled. Consumers of streams and futures always wait for news instead.

**Where no thread can be started**, a call that needs the background thread is refused before it begins
(`secure_reader`), so that whoever leaves the role leaves it to callers who can take it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from hybridload.goplugin.streams.base import ROOM, Stream, StreamClosed, StreamError, StreamReset
from hybridload.goplugin.threads import OutOfThreads, Thread
from hybridload.interrupts import held, take_back

from .calls import Call
from .connection import Connection, ConnectionClosed, Role
from .events import (
    ConnectionFailed,
    DataReceived,
    Event,
    GoAwayReceived,
    Headers,
    HeadersReceived,
    StreamEnded,
    WindowOpened,
)
from .frames import ErrorCode
from .limits import Limits
from .link import CHUNK, JOINED_MESSAGE, Link, views_of
from .messages import PREFIX
from .metadata import Metadata
from .status import Status, StatusCode
from .timers import Timers
from .workers import Workers, WorkersClosed

logger = logging.getLogger(__name__)


_CATCHING_UP = 0.02
"""Seconds for what came while nobody waited: many times what it takes to read what is left of streams given up."""

_LONG, _PAUSE = 0.005, 0.001
"""Seconds. Who is busy for so long with what came at once, very many small pieces, has the lock for that time and would
have it again before others get it, whose deadlines have come. So it takes less at a time, and leaves them a moment."""

_LATE = 0.2
"""Seconds that writing a request may take beyond the call's deadline, before the peer is taken for one that does not
read: a deadline may come in the very moment in which it is written."""

_UNPROVEN = 8192
"""Bytes of requests, after which a caller that writes with nobody to watch over it sees first that there is room."""

_MOMENT = 0.05
"""Seconds that a caller reads who must look for other news as well."""

_INTERRUPTED = "who read or wrote for the calls on the connection was interrupted"


class ClientLink(Link):
    """One connection to a server. Owns the stream; `close` ends all calls on it.

    :param workers: run what may block: callbacks, and writing when the peer does not read.
    :param timers: end connections whose writer is blocked beyond its call's deadline.
    """

    __slots__ = (
        "_background",
        "_background_wanted",
        "_closed",
        "_laborious",
        "_reading",
        "_resting",
        "_unproven",
        "abandoned",
        "calls",
        "ended",
        "last_headers",
        "last_trailers",
        "rested_since",
        "timers",
        "users",
        "workers",
    )

    def __init__(self, stream: Stream, workers: Workers, timers: Timers, limits: Limits) -> None:
        super().__init__(stream, Connection(Role.CLIENT, limits))
        self.workers = workers
        self.timers = timers
        self.users = 0
        """How many calls the pool has placed here; the pool's to count."""
        self.rested_since = 0.0
        """When the pool got it back (`time.monotonic`)."""
        self.calls: dict[int, Call] = {}
        self.abandoned: deque[Call] = deque()
        """Calls that nobody holds any more. Appended to without a lock."""
        self.ended: Status | None = None
        """Why the connection is over; `None` while it is not."""
        self.last_headers: tuple[Headers, Metadata] | None = None
        self.last_trailers: Headers | None = None
        self._reading = False
        self._unproven = 0  # bytes of requests since the stream was last known to have room
        self._laborious = False  # whether the latest that was read took long
        self._background: threading.Thread | None = None
        self._background_wanted = threading.Condition(self.lock)
        self._resting = False
        self._closed = False

    @property
    def usable(self) -> bool:
        """Whether a new call may be placed here."""
        return self.ended is None and not self.connection.going_away and not self.spoiled

    @property
    def in_background(self) -> bool:
        """Whether the background thread reads, so that a caller could not do it itself."""
        return self.has_reader and not self._resting

    @property
    def has_reader(self) -> bool:
        """Whether there is a background thread, though it may rest."""
        return self._background is not None

    def still_usable(self) -> bool:
        """Whether this idle connection is alive. Reads what came while nobody waited. Never blocks."""
        if self.ended is None and self.stream.readable():
            with self.lock:
                self._catch_up()
                self._pass_role_on()  # calls that have come meanwhile count on whoever reads
        return self.usable

    def _catch_up(self) -> None:
        until = time.monotonic() + _CATCHING_UP
        try:
            while time.monotonic() < until:
                if not self.usable or self._reading or not self.stream.readable():
                    return
                self._read(timeout=0.0)
        except TimeoutError:
            return  # what came was of no consequence, e.g. a session ticket of TLS
        if not self.calls:
            self._fail(f"{self.stream.peer} talks without end, and nobody asked it anything")

    # Calls

    def run(self, call: Call, block: bytes, message: bytes, alone: bool) -> None:
        """Make a unary call: returns when it is over.

        What `begin` and `wait_for_end` do, in fewer steps, for what is by far the most frequent: a small request on a
        connection that nobody else uses, answered in one piece. Every thread that runs Python code in between makes
        the peer's processor fall asleep, which costs more than the code does.

        :param alone: whether no other call was made meanwhile, as far as is known.
        :raises ConnectionClosed: the connection takes no more calls; nothing was sent.
        """
        connection = self.connection
        stream_id, sent = 0, False
        if not connection.settings_seen and not self._shake_hands(call):
            return
        self._unproven += len(block) + len(message)
        if (
            not self._reading
            and not self.calls
            and not self.abandoned
            and not self._sending.locked()
            and (self._unproven < _UNPROVEN or self._proven())
        ):
            try:
                with self._sending:
                    with self.lock:
                        if self.ended is not None:
                            raise ConnectionClosed(self.ended.details)
                        if not self._reading and not self.calls:
                            stream_id, due = connection.ask(block, message, call.compressed)
                        if stream_id:
                            call.stream_id = stream_id
                            call.link = self
                            self.calls[stream_id] = call
                            self._reading = True
                    if stream_id:
                        self.stream.send(due)
                        sent = True
                if stream_id:
                    self.wait_for_end(call, reading=True, alone=alone)
                    return
            except StreamError as error:
                # So little is taken by the stream as a whole or not at all: nobody can have acted on it.
                call.unprocessed = not sent and (call.deadline is None or time.monotonic() < call.deadline)
                with self.lock:
                    self._reading = False
                    self._fail(str(error))
                return
            except BaseException:
                if stream_id:
                    self._break_off()
                raise
        self.begin(call, block, message, ends=True)
        self.wait_for_end(call)

    def begin(self, call: Call, block: bytes, first: bytes | None, ends: bool) -> None:
        """Open a stream for `call` and send its header block, with the only or first message if there is one.

        :raises ConnectionClosed: the connection takes no more calls; nothing was sent.
        """
        with self.lock:
            connection = self.connection
            self.admit(call, block)
            stream_id = call.stream_id
            if first is not None:
                size = len(first)
                if size <= JOINED_MESSAGE and connection.window(stream_id) >= size + 5:
                    connection.send_data(stream_id, PREFIX.pack(call.compressed, size) + first, ends)
                    first = None
        if first is None:
            self._flush_for(call)
        else:
            self.send_message(call, first, ends)

    def admit(self, call: Call, block: bytes) -> None:
        """Open a stream for `call`, and send its header block. Called with `lock` held.

        :raises ConnectionClosed: the connection takes no more calls.
        """
        if self.ended is not None:
            raise ConnectionClosed(self.ended.details)
        if self.spoiled:
            raise ConnectionClosed("the connection was given up")
        if self.abandoned:
            self._cancel_abandoned()
        call.stream_id = stream_id = self.connection.open_stream()
        call.link = self
        self.calls[stream_id] = call
        self.connection.send_headers(stream_id, block)

    def get_ready(self) -> None:
        """Have done with what a connection begins with, for those who cannot wait.

        :raises StreamError, TimeoutError: it is of no use.
        """
        handshake = getattr(self.stream, "handshake", None)
        if handshake is not None:
            handshake()
        self.flush()

    def send_message(self, call: Call, message: bytes, ends: bool) -> None:
        """Send one message, as fast as the peer lets us. Returns early when the call ends."""
        rest = views_of(message, call.compressed)
        while rest:
            with self.lock:
                if not self._await_window(call):
                    return
                self.queue(call.stream_id, rest, ends)
            self._flush_for(call)

    def end_sending(self, call: Call) -> None:
        """Say that the request is complete."""
        with self.lock:
            if call.status is None and self.connection.is_sending(call.stream_id):
                self.connection.send_data(call.stream_id, b"", end_stream=True)
        self._flush_for(call)

    def cancel(self, call: Call, status: Status) -> bool:
        """End a call from this side. False when it was over already."""
        with self.lock:
            if call.status is not None:
                return False
            self.connection.reset(call.stream_id, ErrorCode.CANCEL)
            self.finish(call, status)
            self._pass_role_on()  # its caller may have been interrupted with the role, while others count on that
        self.flush_or_delegate()
        return True

    def finish(self, call: Call, status: Status) -> None:
        """A call is over. Called with `lock` held; what waits for it hears of it."""
        self.calls.pop(call.stream_id, None)
        callbacks = call.end(status)
        if callbacks:
            try:
                self.workers.submit(lambda: _run_all(callbacks), patient=True)
            except WorkersClosed:
                logger.debug("callbacks of %s are dropped: the channel is closed", call.method)
            except OutOfThreads:
                self._call_back_later(callbacks)

    def _call_back_later(self, callbacks: list[Callable[[], None]]) -> None:
        try:
            self.timers.at(0.0, lambda: _run_all(callbacks))
        except OutOfThreads as error:
            logger.warning("callbacks of a call are dropped: %s", error)

    def _cancel_abandoned(self) -> None:
        while self.abandoned:
            call = self.abandoned.popleft()
            if call.status is None:
                self.connection.reset(call.stream_id, ErrorCode.CANCEL)
                self.finish(call, Status(StatusCode.CANCELLED, "nobody is left to receive the responses"))

    def _await_window(self, call: Call) -> bool:
        """Wait until the call may send. False when it is over, or its sending half is. Called with `lock` held."""
        connection = self.connection

        def settled() -> bool:
            if call.status is not None or not connection.is_sending(call.stream_id):
                return True
            return connection.window(call.stream_id) > 0

        if self.connection.due and not settled():
            try:
                self.lock.release()
                self._flush_for(call)  # it may be what opens the window
            finally:
                take_back(self.lock)
        if not self.wait_for(call, settled, call.deadline):
            self._expire(call)
        return call.status is None and connection.is_sending(call.stream_id)

    def _expire(self, call: Call) -> None:
        self.connection.reset(call.stream_id, ErrorCode.CANCEL)
        self.finish(call, Status(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))

    def expire(self, call: Call) -> None:
        """The call's deadline has passed."""
        self.cancel(call, Status(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))

    # Writing

    def _proven(self) -> bool:
        """Whether what was sent until now was read, so that as much again cannot block."""
        if not self.stream.writable():
            return False
        self._unproven = 0
        return True

    def _flush_for(self, call: Call) -> None:
        """Write what is due. Returns when that is done, or soon after the call's deadline.

        What cannot be written at once, and by then, is left to a worker where other calls share the connection: they
        have more time. With none, the connection ends.
        """
        if not self.connection.settings_seen and not self._shake_hands(call):
            return
        try:
            if self.flush_without_waiting(ROOM):
                return
            if call.deadline is None:
                self.flush()
            elif len(self.calls) == 1 or not self._flush_aside(call.deadline):
                guard = self.timers.at(call.deadline + _LATE, lambda: self._give_up_writing(call))
                try:
                    self.flush()
                finally:
                    guard.cancel()
        except StreamError as error:
            self._not_sent(error)

    def _flush_aside(self, deadline: float) -> bool:
        """Have a worker write what is due, and wait for that until the deadline. False: there is no worker."""
        done = threading.Event()

        def flush() -> None:
            try:
                self._flush_in_background()
            finally:
                done.set()

        try:
            self.workers.submit(flush)
        except (WorkersClosed, RuntimeError):  # the channel is closed, or no thread can be started
            return False
        done.wait(max(0.0, deadline - time.monotonic()))
        return True

    def _give_up_writing(self, call: Call) -> None:
        """The call's deadline has passed, and its request, or half a frame of it, is not written: nothing can follow.

        Calls that came to share the connection since the last bytes were taken have not been written at all. Any other
        may have been read, and run.
        """
        with self.lock:
            untouched = self.connection.untouched
            others = [each for each in self.calls.values() if each is not call and each.stream_id >= untouched]
            self.spoil()
            self._fail(f"{self.stream.peer} does not read what is sent to it")
            for each in others:
                each.unprocessed = each.status is self.ended

    def _shake_hands(self, call: Call) -> bool:
        """Where the stream begins with a handshake (TLS), have done with it. False when the call is over instead.

        The handshake has its own time. When the call's deadline comes first, that is the end of this call alone, and a
        worker goes on for those that share the connection, or will.
        """
        handshake = getattr(self.stream, "handshake", None)
        if handshake is None:
            return True
        try:
            handshake(None if call.deadline is None else max(0.0, call.deadline - time.monotonic()))
            return True
        except TimeoutError:
            with self.lock:
                if call.status is None:
                    call.link = self
                    self._expire(call)
            self.flush_or_delegate()
        except StreamError as error:
            with self.lock:
                sharing = [call, *self.calls.values()]
                self._fail(str(error))
                assert self.ended is not None
                if call.status is None:
                    call.link = self
                    self.finish(call, self.ended)
                for each in sharing:  # nothing of them was sent
                    each.unprocessed = each.status is self.ended
        return False

    def flush_or_delegate(self) -> None:
        """Write if that cannot block; otherwise let a worker do it."""
        try:
            if self.connection.due and not self.flush_without_waiting():
                self.workers.submit(self._flush_in_background)
        except StreamError as error:
            self._not_sent(error)
        except WorkersClosed:
            logger.debug("%s is being closed: what was to be sent is not", self.stream.peer)
        except OutOfThreads:
            self.flush_later(self.timers, self.flush_or_delegate)

    def _send_owed(self) -> None:
        """Write what a reader owes; the reader reads on, whatever comes of it."""
        try:
            if not self.flush_without_waiting():
                self.workers.submit(self._flush_in_background)
        except StreamError as error:
            logger.debug("%s does not want what it is owed: %s", self.stream.peer, error)
        except WorkersClosed:
            logger.debug("%s is being closed: what was to be sent is not", self.stream.peer)
        except OutOfThreads:
            self.flush_later(self.timers, self.flush_or_delegate)

    def _flush_in_background(self) -> None:
        try:
            self.flush()
        except StreamError as error:
            self._not_sent(error)

    def _not_sent(self, error: StreamError) -> None:
        """Something could not be written. A peer that has hung up may have answered before: who waits reads on."""
        with self.lock:
            if not self.calls or not isinstance(error, (StreamClosed, StreamReset)):
                self._fail(str(error))

    # Reading

    def wait_for_end(self, call: Call, reading: bool = False, alone: bool = False) -> None:
        """Wait, reading if nobody else does, until the call is over. For callers that nobody can cancel.

        :param reading: whether this thread has the role already.
        :param alone: as for `run`.
        """
        lock = self.lock
        if not reading:
            lock.acquire()
        try:
            if reading:
                try:
                    self._read_in_role(None if call.deadline is None else _remaining(call.deadline), call, alone)
                except TimeoutError:
                    pass
                reading = False
            while call.status is None and not self._reading:
                try:
                    self._read(None if call.deadline is None else _remaining(call.deadline), call)
                except TimeoutError:
                    break
                if call.deadline is not None and time.monotonic() >= call.deadline:
                    break  # what is read without end need not be an answer
            if call.status is None and not self.wait_for(call, call.is_over, call.deadline, may_read=True):
                self._expire(call)
            if (self.calls or self.connection.unheard) and not self._reading:
                self._pass_role_on()
        finally:
            if not (reading and self._reading):  # else interrupted before it read, and without the lock
                lock.release()

    def wait_for(
        self, call: Call, settled: Callable[[], bool], deadline: float | None, *, may_read: bool = False
    ) -> bool:
        """Wait until `settled()`. False when the deadline passed first. Called with `lock` held, which is let go."""
        while not settled():
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                return False
            if may_read and not self._reading:
                try:
                    self._read(remaining)
                except TimeoutError:
                    continue
            elif self._is_read():
                call.wait_for_news(remaining)
            else:
                try:
                    self._read(_MOMENT if remaining is None else min(_MOMENT, remaining))
                except TimeoutError:
                    continue
        return True

    def _is_read(self) -> bool:
        """See to it that somebody reads; false where that takes a thread, and none can be started."""
        try:
            self.read_for_others()
        except OutOfThreads:
            return False
        return True

    def _pass_role_on(self) -> None:
        """Where the role is free and somebody has to read, the background thread takes it, or who waits for a call.

        Called with `lock` held. A caller who makes call after call has the role again before that thread wakes: so it
        is here that the peer is asked to confirm, which leaves with the next call.
        """
        if self._reading or not (self.calls or (self.connection.unheard and self.has_reader and self._must_read())):
            return
        if not self._is_read():
            for call in self.calls.values():
                call.tell()

    def read_for_others(self) -> None:
        """See to it that somebody reads. Called with `lock` held.

        :raises OutOfThreads: nobody does, and no thread can be started.
        """
        if not self._reading:
            self._start_background()

    def secure_reader(self) -> None:
        """See to it that there is a background thread, for a call that nobody may be waiting for.

        :raises OutOfThreads: there is none, and none can be started.
        """
        if self._background is None:
            with self.lock:
                if self._background is None:
                    self._start_background()

    def _read(self, timeout: float | None, only: Call | None = None) -> None:
        """Take the role, read once, give the role back. Called with `lock` held, which is let go while reading.

        :param only: a unary call that is probably the only one here.
        :raises TimeoutError: nothing came.
        """
        self._reading = True
        try:
            self.lock.release()  # in here, because Python looks for signals right after it
            self._read_in_role(timeout, only, False)
        finally:
            if self._reading:  # interrupted before it read
                take_back(self.lock)
                self._reading = False

    def _read_in_role(self, timeout: float | None, only: Call | None, soon: bool) -> None:
        """As `_read`, for who has the role and not the lock. Ends without the role and with the lock."""
        failure = ""
        data = b""
        locked = False
        try:
            try:
                if self._laborious:
                    time.sleep(_PAUSE)
                if self.connection.due:
                    self._send_owed()  # what is due goes out before this thread is lost to reading
                data = self.receive(timeout, soon)
            except StreamError as error:
                failure = str(error)
            finally:
                try:
                    locked = self.lock.acquire(False)
                    if not locked:
                        take_back(self.lock)
                        locked = True
                finally:
                    self._reading = False
        except TimeoutError:
            raise
        except BaseException:
            # Ctrl-C: some bytes may be lost, and with them the thread of what follows.
            self.spoil()
            if locked:
                self._fail(_INTERRUPTED)
            raise
        if data:
            if only is None or not only.take_answer(data):
                began = time.monotonic()
                self._handle(self.connection.receive(data))
                self._laborious = time.monotonic() - began > _LONG
                if self._laborious:
                    self._chunk = CHUNK
            if self.abandoned:
                self._cancel_abandoned()
        else:
            self._fail(failure or f"{self.stream.peer} closed the connection")

    def _break_off(self) -> None:
        """Whoever had the role was interrupted: nothing can follow half a frame, nor be told from what was lost."""
        self.spoil()
        with self.lock:
            self._reading = False
            self._fail(_INTERRUPTED)

    def _start_background(self) -> None:
        if self._closed or self.ended is not None:
            return
        if self._background is None:
            name = f"hybridload-http2-read-{self.stream.peer}"
            background = Thread(target=self._read_in_background, name=name, daemon=True)
            with held:
                background.start()
                self._background = background
        elif self._resting:
            self._resting = False
            self._background_wanted.notify()

    def _read_in_background(self) -> None:
        with self.lock:
            while not self._closed and self.ended is None:
                if self._reading or not self._must_read():
                    self._resting = True
                    self._background_wanted.wait()
                    self._resting = False
                else:
                    self._read(None)

    def _must_read(self) -> bool:
        """Whether somebody has to read: for calls, or until the peer has heard that streams were given up.

        A server writes on until then, and where nobody reads, it waits for that with whoever makes the responses.
        """
        if self.calls:
            return True
        self.connection.confirm()
        return self.connection.unheard

    def _handle(self, events: list[Event]) -> None:
        calls = self.calls
        for event in events:
            if isinstance(event, DataReceived):
                call = calls.get(event.stream_id)
                if call is not None:
                    call.on_data(event.data, event.end_stream)
            elif isinstance(event, HeadersReceived):
                call = calls.get(event.stream_id)
                if call is not None:
                    call.on_headers(event.headers, event.end_stream)
            elif isinstance(event, StreamEnded):
                call = calls.get(event.stream_id)
                if call is not None:
                    call.unprocessed = event.by_peer and event.code == ErrorCode.REFUSED_STREAM
                    self.finish(call, Status.of_reset(event.code, f"the stream was {event.reason}"))
            elif isinstance(event, WindowOpened):
                self._tell_senders(event.stream_id)
            elif isinstance(event, GoAwayReceived):
                self._leave_behind(event)
            elif isinstance(event, ConnectionFailed):
                self._fail(f"{self.stream.peer} broke the protocol: {event.reason}")

    def _tell_senders(self, stream_id: int) -> None:
        if stream_id:
            call = self.calls.get(stream_id)
            if call is not None:
                call.tell()
        else:
            for call in self.calls.values():
                call.tell()

    def _leave_behind(self, event: GoAwayReceived) -> None:
        for stream_id in [each for each in self.calls if each > event.last_stream_id]:
            call = self.calls[stream_id]
            call.unprocessed = True
            reason = f"{self.stream.peer} goes away ({ErrorCode.name_of(event.code)}) {event.message}".rstrip()
            self.connection.reset(stream_id, ErrorCode.CANCEL)
            self.finish(call, Status(StatusCode.UNAVAILABLE, reason, lost=True))

    # The end

    def fail(self, reason: str) -> None:
        """The connection is broken: all calls on it end."""
        with self.lock:
            self._fail(reason)

    def _fail(self, reason: str) -> None:
        if self.ended is None:
            self.ended = Status(StatusCode.UNAVAILABLE, reason, lost=True)
            if self.connection.failed:
                self._say_goodbye()
            self.stream.close()
            self._background_wanted.notify()
        for call in list(self.calls.values()):
            late = call.deadline is not None and time.monotonic() >= call.deadline
            self.finish(call, Status(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") if late else self.ended)

    def _say_goodbye(self) -> None:
        """Tell the peer what it did wrong, if that can be done at once."""
        try:
            if self.stream.writable():
                self.stream.send_all(self.connection.data_to_send())
        except StreamError:
            logger.debug("%s did not wait for an explanation", self.stream.peer)

    def close(self, status: Status | None = None) -> None:
        """End all calls, with `status`, and the connection; join the background thread. Safe to call twice."""
        with self.lock:
            self._closed = True
            if self.ended is None:
                self.ended = status or Status(StatusCode.CANCELLED, "Channel closed!")
                for call in list(self.calls.values()):
                    self.finish(call, self.ended)
            self._background_wanted.notify()
            background = self._background
        self.stream.close()
        if background is not None and background is not threading.current_thread():
            background.join()


def _remaining(deadline: float) -> float:
    """Seconds, rounded up to milliseconds: the same time-out comes to the same, which costs a socket less."""
    return max(0.0, -(-(deadline - time.monotonic()) * 1000 // 1) / 1000)


def _run_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        try:
            callback()
        except Exception:
            logger.exception("a callback of a call failed")
