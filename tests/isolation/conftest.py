"""Loaders whose plugins run in processes of their own: modules and distributions that are written for each test."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridload import Handshake, Loader

HANDSHAKE = Handshake("ISOLATION_TEST", "on")
GROUP = "test.isolation"

Write = Callable[[str, str], None]
Open = Callable[..., Loader]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a module that this process and its children can import."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))

    return write


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., None]:
    """Installs a distribution with the given entry points."""

    def write(**entry_points: str) -> None:
        info = tmp_path / "isolation_test-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: isolation-test\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))

    return write


@pytest.fixture
def open_loader(tmp_path: Path) -> Iterator[Open]:
    """Opens a loader; a configuration is given as its text."""
    loaders: list[Loader] = []

    def begin(plugins: Any = None, config: str | None = None, **options: Any) -> Loader:
        if config is not None:
            options["config"] = tmp_path / "plugins.toml"
            options["config"].write_text(textwrap.dedent(config))
        loaders.append(Loader(plugins, group=GROUP, **{"handshake": HANDSHAKE, **options}))
        return loaders[-1]

    yield begin
    for loader in loaders:
        loader.close()
