"""In-process calls that are held to a deadline: those of a plugin whose `call_timeout` is set.

The deadline is the earlier of `call_timeout` and the caller's own, as for a plugin in its own process, and holds for
what the plugin calls in turn. What happens when it comes depends on what can be done on the caller's own thread:

- An `async def` method is cancelled, as by `asyncio.timeout`, and so is a step of an asynchronous stream.
- Any other method runs to its end, for no thread can be interrupted; then the call raises `CallTimeout`, whatever came
  of it. Moving the call to another thread, which could be left behind, would make it another call: plugins and their
  libraries may depend on the thread that they are called on.

Without `call_timeout` none of this stands in the way of a call, and the slot is the object's own method.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, closing, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from hybridload.contract import Kind
from hybridload.deadlines import ending_at, limited
from hybridload.errors import CallTimeout
from hybridload.handle import Methods, named_after

if TYPE_CHECKING:
    from hybridload.contract import Method, Service

log = logging.getLogger(__name__)

_STREAMS = (Kind.SERVER_STREAM, Kind.BIDI)


def methods_in_time(service: Service, methods: Methods, plugin: str, timeout: float) -> Methods:
    """The same methods, each held to a deadline.

    :param plugin: the plugin's name, for errors.
    :param timeout: seconds that a call may take, a stream from its start to its end.
    """
    held: dict[str, Callable[..., Any]] = {}
    for method in service.methods:
        make = _HELD[method.kind in _STREAMS, method.is_async]
        held[method.name] = named_after(
            method, service, make(methods[method.name], partial(_Call, method, plugin, timeout))
        )
    plain = [method.name for method in service.methods if not method.is_async]
    if plain:
        log.info(
            "plugin %r runs in-process: call_timeout cannot interrupt what is no async def (%s); a call that takes "
            "longer raises CallTimeout when it ends",
            plugin,
            ", ".join(plain),
        )
    return held


class _Call:
    """One call and its deadline. Entered for each step of it; leaving it too late raises `CallTimeout`.

    :raises CallTimeout: the caller's deadline has passed already.
    """

    def __init__(self, method: Method, plugin: str, timeout: float) -> None:
        left = limited(timeout, plugin)
        assert left is not None
        self._method = method
        self._plugin = plugin
        self._allowed = left
        self._end = time.monotonic() + left
        self._in_time = ending_at(self._end)

    def __enter__(self) -> None:
        if time.monotonic() >= self._end:
            raise self._too_late()
        self._in_time.__enter__()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._in_time.__exit__(None, None, None)
        if time.monotonic() >= self._end and (error is None or isinstance(error, Exception)):
            raise self._too_late() from error

    async def wait_for(self, step: Callable[[], Awaitable[Any]]) -> Any:
        """Await one step; it is cancelled when the deadline comes."""
        import asyncio

        try:
            async with asyncio.timeout(self._end - time.monotonic()) as limit:
                with self:
                    return await step()
        except TimeoutError as error:
            if isinstance(error, CallTimeout) or not limit.expired():
                raise
            raise self._too_late() from error

    def _too_late(self) -> CallTimeout:
        name = self._method.name
        what = (
            f"{name}() was given up."
            if self._method.is_async
            else f"{name}() was let run to its end, because nothing can interrupt the thread that it is on; in another "
            "isolation the call ends in time."
        )
        return CallTimeout(
            f"Plugin {self._plugin!r} did not answer within {round(self._allowed, 3):g} s (call_timeout, or the "
            f"caller's deadline). {what}",
            plugin=self._plugin,
        )


Begin = Callable[[], _Call]


def _call(real: Any, begin: Begin) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with begin():
            return real(*args, **kwargs)

    return call


def _async_call(real: Any, begin: Begin) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await begin().wait_for(lambda: real(*args, **kwargs))

    return call


def _stream(real: Any, begin: Begin) -> Any:
    def call(*args: Any, **kwargs: Any) -> Iterator[Any]:
        this = begin()
        with this:
            items = iter(real(*args, **kwargs))
        return _items(items, this)

    return call


def _items(items: Any, call: _Call) -> Iterator[Any]:
    with closing(items) if hasattr(items, "close") else nullcontext():
        while True:
            with call:
                item = next(items, _END)
            if item is _END:
                return
            yield item


def _async_stream(real: Any, begin: Begin) -> Any:
    async def call(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        this, items = begin(), aiter(real(*args, **kwargs))
        async with aclosing(items) if hasattr(items, "aclose") else nullcontext():
            while (item := await this.wait_for(lambda: anext(items, _END))) is not _END:
                yield item

    return call


_END: Any = object()
_HELD: dict[tuple[bool, bool], Callable[[Any, Begin], Any]] = {
    (False, False): _call,
    (False, True): _async_call,
    (True, False): _stream,
    (True, True): _async_stream,
}
