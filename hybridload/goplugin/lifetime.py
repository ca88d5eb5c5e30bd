"""How long a connection to the other side lasts, for code that must not outlive it: what Go hands to `GRPCClient` as a
context."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Lifetime:
    """Ends once, when the other side is gone or is let go of. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._callbacks: list[Callable[[], object]] = []

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._ended.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; whether it came within `timeout` seconds."""
        return self._ended.wait(timeout)

    def when_ended(self, callback: Callable[[], object]) -> None:
        """Have a function called at the end, once, on the thread that learns of it; now when it is over already.

        What it raises is logged.
        """
        with self._lock:
            if not self._ended.is_set():
                self._callbacks.append(callback)
                return
        _call(callback)

    def end(self) -> None:
        """Make it end. Safe to call twice."""
        with self._lock:
            self._ended.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            _call(callback)


def _call(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:
        log.exception("what was to happen at a plugin's end failed")
