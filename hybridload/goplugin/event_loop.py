"""Where a plugin's `async def` methods run: one event loop on a thread of its own, for all connections.

And how threads tell coroutines of something, on that loop or on any other.

asyncio is imported when the loop is first needed: it takes longer than all else that a plugin imports.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from hybridload.goplugin.threads import Thread

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

T = TypeVar("T")

logger = logging.getLogger(__name__)


class EventLoop:
    """One event loop on a thread of its own, which starts when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def running(self) -> asyncio.AbstractEventLoop:
        """The loop itself, for `call_soon_threadsafe`.

        :raises RuntimeError: after `close`.
        :raises OutOfThreads: it has no thread yet, and none can be started.
        """
        import asyncio

        with self._lock:
            if self._closed:
                raise RuntimeError("the event loop is closed")
            if self._loop is None:
                loop = asyncio.new_event_loop()
                # Runs the loop and nothing else; `close` joins it.
                thread = Thread(target=_run_loop, args=(loop,), name="hybridload event loop", daemon=True)
                try:
                    thread.start()
                except BaseException:  # there is no thread to be had
                    loop.close()
                    raise
                self._loop, self._thread = loop, thread
            return self._loop

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine; its outcome can be waited for from any other thread.

        :raises RuntimeError: after `close`.
        """
        import asyncio

        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.running())
        except RuntimeError:
            coroutine.close()
            raise

    def close(self, timeout: float) -> bool:
        """Cancel what runs and end the thread; whether that came within `timeout` seconds. Safe to call twice."""
        with self._lock:
            self._closed = True
            loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None:
            return True
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout)
        return not thread.is_alive()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    import asyncio

    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> bool:
    """Have a loop call `callback`, from any thread. False when it is closed: nobody waits there any more."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        logger.debug("an event loop was closed while a call was on its way")
        return False
    return True


def settle_soon(waiter: asyncio.Future[T], result: T = None) -> None:  # type: ignore[assignment]
    """Wake the coroutine that awaits `waiter`, from any thread."""
    call_soon(waiter.get_loop(), _settle, waiter, result)


def _settle(waiter: asyncio.Future[T], result: T) -> None:
    if not waiter.done():
        waiter.set_result(result)
