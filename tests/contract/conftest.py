"""What the contract tests share: descriptors compiled from .proto text, and objects that are called back."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import grpc_tools
import pytest

WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"


class Registry:
    """Stands for a broker: ids for objects, on one side only."""

    def __init__(self) -> None:
        self.exported: dict[int, tuple[object, object]] = {}

    def export(self, implementation: object, contract: object) -> int:
        self.exported[len(self.exported) + 1] = (implementation, contract)
        return len(self.exported)

    def adopt(self, service_id: int, contract: object) -> object:
        return self.exported[service_id][0]


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def compile_proto(tmp_path: Path) -> Callable[[str], bytes]:
    """Compile the text of a .proto file into a serialized FileDescriptorSet."""

    def compile_text(text: str) -> bytes:
        (tmp_path / "given.proto").write_text(text)
        output = tmp_path / "given.bin"
        protoc(tmp_path, "given.proto", "--include_imports", f"--descriptor_set_out={output}")
        return output.read_bytes()

    return compile_text


@pytest.fixture(scope="session")
def shop_pb2(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module that protoc generates from shop.proto."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "hybridload_shop.proto").write_text((Path(__file__).parent / "shop.proto").read_text())
    protoc(folder, "hybridload_shop.proto", f"--python_out={folder}")
    spec = importlib.util.spec_from_file_location("hybridload_shop_pb2", folder / "hybridload_shop_pb2.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def protoc(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"-I{WELL_KNOWN}", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)
