"""The last words of a plugin on standard error, as the errors about its end quote them.

- The last `LINES` lines; a long one is cut.
- When a Go program panics, what matters comes first: the message and the goroutine that panicked. Other goroutines
  follow, hundreds of lines at times, so the first `LINES` lines of a panic stay, with the very last ones behind them.

Safe from any thread.
"""

from __future__ import annotations

import threading
from collections import deque

LINES = 20
PANICS = ("panic: ", "fatal error: ")
"""How the message of a Go program that is about to end begins."""

_LONGEST = 1000
_LAST = 5
_GAP = "..."


class LastWords:
    """Takes every line, keeps the last ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: deque[str] = deque(maxlen=LINES)
        self._panic: list[str] = []
        self._since_panic = 0

    def add(self, line: str) -> None:
        """Take one more line."""
        kept = line if len(line) <= _LONGEST else line[:_LONGEST] + _GAP
        with self._lock:
            self._last.append(kept)
            if line.startswith(PANICS):
                self._panic, self._since_panic = [], 0
            elif not self._since_panic:
                return
            self._since_panic += 1
            if len(self._panic) < LINES:
                self._panic.append(kept)

    def lines(self) -> tuple[str, ...]:
        """The lines to quote."""
        with self._lock:
            if self._since_panic <= LINES:
                return tuple(self._last)
            after = min(_LAST, self._since_panic - LINES)
            return (*self._panic, _GAP, *list(self._last)[-after:])
