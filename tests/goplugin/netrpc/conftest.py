"""The Go program at the other end of the gob tests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class Go:
    """A running `gobcorpus serve`: one JSON line asked, one answered."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def gobcorpus(go_build: Callable[[str], Path]) -> Path:
    return go_build("tests/go/gobcorpus")


@pytest.fixture(scope="session")
def go(gobcorpus: Path) -> Iterator[Go]:
    process = Go(gobcorpus)
    yield process
    process.close()
