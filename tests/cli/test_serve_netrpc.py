"""`hybridload serve --protocol netrpc`: an entry point as a net/rpc plugin, for a host that knows nothing else."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from hybridload import Contract, Handshake
from hybridload.errors import ExitedBeforeHandshake
from hybridload.goplugin import Client

SDK = """
from typing import Protocol
from hybridload import Contract, Handshake

class Greeter(Protocol):
    def greet(self) -> str: ...

PLUGINS = {"greeter": Contract(Greeter)}
HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")
"""
PLUGIN = """
class Hello:
    def __init__(self, greeting="Hello from an entry point!"):
        self.greeting = greeting
    def greet(self):
        return self.greeting
"""
FLAGS = ("--plugins", "greeter_sdk:PLUGINS", "--handshake", "greeter_sdk:HANDSHAKE")


class Greeter(Protocol):
    def greet(self) -> str: ...


@pytest.fixture
def served(
    shop: Path, install: Callable[..., None], environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Client]]:
    """A host of what `hybridload serve` serves."""
    (shop / "greeter_sdk.py").write_text(SDK)
    (shop / "greeter_plugin.py").write_text(PLUGIN)
    install(hello="greeter_plugin:Hello", corner="shop_plugin:Corner")
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    clients = []

    def serve(*arguments: str, **options: Any) -> Client:
        command = [sys.executable, "-m", "hybridload", "serve", *arguments]
        given = {"plugins": {"greeter": Contract(Greeter)}, "handshake": Handshake("BASIC_PLUGIN", "hello"), **options}
        clients.append(Client(command, cwd=shop, **given))
        return clients[-1]

    yield serve
    for client in clients:
        client.kill()


@pytest.mark.parametrize("mtls", [True, False])
def test_a_host_that_speaks_netrpc_alone_is_greeted(served: Callable[..., Client], mtls: bool) -> None:
    client = served("test.shops:hello", *FLAGS, "--protocol", "netrpc", allowed_protocols=("netrpc",), auto_mtls=mtls)
    assert client.dispense("greeter").greet() == "Hello from an entry point!"
    assert client.protocol == "netrpc"
    client.kill()
    assert client.returncode == 0


def test_the_first_protocol_that_will_do_is_taken(served: Callable[..., Client]) -> None:
    client = served("test.shops:hello", *FLAGS, "--protocol", "netrpc", "--protocol", "grpc")
    assert client.dispense("greeter").greet() == "Hello from an entry point!"
    assert client.protocol == "netrpc"
    other = served("test.shops:hello", *FLAGS, "--options", '{"greeting": "hi"}')
    assert other.dispense("greeter").greet() == "hi"
    assert other.protocol == "grpc"


def test_what_streams_says_why_it_cannot(served: Callable[..., Client]) -> None:
    client = served("test.shops:corner", "--protocol", "netrpc", handshake=Handshake("SHOP_PLUGIN", "open"))
    with pytest.raises(ExitedBeforeHandshake, match=r"count\(\) at .*: it streams, and over net/rpc"):
        client.start()


def test_a_go_host_is_greeted(served: Callable[..., Client], go_build: Callable[[str], Path], shop: Path) -> None:
    command = [sys.executable, "-m", "hybridload", "serve", "test.shops:hello", *FLAGS, "--protocol", "netrpc"]
    done = subprocess.run(
        [go_build("tests/go/host"), "-protocols", "netrpc", "-call", "ping", "-call", "greet", "--", *command],
        cwd=shop,
        env=os.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    answers = [event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "answer"]
    assert [answer["value"] for answer in answers] == [None, "Hello from an entry point!"], done.stderr
