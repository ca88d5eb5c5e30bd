"""Two plugins that need two versions of one library, in one host: each runs in a virtual environment of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridload import Loader
from hybridload.errors import NoUsableIsolation

ROOT = Path(__file__).resolve().parents[2]
SDK = """
from typing import Protocol
from hybridload import Handshake

class Quote(Protocol):
    def versions(self) -> list[str]: ...
    def render(self, words: str) -> str: ...

PLUGINS = {"quote": Quote}
HANDSHAKE = Handshake("ISOLATION_TEST", "on")
"""
# Each version has what the other has not.
LIBRARY_1 = """
__version__ = "1.0"
def shout(words):
    return words.upper() + "!"
"""
LIBRARY_2 = """
__version__ = "2.0"
class Style:
    def whisper(self, words, *, end):
        return words.lower() + end
"""
PLUGIN_1 = """
import importlib.metadata, sys
import conflict_lib
from conflict_lib import shout

class Old:
    def versions(self):
        return [conflict_lib.__version__, importlib.metadata.version("conflict-lib"), sys.prefix, conflict_lib.__file__]
    def render(self, words):
        return shout(words)
"""
PLUGIN_2 = """
import importlib.metadata, sys
import conflict_lib
from conflict_lib import Style

class New:
    def versions(self):
        return [conflict_lib.__version__, importlib.metadata.version("conflict-lib"), sys.prefix, conflict_lib.__file__]
    def render(self, words):
        return Style().whisper(words, end="...")
"""
CONFIG = """
[host]
plugins = "quote_sdk:PLUGINS"
handshake = "quote_sdk:HANDSHAKE"
[defaults]
isolation = "subprocess"
[plugins.old]
entry_point = "old_plugin:Old"
python = "./venv1/bin/python"
[plugins.new]
entry_point = "new_plugin:New"
python = "./venv2/bin/python"
"""


def add_package(site: Path, version: str, source: str) -> None:
    """What an installer would leave of conflict-lib in a folder of packages."""
    site.mkdir(parents=True, exist_ok=True)
    (site / "conflict_lib.py").write_text(source)
    info = site / f"conflict_lib-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: conflict-lib\nVersion: {version}\n")


def make_venv(folder: Path) -> Path:
    """A virtual environment with hybridload and what it depends on; returns its folder of packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=100)
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    # Lines of a .pth come behind the folder itself: what the venv has of its own wins.
    (site / "hybridload.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return site


@pytest.fixture
def two_venvs(write_module: Any, open_loader: Callable[..., Loader], tmp_path: Path) -> Loader:
    write_module("quote_sdk", SDK)
    for number, (library, name, plugin) in enumerate(
        [(LIBRARY_1, "old_plugin", PLUGIN_1), (LIBRARY_2, "new_plugin", PLUGIN_2)], 1
    ):
        site = make_venv(tmp_path / f"venv{number}")
        add_package(site, f"{number}.0", library)
        (site / f"{name}.py").write_text(plugin)
    return open_loader(config=CONFIG)


def test_two_versions_of_one_library_serve_one_host(two_venvs: Loader, tmp_path: Path) -> None:
    old, new = two_venvs.load("old"), two_venvs.load("new")
    for _ in range(3):
        assert old.render("Hello") == "HELLO!"
        assert new.render("Hello") == "hello..."
    for number, plugin in enumerate((old, new), 1):
        venv = tmp_path / f"venv{number}"
        library, installed, prefix, file = plugin.versions()
        assert (library, installed) == (f"{number}.0", f"{number}.0")
        assert Path(prefix) == venv
        assert Path(file).is_relative_to(venv)
    assert "conflict_lib" not in sys.modules
    assert {"old_plugin", "new_plugin"}.isdisjoint(sys.modules)


def test_the_hosts_own_version_does_not_reach_them(
    two_venvs: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's import path is handed on, behind the other interpreter's own."""
    add_package(tmp_path / "host_site", "3.0", '__version__ = "3.0"\n')
    monkeypatch.syspath_prepend(str(tmp_path / "host_site"))
    import conflict_lib

    try:
        assert conflict_lib.__version__ == "3.0"
        assert two_venvs.load("old").versions()[:2] == ["1.0", "1.0"]
        assert two_venvs.load("new").versions()[:2] == ["2.0", "2.0"]
    finally:
        del sys.modules["conflict_lib"]


def test_one_cannot_run_in_the_environment_of_the_other(two_venvs: Loader, tmp_path: Path) -> None:
    """So that the conflict is a real one."""
    (tmp_path / "venv2/lib").rename(tmp_path / "venv2/other")
    (tmp_path / "venv2/lib").symlink_to(tmp_path / "venv1/lib")
    site = next((tmp_path / "venv1/lib").glob("*/site-packages"))
    (site / "new_plugin.py").write_text(PLUGIN_2)
    with pytest.raises(NoUsableIsolation, match="cannot import name 'Style'"):
        two_venvs.load("new")
