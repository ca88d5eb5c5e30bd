"""Where what a plugin prints goes: a file that the host gave, or line by line into `logging`.

What a channel of output, standard output or standard error, says may come in two ways at once: what a plugin prints
arrives over its stdio stream, what its C code writes to the raw descriptor arrives over the pipe. Each way has a sink
of its own, so that half a line or half a character of the one is never completed by the other.

A file that fails is given up, and what comes from then on is logged: nothing is lost, and no plugin is held up by a
file that is broken. One that blocks holds the plugin up, as a full pipe would.
"""

from __future__ import annotations

import codecs
import io
import logging
import threading
from typing import IO, Any

from hybridload.goplugin.logs import LineSplitter, LogEntry, PluginLog


class Output:
    """One channel of a plugin's output. Safe from several threads.

    :param file: text or binary; gets everything and is flushed after each chunk. `None` logs lines.
    :param log: gets the lines at `INFO`; also told, once, when the file fails.
    """

    def __init__(self, file: IO[Any] | None, log: PluginLog) -> None:
        self.lock = threading.Lock()
        self.log = log
        self.is_text = file is not None and (isinstance(file, io.TextIOBase) or hasattr(file, "encoding"))
        self._file = file

    def sink(self) -> OutputSink:
        """One more way in."""
        return OutputSink(self)

    def take(self, data: bytes | str) -> bool:
        """Write to the file, with the lock held; whether there is a file that took it."""
        file = self._file
        if file is None:
            return False
        try:
            if isinstance(data, str):
                _write_text(file, data)
            else:
                _write_bytes(file, data)
            if hasattr(file, "flush"):
                file.flush()
        except Exception as error:  # the file is the user's, and so is what it may raise
            self._file = None
            words = f"the host's file for this output failed ({type(error).__name__}: {error}); it is logged from here"
            self.log.emit(LogEntry(logging.WARNING, words))
            return False
        return True


class OutputSink:
    """One way in which a channel's output arrives."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._lines = LineSplitter()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace") if output.is_text else None

    def write(self, data: bytes) -> None:
        """Hand on a chunk."""
        if not data:
            return
        with self._output.lock:
            if self._decoder is None:
                taken = self._output.take(data)
            else:
                begun = self._decoder.getstate()[0]
                taken = self._output.take(self._decoder.decode(data))
                if not taken:
                    data = begun + data
                    self._decoder = None
            if not taken:
                self._log(self._lines.feed(data))

    def finish(self) -> None:
        """Hand on what is left when no more comes: a last line without a line feed, half a character."""
        with self._output.lock:
            rest = "" if self._decoder is None else self._decoder.decode(b"", final=True)
            if rest and not self._output.take(rest):
                self._log([(rest.encode(), True)])
            self._log(self._lines.finish())

    def _log(self, lines: list[tuple[bytes, bool]]) -> None:
        for line, _ in lines:
            self._output.log.emit(LogEntry(logging.INFO, line.decode("utf-8", "replace").rstrip("\r")))


def _write_bytes(file: IO[Any], data: bytes) -> None:
    while data:
        written = file.write(data)
        if not isinstance(written, int):
            if isinstance(file, io.RawIOBase):
                raise BlockingIOError("it does not block, and is full")
            return
        # An unbuffered file may take less than it is given.
        data = data[written:]


def _write_text(file: IO[Any], text: str) -> None:
    try:
        file.write(text)
    except UnicodeEncodeError as error:
        file.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
