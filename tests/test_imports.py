"""What importing hybridload costs, and what a host whose plugins all run in-process never loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("grpc", "cryptography", "typer", "rich", "hybridload.cli", "hybridload.goplugin.client")

IN_PROCESS_HOST = """
import sys
from hybridload import Contract, Handshake, Loader
from shop import Till

with Loader({"till": Contract(Till)}, handshake=Handshake("SHOP", "open"), config="plugins.toml") as loader:
    till = loader.load("till", Till)
    assert till.add(2, 3) == 5
    loader.status("till"), loader.names(), loader.reload("till")
    assert till.add(2, 3) == 5
print(*sys.modules)
"""
SHOP = """
from typing import Protocol

class Till(Protocol):
    def add(self, a: int, b: int) -> int: ...

class Drawer:
    def add(self, a: int, b: int) -> int:
        return a + b
"""


def imported(*arguments: str, cwd: Path | None = None) -> list[str]:
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


@pytest.mark.parametrize("module", HEAVY)
def test_importing_hybridload_does_not_load(module: str) -> None:
    assert module not in imported("-c", "import sys, hybridload; print(*sys.modules)")


def test_the_list_of_imports_as_the_interpreter_writes_it() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import hybridload"], capture_output=True, text=True, check=True
    )
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hybridload" in names
    assert not {name for name in names for heavy in HEAVY if name == heavy or name.startswith(heavy + ".")}


def test_a_host_whose_plugins_are_all_in_process_loads_no_grpc(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "plugins.toml").write_text('[plugins.till]\nentry_point = "shop:Drawer"\n')
    (tmp_path / "host.py").write_text(IN_PROCESS_HOST)
    modules = imported("host.py", cwd=tmp_path)
    assert "hybridload.isolation.in_process" in modules
    assert not set(HEAVY) & set(modules)


SELF_AWARE = """
import gc
import sys
from typing import Protocol

class Aware(Protocol):
    def modules(self) -> list[str]: ...
    def collects(self) -> bool: ...

COLLECTS = gc.isenabled()

class Other(Protocol):
    def take(self, name: str, /, size: int = 3, *, deep: bool = False) -> int: ...

class Self:
    def __init__(self, *, name: str, size: int = 1) -> None:
        self.name = name

    def modules(self) -> list[str]:
        return sorted(sys.modules)

    def collects(self) -> bool:
        return COLLECTS and gc.isenabled() and gc.get_freeze_count() > 0
"""
ITS_HOST = """
from aware import Aware, Other
from hybridload import Contract, Handshake, Loader

PLUGINS = {"aware": Contract(Aware), "other": Contract(Other)}
with Loader(PLUGINS, handshake=Handshake("AWARE", "yes"), config="plugins.toml") as loader:
    aware = loader.load("self", Aware)
    print(*aware.modules(), f"collects={aware.collects()}")
"""


@pytest.fixture(scope="module")
def in_the_plugin(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a plugin's process has imported when it is called; its host's plugin set has a kind that it is not."""
    tmp_path = tmp_path_factory.mktemp("aware")
    (tmp_path / "aware.py").write_text(SELF_AWARE)
    (tmp_path / "plugins.toml").write_text(
        '[plugins.self]\nentry_point = "aware:Self"\nkind = "aware"\nisolation = "subprocess"\n'
        "[plugins.self.options]\nname = 'it'\n"
    )
    (tmp_path / "host.py").write_text(ITS_HOST)
    return imported("host.py", cwd=tmp_path)


def test_a_plugin_that_serves_grpc_loads_nothing_of_net_rpc(in_the_plugin: list[str]) -> None:
    assert "hybridload.goplugin.grpc.serving" in in_the_plugin
    assert not [module for module in in_the_plugin if module.startswith("hybridload.goplugin.netrpc")]


def test_a_plugin_without_dataclasses_loads_neither_them_nor_what_only_they_need(in_the_plugin: list[str]) -> None:
    assert not {"dataclasses", "inspect", "ast", "dis"} & set(in_the_plugin)


def test_a_plugin_whose_host_is_hybridload_loads_no_hpack(in_the_plugin: list[str]) -> None:
    assert "hpack" not in in_the_plugin


def test_an_authors_code_has_its_garbage_collected_but_what_serves_it_is_left_alone(
    in_the_plugin: list[str],
) -> None:
    assert "collects=True" in in_the_plugin
