"""The server's end of one connection: who reads it, and who runs the handlers.

**The reading role.** One thread leads a connection: it reads, and runs a short handler by itself as soon as the request
is complete, so that a call costs no change of thread. A handler that takes long, blocks, or calls back must hold up
nothing, so:

- Handlers that stream, in either direction, and handlers that are known to take long, run in a thread of their own.
- Asynchronous handlers run on an event loop; the leader only begins them (`loop_calls`).
- While the leader is inside a handler, the server's watchdog looks at it every few milliseconds (`watchdog`). If the
  handler has not returned, another thread is made the leader and goes on reading; the one inside the handler finishes
  it and leaves. The method is remembered as slow for a while. Where no thread can be started the leader keeps the
  role, and the watchdog tries it again.
- A call that needs a thread where none can be started is refused (RESOURCE_EXHAUSTED), unless the leader can run it
  and holds up nobody; the others go on.
- A leader that would have to wait in mid-answer for the client's window hands the role over at once: only somebody who
  reads can see the window open.
- A leader never blocks in writing what it owes as a reader (`link`).

`_term` says who leads: it is raised whenever the role changes hands, and a thread whose term has passed takes nothing
more from the connection. Requests that are complete but not begun wait in `_ready`, which goes with the role.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from hybridload.goplugin.streams.base import Stream, StreamError
from hybridload.goplugin.threads import OutOfThreads

from .connection import Connection, Role, StreamClosed
from .context import (
    PLAIN_OK,
    RESPONSE_HEAD,
    TRAILERS_OK,
    Abort,
    Context,
    Request,
    Requests,
    RequestsEnded,
    ServerCall,
    read_request,
    trailers_block,
)
from .events import (
    ConnectionFailed,
    DataReceived,
    Event,
    Headers,
    HeadersReceived,
    StreamEnded,
    WindowOpened,
)
from .frames import ErrorCode
from .header_blocks import encode
from .link import Link, views_of
from .messages import LARGEST_MESSAGE, MessageError, check_size, compress
from .status import Status, StatusCode
from .workers import Job, WorkersClosed

if TYPE_CHECKING:
    from .server import Server

logger = logging.getLogger(__name__)

_KNOWN_REQUESTS: Final = 64
_HARDLY_SLOW: Final = 0.02
"""Seconds. A method that was overtaken and returned within them is not remembered: that was the machine's fault."""

_SLOW_FOR: Final = 16
"""How many times in a row a slow method must have been quick before a leader runs it again."""


_NOT_GRPC: Final = b"This is a gRPC server. It takes POST requests with content-type application/grpc.\n"


class _NotGrpc:
    """Stands for the handler of a request that is not gRPC's."""

    request_streaming = False
    response_streaming = True


