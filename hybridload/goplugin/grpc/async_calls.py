"""Calls from event loops, on any channel.

A channel of the direct engine makes them itself, without a thread that waits (`http2.loop_channel`). Any other has the
shape of `grpc.Channel`, and nothing there that a coroutine could await: a call with one response tells when it is done,
but each response of a stream is waited for on a thread, and grpcio takes the requests of a stream on one of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol

from hybridload.goplugin.event_loop import settle_soon

Request = bytes | AsyncIterator[bytes]


class AsyncResponses(Protocol):
    """The responses of a call, as an async iterator."""

    async def __anext__(self) -> bytes:
        """The next; raises what the engine's calls raise."""

    def cancel(self) -> None:
        """End the call. Safe to call twice, and from any thread."""


class AsyncMethod(Protocol):
    """One method of a server. Requests are bytes, or an async iterator of them for a stream.

    Cancelling a task that awaits a call cancels the call.
    """

    async def answer(self, request: Request, timeout: float | None = None) -> bytes:
        """Call and await the one response; raises what the engine's calls raise.

        :param timeout: in seconds.
        """

    def stream(self, request: Request, timeout: float | None = None) -> AsyncResponses:
        """Call; the responses come one by one."""


def async_method(channel: Any, method: str) -> AsyncMethod:
    """A method for coroutines.

    :param channel: shaped as `grpc.Channel`.
    :param method: the path, e.g. ``"/proto.GreeterService/Greet"``.
    """
    on_loops: Callable[[str], AsyncMethod] | None = getattr(channel, "on_loops", None)
    return FutureMethod(channel, method) if on_loops is None else on_loops(method)


class FutureMethod:
    """A method of a channel of grpcio's."""

    def __init__(self, channel: Any, method: str) -> None:
        self._channel = channel
        self._method = method

    async def answer(self, request: Request, timeout: float | None = None) -> bytes:
        if isinstance(request, bytes):
            return await _outcome(self._channel.unary_unary(self._method).future(request, timeout=timeout))
        requests = LoopIterator(request)
        try:
            return await _outcome(self._channel.stream_unary(self._method).future(requests, timeout=timeout))
        finally:
            requests.stop()

    def stream(self, request: Request, timeout: float | None = None) -> FutureResponses:
        if isinstance(request, bytes):
            return FutureResponses(self._channel.unary_stream(self._method)(request, timeout=timeout), None)
        requests = LoopIterator(request)
        return FutureResponses(self._channel.stream_stream(self._method)(requests, timeout=timeout), requests)


class FutureResponses:
    """The responses of a call of grpcio's; each is waited for on a thread, never on the event loop."""

    def __init__(self, call: Any, requests: LoopIterator | None) -> None:
        self._call = call
        self._requests = requests

    async def __anext__(self) -> bytes:
        try:
            response = await asyncio.to_thread(next, self._call, _END)
        except BaseException:
            self.cancel()
            raise
        if response is _END:
            self.cancel()
            raise StopAsyncIteration
        return response  # type: ignore[no-any-return]

    def cancel(self) -> None:
        self._call.cancel()
        if self._requests is not None:
            self._requests.stop()


_END: Any = object()


class LoopIterator:
    """An async iterator as an iterator for another thread.

    Whoever asks it for the next item waits, and the event loop makes each when it is asked for.
    """

    def __init__(self, items: AsyncIterator[bytes]) -> None:
        self._items = items
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._wanted: Future[bytes | None] | None = None
        self._over = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        making = self._make()
        with self._lock:
            if self._over:
                making.close()
                raise StopIteration
            try:
                self._wanted = asyncio.run_coroutine_threadsafe(making, self._loop)
            except RuntimeError:
                making.close()
                raise
        try:
            item = self._wanted.result()
        except CancelledError:
            if self._over:
                raise StopIteration from None
            raise RuntimeError("the event loop that makes the requests has ended") from None
        if item is None:
            raise StopIteration
        return item

    def stop(self) -> None:
        """Ask for nothing more: the call is over. Safe to call twice, from any thread."""
        with self._lock:
            self._over = True
            wanted = self._wanted
        if wanted is not None and not self._loop.is_closed():
            wanted.cancel()

    async def _make(self) -> bytes | None:
        return await anext(self._items, None)


async def _outcome(call: Any) -> bytes:
    """Wait for a `grpc.Future` on the running event loop, without a thread."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: Any) -> None:
        settle_soon(waiter)

    call.add_done_callback(wake)
    try:
        await waiter
    except BaseException:
        call.cancel()
        raise
    result: bytes = call.result()
    return result
