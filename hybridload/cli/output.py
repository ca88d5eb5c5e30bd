"""Where results go: standard output, kept for them alone.

A plugin that runs in-process, or a module that is imported on the way, may print whatever it likes, from C code as
well. So that what reads a command's output gets the results and nothing else, descriptor 1 leads to standard error
while the command runs, `sys.stdout` is `sys.stderr`, and results are written to what descriptor 1 was before.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import TracebackType

from rich.console import Console
from rich.table import Table

from hybridload.control_characters import escape_controls


class ReaderGone(Exception):
    """Whoever read the output has closed it, as `head` does."""


class Results:
    """Standard output for results. A context manager: leaving it puts descriptor 1 back."""

    def __init__(self) -> None:
        try:
            self._descriptor = os.dup(1)
        except OSError as error:
            raise ReaderGone(f"there is no standard output ({error})") from error
        self._redirection = redirect_stdout(sys.stderr)

    def __enter__(self) -> Results:
        self._flush_foreign()
        os.dup2(2, 1)
        self._redirection.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._redirection.__exit__(kind, error, traceback)
        self._flush_foreign()
        os.dup2(self._descriptor, 1)
        os.close(self._descriptor)

    def line(self, text: str) -> None:
        """Write a line for people, or of JSON, at once: without control characters.

        :raises ReaderGone: nobody reads any more.
        """
        self._write(f"{escape_controls(text)}\n".encode())

    def value(self, value: str | bytes) -> None:
        """Write what a plugin returned, and a line feed, at once: as it is, but not to a terminal.

        :raises ReaderGone: nobody reads any more.
        :raises OSError: it cannot be written, as on a full disk.
        """
        if os.isatty(self._descriptor):
            self.line(value if isinstance(value, str) else value.decode("utf-8", "backslashreplace"))
        else:
            self._write((value.encode("utf-8", "backslashreplace") if isinstance(value, str) else value) + b"\n")

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BrokenPipeError as error:
            raise ReaderGone(str(error)) from error

    def table(self, table: Table) -> None:
        """Write a table: as wide as the terminal, or with each row whole where a program reads it.

        :param table: of texts whose control characters are escaped; what it is styled with are others.
        """
        if os.isatty(self._descriptor):
            width = os.get_terminal_size(self._descriptor).columns or None
            console = Console(file=io.StringIO(), width=width, force_terminal=True)
        else:
            console = Console(file=io.StringIO(), width=10_000, no_color=True)
        console.print(table)
        assert isinstance(console.file, io.StringIO)
        for line in console.file.getvalue().split("\n")[:-1]:
            self._write(f"{line.rstrip()}\n".encode("utf-8", "backslashreplace"))

    @staticmethod
    def _flush_foreign() -> None:
        """Let what was printed by others so far go where it belongs."""
        if sys.stdout is not None:
            try:
                sys.stdout.flush()
            except (OSError, ValueError):
                pass


@contextmanager
def discarded_stdout() -> Iterator[None]:
    """Let what is still in the buffer of `sys.stdout` go nowhere: its reader is gone, and the exit would complain."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
    except OSError:
        yield
        return
    os.dup2(nowhere, 1)
    os.close(nowhere)
    yield


def one_line(text: str) -> str:
    """A message of several lines as one, without anything that a terminal would act on."""
    parts = [part.strip() for part in text.splitlines() if part.strip()]
    joined = parts[0] if parts else ""
    for part in parts[1:]:
        joined += (" " if joined.endswith((":", ".", ";", ",")) else " | ") + part
    return escape_controls(joined)
