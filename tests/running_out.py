"""Threads that run out, at a moment of the test's choosing: in its own process, or as the code of a plugin's module."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_more_threads(left: int = 0) -> Iterator[list[str]]:
    """Let `left` more threads be started, and none after them. Gives the names of those that could not be."""
    start = threading.Thread.start
    refused: list[str] = []
    room = [None] * left

    def refuse(self: threading.Thread, *args: Any) -> None:
        try:
            room.pop()
        except IndexError:
            refused.append(self.name)
            raise RuntimeError("can't start new thread") from None
        start(self)

    threading.Thread.start = refuse  # type: ignore[method-assign]
    try:
        yield refused
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]