class ServerLink(Link):
    """One connection from a client. Owns the stream.

    :param server: whose handlers, threads and limits these are.
    """

    __slots__ = (
        "_ended",
        "_leading",
        "_ready",
        "_requests",
        "_running",
        "_server",
        "_term",
        "busy_since",
        "calls",
        "served",
    )

    def __init__(self, stream: Stream, server: Server) -> None:
        super().__init__(stream, Connection(Role.SERVER, server.limits))
        self.calls: dict[int, ServerCall] = {}
        self.busy_since = 0.0
        """When the leader entered the handler it is in (`time.monotonic`); 0 while it is in none."""
        self.served = 0
        """How many handlers leaders have run."""
        self._server = server
        self._ready: deque[ServerCall] = deque()
        self._requests: dict[int, tuple[Headers, Request]] = {}
        self._running: set[ServerCall] = set()
        self._term = 0
        self._leading: ServerCall | None = None
        self._ended = False

    @property
    def is_idle(self) -> bool:
        """Whether no call is open, no handler is running, and every answer is sent."""
        return not self.calls and not self._running and not (self.loop_writer and self.loop_writer.busy)

    # Leading

    def lead(self, term: int = 0) -> None:
        """Read and answer until the connection ends or the role passes to another thread."""
        try:
            self._send_owed()
            server = self._server
            while True:
                alone = False
                while self._ready:
                    if not self._run(self._ready.popleft(), term):
                        return
                    alone, server.latest = server.latest == id(self), id(self)
                if not self._read(alone):
                    break
        except WorkersClosed:
            logger.debug("%s is not read any more: the server has stopped", self.stream.peer)
        except Exception:
            logger.exception("reading %s failed", self.stream.peer)
        self.close()

    def overtake(self, since: float) -> None:
        """Let another thread lead, if the leader is still inside the handler that it entered at `since`.

        :raises OutOfThreads: there is none; the leader stays.
        """
        with self.lock:
            if self.busy_since == since:
                self._hand_over()

    def _hand_over(self) -> None:
        """Make another thread the leader. Called with `lock` held, while the leader is inside a handler.

        :raises OutOfThreads: there is none; the leader stays.
        """
        call, busy_since = self._leading, self.busy_since
        if call is not None:
            self._server.slow[call.request.path] = _SLOW_FOR
        self._term += 1
        self.busy_since = 0.0
        self._leading = None
        try:
            self._server.workers.submit(partial(self.lead, self._term))
        except WorkersClosed:
            self.stream.close()
        except OutOfThreads:
            self._term -= 1
            self.busy_since = busy_since
            self._leading = call
            raise
        if call is not None:
            self.connection.begin_work(call.stream_id)
            self._set_timer(call)

    def _run(self, call: ServerCall, term: int) -> bool:
        """Run a call's handler, here or elsewhere. False when this thread does not lead any more."""
        server = self._server
        handler = call.handler
        on_loop = _runs_on_loop(handler)
        streams = handler.request_streaming or handler.response_streaming
        elsewhere = not on_loop and (streams or call.request.path in server.slow)
        if elsewhere and self._run_elsewhere(call, streams):
            return True
        if not on_loop:
            self._running.add(call)
        elif not self._let_outlast(call):
            return True
        self._leading = call
        self.served += 1
        began = self.busy_since = time.monotonic()
        if server.watchdog.resting:
            server.watchdog.wake()
        try:
            if on_loop:
                self._serve_on_loop(call)
            else:
                self._serve_unary(call)
        finally:
            with self.lock:
                if not on_loop:
                    self._running.discard(call)
                leads = self._term == term
                if leads:
                    self.busy_since = 0.0
                    self._leading = None
        if not leads and time.monotonic() - began < _HARDLY_SLOW:
            server.slow.pop(call.request.path, None)
        return leads

    def _run_elsewhere(self, call: ServerCall, streams: bool) -> bool:
        """Run a handler on another thread. False where there is none, and the leader may run it: when that holds up no
        other call, and some other connection is still read."""
        if not self._let_outlast(call):
            return True
        try:
            self._server.workers.submit(partial(self._serve_elsewhere, call))
        except WorkersClosed:
            with self.lock:
                self._running.discard(call)
            raise
        except OutOfThreads as error:
            refused = streams or len(self.calls) > 1 or not self._server.is_read_beside(self)
            if refused:
                self.finish(call, _out_of_threads(error))
            self.handler_ended(call)
            return refused
        return True

    def _let_outlast(self, call: ServerCall) -> bool:
        """Count a handler that will run beside the leader. False when there are too many: the call has ended then."""
        with self.lock:
            # Handlers of calls that were reset may still run: they count, or resetting would be a way around the limit.
            # Those that have answered do not, though they may not have returned: the client knows of room already.
            most = self.connection.limits.max_streams
            crowded = len(self._running) >= most and most <= sum(
                each.cut_off or not each.over for each in self._running
            )
            if not crowded:
                self._running.add(call)
                self.connection.begin_work(call.stream_id)
            self._set_timer(call)
        if crowded:
            self.finish(call, Status(StatusCode.RESOURCE_EXHAUSTED, "too many calls at once on this connection"))
        return not crowded

    def handler_ended(self, call: ServerCall) -> None:
        """A handler that ran beside the leader, or was to, has come to its end."""
        with self.lock:
            self._running.discard(call)
        self._server.call_ended()

    def _serve_on_loop(self, call: ServerCall) -> None:
        from .loop_calls import LoopCall  # asyncio takes long to import, and most plugins do without

        try:
            loop_call = LoopCall(self, call)
        except RuntimeError as error:
            short = isinstance(error, OutOfThreads)
            self.finish(call, _out_of_threads(error) if short else Status(StatusCode.UNAVAILABLE, str(error)))
            self.handler_ended(call)
        else:
            loop_call.begin()

    def submit(self, job: Job) -> None:
        """Run what may block on another thread.

        :raises WorkersClosed: the server has stopped.
        """
        self._server.workers.submit(job)

    def _serve_elsewhere(self, call: ServerCall) -> None:
        began = time.monotonic()
        try:
            if call.handler.request_streaming or call.handler.response_streaming:
                self._serve_stream(call)
            else:
                self._serve_unary(call)
                self._server.forgive(call.request.path, time.monotonic() - began)
        finally:
            with self.lock:
                self._running.discard(call)
            self._server.call_ended()

    # Reading

    def _send_owed(self) -> None:
        try:
            if self.connection.due:
                self.flush_or_delegate()
        except StreamError:
            return

    def _read(self, soon: bool) -> bool:
        """Read once. False at the end of the connection.

        :param soon: whether the next request may be on its way, because one was answered just now.
        """
        try:
            if self.connection.due:
                self.flush_or_delegate()
            data = self.receive(None, soon)
        except StreamError as error:
            logger.debug("%s: %s", self.stream.peer, error)
            return False
        if not data:
            return False
        with self.lock:
            whole = self.connection.receive_request(data, self._server.max_receive)
            arrived = (self._open_whole(*whole),) if whole else self._handle(self.connection.receive(data))
        for call in arrived:
            self._admit(call)
        return not self.connection.failed

    def _handle(self, events: list[Event]) -> list[ServerCall]:
        """Note what came. Returns the calls that may now be admitted, or run. Called with `lock` held."""
        arrived: list[ServerCall] = []
        calls = self.calls
        for event in events:
            if isinstance(event, DataReceived):
                call = calls.get(event.stream_id)
                if call is not None:
                    self._settle(call, call.on_data(event.data, event.end_stream))
                    if event.end_stream and call.handler is not None:
                        arrived.append(call)
            elif isinstance(event, HeadersReceived):
                call = calls.get(event.stream_id)
                if call is not None:  # trailers: of no interest but for the end
                    self._settle(call, call.on_end())
                else:
                    call = self._open(event)
                if call.handler is None or event.end_stream:
                    arrived.append(call)
            elif isinstance(event, StreamEnded):
                call = calls.pop(event.stream_id, None)
                if call is not None:
                    call.cut_off = True
                    self._call_back(call.end())
            elif isinstance(event, WindowOpened):
                self._tell_senders(event.stream_id)
            elif isinstance(event, ConnectionFailed):
                logger.warning("%s broke the protocol: %s", self.stream.peer, event.reason)
        return arrived

    def _open(self, event: HeadersReceived) -> ServerCall:
        call = ServerCall(self, event.stream_id, self._request(event.headers), self._server.max_receive)
        call.request_ended = event.end_stream
        self.calls[event.stream_id] = call
        return call

    def _open_whole(self, stream_id: int, headers: Headers, message: bytes) -> ServerCall:
        """A call whose request came in one piece."""
        call = ServerCall(self, stream_id, self._request(headers), self._server.max_receive)
        call.messages.append(message)
        call.request_ended = True
        self.calls[stream_id] = call
        return call

    def _request(self, headers: Headers) -> Request:
        """What the headers say; taken apart once for as long as the same object comes (see `header_blocks`)."""
        known = self._requests.get(id(headers))
        if known is not None and known[0] is headers:
            return known[1]
        request = read_request(headers)
        if len(self._requests) >= _KNOWN_REQUESTS:
            self._requests.clear()
        self._requests[id(headers)] = (headers, request)
        return request

    def _admit(self, call: ServerCall) -> None:
        """Find the handler of a call that has just come, and make it ready once its request is complete."""
        if call.over or call.started:
            return
        if call.handler is None:
            call.handler = _NotGrpc if call.request.refusal else self._server.handler_of(call.request)
            if call.handler is None:
                self.finish(call, Status(StatusCode.UNIMPLEMENTED, f"Method not found! ({call.request.path})"))
                return
        if call.handler.request_streaming:
            call.started = True
            self._ready.append(call)
        elif call.request_ended:
            call.started = True
            if len(call.messages) == 1 or call.handler is _NotGrpc:
                self._ready.append(call)
            else:
                what = "several messages" if call.messages else "no message"
                self.finish(call, Status(StatusCode.INTERNAL, f"{what} in a unary request"))

    def _settle(self, call: ServerCall, status: Status | None) -> None:
        if status is not None:
            call.cut_off = True
            self._finish(call, status)

    def _tell_senders(self, stream_id: int) -> None:
        if stream_id:
            call = self.calls.get(stream_id)
            if call is not None:
                call.tell()
        else:
            for call in self.calls.values():
                call.tell()

    # Running a handler

    def _serve_unary(self, call: ServerCall) -> None:
        handler = call.handler
        try:
            message = call.messages.popleft()
            request = message if handler.request_deserializer is None else self._deserialized(message, handler)
            response = handler.unary_unary(request, Context(call))
            answer = self._response(call, response)
            if answer is not None and self._answer_at_once(call, answer):
                return
        except BaseException as error:
            self.finish(call, self._failure(call, error))
            return
        self._answer(call, answer)

    def _response(self, call: ServerCall, response: Any) -> bytes | None:
        """The encoded response; none where the handler set a status that makes it pointless."""
        if not call.silent and call.status().code is not StatusCode.OK:
            return None
        return self._serialized(response, call)

    def _serve_stream(self, call: ServerCall) -> None:
        try:
            self._stream(call)
        except BaseException as error:
            self.finish(call, self._failure(call, error))

    def _stream(self, call: ServerCall) -> None:
        handler = call.handler
        context = Context(call)
        if handler is _NotGrpc:
            self._refuse(call)
            return
        if handler.request_streaming:
            request: Any = Requests(call, handler.request_deserializer)
        else:
            request = self._deserialized(call.messages.popleft(), handler)
        if not handler.response_streaming:
            self._answer(call, self._response(call, handler.stream_unary(request, context)))
            return
        behavior = handler.stream_stream if handler.request_streaming else handler.unary_stream
        responses = iter(behavior(request, context))
        try:
            for response in responses:
                if not self.send_message(call, self._serialized(response, call)):
                    break
        finally:
            close = getattr(responses, "close", None)
            if close is not None:
                close()
        self.finish(call, call.status())

    def _deserialized(self, message: bytes, handler: Any) -> Any:
        if handler.request_deserializer is None:
            return message
        try:
            return handler.request_deserializer(message)
        except Exception as error:
            raise MessageError(StatusCode.INTERNAL, f"Exception deserializing request! {error}") from error

    def _serialized(self, response: Any, call: ServerCall) -> bytes:
        serialize = call.handler.response_serializer
        try:
            message: bytes = response if serialize is None else serialize(response)
            if call.gzip:
                message = compress(message)
        except Exception as error:
            raise MessageError(StatusCode.INTERNAL, f"Failed to serialize response! {error}") from error
        if self._server.max_send is not None or len(message) > LARGEST_MESSAGE:
            check_size(message, self._server.max_send)
        return message

    def _failure(self, call: ServerCall, error: BaseException) -> Status:
        """What a call ends with whose handler raised."""
        if isinstance(error, Abort) or call.aborted:
            return call.status()
        if isinstance(error, MessageError):
            logger.error("%s: %s", call.request.path, error, exc_info=error)
            return call.status_for(error.status.code, error.status.details)
        if isinstance(error, RequestsEnded) and call.over:
            return call.status_for(StatusCode.CANCELLED, str(error))
        if not call.over:
            logger.error("the handler of %s failed", call.request.path, exc_info=error)
        return call.status_for(StatusCode.UNKNOWN, f"Exception calling application: {error}")

    def _refuse(self, call: ServerCall) -> None:
        """Answer what is HTTP/2 but not gRPC: somebody with a browser, or a wrong address."""
        with self.lock:
            if self._is_gone(call):
                return
            call.initial_sent = True
            block = encode(((b":status", call.request.refusal), (b"content-type", b"text/plain")))
            self.connection.send_headers(call.stream_id, block)
        self._send_all(call, [memoryview(_NOT_GRPC)], ends=True)
        with self.lock:
            if not call.over:
                self._end(call)
        self._flush_or_end()

    # Answering

    def _answer(self, call: ServerCall, message: bytes | None) -> None:
        """The only response, if any, and the status."""
        if message is None or self.send_message(call, message, held=True):
            self.finish(call, call.status())
        if self.connection.due:
            self._flush_or_end()  # the call was over before its last words

    def _answer_at_once(self, call: ServerCall, message: bytes) -> bool:
        """All of a small answer in one step, where the handler left it at that. False when it cannot be done so."""
        if not call.silent:
            return False
        connection = self.connection
        try:
            with self._sending:
                with self.lock:
                    if call.over or connection.failed:
                        return True
                    if not connection.answer(call.stream_id, RESPONSE_HEAD, message, 0, TRAILERS_OK):
                        return False
                    self._end(call)
                    due = connection.data_to_send()
                self.stream.send(due[0] if len(due) == 1 else b"".join(due))
            if connection.due:
                self.flush()  # what somebody left to us while we were sending
        except StreamError as error:
            self._broken(error)
        return True

    def _is_gone(self, call: ServerCall) -> bool:
        """Whether nothing can be sent any more."""
        return call.over or self.connection.failed

    def send_initial(self, call: ServerCall) -> None:
        """Send the response's headers without waiting for the first response."""
        with self.lock:
            if not self._is_gone(call):
                self._send_initial(call)
        self._flush_or_end()

    def _send_initial(self, call: ServerCall) -> None:
        if not call.initial_sent:
            call.initial_sent = True
            self.connection.send_headers(call.stream_id, call.response_head())

    def send_message(self, call: ServerCall, message: bytes, held: bool = False) -> bool:
        """Send one response, as fast as the client lets us. False when the call is over.

        :param held: whether its end may wait for what the caller sends next.
        """
        with self.lock:
            if self._is_gone(call):
                return False
            self._send_initial(call)
        return self._send_all(call, views_of(message, call.gzip), held=held)

    def _send_all(self, call: ServerCall, rest: list[memoryview], ends: bool = False, held: bool = False) -> bool:
        """Send a piece of the body. False when the call is over first."""
        while rest:
            with self.lock:
                if not self._await_window(call):
                    return False
                self.queue(call.stream_id, rest, ends)
            if rest or not held:
                self._flush_or_end()
        return not call.over

    def _await_window(self, call: ServerCall) -> bool:
        """Wait until the client lets us send. False when the call is over. Called with `lock` held."""
        while not self._is_gone(call):
            if self.connection.window(call.stream_id) > 0:
                return True
            if self._leading is call:
                try:
                    self._hand_over()
                except OutOfThreads as error:  # nobody else can see the window open
                    self._finish(call, _out_of_threads(error))
                    return False
            self.lock.release()
            try:
                self._flush_or_end()  # what was sent so far is what opens the window
            finally:
                self.lock.acquire()
            if not self._is_gone(call) and not self.connection.window(call.stream_id):
                call.wait_for_news()
        return False

    def finish(self, call: ServerCall, status: Status) -> bool:
        """End a call with a status. False when it was over."""
        with self.lock:
            if call.over:
                return False
            self._finish(call, status)
        self._flush_or_end()
        return True

    def _finish(self, call: ServerCall, status: Status) -> None:
        """As `finish`, with `lock` held, and without sending."""
        limit = self.connection.peer_max_headers
        block = TRAILERS_OK if status is PLAIN_OK else trailers_block(status, limit)
        self._last_words(call, block if call.initial_sent else call.response_head() + block)

    def _last_words(self, call: ServerCall, block: bytes) -> None:
        """End our half of the stream with a header block, and the client's too if it is still open."""
        connection = self.connection
        try:
            connection.send_headers(call.stream_id, block, end_stream=True)
        except StreamClosed:
            logger.debug("%s ended before it could be answered", call.request.path)
        self._end(call)

    def _end(self, call: ServerCall) -> None:
        """Our half has ended: so has the call."""
        connection = self.connection
        if not call.request_ended:
            # Nobody reads the rest of the request (RFC 9113, section 8.1).
            connection.reset(call.stream_id, ErrorCode.NO_ERROR)
        self.calls.pop(call.stream_id, None)
        callbacks = call.end()
        if callbacks:
            self._call_back(callbacks)

    def _call_back(self, callbacks: Sequence[Callable[[], None]]) -> None:
        for callback in callbacks:
            try:
                self._server.workers.submit(callback, patient=True)
            except (WorkersClosed, OutOfThreads) as error:
                logger.debug("a callback is dropped: %s", error)

    def _set_timer(self, call: ServerCall) -> None:
        """End the call at its deadline. Not for handlers that a leader runs: those are short."""
        if call.deadline is not None and call.timer is None and not call.over:
            expired = Status(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
            try:
                call.timer = self._server.timers.at(call.deadline, partial(self._expire, call, expired))
            except OutOfThreads as error:
                logger.debug("%s is left to its client's deadline: %s", call.request.path, error)

    def _expire(self, call: ServerCall, status: Status) -> None:
        with self.lock:
            if call.over:
                return
            call.cut_off = True
            self._finish(call, status)
        self.flush_or_delegate()

    # Writing

    def _flush_or_end(self) -> None:
        try:
            self.flush()
        except StreamError as error:
            self._broken(error)

    def _broken(self, error: StreamError) -> None:
        """Nothing more can be written: whoever reads will find the stream closed, and end the calls."""
        logger.debug("%s: %s", self.stream.peer, error)
        self.stream.close()

    def flush_or_delegate(self) -> None:
        """Write if that cannot block; otherwise let a worker do it."""
        try:
            if self.connection.due and not self.flush_without_waiting():
                self._server.workers.submit(self._flush_or_end)
        except StreamError:
            self.stream.close()
        except WorkersClosed:
            logger.debug("%s is being closed: what was to be sent is not", self.stream.peer)
        except OutOfThreads:
            self.flush_later(self._server.timers, self.flush_or_delegate)

    # The end

    def go_away(self) -> None:
        """Take no new calls; those that are open go on."""
        with self.lock:
            self.connection.go_away()
        self.flush_or_delegate()

    def close(self) -> None:
        """End the connection and all calls on it. Safe to call twice."""
        with self.lock:
            if self._ended:
                return
            self._ended = True
            explain = self.connection.failed
            # At once: a server that stops finds nothing to do here from now on, and takes no callbacks soon after.
            for call in list(self.calls.values()):
                self._call_back(call.end())
            self.calls.clear()
        if explain:
            self._say_goodbye()
        self.stream.close()
        self._server.link_ended(self)

    def _say_goodbye(self) -> None:
        """Tell the peer what it did wrong, if that can be done at once."""
        try:
            if self.stream.writable():
                self.stream.send_all(self.connection.data_to_send())
                self.stream.close_write()
        except StreamError:
            logger.debug("%s did not wait for an explanation", self.stream.peer)


def _out_of_threads(error: Exception) -> Status:
    return Status(StatusCode.RESOURCE_EXHAUSTED, str(error))


def _runs_on_loop(handler: Any) -> bool:
    """Whether it runs on an event loop (see `grpc.handlers.MethodHandler`). Handlers of other libraries do not."""
    return getattr(handler, "loop", None) is not None
