"""Calls that coroutines make: they share connections, and no thread waits for them.

A call is begun on the caller's event loop, on the connection that streams share as well. Its reading thread hands the
call what comes, and `LoopNews` tells the loop. What the loop has to say it writes through `LoopWriter`. So the threads
are those of the connections, however many calls are in flight, and several loops in several threads may use them.

Only to open a connection a thread is needed for a while, one for all who wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from hybridload.goplugin.event_loop import call_soon, settle_soon
from hybridload.goplugin.streams.base import StreamError
from hybridload.goplugin.threads import OutOfThreads, start_new_thread

from .calls import Call, StreamCall, UnaryCall, iteration_failed
from .client_link import ClientLink
from .connection import ConnectionClosed
from .frames import ErrorCode
from .link import JOINED_MESSAGE, views_of
from .loop_news import LoopNews
from .loop_writer import LoopWriter
from .messages import PREFIX, MessageError, check_size
from .pool import Pool, PoolClosed
from .status import Status, StatusCode, rpc_error
from .workers import Workers, WorkersClosed

if TYPE_CHECKING:
    from .channel import Channel

logger = logging.getLogger(__name__)

Request = bytes | AsyncIterator[bytes]

_ATTEMPTS: Final = 3
_BREATH: Final = 64
"""After how many responses that were there already the other coroutines get their turn."""

_CANCELLED: Final = Status(StatusCode.CANCELLED, "Locally cancelled by application!")


class SharedLinks:
    """The connections of a channel, for those who must not wait for them on a thread."""

    def __init__(self, pool: Pool, workers: Workers) -> None:
        self.workers = workers
        self.pid = os.getpid()
        self._pool = pool
        self._lock = threading.Lock()
        self._waiting: list[asyncio.Future[ClientLink | Exception | None]] = []
        self._opening = False

    async def take(self, deadline: float | None) -> ClientLink:
        """A connection with room for one more call. Give it back when the call ends.

        :param deadline: of `time.monotonic`.
        :raises PoolClosed: there are none any more.
        :raises StreamError: none can be opened, whatever the reason.
        :raises TimeoutError: there was none in time.
        :raises OutOfThreads: opening one takes a thread, and none can be started.
        """
        found: ClientLink | Exception | None = None
        while (link := self._pool.take_shared_now(found)) is None:
            waiter: asyncio.Future[ClientLink | Exception | None] = asyncio.get_running_loop().create_future()
            with self._lock:
                self._waiting.append(waiter)
                opens, self._opening = not self._opening, True
            if opens:
                self._open_elsewhere()
            async with asyncio.timeout(_remaining(deadline)):
                found = await waiter
            if isinstance(found, (PoolClosed, OutOfThreads)):
                raise found
            if isinstance(found, Exception):
                raise StreamError(str(found)) from found
        return link

    def give_back(self, link: ClientLink) -> None:
        """The call on `link` is over."""
        self._pool.give_back(link)
        if self._waiting:
            self._tell(None)

    def _open_elsewhere(self) -> None:
        try:
            self.workers.submit(self._open)
        except WorkersClosed:
            self._opened(PoolClosed())
        except RuntimeError as error:  # there is no thread to be had
            self._opened(error)

    def _open(self) -> None:
        """Open a connection, or wait until one has room, for all who wait."""
        found: ClientLink | Exception
        try:
            found = link = self._pool.take_shared()
            try:
                link.get_ready()
            finally:
                self._pool.give_back(link)
        except Exception as error:  # whatever opens connections may raise: if nobody were told, all would wait for ever
            found = error
        self._opened(found)

    def _opened(self, found: ClientLink | Exception) -> None:
        with self._lock:
            self._opening = False
        self._tell(found)

    def _tell(self, found: ClientLink | Exception | None) -> None:
        """Have all who wait look again.

        :param found: a connection that they may share, whoever else uses it; or why there is none.
        """
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            settle_soon(waiter, found)


class LoopMethod:
    """One method of the server's, for coroutines. Requests are bytes, or an async iterator of them for a stream.

    :param links: shared by all methods of the channel.
    """

    def __init__(self, channel: Channel, links: SharedLinks, method: str) -> None:
        self._channel = channel
        self._links = links
        self._method = method
        self._head = channel.path_block(method)

    async def answer(self, request: Request, timeout: float | None = None) -> bytes:
        """Call and await the one response. Cancelling the task cancels the call.

        :param timeout: in seconds.
        :raises RpcError: the call ended with another status than OK.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for attempt in range(_ATTEMPTS):
            call = UnaryCall(self._method, None, deadline, self._channel.max_receive, True)
            loop_call = await self._begin(call, request)
            try:
                await loop_call.end()
            finally:
                loop_call.leave()
            again = call.unprocessed and isinstance(request, bytes) and attempt < _ATTEMPTS - 1
            if not again:
                break
        message: bytes = call.response()
        return message

    def stream(self, request: Request, timeout: float | None = None) -> LoopResponses:
        """Call, with the first response that is asked for; they come one by one."""
        deadline = None if timeout is None else time.monotonic() + timeout

        def begin() -> tuple[StreamCall, Coroutine[Any, Any, LoopCall]]:
            call = StreamCall(self._method, None, deadline, self._channel.max_receive, False)
            return call, self._begin(call, request)

        return LoopResponses(begin, _ATTEMPTS if isinstance(request, bytes) else 1)

    async def _begin(self, call: Call, request: Request) -> LoopCall:
        """
        :raises RpcError: it cannot be sent.
        :raises ValueError: the channel is closed.
        """
        channel = self._channel
        block = channel.header_block(self._head, _remaining(call.deadline), None, False)
        try:
            if isinstance(request, bytes):
                request = channel.serialized(request, None, False)
            for _ in range(_ATTEMPTS):
                link = await self._links.take(call.deadline)
                loop_call = LoopCall(self._links, link, call)
                try:
                    await loop_call.begin(block, request, channel.max_send)
                except ConnectionClosed:
                    loop_call.leave()
                except BaseException:
                    loop_call.leave()
                    raise
                else:
                    return loop_call
        except MessageError as error:
            raise rpc_error(error.status, (), self._method) from error
        except PoolClosed:
            raise ValueError("Cannot invoke RPC on closed channel!") from None  # grpc's own words
        except OutOfThreads as error:
            raise rpc_error(Status(StatusCode.RESOURCE_EXHAUSTED, str(error)), (), self._method) from error
        except TimeoutError:
            raise rpc_error(Status(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), (), self._method) from None
        except StreamError as error:
            raise rpc_error(_lost(f"cannot connect: {error}"), (), self._method, call.deadline) from error
        unavailable = _lost("every connection is closed as soon as it is opened")
        raise rpc_error(unavailable, (), self._method, call.deadline)


