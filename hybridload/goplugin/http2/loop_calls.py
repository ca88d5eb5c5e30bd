"""Asynchronous handlers: coroutines on an event loop, and no thread waits for them.

A thread that reads calls the handler, which returns at once, and hands what it returned to the loop. There it is
awaited, as one task for each call. The loop hears of requests, of the client's window and of the call's end through
`LoopNews`, and writes through `LoopWriter`: it never waits for the peer, for a thread, or for a lock that somebody
holds for longer than microseconds. When the call is over before it is answered its task is cancelled.
"""

from __future__ import annotations

import logging
from asyncio import Task, iscoroutine, sleep
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from hybridload.goplugin.event_loop import call_soon

from .context import PLAIN_OK, TRAILERS_OK, Context, RequestsEnded, ServerCall
from .link import JOINED_MESSAGE, views_of
from .loop_news import LoopNews
from .loop_writer import LoopWriter
from .server_link import ServerLink
from .status import Status, StatusCode

logger = logging.getLogger(__name__)


class LoopCall(LoopNews):
    """One call whose handler runs on an event loop.

    :param call: its handler has a `loop`; see `grpc.handlers.MethodHandler`.
    :raises RuntimeError: the loop is closed.
    """

    __slots__ = ("_call", "_link", "_task", "_writer")

    def __init__(self, link: ServerLink, call: ServerCall) -> None:
        super().__init__(call.handler.loop.running())
        self._link = link
        self._call = call
        self._writer = _writer_of(link)
        self._task: Task[None] | None = None

    def begin(self) -> None:
        """Call the handler and see to it that what it returns is awaited. Called on a thread that may block."""
        link, call, handler = self._link, self._call, self._call.handler
        with link.lock:
            call.tell_loop(self)
        try:
            if handler.request_streaming:
                request: Any = LoopRequests(self, handler.request_deserializer)
            else:
                request = link._deserialized(call.messages.popleft(), handler)
            made = _behavior(handler)(request, Context(call))
        except BaseException as error:
            link.finish(call, link._failure(call, error))
            link.handler_ended(call)
            return
        serving = self._stream(made) if handler.response_streaming else self._answer(made)
        if not call_soon(self.loop, self._start, made, serving):
            self._ended(made, serving)
            link.finish(call, Status(StatusCode.UNAVAILABLE, "the server has stopped"))

    # From here on, on the loop

    def _start(self, made: Any, serving: Coroutine[Any, Any, None]) -> None:
        if self._call.over:
            self._ended(made, serving)
            return
        self._task = self.loop.create_task(self._serve(serving))
        self._task.add_done_callback(lambda _: self._ended(made, serving))

    def is_over(self) -> bool:
        return self._call.over

    def notify_all(self) -> None:
        super().notify_all()
        if self._call.over:
            call_soon(self.loop, self._stop_if_over)

    def _stop_if_over(self) -> None:
        if self._call.over and self._task is not None:
            self._task.cancel()

    def _ended(self, *coroutines: Any) -> None:
        for coroutine in coroutines:
            if iscoroutine(coroutine):
                coroutine.close()  # it may never have begun
        if self._call.handler.ended is not None:
            self._call.handler.ended()
        self._link.handler_ended(self._call)

    async def _serve(self, serving: Coroutine[Any, Any, None]) -> None:
        try:
            await serving
        except BaseException as error:
            self._finish(self._link._failure(self._call, error))

    async def _answer(self, made: Any) -> None:
        """The only response, if any, and the status."""
        link, call = self._link, self._call
        message = link._response(call, await made)
        if message is not None and len(message) <= JOINED_MESSAGE and self._answer_at_once(message):
            return
        if message is None or await self._send(message):
            self._finish(call.status())

    def _answer_at_once(self, message: bytes) -> bool:
        """All of a small answer in one step. False when that cannot be done, which is no loss."""
        link, call = self._link, self._call
        if call.initial_sent or call.status() is not PLAIN_OK:
            return False
        with link.lock:
            if link._is_gone(call):
                return True
            head = call.response_head()
            if not link.connection.answer(call.stream_id, head, message, call.gzip, TRAILERS_OK):
                return False
            self._task = None  # it has done its work: its own end need not cancel it
            link._end(call)
        self._writer.flush_soon(self.loop)
        return True

    async def _stream(self, made: Any) -> None:
        """Responses as they are made, as fast as the client takes them."""
        link, call = self._link, self._call
        responses: AsyncIterator[Any] = aiter(made)
        try:
            async for response in responses:
                if not await self._send(link._serialized(response, call)):
                    break
                await sleep(0)  # a handler that never waits holds up nobody, and what it has said is sent
        finally:
            close = getattr(responses, "aclose", None)
            if close is not None:
                await close()
        self._finish(call.status())

    async def _send(self, message: bytes) -> bool:
        """Send one response, as fast as the client lets us. False when the call is over."""
        link, call = self._link, self._call
        with link.lock:
            if link._is_gone(call):
                return False
            link._send_initial(call)

        def send(view: memoryview, _: bool) -> int | None:
            return None if link._is_gone(call) else link.connection.send_data(call.stream_id, view)

        return await self._writer.send_message(self, views_of(message, call.gzip), send)

    def _finish(self, status: Status) -> None:
        link, call = self._link, self._call
        with link.lock:
            if call.over:
                return
            self._task = None
            link._finish(call, status)
        self._writer.flush_soon(self.loop)

    async def next_message(self) -> bytes:
        """The next message of a request stream.

        :raises StopAsyncIteration: there are no more.
        :raises RequestsEnded: the call is over before the stream is.
        """
        link, call = self._link, self._call
        while True:
            with link.lock:
                if call.messages:
                    message = call.take_message()
                    break
                if call.over:
                    raise RequestsEnded(f"{call.request.path} is over")
                if call.request_ended:
                    raise StopAsyncIteration
                waiter = self.expect()
            await waiter
        if link.connection.due:
            self._writer.flush_soon(self.loop)
        return message


class LoopRequests:
    """A request stream as an asynchronous handler sees it: an async iterator of requests."""

    __slots__ = ("_call", "_deserialize")

    def __init__(self, call: LoopCall, deserialize: Callable[[bytes], Any] | None) -> None:
        self._call = call
        self._deserialize = deserialize

    def __aiter__(self) -> LoopRequests:
        return self

    async def __anext__(self) -> Any:
        message = await self._call.next_message()
        return message if self._deserialize is None else self._deserialize(message)


def _behavior(handler: Any) -> Callable[[Any, Any], Any]:
    if handler.request_streaming:
        behavior = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        behavior = handler.unary_stream if handler.response_streaming else handler.unary_unary
    return behavior  # type: ignore[no-any-return]


def _writer_of(link: ServerLink) -> LoopWriter:
    with link.lock:
        if link.loop_writer is None:
            link.loop_writer = LoopWriter(link, link.submit, link._broken)
        return link.loop_writer
