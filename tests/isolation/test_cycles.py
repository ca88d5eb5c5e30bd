"""Loaders that come and go: however often a plugin is loaded and closed, nothing of it stays."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridload import Loader
from tests.isolation.conftest import GREETER_SDK, GROUP, Write
from tests.isolation.memory import Memory

CONFIG = """
[host]
plugins = "cycles_sdk:PLUGINS"
handshake = "cycles_sdk:HANDSHAKE"
[plugins.python]
entry_point = "cycles_sdk:Hello"
[plugins.gopher]
command = ["@GO@"]
[plugins.netrpc]
command = ["@GO@"]
env = { TORTURE_PROTOCOL = "netrpc" }
"""
ROWS = {
    "in-process": ("python", "in-process", 300),
    "subprocess": ("python", "subprocess", 12),
    "external gRPC": ("gopher", "external", 12),
    "external net/rpc": ("netrpc", "external", 12),
}
"""What is loaded -> name, isolation, and how often where there is little time."""

each_row = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=pytest.mark.go if isolation == "external" else ())
        for row, (_, isolation, _) in ROWS.items()
    ],
)


@each_row
def test_loading_and_closing_again_and_again_leaves_nothing(
    write_module: Write, request: pytest.FixtureRequest, tmp_path: Path, row: str
) -> None:
    cycle(write_module, request, tmp_path, row, ROWS[row][2])


@pytest.mark.long
@pytest.mark.timeout(36_000)
@each_row
def test_ten_thousand_cycles_leave_nothing(
    write_module: Write, request: pytest.FixtureRequest, tmp_path: Path, row: str
) -> None:
    cycle(write_module, request, tmp_path, row, int(os.environ.get("HYBRIDLOAD_CYCLES", 10_000)))


def cycle(write_module: Write, request: pytest.FixtureRequest, folder: Path, row: str, times: int) -> None:
    write_module("cycles_sdk", GREETER_SDK)
    name, isolation, _ = ROWS[row]
    build: Callable[[str], Path] | None = request.getfixturevalue("go_build") if isolation == "external" else None
    config = folder / "plugins.toml"
    config.write_text(CONFIG.replace("@GO@", "none" if build is None else str(build("tests/go/greeter"))))

    def once() -> None:
        with Loader(config=config, group=GROUP) as loader:
            assert loader.load(name, isolation=isolation).greet().startswith("Hello from ")

    for _ in range(max(3, min(100, times // 4))):
        once()
    memory, descriptors, threads = Memory.of_this_process(), len(os.listdir("/proc/self/fd")), threading.active_count()
    began = time.monotonic()
    for _ in range(times):
        once()
    grown = Memory.of_this_process() - memory
    print(f"{row}: {times} cycles in {time.monotonic() - began:.0f} s; {grown}")
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert threading.active_count() <= threads
    grown.is_next_to_nothing()
