"""The plugin that the tests of `serve` start: what `torture.proto` asks of a Go plugin, done in Python.

The contract is derived from hints that give the same bytes as torture.proto, so that a Go host can call it. Run as a
program it is served; programs that do something first import this and call `main`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Protocol

from hybridload.contract import Contract
from hybridload.goplugin.serve import serve
from hybridload.handshake import Handshake

HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")
OS_STDOUT, OS_STDERR, RAW_STDOUT, RAW_STDERR = range(4)


class Torture(Protocol):
    def echo(self, data: bytes) -> bytes: ...
    def write(self, target: int, size: int = 0, line_length: int = 0, text: bytes = b"") -> int: ...
    def log(self, format: int, lines: int, level: str, padding: int) -> None: ...
    def sleep(self, seconds: float) -> None: ...
    def hang(self) -> None: ...
    def exit(self, code: int) -> None: ...
    def fail(self, code: int, message: str) -> None: ...
    def count(self, count: int, size: int = 0, pause: float = 0.0) -> Iterator[int]: ...
    def chat(self, data: Iterator[bytes]) -> Iterator[bytes]: ...
    def process(self) -> int: ...
    def spawn(self, seconds: float, keep_pipes: bool) -> int: ...


class Python(Protocol):
    """What only a Python host asks for."""

    def run(self, code: str) -> str: ...
    async def async_sleep(self, seconds: float, mark: str) -> float: ...
    def async_count(self, count: int, mark: str) -> AsyncIterator[int]: ...


class Greeter(Protocol):
    def greet(self) -> str: ...


TORTURE = Contract(Torture, service="torture.Torture")
PYTHON = Contract(Python)
GREETER = Contract(Greeter, service="proto.GreeterService")
PLUGINS = {"torture": TORTURE, "python": PYTHON, "greeter": GREETER}


class TortureImpl:
    """Does to its host what it is told to."""

    def echo(self, data: bytes) -> bytes:
        return data

    def write(self, target: int, size: int = 0, line_length: int = 0, text: bytes = b"") -> int:
        data = text or pattern(size, line_length)
        if target in (OS_STDOUT, OS_STDERR):
            stream = sys.stdout if target == OS_STDOUT else sys.stderr
            # Half as bytes and half as text, so that both ways are in order.
            half = len(data) // 2
            stream.buffer.write(data[:half])
            stream.write(data[half:].decode())
        else:
            descriptor = 1 if target == RAW_STDOUT else 2
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        return len(data)

    def log(self, format: int, lines: int, level: str, padding: int) -> None:
        logger = logging.getLogger("torture.log")
        number = {"trace": 5, "warn": logging.WARNING}.get(level) or getattr(logging, (level or "info").upper())
        for line in range(lines):
            logger.log(number, "line %d%s", line, "x" * padding, extra={"number": line, "odd": {1, 2}})

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def hang(self) -> None:
        while True:
            time.sleep(3600)

    def exit(self, code: int) -> None:
        os._exit(code)

    def fail(self, code: int, message: str) -> None:
        if code:
            raise SystemExit(code)
        raise ValueError(message)

    def count(self, count: int, size: int = 0, pause: float = 0.0) -> Iterator[int]:
        for number in range(count):
            yield number
            time.sleep(pause)

    def chat(self, data: Iterator[bytes]) -> Iterator[bytes]:
        yield from data

    def process(self) -> int:
        return os.getpid()

    def spawn(self, seconds: float, keep_pipes: bool) -> int:
        pipes = None if keep_pipes else subprocess.DEVNULL
        return subprocess.Popen(["sleep", str(seconds)], stdout=pipes, stderr=pipes).pid


class PythonImpl:
    def run(self, code: str) -> str:
        names: dict[str, object] = {}
        exec(code, names)
        return str(names.get("result", ""))

    async def async_sleep(self, seconds: float, mark: str) -> float:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            Path(mark).touch()
            raise
        return seconds

    async def async_count(self, count: int, mark: str) -> AsyncIterator[int]:
        try:
            for number in range(count):
                yield number
                await asyncio.sleep(0)
        finally:
            if mark:
                Path(mark).touch()


class GreeterImpl:
    def __init__(self, mark: str = "") -> None:
        self.mark = mark

    def greet(self) -> str:
        return "Hello from Python!"

    def close(self) -> None:
        print("closing")
        if self.mark:
            Path(self.mark).write_text("closed")


def pattern(size: int, line_length: int) -> bytes:
    """As the Go plugin's: letters, and a line feed at the end of each line."""
    line = b"x" * (line_length - 1) + b"\n" if line_length else b"x"
    return (line * (size // len(line) + 1))[:size]


def main(mark: str = "", **options: bool) -> None:
    implementations = {"torture": TortureImpl(), "python": PythonImpl(), "greeter": GreeterImpl(mark)}
    serve(PLUGINS, implementations, handshake=HANDSHAKE, **options)


if __name__ == "__main__":
    main()
