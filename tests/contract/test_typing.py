"""A contract is typed by its interface, for mypy and for pyright."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
from abc import ABC, abstractmethod
from typing import Annotated, Protocol
from hybridload.contract import Contract, Field

class Greeter(Protocol):
    def greet(self) -> str: ...

class Store(ABC):
    @abstractmethod
    def get(self, key: Annotated[str, Field(7)]) -> str: ...

greeter: Contract[Greeter] = Contract(Greeter)
store = Contract(Store, service="proto.Store", errors=[ValueError])
reveal_type(Contract(Greeter))
reveal_type(store)
"""


def test_mypy_infers_the_interface(tmp_path: Path) -> None:
    (tmp_path / "typed.py").write_text(CODE)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--follow-imports=silent", "typed.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Revealed type is "hybridload.contract.service.Contract[typed.Greeter]"' in done.stdout
    assert 'Revealed type is "hybridload.contract.service.Contract[typed.Store]"' in done.stdout
