"""The Go program at the other end of the gob tests."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
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


@pytest.fixture
def alike() -> Callable[[Any, Any], bool]:
    """Whether two values are equal and of equal types, with NaN equal to itself and minus zero not to zero."""
    return _alike


def _alike(got: Any, wanted: Any) -> bool:
    if type(got) is not type(wanted):
        return False
    match got:
        case float():
            return repr(got) == repr(wanted)
        case complex():
            return _alike(got.real, wanted.real) and _alike(got.imag, wanted.imag)
        case list() | tuple():
            return len(got) == len(wanted) and all(map(_alike, got, wanted))
        case dict():
            return got.keys() == wanted.keys() and all(_alike(got[key], wanted[key]) for key in got)
        case datetime():
            return bool(got == wanted) and got.utcoffset() == wanted.utcoffset()
    if dataclasses.is_dataclass(got) and not isinstance(got, type):
        return all(_alike(getattr(got, f.name), getattr(wanted, f.name)) for f in dataclasses.fields(got))
    return bool(got == wanted)
