"""The examples that ship with go-plugin, their own code unmodified, with Python in the place of the host or the plugin.

Their own hosts ask neither for AutoMTLS nor for multiplexing; where those are on, `tests/go/examplehost` takes the
place of their `main` and uses their halves of the interfaces. A run with ``-v`` ends in a table of all pairings with
times.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hybridload.goplugin import Client

HERE = Path(__file__).parent
PROGRAM = HERE / "shipped_plugin.py"
SHIPPED = "github.com/hashicorp/go-plugin/examples"
PATIENCE = 60.0  # seconds

PROTECTIONS = {
    "plain": {"auto_mtls": False},
    "mtls": {"auto_mtls": True},
    "multiplex": {"auto_mtls": False, "multiplex": True},
    "mtls+multiplex": {"auto_mtls": True, "multiplex": True},
}
GO_PLUGINS = {
    "grpc": "grpc/plugin-go-grpc",
    "negotiated": "negotiated/plugin-go",
    "bidirectional": "bidirectional/plugin-go-grpc",
    "bidirectional-given": "bidirectional/plugin-go-grpc",
    "streaming": "streaming/plugin",
}
KINDS = {
    "grpc": "kv_grpc",
    "negotiated": "kv",
    "bidirectional": "counter",
    "bidirectional-given": "counter",
    "streaming": "streamer",
}
OVER_NETRPC = {  # net/rpc knows no multiplexing: it is multiplexed by itself
    "basic": ("basic/plugin", "greeter"),
    "netrpc": ("grpc/plugin-go-netrpc", "kv"),
    "negotiated": ("negotiated/plugin-go", "kv"),
}
LOREM = b"Lorem ipsum dolor sit amet. " * 1000

each_example = pytest.mark.parametrize("example", GO_PLUGINS)
each_protection = pytest.mark.parametrize("protection", PROTECTIONS)
GO_LEAVES_ITS_SOCKET = pytest.mark.leaves(
    "files", reason="a multiplexed plugin of Go's leaves its socket file behind, under Go's host too"
)


@pytest.fixture(scope="module")
def shipped() -> ModuleType:
    """The contracts and implementations of `shipped_plugin.py`."""
    spec = importlib.util.spec_from_file_location("shipped_plugin", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["shipped_plugin"] = module  # hints are resolved through it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def counter_proto(go_plugin_folder: Path) -> Path:
    return go_plugin_folder / "examples/bidirectional/proto/kv.proto"


@pytest.fixture
def environment(counter_proto: Path, engine: str) -> dict[str, str]:
    """What a Python plugin needs to know."""
    return {**os.environ, "COUNTER_PROTO": str(counter_proto), "HYBRIDLOAD_ENGINE": engine}


Record = Callable[..., None]


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Record:
    """Notes a pairing for the table: what ran, and the seconds that the start and the calls took."""

    def note(example: str, host: str, plugin: str, engine: str, protection: str, start: float, calls: float) -> None:
        record_property("pairing", [example, host, plugin, engine, protection, start, calls])

    return note


# Their hosts, our plugins


def _command(example: str) -> list[str]:
    return [sys.executable, str(PROGRAM), example]


@pytest.fixture
def their_host(
    go_build: Callable[..., Path], tmp_path: Path, environment: dict[str, str], engine: str, record: Record
) -> Callable[..., str]:
    """Runs an example's own host, with our plugin where it looks for its own; gives its standard output and error."""

    def run(example: str, *arguments: str, plugin: Path | str = "", **env: str) -> tuple[str, str]:
        host = go_build(f"{SHIPPED}/{example.removesuffix('-given')}")
        if plugin:
            script = tmp_path / plugin
            script.parent.mkdir(exist_ok=True)
            script.write_text(f"#!/bin/sh\nexec {' '.join(_command(example))}\n")
            script.chmod(0o755)
        began = time.monotonic()
        done = subprocess.run(
            [host, *arguments],
            cwd=tmp_path,
            env={**environment, **env},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        record(example, "Go, its own", "Python", engine, "plain", time.monotonic() - began, 0.0)
        return done.stdout, done.stderr

    return run


def test_their_grpc_host_keeps_values_in_python(their_host: Callable[..., tuple[str, str]]) -> None:
    told = {"KV_PLUGIN": " ".join(_command("grpc")), "KV_PROTO": "grpc"}
    assert their_host("grpc", "put", "hello", "world", **told)[0] == ""
    assert their_host("grpc", "get", "hello", **told)[0] == "world\n\nWritten from Python\n"


@pytest.mark.parametrize("example", ["bidirectional", "bidirectional-given"])
def test_their_bidirectional_host_is_called_back_by_python(
    their_host: Callable[..., tuple[str, str]], example: str
) -> None:
    told = {"COUNTER_PLUGIN": " ".join(_command(example))}
    assert their_host(example, "put", "n", "20", **told)[0] == ""
    assert their_host(example, "put", "n", "22", **told)[0] == ""
    assert their_host(example, "get", "n", **told)[0] == "42\n"


def test_their_negotiated_host_gets_the_version_that_it_asks_for(their_host: Callable[..., tuple[str, str]]) -> None:
    told = {"KV_PROTO": "grpc"}
    assert their_host("negotiated", "put", "hello", "world", plugin="kv-plugin", **told)[0] == ""
    got = their_host("negotiated", "get", "hello", plugin="kv-plugin", **told)[0]
    assert got == "world\n\nWritten from Python, version 3\n"


def test_their_streaming_host_streams_to_and_from_python(
    their_host: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    log = their_host("streaming", str(tmp_path / "streamed"), plugin="plugin/streamer")[1]
    assert (tmp_path / "streamed").read_bytes() == b"Lorem ipsum dolor sit amet"
    assert '"bytes":"Lorem ipsum dolor sit amet"' in log


@pytest.mark.parametrize("engine", ["direct"])
def test_their_basic_host_is_greeted_by_python(their_host: Callable[..., tuple[str, str]]) -> None:
    assert "\nHello from Python!\n" in their_host("basic", plugin="plugin/greeter")[0]  # among its log


@pytest.mark.parametrize("engine", ["direct"])
def test_their_grpc_host_keeps_values_in_python_over_netrpc(their_host: Callable[..., tuple[str, str]]) -> None:
    told = {"KV_PLUGIN": " ".join(_command("netrpc")), "KV_PROTO": "netrpc"}
    assert their_host("grpc", "put", "hello", "world", **told)[0] == ""
    assert their_host("grpc", "get", "hello", **told)[0] == "world\n\nWritten from Python\n"


@pytest.mark.parametrize("engine", ["direct"])
def test_their_negotiated_host_gets_the_version_that_is_net_rpc(their_host: Callable[..., tuple[str, str]]) -> None:
    told = {"KV_PROTO": "netrpc"}
    assert their_host("negotiated", "put", "hello", "world", plugin="kv-plugin", **told)[0] == ""
    got = their_host("negotiated", "get", "hello", plugin="kv-plugin", **told)[0]
    assert got == "world\n\nWritten from Python, version 2\n"


# Their halves in a Go host with every protection, our plugins


EXPECTED_OF_PYTHON: dict[str, list[Any]] = {
    "grpc": [None, "world\n\nWritten from Python"],
    "negotiated": [None, "world\n\nWritten from Python, version 3"],
    "bidirectional": [None, None, 42],
    "streaming": [None, None, LOREM.decode()],
}
FAILS: dict[str, str] = {
    "grpc": "kv_missing",
    "negotiated": "kv_missing",
    "bidirectional": "42 and 1 are too much",
}


@each_protection
@each_example
def test_a_go_host_with_their_halves_uses_python(
    go_build: Callable[..., Path],
    tmp_path: Path,
    environment: dict[str, str],
    engine: str,
    example: str,
    protection: str,
    record: Record,
) -> None:
    name = example.removesuffix("-given")
    flags = [f"-{flag}" for flag in protection.split("+") if flag != "plain"]
    done = subprocess.run(
        [go_build("tests/go/examplehost"), "-example", name, *flags, *_command(example)],
        cwd=tmp_path,
        env={**environment, "GOLANG_PROTOBUF_REGISTRATION_CONFLICT": "ignore"},  # two examples have a proto/kv.proto
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["protocol"] == "grpc"
    assert said["version"] == (3 if name == "negotiated" else 1)
    expected = EXPECTED_OF_PYTHON[name]
    assert said["answers"][: len(expected)] == expected
    if name in FAILS:
        assert FAILS[name] in said["answers"][len(expected)]["error"]
    assert said["answers"][-1] == expected[-1] or name in ("grpc", "negotiated")
    record(example, "Go, their halves", "Python", engine, protection, said["start"], said["calls"])


@pytest.mark.parametrize("engine", ["direct"])
@pytest.mark.parametrize("protection", ["plain", "mtls"])
@pytest.mark.parametrize("example", OVER_NETRPC)
def test_a_go_host_with_their_halves_uses_python_over_netrpc(
    go_build: Callable[..., Path],
    tmp_path: Path,
    environment: dict[str, str],
    example: str,
    protection: str,
    record: Record,
) -> None:
    flags = ["-highest", "2", *(["-mtls"] if protection == "mtls" else [])]
    done = subprocess.run(
        [go_build("tests/go/examplehost"), "-example", example, *flags, *_command(example)],
        cwd=tmp_path,
        env={**environment, "GOLANG_PROTOBUF_REGISTRATION_CONFLICT": "ignore"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["protocol"] == "netrpc"
    assert said["version"] == (2 if example == "negotiated" else 1)
    if example == "basic":
        assert said["answers"] == ["Hello from Python!"]
    else:
        version = ", version 2" if example == "negotiated" else ""
        assert said["answers"][:2] == [None, f"world\n\nWritten from Python{version}"]
        assert "kv_missing" in said["answers"][2]["error"]
    record(example, "Go, their halves", "Python", "net/rpc", protection, said["start"], said["calls"])


# Our host, their plugins


class Adder:
    def sum(self, a: int, b: int) -> int:
        return a + b


class Refuser:
    def sum(self, a: int, b: int) -> int:
        raise ValueError(f"{a} and {b} are too much")


def keep(store: Any) -> None:
    store.put("hello", b"world")
    assert store.get("hello").startswith(b"world\n\nWritten from plugin")
    with pytest.raises(Exception, match="open kv_missing: no such file"):
        store.get("missing")


def count(counter: Any) -> None:
    counter.put("n", 20, Adder())
    counter.put("n", 22, Adder())
    assert counter.get("n") == 42
    with pytest.raises(Exception, match="42 and 1 are too much"):
        counter.put("n", 1, Refuser())
    assert counter.get("n") == 42


def stream(streamer: Any, folder: Path) -> None:
    streamer.configure(str(folder / "streamed"), 10)
    streamer.write(LOREM[i : i + 10] for i in range(0, len(LOREM), 10))
    chunks = list(streamer.read())
    assert b"".join(chunks) == LOREM
    assert {len(chunk) for chunk in chunks[:-1]} == {10}


@pytest.fixture
def their_plugin(
    go_build: Callable[..., Path], tmp_path: Path, shipped: ModuleType, counter_proto: Path, engine: str
) -> Iterator[Callable[..., Client]]:
    clients = []

    def start(example: str, versions: tuple[int, ...] = (1, 3), **options: Any) -> Client:
        plugin = GO_PLUGINS.get(example) or OVER_NETRPC[example][0]
        known = shipped.plugins(example, counter_proto)
        client = Client(
            go_build(f"{SHIPPED}/{plugin}"),
            plugins={version: kinds for version, kinds in known.items() if version in versions},
            handshake=shipped.HANDSHAKE,
            engine=engine,
            cwd=tmp_path,
            **options,
        )
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.kill()


@GO_LEAVES_ITS_SOCKET
@each_protection
@each_example
def test_python_hosts_their_plugins(
    their_plugin: Callable[..., Client], tmp_path: Path, engine: str, example: str, protection: str, record: Record
) -> None:
    client = their_plugin(example, **PROTECTIONS[protection])
    began = time.monotonic()
    client.start()
    dispensed = client.dispense(KINDS[example])
    started = time.monotonic()
    assert client.app_version == (3 if example == "negotiated" else 1)
    if example == "streaming":
        stream(dispensed, tmp_path)
    elif example.startswith("bidirectional"):
        count(dispensed)
    else:
        keep(dispensed)
    ended = time.monotonic()
    client.kill()
    assert client.returncode == 0
    record(example, "Python", "Go, its own", engine, protection, started - began, ended - started)


@pytest.mark.parametrize("engine", ["direct"])
@pytest.mark.parametrize("protection", ["plain", "mtls"])
@pytest.mark.parametrize("example", OVER_NETRPC)
def test_python_hosts_their_plugins_over_netrpc(
    their_plugin: Callable[..., Client], example: str, protection: str, record: Record
) -> None:
    client = their_plugin(example, (1, 2), **PROTECTIONS[protection])
    began = time.monotonic()
    client.start()
    dispensed = client.dispense(OVER_NETRPC[example][1])
    started = time.monotonic()
    assert (client.protocol, client.app_version) == ("netrpc", 2 if example == "negotiated" else 1)
    if example == "basic":
        assert dispensed.greet() == "Hello!"
    elif example == "netrpc":
        # Their main keeps what it is given as it is.
        dispensed.put("hello", b"world")
        assert dispensed.get("hello").startswith(b"world")
    else:
        keep(dispensed)
    ended = time.monotonic()
    client.kill()
    assert client.returncode == 0
    record(example, "Python", "Go, its own", "net/rpc", protection, started - began, ended - started)
