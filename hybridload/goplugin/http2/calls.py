"""Calls as the client sees them: what has come for each so far, and the objects that users hold.

The first half of `Call` is fed by the connection with its lock held and never blocks; the second half is what
`grpc.Call` and `grpc.Future` offer, for any thread. A response is deserialized by the thread that asks for it, never by
the one that reads.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hybridload.interrupts import held, take_back

from .events import Headers
from .frames import ErrorCode
from .inbox import Inbox
from .messages import IDENTITY, MessageError
from .metadata import Metadata, decode_message, decode_metadata, field
from .status import OK, Status, StatusCode, public_code, rpc_cancelled, rpc_error, rpc_future_timeout
from .timers import Timer

if TYPE_CHECKING:
    from .client_link import ClientLink
    from .loop_news import LoopNews

Deserializer = Callable[[bytes], Any] | None


class ThreadNews:
    """Tells threads what the state of their call has to tell, as a `Condition` does.

    Who is interrupted while it waits has the lock: of a `Condition` that is not said, and the lock would be let go of
    for whoever has it.

    :param lock: the link's.
    """

    __slots__ = ("_gates", "_lock")

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._gates: set[threading.Lock] = set()

    def wait(self, timeout: float | None) -> None:
        """Wait for news. Called with the lock held, which is let go."""
        gate = threading.Lock()
        gate.acquire()
        with held:
            self._gates.add(gate)
            try:
                self._lock.release()
                held.wait(gate, timeout)
            finally:
                self._lock.acquire()
                self._gates.discard(gate)

    def notify_all(self) -> None:
        """There is news. Called with the lock held."""
        while self._gates:
            self._gates.pop().release()


class Call(Inbox):
    """One call, of any kind.

    :param method: the path, e.g. ``"/proto.GreeterService/Greet"``.
    :param deadline: of `time.monotonic`; `None` for none.
    :param max_receive: of one message, in bytes; `None` for no limit.
    :param single: whether the response is one message.
    """

    # What most calls never change stands on the class: a call is made in a microsecond.
    link: ClientLink
    stream_id = 0
    compressed = 0
    """Whether messages are sent compressed: the flag before each."""
    initial: Metadata | None = None
    status: Status | None = None
    unprocessed = False
    """Whether the server is known not to have looked at it: it may be sent again."""
    timer: Timer | None = None
    encoding = IDENTITY
    """The server's ``grpc-encoding``."""
    _headers_seen = False
    _news: ThreadNews | LoopNews | None = None
    _callbacks: list[Callable[[], None]] | None = None
    _on_end: Callable[[], None] | None = None

    def __init__(
        self, method: str, deserialize: Deserializer, deadline: float | None, max_receive: int | None, single: bool
    ) -> None:
        self.method = method
        self.deadline = deadline
        self.single = single
        self.messages = deque()
        self.max_receive = max_receive
        self._deserialize = deserialize

    # What comes from the connection. Called with the link's lock held.

    def take_answer(self, data: bytes) -> bool:
        """Take what the connection received if it is all of this call's answer, and like the last one.

        For a unary call that only the thread which makes it knows of: nobody else is told of its end.
        """
        if self.status is not None:
            return False
        link = self.link
        answer = link.connection.receive_answer(self.stream_id, data, self.max_receive)
        if answer is None:
            return False
        headers, message, trailers = answer
        self.messages.append(message)
        last = link.last_headers
        if last is not None and headers is last[0] and trailers is link.last_trailers:
            self.initial = last[1]
            self.status = OK
            del link.calls[self.stream_id]
        else:
            self.on_headers(headers, False)
            if self.status is None:
                self._on_trailers(trailers)
        return True

    def on_headers(self, headers: Headers, ends: bool) -> None:
        if self._headers_seen:
            self._on_trailers(headers)
        elif ends:
            self._headers_seen = True
            self._on_trailers_only(headers)
        else:
            self._headers_seen = True
            self._on_response(headers)

    def _on_response(self, headers: Headers) -> None:
        link = self.link
        if link.last_headers is not None and link.last_headers[0] is headers:
            self.initial = link.last_headers[1]
        else:
            self.initial = decode_metadata(headers)
            if not self._check_response(headers):
                return
            encoding = field(headers, b"grpc-encoding")
            if encoding is not None:
                self.encoding = encoding.decode("latin-1")
            if self.encoding == IDENTITY:
                link.last_headers = (headers, self.initial)
        if not self.single:
            self.tell()

    def _check_response(self, headers: Headers) -> bool:
        status = field(headers, b":status") or b""
        content_type = field(headers, b"content-type") or b""
        if status == b"200" and content_type.startswith(b"application/grpc"):
            return True
        if status == b"200":
            kind = content_type.decode("latin-1")
            self._abandon(Status(StatusCode.UNKNOWN, f"the peer answered with content-type {kind!r}: is it gRPC?"))
        else:
            self._abandon(Status.of_http(status))
        return False

    def _on_trailers_only(self, headers: Headers) -> None:
        self.initial = ()
        if field(headers, b"grpc-status") is not None or self._check_response(headers):
            self._on_trailers(headers)

    def _on_trailers(self, headers: Headers) -> None:
        link = self.link
        if headers is link.last_trailers:
            status = OK
        else:
            status = _read_status(headers)
            if status == OK:
                link.last_trailers = headers
        self._complete(status)

    def on_data(self, data: bytes | memoryview, ends: bool) -> None:
        try:
            self.put(data, self.encoding)
        except MessageError as error:
            self._abandon(error.status)
            return
        if ends:
            self._complete(Status(StatusCode.INTERNAL, "the peer ended the stream without trailers"))
        elif not self.single:
            self.tell()
        elif len(self.messages) > 1:
            self._abandon(Status(StatusCode.INTERNAL, "several messages in answer to a unary call"))

    def spoil(self, status: Status) -> None:
        if self.status is None:
            self._abandon(status)
        else:
            self.status = status

    def _complete(self, status: Status) -> None:
        """The peer has said all."""
        if status.code is StatusCode.OK:
            if self.inside:
                status = Status(StatusCode.INTERNAL, "the response ends in the middle of a message")
            elif self.single and not self.messages:
                status = Status(StatusCode.INTERNAL, "the peer answered OK without a message")
        # Where the request has not ended nobody reads the rest of it (RFC 9113, section 8.1).
        self.link.connection.reset(self.stream_id, ErrorCode.NO_ERROR)
        self.link.finish(self, status)

    def _abandon(self, status: Status) -> None:
        self.link.connection.reset(self.stream_id, ErrorCode.CANCEL)
        self.link.finish(self, status)

    def end(self, status: Status) -> list[Callable[[], None]]:
        """Set the status; returns what is to be called back, once the lock is let go."""
        self.status = status
        if self.initial is None:
            self.initial = ()
        if self.timer is not None:
            self.timer.cancel()
        if self._news is not None:
            self._news.notify_all()
        callbacks, self._callbacks = self._callbacks or [], None
        if self._on_end is not None:
            callbacks.append(self._on_end)
        return callbacks

    def tell(self) -> None:
        """Wake whoever waits for news."""
        if self._news is not None:
            self._news.notify_all()

    def wait_for_news(self, timeout: float | None) -> None:
        """Wait until `tell`. Called with the link's lock held, which is let go."""
        if self._news is None:
            self._news = ThreadNews(self.link.lock)
        assert isinstance(self._news, ThreadNews)
        self._news.wait(timeout)

    def tell_loop(self, news: LoopNews) -> None:
        """From now on an event loop is told, and no thread waits. Called with the link's lock held."""
        self._news = news

    def is_over(self) -> bool:
        return self.status is not None

    def when_over(self, callback: Callable[[], None]) -> None:
        """What the channel does when the call ends; at once when it has. Not for users: one only."""
        with self.link.lock:
            if self.status is None:
                self._on_end = callback
                return
        callback()

    def error(self) -> Exception:
        """The exception for the status. The call is over."""
        assert self.status is not None
        return rpc_error(self.status, self.initial or (), self.method, self.deadline)

    def deserialize(self, message: bytes) -> Any:
        return message if self._deserialize is None else self._deserialize(message)

    # What users call, from any thread: grpc.Call

    def is_active(self) -> bool:
        return self.status is None

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; `None` without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def cancel(self) -> bool:
        """End the call. False when it was over already."""
        return self.link.cancel(self, Status(StatusCode.CANCELLED, "Locally cancelled by application!"))

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call `callback` when the call is over, in some thread. False, and never, when it is over already."""
        with self.link.lock:
            if self.status is not None:
                return False
            self._callbacks = [*(self._callbacks or []), callback]
            return True

    def initial_metadata(self) -> Metadata:
        """What the server sent first. Waits for it."""
        with self.link.lock:
            self._wait(lambda: self.initial is not None)
            return self.initial or ()

    def trailing_metadata(self) -> Metadata:
        """What the server sent last. Waits for the end."""
        return self._final().trailing_metadata

    def code(self) -> Any:
        """The status code, grpc's own where grpc is imported. Waits for the end."""
        return public_code(self._final().code)

    def details(self) -> str:
        return self._final().details

    def debug_error_string(self) -> str:
        status = self._final()
        return f"{self.method}: {status.code.name}: {status.details}"

    def _final(self) -> Status:
        with self.link.lock:
            self._wait(self.is_over)
            assert self.status is not None
            return self.status

    def _wait(self, settled: Callable[[], bool]) -> None:
        """Wait for news from whoever reads; the deadline ends the call. Called with the lock held."""
        if not self.link.wait_for(self, settled, self.deadline):
            try:
                self.link.lock.release()
                self.link.expire(self)
            finally:
                take_back(self.link.lock)


