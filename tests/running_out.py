"""Threads that run out, at a moment of the test's choosing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_more_threads(*named: str) -> Iterator[list[str]]:
    """Let no thread be started, or none whose name begins so. Gives the names of those that could not be."""
    start = threading.Thread.start
    refused: list[str] = []

    def refuse(self: threading.Thread, *args: Any) -> None:
        if self.name.startswith(named or ""):
            refused.append(self.name)
            raise RuntimeError("can't start new thread")
        start(self)

    threading.Thread.start = refuse  # type: ignore[method-assign]
    try:
        yield refused
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]
