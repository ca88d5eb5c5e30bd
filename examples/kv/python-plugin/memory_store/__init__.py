"""A store that keeps everything in memory."""

from __future__ import annotations

__all__ = ["MemoryStore"]


class MemoryStore:
    """Keeps values for as long as it lives."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def get(self, key: str) -> bytes:
        return self._values[key]

    def put(self, key: str, value: bytes) -> None:
        self._values[key] = value