class UnaryCall(Call):
    """A call whose response is one message; also what `.future()` gives: `grpc.Future`."""

    def again(self) -> UnaryCall:
        """A new call like this one was, with the same deadline."""
        call = UnaryCall(self.method, self._deserialize, self.deadline, self.max_receive, self.single)
        call.compressed = self.compressed
        return call

    def response(self) -> Any:
        """The response of a call that is over.

        :raises RpcError: its status is not OK.
        """
        if self.status is not OK and (self.status is None or self.status.code is not StatusCode.OK):
            raise self.error()
        message = self.messages[0]
        return message if self._deserialize is None else self._deserialize(message)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the response.

        :param timeout: seconds to wait here; the call goes on afterwards.
        :raises RpcError: its status is not OK.
        """
        self._await_end(timeout)
        self._raise_if_cancelled()
        return self.response()

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Wait for the end: the exception, or `None` when all is well."""
        self._await_end(timeout)
        self._raise_if_cancelled()
        assert self.status is not None
        return None if self.status.code is StatusCode.OK else self.error()

    def traceback(self, timeout: float | None = None) -> Any:
        error = self.exception(timeout)
        if error is None:
            return None
        try:
            raise error
        except type(error) as raised:
            return raised.__traceback__

    def done(self) -> bool:
        return self.status is not None

    def running(self) -> bool:
        return self.status is None

    def cancelled(self) -> bool:
        return self.status is not None and self.status.code is StatusCode.CANCELLED

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call ``callback(self)`` when the call is over: in some thread, or here when it is over already."""
        if not self.add_callback(lambda: callback(self)):
            callback(self)

    def _await_end(self, timeout: float | None) -> None:
        with self.link.lock:
            patience = None if timeout is None else time.monotonic() + timeout
            if patience is None or (self.deadline is not None and self.deadline <= patience):
                self._wait(self.is_over)
            elif not self.link.wait_for(self, self.is_over, patience):
                raise rpc_future_timeout(f"{self.method} is not done within {timeout:g} s")

    def _raise_if_cancelled(self) -> None:
        if self.cancelled() and self.status is not None and self.status.details.startswith("Locally"):
            raise rpc_cancelled(f"{self.method} was cancelled")


class StreamCall(Call):
    """A call whose response is a stream."""

    def next_response(self) -> Any:
        """The next message, as soon as it is there.

        :raises StopIteration: there are no more, and the status is OK.
        :raises RpcError: the call ended otherwise.
        """
        link = self.link
        with link.lock:
            if not self.messages and self.status is None:
                self._wait(lambda: bool(self.messages) or self.status is not None)
            if not self.messages:
                assert self.status is not None
                if self.status.code is StatusCode.OK:
                    raise StopIteration
                raise self.error()
            message = self.take_message()
        if link.connection.due:
            link.flush_or_delegate()
        return self.deserialize(message)


class Responses:
    """What the user holds of a call whose response is a stream: an iterator of messages, and `grpc.Call`.

    A call that the server is known not to have looked at is made again when its first message is asked for.

    When it is dropped half-way the call is cancelled: not at once, as a lock may be held by whoever is collecting
    garbage, but with the connection's next event. Call `cancel` where that matters.

    :param again: makes such a call; `None` where it cannot be repeated.
    :param attempts: how often it is made in all.
    """

    __slots__ = ("_again", "_attempts", "_call", "_cancelled")

    def __init__(self, call: StreamCall, again: Callable[[], StreamCall] | None = None, attempts: int = 1) -> None:
        self._call = call
        self._again = again
        self._attempts = attempts
        self._cancelled = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next message, as soon as it is there.

        :raises StopIteration: there are no more, and the status is OK.
        :raises RpcError: the call ended otherwise.
        """
        again = self._again
        if again is None:
            return self._call.next_response()
        while self._attempts > 1:
            try:
                message = self._call.next_response()
            except Exception:
                if not self._call.unprocessed or self._cancelled:
                    raise
            else:
                self._again = None  # with the request, which nobody needs any more
                return message
            self._attempts -= 1
            self._call = again()
            if self._cancelled:
                self._call.cancel()
        self._again = None
        return self._call.next_response()

    def next(self) -> Any:
        return next(self)

    def cancel(self) -> bool:
        """End the call. False when it was over already."""
        self._cancelled = True
        return self._call.cancel()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._call, name)

    def __del__(self) -> None:
        if self._call.status is None:
            self._call.link.abandoned.append(self._call)


def _read_status(headers: Headers) -> Status:
    value = field(headers, b"grpc-status")
    if value is None:
        return Status(StatusCode.UNKNOWN, "the response ends without grpc-status")
    code = StatusCode.of(int(value)) if value.isdigit() and len(value) < 4 else StatusCode.UNKNOWN
    message = decode_message(field(headers, b"grpc-message") or b"")
    return Status(code, message, decode_metadata(headers))


def iteration_failed() -> Status:
    """The user's request iterator raised: what the call ends with. Called while the exception is handled."""
    return Status(StatusCode.UNKNOWN, f"Exception iterating requests!\n{traceback.format_exc(limit=-3)}")
