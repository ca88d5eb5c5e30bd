"""Ctrl-C ends a command within a second, whatever it is doing: with exit code 130, and without a traceback.

- The first one raises KeyboardInterrupt, so that what is open is closed. Where that takes too long, or where it is
  lost (in a `__del__`, in a callback, in what catches everything), the process ends all the same; its plugins end with
  it, as they do when a host is killed.
- The second one, and one that comes when the command is done, end the process at once.
- What serves a plugin has handlers of its own from when it serves: a host's plugin ignores SIGINT, which a terminal
  sends to both, and one that is served by hand ends well.

Nothing is imported here that takes a moment: Ctrl-C may come while the command line is imported.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time

TYPE_CHECKING = False  # typing's own takes a moment to import
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

EXIT_CODE = 130

_PATIENCE = 0.7
"""Seconds for an orderly end."""


class Interrupts:
    """How this process acts on SIGINT, unless it was started to ignore it."""

    def __init__(self) -> None:
        self.came = False
        self._done = False
        self._report = sys.unraisablehook

    def take_up(self) -> None:
        """Act on it from here on."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            sys.unraisablehook = self._report_others
            signal.signal(signal.SIGINT, self._interrupt)

    def done(self) -> None:
        """From here on there is nothing left to close."""
        self._done = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.came or self._done:
            os._exit(EXIT_CODE)
        self.came = True
        try:
            # Not threading's: the frame that was interrupted may hold its locks.
            _thread.start_new_thread(_end_late, ())
        except RuntimeError:
            os._exit(EXIT_CODE)
        # What is cut off complains. The module may be half imported.
        getattr(sys.modules.get("logging"), "disable", _nothing)()
        raise KeyboardInterrupt

    def _report_others(self, unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._report(unraisable)


def _nothing() -> None:
    """Nothing logs yet."""


def _end_late() -> None:
    time.sleep(_PATIENCE)
    os._exit(EXIT_CODE)
