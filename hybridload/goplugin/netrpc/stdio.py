"""What a plugin prints, on the two streams that carry nothing else: the host's half and the plugin's.

A Go plugin that printed what nobody took blocks for ever, so the host drains both from the start and whatever becomes
of the sinks.
"""

from __future__ import annotations

import logging
import threading
import time

from hybridload.goplugin.output import OutputSink
from hybridload.goplugin.served_output import STDERR, STDOUT, OutputBuffer
from hybridload.goplugin.streams.base import Stream, StreamError
from hybridload.goplugin.threads import Thread

log = logging.getLogger(__name__)

_CHUNK = 65536  # bytes
_PATIENCE = 5.0
"""Seconds that `close` waits for whoever takes the last output."""


class StdioStreams:
    """Drains a plugin's output on a thread for each stream, which ends with it."""

    def __init__(self, stdout: Stream, stderr: Stream, sinks: tuple[OutputSink, OutputSink], *, name: str) -> None:
        self._taken = 0
        threads = [
            Thread(target=self._drain, args=(stream, sink), name=f"hybridload {name} {channel}", daemon=True)
            for stream, sink, channel in zip((stdout, stderr), sinks, ("stdout", "stderr"), strict=True)
        ]
        self._threads: list[threading.Thread] = []
        for thread in threads:
            thread.start()
            self._threads.append(thread)

    def join(self, timeout: float) -> bool:
        """Wait for the streams' end, so that the last output is not lost.

        :param timeout: seconds in which nothing arrives, after which no end is expected any more.
        :returns: whether the end came.
        """
        deadline = time.monotonic() + _PATIENCE
        for thread in self._others():
            while thread.is_alive():
                taken = self._taken
                thread.join(timeout)
                if taken == self._taken or time.monotonic() > deadline:
                    break
        return not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Wait for the threads, which may be held up by a file or a logging handler that blocks. The session was closed
        before. Safe to call twice, and from such a thread itself."""
        for thread in self._others():
            thread.join(_PATIENCE)

    def _others(self) -> list[threading.Thread]:
        return [thread for thread in self._threads if thread is not threading.current_thread()]

    def _drain(self, stream: Stream, sink: OutputSink) -> None:
        try:
            while data := stream.receive(_CHUNK):
                sink.write(data)
                self._taken += 1
        except StreamError as error:
            log.debug("%s: %s", threading.current_thread().name, error)
        finally:
            sink.finish()


class Delivery:
    """Sends what a plugin prints to one host, on a thread of its own, until there is no more of it, or no host.

    The streams are ended then. The thread may block on the buffer, and on a host that does not read.
    """

    def __init__(self, output: OutputBuffer, stdout: Stream, stderr: Stream) -> None:
        self._reader = output.reader()
        self._streams = {STDOUT: stdout, STDERR: stderr}
        self._thread = Thread(target=self._deliver, name="hybridload output", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Deliver no more, and join the thread. The session was closed before. Safe to call twice."""
        self._reader.cancel()
        self._thread.join()

    def _deliver(self) -> None:
        try:
            for chunk in self._reader:
                channel, data = chunk
                try:
                    self._streams[channel].send(data)
                except StreamError:
                    self._reader.put_back(chunk)  # for the next host
                    raise
            for stream in self._streams.values():
                stream.close_write()
        except StreamError as error:
            log.debug("the host takes no more output: %s", error)
        finally:
            self._reader.close()
