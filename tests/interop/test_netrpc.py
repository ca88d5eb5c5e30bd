"""Contracts over net/rpc: real Go at the other end, both ways, plain and under AutoMTLS; and between two Pythons."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from hybridload import Contract, Handshake
from hybridload.errors import CallTimeout, ContractError, RemoteError
from hybridload.goplugin import Client

HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")
PLUGIN = """
from typing import Protocol
from hybridload import Contract, Handshake, serve

class Greeter(Protocol):
    def greet(self) -> str: ...

class Store(Protocol):
    def get(self, key: str) -> bytes: ...
    def put(self, key: str, value: bytes) -> None: ...

class Hello:
    def greet(self):
        return "Hello from Python!"

class Memory(dict):
    def get(self, key):
        return self[key]
    def put(self, key, value):
        self[key] = value

serve({"greeter": Greeter, "kv": Store}, {"greeter": Hello(), "kv": Memory()},
      handshake=Handshake("BASIC_PLUGIN", "hello"), protocols=("netrpc",))
"""


class Greeter(Protocol):
    def greet(self) -> str: ...


class Store(Protocol):
    def get(self, key: str) -> bytes: ...
    def put(self, key: str, value: bytes) -> None: ...


class Streaming(Protocol):
    def greet(self) -> str: ...
    def count(self) -> Iterator[int]: ...


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    return [sys.executable, str(path)]


def options(mtls: bool, **more: Any) -> dict[str, Any]:
    plugins = {"greeter": Contract(Greeter), "kv": Contract(Store)}
    return {"plugins": plugins, "handshake": HANDSHAKE, "auto_mtls": mtls, **more}


@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
def test_python_hosts_a_go_plugin(go_build: Callable[[str], Path], mtls: bool) -> None:
    with Client([go_build("tests/go/netrpc")], **options(mtls)) as client:
        assert client.protocol == "netrpc"
        assert client.dispense("greeter").greet() == "Hello from Go, over net/rpc!"
        client.ping()
        store = client.dispense("kv")
        store.put("a", b"1")
        assert store.get("a") == b"1"
        with pytest.raises(RemoteError, match=r'^no value under "b"$'):
            store.get("b")
        with pytest.raises(TypeError, match="argument 'value' is int, not bytes"):
            store.put("a", 1)
    assert client.returncode == 0


@pytest.mark.parametrize("flags", [["-protocols", "netrpc"], ["-mtls"]], ids=["plain", "mtls"])
def test_a_go_host_uses_python(go_host: Any, program: list[str], flags: list[str]) -> None:
    calls = [part for call in ("ping", "greet", "put:a=1", "get:a", "get:b") for part in ("-call", call)]
    host = go_host(program, *flags, *calls)
    assert host.named("started")[0]["protocol"] == "netrpc"
    assert host.answers == [None, "Hello from Python!", None, "1", {"error": "'b'"}]
    assert host.named("stopped")[0]["exited"]


@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
def test_between_two_pythons_an_exception_is_itself(program: list[str], mtls: bool) -> None:
    with Client(program, **options(mtls)) as client:
        assert client.dispense("greeter").greet() == "Hello from Python!"
        with pytest.raises(KeyError, match=r"^'b'$"):
            client.dispense("kv").get("b")


def test_a_streaming_method_is_refused_when_it_is_dispensed(program: list[str]) -> None:
    with Client(program, **options(False, plugins={"greeter": Contract(Streaming)})) as client:
        with pytest.raises(ContractError, match=r"count\(\) at .*: it streams, and over net/rpc"):
            client.dispense("greeter")


# The examples that ship with go-plugin, unmodified

SHIPPED = "github.com/hashicorp/go-plugin/examples"


def test_their_basic_host_greets_through_python(
    go_build: Callable[[str], Path], program: list[str], tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin" / "greeter"
    plugin.parent.mkdir()
    plugin.write_text(f"#!/bin/sh\nexec {' '.join(program)}\n")
    plugin.chmod(0o755)
    done = subprocess.run(
        [go_build(f"{SHIPPED}/basic")], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert "Hello from Python!" in done.stdout.splitlines()  # among its own log


@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
def test_python_hosts_their_basic_plugin(go_build: Callable[[str], Path], mtls: bool) -> None:
    with Client([go_build(f"{SHIPPED}/basic/plugin")], **options(mtls)) as client:
        assert client.dispense("greeter").greet() == "Hello!"


@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
def test_python_hosts_their_netrpc_store(go_build: Callable[[str], Path], tmp_path: Path, mtls: bool) -> None:
    with Client([go_build(f"{SHIPPED}/grpc/plugin-go-netrpc")], **options(mtls, cwd=tmp_path)) as client:
        store = client.dispense("kv")
        store.put("hello", b"world")
        assert store.get("hello").startswith(b"world\n\nWritten from plugin-go-netrpc")


# The broker


class Hello:
    def greet(self) -> str:
        return "Hello from the host!"


class Caller(Protocol):
    def call_back(self, greeter: Greeter) -> str: ...


def test_a_go_plugin_calls_an_object_of_the_host(go_build: Callable[[str], Path]) -> None:
    with Client([go_build("tests/go/netrpc")], **options(False, plugins={"torture": Contract(Caller)})) as client:
        assert client.dispense("torture").call_back(Hello()) == "Hello from the host!"


# What a Go plugin leaves unanswered


class Sleeper(Protocol):
    def echo(self, data: bytes) -> bytes: ...
    def sleep(self, seconds: float) -> bool: ...
    def absent(self, text: str) -> str: ...
    def absent_too(self) -> str: ...


@pytest.fixture
def sleeper(go_build: Callable[[str], Path]) -> Iterator[Callable[[float], Any]]:
    clients = []

    def begin(call_timeout: float) -> Any:
        plugins = {"torture": Contract(Sleeper)}
        clients.append(
            Client([go_build("tests/go/netrpc")], **options(True, plugins=plugins, call_timeout=call_timeout))
        )
        return clients[-1].dispense("torture")

    yield begin
    for client in clients:
        client.kill()


def test_answers_that_come_late_are_passed_over(sleeper: Callable[[float], Any]) -> None:
    plugin = sleeper(0.5)
    for _ in range(3):
        with pytest.raises(CallTimeout, match=r"within 0\.5 s"):
            plugin.sleep(0.8)
        for number in range(200):
            assert plugin.echo(b"%d" % number) == b"%d" % number


def test_a_method_that_the_plugin_has_not_is_named(sleeper: Callable[[float], Any]) -> None:
    plugin = sleeper(30)
    with pytest.raises(RemoteError, match=r"rpc: can't find method Plugin\.Absent$"):
        plugin.absent("x")
    assert plugin.echo(b"on") == b"on"


def test_without_an_argument_such_a_call_is_never_answered(sleeper: Callable[[float], Any]) -> None:
    """Go's gob cannot pass over a nil interface: it waits for more of it (`ignoreInterface` in its decode.go)."""
    with pytest.raises(CallTimeout):
        sleeper(1).absent_too()
