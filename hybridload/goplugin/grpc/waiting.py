"""Asynchronous behaviors for a server that has a thread for each call: that thread waits.

This is what the grpcio engine serves `async def` methods with. The direct one needs no thread (`http2.loop_calls`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from hybridload.goplugin.event_loop import EventLoop
from hybridload.goplugin.grpc.handlers import Behavior, behavior_name

T = TypeVar("T")


def waiting_behavior(handler: Any, threads: Executor) -> Behavior:
    """What a thread can call in place of an asynchronous handler's behavior.

    :param handler: has a `loop`; see `MethodHandler`.
    :param threads: wait for requests; one for each stream of them.
    """
    loop: EventLoop = handler.loop
    behavior = getattr(handler, behavior_name(handler.request_streaming, handler.response_streaming))

    def begin(request: Any, context: Any) -> Any:
        return behavior(_asynchronous(request, threads) if handler.request_streaming else request, context)

    def answer(request: Any, context: Any) -> Any:
        return _Call(loop, context).run(_awaited(begin(request, context)))

    def stream(request: Any, context: Any) -> Iterator[Any]:
        call = _Call(loop, context)
        responses = aiter(begin(request, context))
        try:
            while (response := call.run(_next(responses))) is not _END:
                yield response
        finally:
            close = getattr(responses, "aclose", None)
            if close is not None:
                call.finish(close)

    return stream if handler.response_streaming else answer


class _Call:
    """One call's coroutines, one after the other; cancelled when the caller goes away."""

    def __init__(self, loop: EventLoop, context: Any) -> None:
        self._loop = loop
        self._current: Future[Any] | None = None
        self._ended = not context.add_callback(self._cancel)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for it."""
        future = self._loop.submit(coroutine)
        self._current = future
        if self._ended:
            future.cancel()
        return future.result()

    def finish(self, close: Callable[[], Awaitable[None]]) -> None:
        """The same for what has to be done in any case."""
        self._loop.submit(_awaited(close())).result()

    def _cancel(self) -> None:
        self._ended = True
        if self._current is not None:
            self._current.cancel()


_END: Any = object()


async def _next(responses: AsyncIterator[Any]) -> Any:
    return await anext(responses, _END)


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def _asynchronous(requests: Iterator[Any], threads: Executor) -> AsyncIterator[Any]:
    """A stream of requests, each waited for on a thread and never on the event loop."""
    import asyncio

    loop = asyncio.get_running_loop()
    while (request := await loop.run_in_executor(threads, next, requests, _END)) is not _END:
        yield request
