"""Descriptor 1 of a plugin, which carries the handshake line and nothing before it.

From the moment that it is taken until the line is written, descriptor 1 is a copy of descriptor 2: whatever is printed
meanwhile, by Python, by C code or by a child process, lands on standard error, which is the host's log. Writing the
line gives descriptor 1 back; from then on the host drains it.

`serve` takes it when it is called. What Python still holds in the buffer of `sys.stdout` at that time, because the
program printed before it served, is flushed to standard error as well. What had left the buffer by then (more than 8
KiB, an explicit flush, or with PYTHONUNBUFFERED whatever was printed before this was imported) has spoiled the line
already. Our own launchers take it before they import anything of the
user's, so there nothing can.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from types import TracebackType

from hybridload.goplugin.host_environment import MIN_PORT, PROTOCOL_VERSIONS

_STDOUT, _STDERR = 1, 2
# Low numbers are what programs close and reuse by number.
_FIRST_OWN = 10


def buffer_stdout(environ: Mapping[str, str]) -> None:
    """Let Python buffer what is printed, if a go-plugin host started this program and PYTHONUNBUFFERED forbids it.

    Images for containers set that variable, and then a single `print` before `serve` would spoil the line. Nothing
    else changes: whatever is in the buffer when the program ends without having served is written then.
    """
    if not any(name in environ for name in (PROTOCOL_VERSIONS, MIN_PORT)):
        return
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.write_through and not sys.stdout.isatty():
        sys.stdout.reconfigure(write_through=False, line_buffering=False)


class HandshakeOutput:
    """Takes descriptor 1 from everybody else until the line is written, or until `close`.

    A context manager that closes.

    :raises OSError: when there is no descriptor 1 to take.
    """

    def __init__(self) -> None:
        self._saved = _duplicate(_STDOUT)
        try:
            _redirect_stdout()
        except OSError:
            os.close(self._saved)
            raise

    @property
    def descriptor(self) -> int:
        """The descriptor that leads to the host, while it is taken."""
        return self._saved

    def write_line(self, line: str) -> None:
        """Write the handshake line to the host and give descriptor 1 back.

        :raises OSError: when the host is gone.
        """
        _flush()
        data = f"{line}\n".encode()
        while data:
            data = data[os.write(self._saved, data) :]
        self.close()

    def close(self) -> None:
        """Give descriptor 1 back. Safe to call twice."""
        if self._saved < 0:
            return
        _flush()
        saved, self._saved = self._saved, -1
        os.dup2(saved, _STDOUT)
        os.close(saved)

    def __enter__(self) -> HandshakeOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _redirect_stdout() -> None:
    try:
        os.dup2(_STDERR, _STDOUT)
    except OSError:
        # There is no standard error; what would have gone there goes nowhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _STDOUT)
        os.close(nowhere)
    _flush()


def _duplicate(descriptor: int) -> int:
    try:
        import fcntl
    except ImportError:
        return os.dup(descriptor)
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST_OWN)


def _flush() -> None:
    for stream in {id(stream): stream for stream in (sys.stdout, sys.__stdout__)}.values():
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            # A closed stream, or a pipe that nobody reads: there is nothing to be rescued.
            continue
