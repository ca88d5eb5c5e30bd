"""The Python plugin of the behaviour suite: what runs in-process, in a subprocess, and as a program of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta

from behaviour_sdk import Colour, Counter, Listener, OutOfStock, Parcel, Peer

PATIENCE = 30.0


class Foreign(Exception):
    """Known to the plugin alone."""


class Everything:
    def __init__(self) -> None:
        self._events: dict[str, threading.Event] = {}
        self._releases: dict[str, Callable[[], object]] = {}
        self._barriers: dict[str, threading.Barrier] = {}
        self._lock = threading.Lock()
        self._kept: Listener | None = None

    # Values

    def echo_parcel(self, parcel: Parcel) -> Parcel:
        return parcel

    def echo_text(self, value: str) -> str:
        return value

    def echo_number(self, value: int) -> int:
        return value

    def echo_ratio(self, value: float) -> float:
        return value

    def echo_flag(self, value: bool) -> bool:
        return value

    def echo_data(self, value: bytes) -> bytes:
        return value

    def echo_words(self, value: list[str]) -> list[str]:
        return value

    def echo_scores(self, value: dict[str, float]) -> dict[str, float]:
        return value

    def echo_colour(self, value: Colour) -> Colour:
        return value

    def echo_moment(self, value: datetime) -> datetime:
        return value

    def echo_span(self, value: timedelta) -> timedelta:
        return value

    def echo_maybe(self, value: str | None) -> str | None:
        return value

    def describe(self, name: str, count: int = 3, *, loud: bool = False, title: str | None = None) -> str:
        return f"{'-' if title is None else title} {name.upper() if loud else name} {count}"

    def grow(self, words: list[str]) -> int:
        words.append("more")
        return len(words)

    def nothing(self) -> None:
        pass

    # Streams

    def count(self, start: int, stop: int) -> Iterator[int]:
        yield from range(start, stop)

    def count_then_fail(self, good: int) -> Iterator[int]:
        yield from range(good)
        raise ValueError(f"no more than {good}")

    def endless(self, key: str) -> Iterator[int]:
        number = 0
        try:
            while True:
                yield number
                number += 1
        finally:
            self._event(key).set()

    def total(self, numbers: Iterator[int]) -> int:
        return sum(numbers)

    def first(self, numbers: Iterator[int]) -> int:
        return next(numbers)

    def scaled(self, factor: int, numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            yield factor * number

    def until(self, stop: int, numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            if number == stop:
                return
            yield number

    # Callbacks

    def tell(self, listener: Listener, texts: list[str]) -> list[str]:
        return [listener.hear(text) for text in texts]

    def keep(self, listener: Listener) -> None:
        self._kept = listener

    def tell_kept(self, text: str) -> str:
        if self._kept is None:
            raise LookupError("nobody to tell")
        return self._kept.hear(text)

    def counter(self, start: int) -> Counter:
        return _Counter(start)

    def bounce(self, peer: Peer, depth: int) -> int:
        return 0 if depth == 0 else 1 + peer.catch(depth - 1)

    # Asynchronous methods

    async def slow_text(self, value: str) -> str:
        await asyncio.sleep(0)
        return value

    async def forever(self, key: str) -> None:
        loop, released = asyncio.get_running_loop(), asyncio.Event()
        self._releases[key] = lambda: loop.call_soon_threadsafe(released.set)
        try:
            self._event(f"{key} begun").set()
            await released.wait()
            self._event(f"{key} to its end").set()
        finally:
            self._event(key).set()

    async def slow_fail(self, how: str) -> None:
        await asyncio.sleep(0)
        self.fail(how)

    async def slow_total(self, numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])

    async def slow_count(self, stop: int) -> AsyncIterator[int]:
        for number in range(stop):
            await asyncio.sleep(0)
            yield number

    async def slow_endless(self, key: str) -> AsyncIterator[int]:
        number = 0
        try:
            while True:
                await asyncio.sleep(0)
                yield number
                number += 1
        finally:
            self._event(key).set()

    async def slow_scaled(self, factor: int, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        async for number in numbers:
            yield factor * number

    # Errors and concurrency

    def fail(self, how: str) -> None:
        match how:
            case "value":
                raise ValueError("bad value", 42)
            case "key":
                raise KeyError("missing")
            case "unsupported":
                raise NotImplementedError("not yet")
            case "permission":
                raise PermissionError(13, "Permission denied", "/secret")
            case "timeout":
                raise TimeoutError("too slow")
            case "own":
                error = OutOfStock("apples", 3)
                error.left = 0  # type: ignore[attr-defined]
                raise error
            case "foreign":
                raise Foreign("of the plugin's own")
            case "noted":
                noted = RuntimeError("with notes")
                noted.add_note("first note")
                noted.add_note("second note")
                raise noted
            case "chained":
                try:
                    raise KeyError("the cause")
                except KeyError as cause:
                    raise OutOfStock("the effect") from cause
            case "group":
                raise ExceptionGroup("several", [ValueError("one"), OutOfStock("two")])
            case "exit":
                raise SystemExit("enough")
            case "stop":
                raise StopIteration("over")
            case "unicode":
                b"\xff".decode()
            case "long":
                raise ValueError("x" * 100_000)
        raise RuntimeError(how)

    def _event(self, key: str) -> threading.Event:
        """The one event of this name, even for two threads that ask at once: a `defaultdict` may give each its own."""
        return self._events.setdefault(key, threading.Event())

    def hold(self, key: str) -> None:
        self._event(f"{key} begun").set()
        if not self._event(f"{key} release").wait(PATIENCE):
            raise TimeoutError(f"nobody released {key}")
        self._event(key).set()

    def release(self, key: str) -> None:
        self._event(f"{key} release").set()
        self._releases.pop(key, lambda: None)()

    def ended(self, key: str) -> bool:
        return self._event(key).wait(PATIENCE)

    def meet(self, key: str, parties: int) -> int:
        with self._lock:
            barrier = self._barriers.setdefault(key, threading.Barrier(parties))
        return barrier.wait(PATIENCE)

    # Output

    def log(self, logger: str, level: str, message: str, fields: dict[str, str]) -> None:
        logging.getLogger(logger).log(logging.getLevelNamesMapping()[level], message, extra=fields)

    def log_exception(self, message: str) -> None:
        try:
            raise ValueError("logged, not raised")
        except ValueError:
            logging.getLogger("behaviour").exception(message)

    def warn(self, message: str) -> None:
        warnings.warn(message, UserWarning, stacklevel=1)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def pid(self) -> int:
        return os.getpid()


class _Counter:
    def __init__(self, start: int) -> None:
        self._value = start

    def add(self, by: int) -> int:
        self._value += by
        return self._value
