"""Where what a plugin prints goes: a file that the host gave, or line by line into `logging`."""

from __future__ import annotations

import codecs
import io
import logging
import threading
from typing import IO, Any

from hybridload.goplugin.logs import LineSplitter


class OutputSink:
    """One channel of a plugin's output, standard output or standard error.

    Safe from several threads: what a plugin prints arrives over the stdio stream, what its C code writes to the raw
    descriptor arrives over the pipe.

    :param target: a file, text or binary, that gets everything and is flushed after each chunk; `None` to log lines.
    :param logger: gets the lines at `INFO`; also told, once, when the target fails.
    """

    def __init__(self, target: IO[Any] | None, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._lines = LineSplitter()
        self._target = target
        self._decoder: codecs.IncrementalDecoder | None = None
        if isinstance(target, io.TextIOBase) or (target is not None and hasattr(target, "encoding")):
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, data: bytes) -> None:
        """Hand on a chunk. A target that fails is given up, and what comes after it is logged: nothing is lost."""
        with self._lock:
            if self._target is None:
                self._log(self._lines.feed(data))
                return
            try:
                self._target.write(data if self._decoder is None else self._decoder.decode(data))
                self._target.flush()
            except (OSError, ValueError, TypeError) as error:
                self._logger.warning("the host's file for this output failed (%s); logging it from here on", error)
                self._target = None
                self._log(self._lines.feed(data))

    def finish(self) -> None:
        """Hand on what is left when no more comes: a last line without a line feed, half a character."""
        with self._lock:
            if self._target is None:
                self._log(self._lines.finish())
            elif self._decoder is not None:
                rest = self._decoder.decode(b"", final=True)
                if rest:
                    try:
                        self._target.write(rest)
                        self._target.flush()
                    except (OSError, ValueError):
                        self._target = None

    def _log(self, lines: list[tuple[bytes, bool]]) -> None:
        for line, _ in lines:
            self._logger.info("%s", line.decode("utf-8", "replace").rstrip("\r"))
