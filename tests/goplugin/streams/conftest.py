"""What the tests of streams share."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest

from hybridload.goplugin.streams.base import Stream


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for whatever shall happen at once; at the end of the test all of it must be over."""
    with ThreadPoolExecutor(max_workers=64) as executor:
        yield executor


ReceiveExactly = Callable[[Stream, int], bytes]
ReceiveAll = Callable[[Stream], bytes]


@pytest.fixture
def receive_exactly() -> ReceiveExactly:
    """Receives so many bytes, however they are cut."""

    def receive_exactly(stream: Stream, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            chunk = stream.receive(min(65536, count - len(received)), timeout=20)
            assert chunk, f"the end came after {len(received)} of {count} bytes"
            received += chunk
        return bytes(received)

    return receive_exactly


@pytest.fixture
def receive_all() -> ReceiveAll:
    """Receives up to the end of the stream."""

    def receive_all(stream: Stream) -> bytes:
        received = bytearray()
        while chunk := stream.receive(timeout=20):
            received += chunk
        return bytes(received)

    return receive_all


@pytest.fixture
def go_peer(go_build: Callable[[str], Path]) -> Iterator[Callable[..., GoPeer]]:
    """Starts a program of tests/go with arguments; it is stopped at the end of the test."""
    with contextlib.ExitStack() as peers:

        def start(name: str, *arguments: str) -> GoPeer:
            peer = GoPeer(go_build(f"tests/go/{name}"), *arguments)
            peers.callback(peer.stop)
            return peer

        yield start


class GoPeer:
    """A running Go test program that is told what to do by its arguments and tells what it saw, a line each."""

    def __init__(self, program: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._errors: list[str] = []
        self._collector = threading.Thread(target=self._collect_errors, name="stderr of a Go peer")
        self._collector.start()

    def _collect_errors(self) -> None:
        self._errors.extend(_pipe(self.process.stderr))

    @property
    def errors(self) -> str:
        return "".join(self._errors)

    def line(self) -> str:
        line = _pipe(self.process.stdout).readline()
        assert line, f"the Go peer said nothing more; its stderr: {self.errors}"
        return line.rstrip("\n")

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.line())
        return report

    def tell(self, text: str) -> None:
        _pipe(self.process.stdin).write(text)
        _pipe(self.process.stdin).flush()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._collector.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            _pipe(pipe).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