class LoopCall(LoopNews):
    """One call on a connection, driven by an event loop."""

    __slots__ = ("_call", "_left", "_link", "_links", "_lost", "_sending", "_timer", "_writer")

    def __init__(self, links: SharedLinks, link: ClientLink, call: Call) -> None:
        super().__init__(asyncio.get_running_loop())
        self._links = links
        self._link = link
        self._call = call
        self._writer = _writer_of(link)
        self._sending: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._left = False
        self._lost = False
        """Whether the coroutine that awaited it was dropped."""

    async def begin(self, block: bytes, request: Request, max_send: int | None) -> None:
        """Send the header block, and the request if that is one message.

        :raises ConnectionClosed: the connection takes no more calls; nothing was sent.
        :raises OutOfThreads: no thread can be started that reads; nothing was sent.
        """
        link, call, connection = self._link, self._call, self._link.connection
        first = request if isinstance(request, bytes) else None
        link.secure_reader()
        with link.lock:
            link.admit(call, block)
            call.tell_loop(self)
            if first is not None and len(first) + 5 <= min(JOINED_MESSAGE, connection.window(call.stream_id)):
                connection.send_data(call.stream_id, PREFIX.pack(0, len(first)) + first, True)
                first = None
            link.read_for_others()
        self._writer.flush_soon(self.loop)
        if call.deadline is not None:
            self._timer = self.loop.call_later(max(0.0, call.deadline - time.monotonic()), self._expire)
        if first is not None:
            try:
                await self._send(first, ends=True)
            except BaseException as error:
                self._interrupted(error)
                raise
        elif not isinstance(request, bytes):
            self._sending = self.loop.create_task(self._send_all(request, max_send))

    async def end(self) -> None:
        """Await the end of the call; it is cancelled when whoever awaits it is."""
        link, call = self._link, self._call
        while call.status is None:
            with link.lock:
                if call.status is not None:
                    break
                waiter = self.expect()
            await self.awaited(waiter)

    async def awaited(self, waiter: asyncio.Future[None]) -> None:
        """Await news; the call is cancelled when whoever awaits them is."""
        try:
            await waiter
        except BaseException as error:
            self._interrupted(error)
            raise

    def _interrupted(self, error: BaseException) -> None:
        if not isinstance(error, GeneratorExit):
            self.cancel(_CANCELLED)
            return
        # Whoever collects garbage may be in the middle of the connection, with the locks that ending a call takes.
        self._lost = True
        if os.getpid() == self._links.pid:
            try:
                start_new_thread(self.abandon)
            except OutOfThreads:  # or the interpreter is ending, and the connection with it
                self._link.abandoned.append(self._call)

    def cancel(self, status: Status) -> None:
        """End the call from this side, if it is not over; from any thread. In a forked child it is not ours to end."""
        link, call = self._link, self._call
        if os.getpid() != self._links.pid:
            return
        with link.lock:
            if call.status is not None:
                return
            link.connection.reset(call.stream_id, ErrorCode.CANCEL)
            link.finish(call, status)
        self._writer.flush()

    def abandon(self) -> None:
        """End the call, from any thread: nobody awaits anything of it any more."""
        self.cancel(_CANCELLED)
        self._give_back()
        if self._timer is not None:
            call_soon(self.loop, self._timer.cancel)

    def leave(self) -> None:
        """Give the connection back, once the call is over. Safe to call twice."""
        if self._lost:
            return
        self._give_back()
        if self._timer is not None:
            self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()

    def consumed(self) -> None:
        """Somebody took a response: tell the server, if it is due."""
        if self._link.connection.due:
            self._writer.flush_soon(self.loop)

    def is_over(self) -> bool:
        return self._call.is_over()

    def notify_all(self) -> None:
        super().notify_all()
        if self._call.status is None:
            return
        if self.loop.is_closed():
            try:
                self._links.workers.submit(self._give_back)
            except WorkersClosed:
                logger.debug("the channel is closed, and its connections with it")
        elif self._sending is not None:
            call_soon(self.loop, self._sending.cancel)

    def _give_back(self) -> None:
        with self._link.lock:
            left, self._left = self._left, True
        if not left:
            self._links.give_back(self._link)

    def _expire(self) -> None:
        self.cancel(Status(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))

    # Sending

    async def _send_all(self, requests: AsyncIterator[bytes], max_send: int | None) -> None:
        link, call = self._link, self._call
        try:
            async for request in requests:
                check_size(request, max_send)
                if not await self._send(request, ends=False):
                    return
                await asyncio.sleep(0)  # an iterator that never waits holds up nobody, and what it gave is sent
        except MessageError as error:
            self.cancel(error.status)
        except Exception:
            self.cancel(iteration_failed())
        except BaseException as error:
            self._interrupted(error)
            raise
        else:
            with link.lock:
                if call.status is None and link.connection.is_sending(call.stream_id):
                    link.connection.send_data(call.stream_id, b"", end_stream=True)
            self._writer.flush_soon(self.loop)
        finally:
            close = getattr(requests, "aclose", None)
            if close is not None:
                await close()

    async def _send(self, message: bytes, ends: bool) -> bool:
        """Send one message, as fast as the server lets us. False when the call is over, or its sending half is."""
        call, connection = self._call, self._link.connection

        def send(view: memoryview, last: bool) -> int | None:
            if call.status is not None or not connection.is_sending(call.stream_id):
                return None
            return connection.send_data(call.stream_id, view, ends and last)

        return await self._writer.send_message(self, views_of(message, 0), send)


