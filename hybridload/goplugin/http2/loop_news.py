"""How coroutines hear of what threads do to a call."""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


class LoopNews:
    """Tells the coroutines of one call what its state has to tell; takes the place of a thread's `Condition`.

    :param loop: where they run.
    """

    __slots__ = ("_waiting", "loop")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: list[Future[None]] = []

    def expect(self) -> Future[None]:
        """What to await: done with the next news. Called on the loop, with the link's lock held."""
        waiter: Future[None] = self.loop.create_future()
        self._waiting.append(waiter)
        return waiter

    def notify_all(self) -> None:
        """There is news. Called on any thread, with the link's lock held."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            settle_soon(waiter)


def call_soon(loop: AbstractEventLoop, callback: Callable[..., object], *args: Any) -> bool:
    """Have a loop call `callback`, from any thread. False when it is closed: nobody waits there any more."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        logger.debug("an event loop was closed while a call was on its way")
        return False
    return True


def settle_soon(waiter: Future[T], result: T = None) -> None:  # type: ignore[assignment]
    """Wake the coroutine that awaits `waiter`, from any thread."""
    call_soon(waiter.get_loop(), _settle, waiter, result)


def _settle(waiter: Future[T], result: T) -> None:
    if not waiter.done():
        waiter.set_result(result)
