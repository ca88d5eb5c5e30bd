"""Writing a connection's bytes from event loops, which must never wait for the peer to read.

What the coroutines of one turn of a loop add to the connection leaves together, when that turn is over. If it cannot
leave without waiting, one thread writes for all of them, and whoever adds much meanwhile is made to wait (`drain`).
"""

from __future__ import annotations

import logging
import threading
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable
from typing import Final

from hybridload.goplugin.event_loop import settle_soon
from hybridload.goplugin.streams.base import StreamError
from hybridload.goplugin.threads import OutOfThreads

from .link import AGAIN, Link
from .loop_news import LoopNews
from .workers import Job, WorkersClosed

logger = logging.getLogger(__name__)

_BACKLOG: Final = 1 << 18
"""Bytes that may be due before those who add to them wait."""


class LoopWriter:
    """Writes for one connection; any number of event loops may use it.

    :param submit: runs a job on a thread that may block.
    :param broken: told, on any thread, why nothing can be written any more.
    """

    def __init__(self, link: Link, submit: Callable[[Job], None], broken: Callable[[StreamError], None]) -> None:
        self._link = link
        self._submit = submit
        self._broken = broken
        self._lock = threading.Lock()
        self._handed = False
        """Whether a thread is writing for the loops."""
        self._waiting: list[Future[None]] = []

    @property
    def busy(self) -> bool:
        """Whether what was said is still being written."""
        return self._handed

    def flush_soon(self, loop: AbstractEventLoop) -> None:
        """Write what is due when this turn of the loop is over. Called on the loop."""
        loop.call_soon(self._flush_on, loop)

    def _flush_on(self, loop: AbstractEventLoop) -> None:
        if not self.flush():
            loop.call_later(AGAIN, self._flush_on, loop)

    def flush(self) -> bool:
        """Write what is due if that cannot block; otherwise a thread does it. Never waits. False where none can be
        started."""
        if self._handed or not self._link.connection.due:
            return True
        try:
            if self._link.flush_without_waiting():
                return True
            with self._lock:
                if self._handed:
                    return True
                self._handed = True
            self._submit(self._flush_waiting)
        except StreamError as error:
            self._broken(error)
        except WorkersClosed:
            self._rest()
            logger.debug("%s is being closed: what was to be sent is not", self._link.stream.peer)
        except OutOfThreads as error:
            self._rest()
            logger.debug("%s is written to later: %s", self._link.stream.peer, error)
            return False
        return True

    async def send_message(
        self, news: LoopNews, pieces: list[memoryview], send: Callable[[memoryview, bool], int | None]
    ) -> bool:
        """Send one message of a call, as fast as the peer lets us. False when the call takes no more.

        :param news: tells when the peer's window has opened.
        :param pieces: the message.
        :param send: makes due what may be sent of one of them, called with the link's lock held; told whether it is the
            last, it returns how many bytes it took, and `None` when the call takes no more.
        """
        for number, view in enumerate(pieces, 1):
            while view:
                waiter: Future[None] | None = None
                with self._link.lock:
                    sent = send(view, number == len(pieces))
                    if sent is None:
                        return False
                    if not sent:
                        waiter = news.expect()
                self.flush_soon(news.loop)
                if waiter is not None:
                    await waiter
                else:
                    view = view[sent:]
                    await self.drain(news)
        return True

    async def drain(self, news: LoopNews) -> None:
        """Wait while more is due than may be, but no longer than the call goes on: a peer may never read."""
        while self._handed:
            with self._lock, self._link.lock:
                if not self._handed or news.is_over() or self._link.connection.due_size < _BACKLOG:
                    return
                waiter = news.expect()
                self._waiting.append(waiter)
            try:
                await waiter
            finally:
                with self._lock:
                    if waiter in self._waiting:
                        self._waiting.remove(waiter)

    def _flush_waiting(self) -> None:
        try:
            self._link.flush()
        except StreamError as error:
            self._broken(error)
        finally:
            self._rest()
        self.flush()  # what was added since the last look

    def _rest(self) -> None:
        with self._lock:
            self._handed = False
            waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            settle_soon(waiter)
