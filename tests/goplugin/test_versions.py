"""Versioned plugin sets in both roles: the highest common version is spoken, each with a contract of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from hybridload import Contract, Handshake, Loader, PluginSet
from hybridload.errors import VersionMismatch
from hybridload.goplugin import Client

HANDSHAKE = Handshake("VERSIONS", "hello")
PLUGIN = """
from typing import Protocol
from hybridload import Contract, Handshake, serve

class First(Protocol):
    def greet(self) -> str: ...

class Second(Protocol):
    def greet(self, name: str, times: int) -> list[str]: ...
    def part(self) -> str: ...

class Hello:
    def greet(self):
        return "hello"

class HelloAgain:
    def greet(self, name, times):
        return [f"hello {name}"] * times
    def part(self):
        return "goodbye"

serve(
    {1: {"greeter": Contract(First, service="v1.Greeter")}, 2: {"greeter": Contract(Second, service="v2.Greeter")}},
    {1: {"greeter": Hello()}, 2: {"greeter": HelloAgain()}},
    handshake=Handshake("VERSIONS", "hello"),
    protocols=PROTOCOLS,
)
"""


class First(Protocol):
    def greet(self) -> str: ...


class Second(Protocol):
    def greet(self, name: str, times: int) -> list[str]: ...
    def part(self) -> str: ...


FIRST: PluginSet = {1: {"greeter": Contract(First, service="v1.Greeter")}}
SECOND: PluginSet = {2: {"greeter": Contract(Second, service="v2.Greeter")}}
BOTH: PluginSet = {**FIRST, **SECOND}  # type: ignore[dict-item]
NewClient = Callable[..., Client]


@pytest.fixture(params=["'grpc'", "'netrpc'", "{1: 'netrpc', 2: 'grpc'}"], ids=["grpc", "netrpc", "one of each"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    program = tmp_path / "plugin.py"
    program.write_text(PLUGIN.replace("PROTOCOLS", request.param))
    return [sys.executable, str(program)]


@pytest.mark.parametrize("plugins", [FIRST, {**FIRST, 7: SECOND[2]}], ids=["1", "1 and 7"])  # type: ignore[index]
def test_a_host_that_knows_the_old_version_gets_the_old_contract(command: list[str], plugins: Any) -> None:
    with Client(command, plugins=plugins, handshake=HANDSHAKE) as client:
        assert client.app_version == 1
        greeter = client.dispense("greeter")
        assert greeter.greet() == "hello"
        assert not hasattr(greeter, "part")


@pytest.mark.parametrize("plugins", [SECOND, BOTH], ids=["2", "1 and 2"])
def test_a_host_that_knows_the_new_version_gets_the_new_contract(command: list[str], plugins: Any) -> None:
    with Client(command, plugins=plugins, handshake=HANDSHAKE) as client:
        assert client.app_version == 2
        greeter = client.dispense("greeter")
        assert greeter.greet("you", 2) == ["hello you"] * 2
        assert greeter.part() == "goodbye"


def test_without_a_common_version_both_sides_versions_are_named(command: list[str]) -> None:
    client = Client(command, plugins={7: FIRST[1]}, handshake=HANDSHAKE)  # type: ignore[index]
    with pytest.raises(VersionMismatch, match=r"1.*7"):
        client.start()


def test_the_protocol_may_depend_on_the_version(tmp_path: Path) -> None:
    program = tmp_path / "plugin.py"
    program.write_text(PLUGIN.replace("PROTOCOLS", "{1: 'netrpc', 2: 'grpc'}"))
    spoken = {}
    for version, plugins in {1: FIRST, 2: SECOND}.items():
        with Client([sys.executable, str(program)], plugins=plugins, handshake=HANDSHAKE) as client:
            spoken[version] = client.protocol
    assert spoken == {1: "netrpc", 2: "grpc"}


def test_the_loader_tells_the_version(command: list[str], tmp_path: Path) -> None:
    config = tmp_path / "plugins.toml"
    config.write_text(f"[plugins.hello]\ncommand = {command!r}\n")
    with Loader(BOTH, handshake=HANDSHAKE, config=config) as loader:
        assert loader.load("hello", Second).greet("you", 1) == ["hello you"]
        assert loader.status("hello").version == 2
