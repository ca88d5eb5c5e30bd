"""What a plugin prints, on its way to the host: writers that stand in for `sys.stdout` and `sys.stderr`, and a buffer.

The rules, where go-plugin replaces `os.Stdout` and `os.Stderr` by pipes that the stdio stream drains:

- While a reader (the host's stdio stream) is attached, nothing is lost and the order is kept, across both channels. The
  buffer holds `LIMIT` bytes; a writer waits when it is full, as it would at a pipe.
- Before the first reader comes, a writer waits as well, because the host's stream and its first call set out together.
  But a host need not ever ask (not every implementation knows the stdio service): writers wait for `PATIENCE` seconds
  in all, and from then on the oldest output makes room for the new. The next reader is told how much was dropped.
- After a reader left, output is kept for the next one (a host that reattaches) in the same way, without the wait.
- Descriptors 1 and 2 stay as they are. `fileno()` of the writers gives them: C code and child processes write to the
  host's raw pipes, which the host drains, and never to a pipe of ours that somebody would have to drain while that code
  holds the interpreter.

No engine, no protocol: bytes in, chunks out.
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, TextIO

from hybridload.forks import after_fork

STDOUT, STDERR = 1, 2
"""The channels: the descriptors' numbers, which are also those of go-plugin's stdio service."""

LIMIT = 1024 * 1024
"""Bytes that are buffered."""
CHUNK = 64 * 1024
"""Bytes that a chunk has at the most."""
PATIENCE = 5.0
"""Seconds that writers wait for the first reader, all waits together."""

Chunk = tuple[int, bytes]


class OutputBuffer:
    """Chunks of output, from any number of writing threads to any number of readers, which share them."""

    def __init__(self, limit: int = LIMIT, patience: float = PATIENCE) -> None:
        self._limit = limit
        self._patience = patience
        self._chunks: deque[tuple[int, bytearray]] = deque()
        self._size = 0
        self._dropped = 0
        self._readers = 0
        self._was_read = False
        self._finished = False
        # Reentrant: a finalizer may print at any moment, also in a thread that is in here.
        self._changed = threading.Condition(threading.RLock())
        self._writer: int | None = None
        self._taking: set[int] = set()

    def write(self, channel: int, data: bytes | bytearray | memoryview) -> bool:
        """Take output; may wait for a reader to take some. Whether it was taken: not after `finish`."""
        view = memoryview(data).cast("B")
        thread = threading.get_ident()
        with self._changed:
            # One write at a time, so that a long one is not split by another's; but a thread never waits for itself.
            self._changed.wait_for(lambda: self._writer in (None, thread))
            outer, self._writer = self._writer, thread
            try:
                while view:
                    if thread not in self._taking and not self._make_room():
                        return False
                    part = view[: max(1, min(CHUNK, self._limit - self._size))]
                    self._append(channel, part)
                    view = view[len(part) :]
                    self._changed.notify_all()
            finally:
                self._writer = outer
                self._changed.notify_all()
        return True

    def reader(self) -> Reader:
        """Attach a reader, which must be closed."""
        with self._changed:
            self._readers += 1
            self._was_read = True
            # Whoever printed before a reader came has waited for this; from now on no one waits without one.
            self._patience = 0.0
            self._changed.notify_all()
        return Reader(self)

    def finish(self, timeout: float, *, expects_reader: bool = False) -> bool:
        """Take no more, and wait until the readers have taken everything and are gone.

        :param expects_reader: wait for the first reader as well when there is something for it. A host asks for the
            output as soon as it has connected, and one that ends its plugin right away may have been quicker than the
            thread that reads for it.
        :returns: whether that came within `timeout` seconds.
        """
        with self._changed:
            self._finished = True
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: not self._readers and (self._was_read or not expects_reader or not self._chunks), timeout
            )

    def rest(self) -> list[Chunk]:
        """Take out what no reader took."""
        with self._changed:
            rest = [(channel, bytes(data)) for channel, data in self._chunks]
            self._chunks.clear()
            self._size = 0
            return rest

    def _make_room(self) -> bool:
        """Called with the lock held; False when output is no longer taken."""
        while self._size >= self._limit and not self._finished:
            if self._readers:
                self._changed.wait()
            elif self._patience > 0:
                began = time.monotonic()
                self._changed.wait(self._patience)
                self._patience -= time.monotonic() - began
            else:
                _, oldest = self._chunks.popleft()
                self._size -= len(oldest)
                self._dropped += len(oldest)
        return not self._finished

    def _append(self, channel: int, part: memoryview) -> None:
        self._size += len(part)
        if self._chunks:
            last_channel, last = self._chunks[-1]
            if last_channel == channel and len(last) + len(part) <= CHUNK:
                last += part
                return
        self._chunks.append((channel, bytearray(part)))

    def _take(self, reader: Reader) -> Chunk | None:
        thread = threading.get_ident()
        with self._changed:
            self._taking.add(thread)
            try:
                self._changed.wait_for(lambda: self._chunks or self._finished or reader.closed)
                if reader.closed:
                    return None
                if self._dropped:
                    lost, self._dropped = self._dropped, 0
                    return STDERR, b"[hybridload: %d bytes of output were dropped, as no host read them]\n" % lost
                if not self._chunks:
                    return None
                channel, data = self._chunks.popleft()
                self._size -= len(data)
                self._changed.notify_all()
                return channel, bytes(data)
            finally:
                self._taking.discard(thread)

    def _put_back(self, chunk: Chunk) -> None:
        with self._changed:
            self._chunks.appendleft((chunk[0], bytearray(chunk[1])))
            self._size += len(chunk[1])
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _left(self) -> None:
        with self._changed:
            self._readers -= 1
            self._changed.notify_all()


class Reader:
    """Takes chunks out of a buffer; an iterator that ends when the buffer is finished and empty, or after `close`."""

    def __init__(self, buffer: OutputBuffer) -> None:
        self._buffer = buffer
        self._left = threading.Lock()
        self.closed = False

    def __iter__(self) -> Iterator[Chunk]:
        while (chunk := self._buffer._take(self)) is not None:
            yield chunk

    def put_back(self, chunk: Chunk) -> None:
        """Give back a chunk that could not be delivered, for the next reader."""
        self._buffer._put_back(chunk)

    def cancel(self) -> None:
        """End the iteration, from any thread. Does not wait."""
        self.closed = True
        self._buffer._wake()

    def close(self) -> None:
        """Detach. Safe to call twice."""
        self.closed = True
        if self._left.acquire(blocking=False):
            self._buffer._left()


class _BinaryWriter(io.BufferedIOBase):
    """What `sys.stdout.buffer` is."""

    def __init__(self, buffer: OutputBuffer, channel: int) -> None:
        self._output = buffer
        self._channel = channel
        self.name = "<stdout>" if channel == STDOUT else "<stderr>"
        self.mode = "wb"

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("write to closed file")
        view = memoryview(data)
        if not self._output.write(self._channel, view):
            _write_raw(self._channel, view)
        return view.nbytes

    def fileno(self) -> int:
        return self._channel

    def isatty(self) -> bool:
        return False


class _CopyingWriter(_BinaryWriter):
    """The same, but what is written goes to the stream that was there before as well."""

    def __init__(self, buffer: OutputBuffer, channel: int, before: TextIO) -> None:
        super().__init__(buffer, channel)
        self._before = before

    def write(self, data: Any) -> int:
        view = memoryview(data)
        try:
            below = getattr(self._before, "buffer", None)
            if below is None:
                self._before.write(bytes(view).decode("utf-8", "backslashreplace"))
            else:
                self._before.flush()
                below.write(view)
            self._before.flush()
        except (OSError, ValueError):
            pass  # It is closed; the host gets it all the same.
        if not self.closed:
            self._output.write(self._channel, view)
        return view.nbytes

    def isatty(self) -> bool:
        return self._before.isatty()


class ReplacedStreams:
    """`sys.stdout` and `sys.stderr`, replaced by writers into a buffer until `restore`.

    What is written reaches the buffer at once, whether as text or through `.buffer`. A forked child gets the streams
    back that were there before: nobody reads its copy of the buffer.

    :param copy: go on writing to the streams that were there before, too.
    """

    def __init__(self, buffer: OutputBuffer, *, copy: bool = False) -> None:
        self._before: tuple[TextIO, TextIO] = sys.stdout, sys.stderr
        stdout, stderr = self._before
        self._ours = (
            text_writer(buffer, STDOUT, copy=stdout if copy else None),
            text_writer(buffer, STDERR, copy=stderr if copy else None),
        )
        sys.stdout, sys.stderr = self._ours
        self._active = True
        after_fork(self, ReplacedStreams.restore)

    def restore(self) -> None:
        """Put back what was there, unless somebody else has replaced it meanwhile. Safe to call twice."""
        if not self._active:
            return
        self._active = False
        if sys.stdout is self._ours[0]:
            sys.stdout = self._before[0]
        if sys.stderr is self._ours[1]:
            sys.stderr = self._before[1]


def text_writer(buffer: OutputBuffer, channel: int, *, copy: TextIO | None = None) -> TextIO:
    """A text file that writes to a buffer's channel at once. Text that UTF-8 cannot hold is escaped, never refused.

    :param copy: gets everything as well.
    """
    return io.TextIOWrapper(
        _BinaryWriter(buffer, channel) if copy is None else _CopyingWriter(buffer, channel, copy),
        encoding="utf-8",
        errors="backslashreplace",
        newline="\n",
        write_through=True,
    )


def write_rest(buffer: OutputBuffer, timeout: float = 0.5) -> None:
    """Write what no reader took to the raw descriptors, so that it is in the host's log at least.

    :param timeout: seconds that it may take altogether: a host that asked for nothing need not drain its pipes either.
    """
    deadline = time.monotonic() + timeout
    for channel, data in buffer.rest():
        for start in range(0, len(data), select.PIPE_BUF):
            # A pipe that can be written to takes so much at once.
            _, writable, _ = select.select([], [channel], [], max(0.0, deadline - time.monotonic()))
            if not writable:
                return
            _write_raw(channel, memoryview(data)[start : start + select.PIPE_BUF])


def _write_raw(channel: int, view: memoryview) -> None:
    view = view.cast("B")
    try:
        while view:
            view = view[os.write(channel, view) :]
    except OSError:
        # Nobody is left at the other end of the pipe; there is no place to say so.
        return
