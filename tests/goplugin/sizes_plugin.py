"""A plugin that sends and takes bytes in every way that a message may travel. Its host's tests import it as well.

Its arguments: the largest message that it takes, and ``"grpc"`` or ``"netrpc"``.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from hybridload import Contract, Handshake, serve

HANDSHAKE = Handshake("SIZES_PLUGIN", "hello")


class Peer(Protocol):
    def take(self, data: bytes) -> int: ...
    def give(self, size: int) -> bytes: ...


class Sizes(Protocol):
    def take(self, data: bytes) -> int: ...
    def give(self, size: int) -> bytes: ...
    async def take_soon(self, data: bytes) -> int: ...
    async def give_soon(self, size: int) -> bytes: ...
    def have_taken(self, peer: Peer, size: int) -> int: ...
    def have_given(self, peer: Peer, size: int) -> int: ...


class Streams(Protocol):
    def take_all(self, items: Iterator[bytes]) -> int: ...
    def give_all(self, sizes: list[int]) -> Iterator[bytes]: ...
    async def take_all_soon(self, items: AsyncIterator[bytes]) -> int: ...
    def give_all_soon(self, sizes: list[int]) -> AsyncIterator[bytes]: ...


class Impl:
    def take(self, data: bytes) -> int:
        return len(data)

    def give(self, size: int) -> bytes:
        return bytes(size)

    async def take_soon(self, data: bytes) -> int:
        return len(data)

    async def give_soon(self, size: int) -> bytes:
        return bytes(size)

    def have_taken(self, peer: Peer, size: int) -> int:
        return peer.take(bytes(size))

    def have_given(self, peer: Peer, size: int) -> int:
        return len(peer.give(size))

    def take_all(self, items: Iterator[bytes]) -> int:
        return sum(map(len, items))

    def give_all(self, sizes: list[int]) -> Iterator[bytes]:
        return map(bytes, sizes)

    async def take_all_soon(self, items: AsyncIterator[bytes]) -> int:
        return sum([len(item) async for item in items])

    async def give_all_soon(self, sizes: list[int]) -> AsyncIterator[bytes]:
        for size in sizes:
            yield bytes(size)


SIZES = {"sizes": Contract(Sizes, service="sizes.Sizes")}
PLUGINS = {"grpc": {**SIZES, "streams": Contract(Streams, service="sizes.Streams")}, "netrpc": SIZES}


def main() -> None:
    limit, protocol = sys.argv[1:]
    plugins = PLUGINS[protocol]
    serve(
        plugins,
        dict.fromkeys(plugins, Impl()),
        handshake=HANDSHAKE,
        protocols=protocol,
        max_message=int(limit) if limit.isdecimal() else limit,
    )


if __name__ == "__main__":
    main()
