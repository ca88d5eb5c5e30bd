"""The host's half of the stdio service: what the plugin prints, taken from the start and until its end.

A Go plugin that printed 64 KiB which nobody took blocks for ever, so the stream is drained whatever becomes of the
sinks, and opened again when the connection that it was on breaks and the plugin lives.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from hybridload.control_characters import escape_controls
from hybridload.goplugin.grpc import messages
from hybridload.goplugin.output import OutputSink
from hybridload.goplugin.threads import Thread

log = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Seconds that `close` waits for whoever takes the last output."""

_SHORT = 1.0
"""Seconds. A stream that breaks sooner than that three times in a row is not opened again."""


class StdioStream:
    """Drains a plugin's stdio stream on a thread of its own, which ends with the stream.

    :param channel: shaped as `grpc.Channel`.
    :param rpc_error: what its calls raise.
    :param survived: whether the plugin lives though a stream of its ended with an error.
    """

    def __init__(
        self,
        channel: Any,
        rpc_error: tuple[type[Exception], ...],
        stdout: OutputSink,
        stderr: OutputSink,
        *,
        name: str,
        survived: Callable[[Any], bool],
    ) -> None:
        self._sinks = {messages.STDOUT: stdout, messages.STDERR: stderr}
        self._rpc_error = rpc_error
        self._name = name
        self._survived = survived
        self._taken = 0
        self._closed = False
        self._broke = False
        self.absent = False
        """Whether the plugin has no stdio service, once it has said so."""
        self._open = channel.unary_stream(
            messages.STREAM_STDIO,
            request_serializer=messages.Empty.SerializeToString,
            response_deserializer=messages.StdioData.FromString,
        )
        self._call = self._open(messages.Empty())
        self._thread = Thread(target=self._drain, name=f"hybridload {name} stdio", daemon=True)
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Wait for the stream's end, so that the last output is not lost.

        :param timeout: seconds in which nothing arrives, after which no end is expected any more.
        :returns: whether the end came.
        """
        deadline = time.monotonic() + _PATIENCE
        while self._thread.is_alive() and threading.current_thread() is not self._thread:
            taken = self._taken
            self._thread.join(timeout)
            if taken == self._taken or time.monotonic() > deadline:
                break
        return not self._thread.is_alive()

    def close(self) -> None:
        """End the stream and its thread, which may be held up by a file or a logging handler that blocks.

        Safe to call twice, and from the thread itself.
        """
        self._closed = True
        self._call.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join(_PATIENCE)

    def _drain(self) -> None:
        try:
            short = 0
            began = time.monotonic()
            while self._take() and short < 3:
                now = time.monotonic()
                short = short + 1 if now - began < _SHORT else 0
                began = now
        finally:
            for sink in self._sinks.values():
                sink.finish()

    def _take(self) -> bool:
        """Take all that comes; whether there may be more if this is done again, which opens the stream anew."""
        try:
            if self._broke:
                self._call = self._open(messages.Empty())
                if self._closed:
                    self._call.cancel()
            for chunk in self._call:
                sink = self._sinks.get(chunk.channel)
                if sink is None:
                    log.warning("plugin %s: output for an unknown channel %d is dropped", self._name, chunk.channel)
                else:
                    sink.write(chunk.data)
                self._taken += 1
        except self._rpc_error as error:
            self._broke = True
            code = error.code().name  # type: ignore[attr-defined]
            if code == "UNIMPLEMENTED":
                self.absent = True
                log.debug("plugin %s has no stdio service; its output comes over the raw pipes alone", self._name)
            elif code not in ("CANCELLED", "UNAVAILABLE"):
                log.warning("plugin %s: its output stream broke: %s", self._name, escape_controls(str(error)))
            return not self._closed and self._survived(error)
        except ValueError as error:
            log.debug("plugin %s: its output stream cannot be opened again: %s", self._name, error)
        return False
