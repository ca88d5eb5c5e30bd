"""The plugin that hybridload's contenders run, whatever its isolation: it greets, echoes and counts.

On the wire it is what `tests/go/greeter` serves, so every host of the benchmarks can talk to either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from hybridload import Contract, Handshake, PluginSet


class Greeter(Protocol):
    def greet(self) -> str: ...


class Bench(Protocol):
    def echo(self, data: bytes) -> bytes: ...
    def count(self, count: int) -> Iterator[int]: ...


HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")
PLUGINS: PluginSet = {
    "greeter": Contract(Greeter, service="proto.GreeterService"),
    "bench": Contract(Bench, service="torture.Torture"),
}


class GreeterImpl:
    def greet(self) -> str:
        return "Hello from Python!"


class BenchImpl:
    def echo(self, data: bytes) -> bytes:
        return data

    def count(self, count: int) -> Iterator[int]:
        yield from range(count)


class Work:
    """Takes about a microsecond."""

    def greet(self) -> str:
        return "".join(map(str, range(8)))


if __name__ == "__main__":
    from hybridload import serve

    serve(PLUGINS, {"greeter": GreeterImpl(), "bench": BenchImpl()}, handshake=HANDSHAKE)
