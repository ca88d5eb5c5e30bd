"""A plugin that calls its host back, and is called back by it: objects as arguments, results, items and in themselves.

Its host's tests import it for the interfaces and for an implementation of their own; a program that imports it and
calls `main` is the plugin.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

from hybridload import Contract, Handshake, serve

HANDSHAKE = Handshake("CALLBACK_PLUGIN", "hello")


class Refused(Exception):
    """Bound in the interfaces' module, so it crosses as itself."""


class Listener(Protocol):
    def heard(self, text: str) -> str: ...


class AsyncListener(Protocol):
    async def heard(self, text: str) -> str: ...


class Counter(Protocol):
    def add(self, number: int) -> int: ...


class Party(Protocol):
    """What either side may do to an object of the other."""

    def tell(self, listener: Listener, text: str) -> str: ...
    def tell_all(self, listeners: list[Listener], text: str) -> list[str]: ...
    def tell_each(self, listeners: Iterator[Listener]) -> list[str]: ...
    def tell_if(self, text: str, listener: Listener | None = None) -> str: ...
    def watch(self, listener: Listener, count: int) -> Iterator[str]: ...
    async def tell_soon(self, listener: AsyncListener, text: str) -> str: ...
    def watch_soon(self, listener: AsyncListener, count: int) -> AsyncIterator[str]: ...
    def keep(self, listener: Listener) -> None: ...
    def tell_kept(self, text: str) -> list[str]: ...
    def forget(self) -> None: ...
    def counter(self, start: int) -> Counter: ...
    def counters(self, count: int) -> Iterator[Counter]: ...
    def nested(self, other: Party, depth: int) -> int: ...
    def open_things(self) -> dict[str, int]: ...


class Guest(Protocol):
    """A host's idea of a plugin that has a parameter which the plugin knows nothing of."""

    def tell(self, listener: Listener, text: str, ignored: Listener) -> str: ...


PARTY = Contract(Party, service="party.Party")
PLUGINS = {"party": PARTY}


class Count:
    def __init__(self, value: int) -> None:
        self.value = value

    def add(self, number: int) -> int:
        self.value += number
        return self.value


class PartyImpl:
    def __init__(self) -> None:
        self.kept: list[Listener] = []

    def tell(self, listener: Listener, text: str) -> str:
        return listener.heard(text)

    def tell_all(self, listeners: list[Listener], text: str) -> list[str]:
        return [listener.heard(text) for listener in listeners]

    def tell_each(self, listeners: Iterator[Listener]) -> list[str]:
        return [listener.heard(str(number)) for number, listener in enumerate(listeners)]

    def tell_if(self, text: str, listener: Listener | None = None) -> str:
        return "nobody" if listener is None else listener.heard(text)

    def watch(self, listener: Listener, count: int) -> Iterator[str]:
        for number in range(count):
            yield listener.heard(str(number))

    async def tell_soon(self, listener: AsyncListener, text: str) -> str:
        return await listener.heard(text)

    async def watch_soon(self, listener: AsyncListener, count: int) -> AsyncIterator[str]:
        for number in range(count):
            yield await listener.heard(str(number))

    def keep(self, listener: Listener) -> None:
        self.kept.append(listener)

    def tell_kept(self, text: str) -> list[str]:
        return [listener.heard(text) for listener in self.kept]

    def forget(self) -> None:
        self.kept.clear()

    def counter(self, start: int) -> Counter:
        return Count(start)

    def counters(self, count: int) -> Iterator[Counter]:
        return (Count(number) for number in range(count))

    def nested(self, other: Party, depth: int) -> int:
        return depth + (other.nested(self, depth - 1) if depth else 0)

    def open_things(self) -> dict[str, int]:
        gc.collect()
        return open_things()


def open_things() -> dict[str, int]:
    """What this process has open."""
    kinds: dict[str, Callable[[], int]] = {
        "threads": threading.active_count,
        "descriptors": lambda: len(os.listdir("/proc/self/fd")),
        "sockets": lambda: len(files_under(os.environ["TMPDIR"])),
    }
    return {name: count() for name, count in kinds.items()}


def files_under(folder: str) -> list[str]:
    return [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]


def main() -> None:
    serve(PLUGINS, {"party": PartyImpl()}, handshake=HANDSHAKE, engine=sys.argv[1])
