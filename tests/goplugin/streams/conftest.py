"""What the tests of streams share: nothing may be left behind, and peers written in Go."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GO_PROGRAMS = Path(__file__).parents[2] / "go"


def open_descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the listing's own
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test ends with the threads, descriptors and temporary files that it began with."""
    folder = tempfile.mkdtemp(prefix="hl", dir="/tmp")
    monkeypatch.setattr(tempfile, "tempdir", folder)
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    yield
    wait_until(lambda: set(threading.enumerate()) <= threads, "threads to end")
    gc.collect()
    left = {number: what for number, what in open_descriptors().items() if number not in descriptors}
    files = os.listdir(folder)
    shutil.rmtree(folder)
    assert not left
    assert not files


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}: {threading.enumerate()}"
        time.sleep(0.002)


@pytest.fixture(scope="session")
def go_build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a program of tests/go and returns its path."""
    missing = None if shutil.which("go") else "the Go toolchain (go) is not on PATH"
    built: dict[str, Path] = {}

    def build(name: str) -> Path:
        if missing:
            if os.environ.get("HYBRIDLOAD_REQUIRE_GO") == "1":
                pytest.fail(missing)
            pytest.skip(missing)
        if name not in built:
            target = tmp_path_factory.mktemp("go") / name
            subprocess.run(["go", "build", "-o", target, f"./{name}"], cwd=GO_PROGRAMS, check=True)
            built[name] = target
        return built[name]

    return build
