"""Limits of a Go program: it starts and serves within them."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridload.goplugin import Client
from hybridload.limits import Limits


@pytest.mark.parametrize("sealed", [False, True], ids=["file", "verified copy"])
def test_a_go_plugin_serves_within_its_limits(go_build: Callable[[str], Path], go_plugins: Any, sealed: bool) -> None:
    program = go_build("tests/go/greeter")
    limits = Limits(memory=256 << 20, cpu_seconds=100, open_files=64, processes=100_000)
    client = Client(
        [program],
        plugins=go_plugins.plugins,
        handshake=go_plugins.handshake,
        limits=limits,
        sha256=hashlib.sha256(program.read_bytes()).hexdigest() if sealed else None,
    )
    client.start()
    try:
        assert client.pid is not None
        held = {name: resource.prlimit(client.pid, getattr(resource, f"RLIMIT_{name}")) for name in ("DATA", "CPU")}
        assert held == {"DATA": (256 << 20, 256 << 20), "CPU": (100, 101)}
        torture = client.dispense("torture")
        assert [item.number for item in torture.count(100, size=10_000)] == list(range(100))
    finally:
        client.kill()