class LoopResponses:
    """The responses of a call, for `async for`. When a task that awaits one is cancelled, so is the call.

    :param begin: a new call, and what sends it.
    :param attempts: how often the call is begun, while the server is known not to have looked at it.
    """

    def __init__(self, begin: Callable[[], tuple[StreamCall, Coroutine[Any, Any, LoopCall]]], attempts: int) -> None:
        self._begin: Callable[[], tuple[StreamCall, Coroutine[Any, Any, LoopCall]]] | None = begin
        self._attempts = attempts
        self._call: StreamCall
        self._loop_call: LoopCall | None = None
        self._cancelled = False
        self._taken = 0

    def __aiter__(self) -> LoopResponses:
        return self

    async def __anext__(self) -> bytes:
        """The next response, as soon as it is there.

        :raises StopAsyncIteration: there are no more, and the status is OK.
        :raises RpcError: the call ended otherwise.
        """
        self._taken += 1
        if self._taken % _BREATH == 0:
            await asyncio.sleep(0)
        begin, self._begin = self._begin, None  # with the request, which nobody needs once there is a response
        while True:
            if self._loop_call is None:
                if self._cancelled or begin is None:
                    raise StopAsyncIteration
                self._call, beginning = begin()
                self._loop_call = await beginning
                if self._cancelled:
                    self._loop_call.abandon()
            message = await self._next(self._call, self._loop_call)
            if message is not None:
                self._loop_call.consumed()
                return message
            self._loop_call.leave()
            assert self._call.status is not None
            if self._call.status.code is StatusCode.OK:
                raise StopAsyncIteration
            self._attempts -= 1
            if begin is None or not self._call.unprocessed or self._cancelled or not self._attempts:
                raise self._call.error()
            self._loop_call = None

    async def _next(self, call: StreamCall, loop_call: LoopCall) -> bytes | None:
        """The next response; `None` when the call is over."""
        while True:
            with call.link.lock:
                if call.messages and not self._cancelled:
                    return call.take_message()
                if call.status is not None:
                    return None
                waiter = loop_call.expect()
            await loop_call.awaited(waiter)

    def cancel(self) -> None:
        """End the call: not even what is there is given out any more. Safe to call twice, and from any thread."""
        self._cancelled = True
        if self._loop_call is not None:
            self._loop_call.abandon()


def _lost(reason: str) -> Status:
    return Status(StatusCode.UNAVAILABLE, reason, lost=True)


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _writer_of(link: ClientLink) -> LoopWriter:
    with link.lock:
        if link.loop_writer is None:
            link.loop_writer = LoopWriter(link, link.workers.submit, lambda error: link.fail(str(error)))
        return link.loop_writer
