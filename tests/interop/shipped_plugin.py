"""Python's part in the examples that ship with go-plugin: their interfaces as contracts, and a plugin for each.

As a program it serves one of them: ``python shipped_plugin.py EXAMPLE``. What the Go plugins keep, they keep in the
working directory, because the examples' own hosts start a new plugin for every command; so do these.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Protocol

from hybridload import Contract, Handshake, serve
from hybridload.contract import Field

HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")


class KV(Protocol):
    """examples/grpc and examples/negotiated."""

    def put(self, key: str, value: bytes) -> None: ...
    def get(self, key: str) -> bytes: ...


class Greeter(Protocol):
    """examples/basic."""

    def greet(self) -> str: ...


class AddHelper(Protocol):
    """What the host of examples/bidirectional lends to its plugin."""

    def sum(self, a: int, b: int) -> int: ...


ADD_HELPER = Contract(AddHelper, service="proto.AddHelper")


class Counter(Protocol):
    """examples/bidirectional, with its messages derived from these hints."""

    def put(
        self,
        key: Annotated[str, Field(2)],
        value: Annotated[int, Field(3)],
        adder: Annotated[AddHelper, ADD_HELPER, Field(1)],
    ) -> None: ...
    def get(self, key: str) -> int: ...


class GivenCounter(Protocol):
    """The same with the messages of its .proto file, whose fields the parameters are."""

    def put(self, key: str, value: int, add_server: AddHelper) -> None: ...
    def get(self, key: str) -> int: ...


class Streamer(Protocol):
    """examples/streaming."""

    def configure(self, path: str, chunk_size: int) -> None: ...
    def read(self) -> Iterator[bytes]: ...
    def write(self, data: Iterator[bytes]) -> None: ...


def plugins(example: str, counter_proto: str | Path) -> dict[int, dict[str, Any]]:
    """The plugin set of an example.

    :param counter_proto: the .proto file of examples/bidirectional.
    """
    kv = Contract(KV, service="proto.KV")
    return {
        "basic": {1: {"greeter": Contract(Greeter)}},
        "netrpc": {1: {"kv": kv}},
        "grpc": {1: {"kv_grpc": kv}},
        "negotiated": {2: {"kv": kv}, 3: {"kv": kv}},
        "bidirectional": {1: {"counter": Contract(Counter, service="proto.Counter")}},
        "bidirectional-given": {
            1: {"counter": Contract(GivenCounter, service="proto.Counter", proto=counter_proto)},
        },
        "streaming": {1: {"streamer": Contract(Streamer, service="proto.StreamerService")}},
    }[example]


class Hello:
    def greet(self) -> str:
        return "Hello from Python!"


class FileKV:
    def __init__(self, version: str = "") -> None:
        self.version = version

    def put(self, key: str, value: bytes) -> None:
        Path(f"kv_{key}").write_bytes(value + f"\n\nWritten from Python{self.version}".encode())

    def get(self, key: str) -> bytes:
        return Path(f"kv_{key}").read_bytes()


class FileCounter:
    def put(self, key: str, value: int, adder: AddHelper) -> None:
        path = Path(f"counter_{key}")
        path.write_text(str(adder.sum(int(path.read_text()) if path.exists() else 0, value)))

    def get(self, key: str) -> int:
        return int(Path(f"counter_{key}").read_text())


class GivenFileCounter(FileCounter):
    def put(self, key: str, value: int, add_server: AddHelper) -> None:  # type: ignore[override]
        super().put(key, value, add_server)


class FileStreamer:
    path = Path()
    chunk_size = 0

    def configure(self, path: str, chunk_size: int) -> None:
        self.path, self.chunk_size = Path(path), chunk_size

    def read(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while chunk := file.read(self.chunk_size):
                yield chunk

    def write(self, data: Iterator[bytes]) -> None:
        self.path.write_bytes(b"".join(data))


IMPLEMENTATIONS: dict[str, dict[int, dict[str, object]]] = {
    "basic": {1: {"greeter": Hello()}},
    "netrpc": {1: {"kv": FileKV()}},
    "grpc": {1: {"kv_grpc": FileKV()}},
    "negotiated": {2: {"kv": FileKV(", version 2")}, 3: {"kv": FileKV(", version 3")}},
    "bidirectional": {1: {"counter": FileCounter()}},
    "bidirectional-given": {1: {"counter": GivenFileCounter()}},
    "streaming": {1: {"streamer": FileStreamer()}},
}


PROTOCOLS: dict[str, Any] = {"basic": "netrpc", "netrpc": "netrpc", "negotiated": {2: "netrpc", 3: "grpc"}}


if __name__ == "__main__":
    example = sys.argv[1]
    serve(
        plugins(example, os.environ.get("COUNTER_PROTO", "")),
        IMPLEMENTATIONS[example],
        handshake=HANDSHAKE,
        protocols=PROTOCOLS.get(example, "grpc"),
    )
