"""A stream and the connection on it: who may touch which, and who writes when.

Two locks, always taken in this order, and never held while waiting for anything but the peer's reading:

- `_sending` is held by the one thread that writes. It takes the bytes that are due and sends them, so that bytes leave
  in the order in which the connection made them.
- `lock` guards the connection's state and that of its calls. It is held for microseconds.

**A thread that reads never waits for the peer to read.** If it did, two of them, one at each end, could wait for each
other for ever. What a reader owes (answers to PING and SETTINGS, window updates) it sends when that cannot block
(`flush_without_waiting`), leaves to whoever is sending just now, or hands to a thread that may block.

Whoever is interrupted (Ctrl-C) while it reads or writes closes the stream: nothing can follow half a frame.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from hybridload.goplugin.streams.base import Buffer, Stream, StreamError
from hybridload.goplugin.streams.spinning import Spinning
from hybridload.goplugin.threads import OutOfThreads

from .connection import Connection
from .messages import PREFIX
from .timers import Timers

if TYPE_CHECKING:
    from .loop_writer import LoopWriter

logger = logging.getLogger(__name__)

SMALL: Final = 1024
"""Bytes that a stream which says that it is writable takes without blocking."""

SEND_PIECE: Final = (1 << 20) + 4096
"""How many bytes of large messages are handed to the stream at once; a mebibyte with all that belongs to it is one."""

JOINED_MESSAGE: Final = 16384
"""Up to this size in bytes a message and its prefix are one piece; above, the message is not copied."""

AGAIN: Final = 0.05
"""Seconds until what no thread could be started for is tried again."""

CHUNK: Final = 65536
_LARGEST_CHUNK: Final = 1 << 20


def views_of(message: bytes, compressed: int) -> list[memoryview]:
    """A message as it is sent, behind its prefix."""
    prefix = PREFIX.pack(compressed, len(message))
    if len(message) <= JOINED_MESSAGE:
        return [memoryview(prefix + message)]
    return [memoryview(prefix), memoryview(message)]


class Link:
    """One stream with its connection. Owns the stream."""

    __slots__ = (
        "_chunk",
        "_delayed",
        "_sending",
        "_spinning",
        "connection",
        "lock",
        "loop_writer",
        "spoiled",
        "stream",
    )

    def __init__(self, stream: Stream, connection: Connection) -> None:
        self.stream = stream
        self.connection = connection
        self.lock = threading.Lock()
        self.spoiled = False
        """Whether nothing can follow, though whoever reads may not have noticed yet."""
        self.loop_writer: LoopWriter | None = None
        """Writes for event loops; made when the first of them needs it."""
        self._sending = threading.Lock()
        self._spinning = Spinning(stream)
        self._chunk = CHUNK
        self._delayed = False

    def queue(self, stream_id: int, rest: list[memoryview], ends: bool) -> None:
        """Make due what may be sent just now, up to a piece. Called with `lock` held.

        :param rest: what is to be sent, none of it empty; what was taken is taken out.
        :param ends: whether our half of the stream ends with the last of it.
        """
        connection = self.connection
        room = SEND_PIECE
        while rest and room and connection.window(stream_id):
            first = rest[0]
            part = first[:room]
            whole = len(rest) == 1 and len(part) == len(first)
            sent = connection.send_data(stream_id, part, ends and whole)
            room -= sent
            if sent < len(first):
                rest[0] = first[sent:]
            else:
                del rest[0]

    def flush(self) -> None:
        """Send all that is due. Blocks while the peer does not read.

        :raises StreamError: the stream is broken or closed.
        """
        connection = self.connection
        while True:
            with self._sending:
                with self.lock:
                    due = connection.data_to_send()
                if due:
                    self._send(due)
            # What somebody added without waiting for us is ours to send too.
            if not connection.due:
                return

    def flush_without_waiting(self, most: int = SMALL) -> bool:
        """Send what is due if that cannot block. False: somebody who may block has to call `flush`.

        :param most: bytes that a writable stream is trusted to take.
        :raises StreamError: the stream is broken or closed.
        """
        connection = self.connection
        while connection.due:
            if not self._sending.acquire(blocking=False):
                return True  # who is sending looks again before leaving
            try:
                if not self.stream.writable():
                    return False
                with self.lock:
                    if connection.due_size > most:
                        return False
                    due = connection.data_to_send()
                if due:
                    self._send(due)
            finally:
                self._sending.release()
        return True

    def flush_later(self, timers: Timers, flush: Callable[[], None]) -> None:
        """Have `flush` called in a while, because no thread can be started that may block."""
        with self.lock:
            delayed, self._delayed = self._delayed, True
        if delayed:
            return

        def flush_now() -> None:
            self._delayed = False
            flush()

        try:
            timers.at(time.monotonic() + AGAIN, flush_now)
        except OutOfThreads as error:
            self._delayed = False
            logger.debug("what %s is owed leaves with what is sent next: %s", self.stream.peer, error)

    def _send(self, due: Sequence[Buffer]) -> None:
        try:
            self.stream.send_all(due)
        except StreamError:
            raise
        except BaseException:
            self.spoil()  # Ctrl-C: half a frame may have been sent
            raise

    def spoil(self) -> None:
        """End the connection where something was sent or received by halves. Takes no lock and does not wait."""
        self.spoiled = True
        self.stream.close()

    def receive(self, timeout: float | None = None, soon: bool = False) -> bytes:
        """What comes next; ``b""`` at the end of the stream. Larger pieces while the peer has much to say.

        :param soon: whether it may come at once, and no other thread is busy here: see `spinning`.
        :raises TimeoutError: nothing came in time.
        :raises StreamError: the stream is broken or closed.
        """
        chunk = self._chunk
        data = (self._spinning if soon else self.stream).receive(chunk, timeout)
        if len(data) == chunk:
            self._chunk = min(chunk * 2, _LARGEST_CHUNK)
        elif chunk != CHUNK and len(data) * 8 < chunk:
            self._chunk = CHUNK
        return data
