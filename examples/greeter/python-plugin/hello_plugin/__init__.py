"""A greeter. It knows nothing of the isolation that it runs in, nor of hybridload."""

from __future__ import annotations

import logging

__all__ = ["Hello"]

log = logging.getLogger(__name__)


class Hello:
    """Says hello from Python.

    :param greeting: the first word; a host sets it as the plugin's `options`.
    """

    def __init__(self, greeting: str = "Hello") -> None:
        self._greeting = greeting
        self._count = 0
        log.info("ready to say %s", greeting)

    def greet(self) -> str:
        self._count += 1
        return f"{self._greeting} from Python!"

    def close(self) -> None:
        """Called when the plugin is unloaded, wherever it ran."""
        log.info("said hello %d times", self._count)
