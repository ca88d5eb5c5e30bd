"""A greeter on brokered connections, written by hand, and a plugin that does with its broker what a host tells it.

Run as a program it is that plugin: ``CallBack`` and ``Offer`` of `tests/go/protocol/torture.proto`, in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import grpc

from hybridload import Contract, Handshake, serve

HANDSHAKE = Handshake("BASIC_PLUGIN", "hello")


def greeter(greeting: str) -> Callable[[Any], None]:
    """What registers a greeter on a server, for `accept_and_serve`."""
    text = greeting.encode()
    answer = b"\x0a" + bytes([len(text)]) + text  # field 1, a string
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: answer)
    handlers = (grpc.method_handlers_generic_handler("proto.GreeterService", {"Greet": handler}),)
    return lambda server: server.add_generic_rpc_handlers(handlers)


def greet(channel: Any) -> str:
    """What the greeter at the end of a channel says."""
    answer: bytes = channel.unary_unary("/proto.GreeterService/Greet")(b"", timeout=30)
    return answer[2:].decode()


class BrokerKind:
    """Hands out the broker of its side."""

    broker: Any = None

    def grpc_client(self, broker: Any, channel: Any) -> Any:
        return broker

    def grpc_server(self, broker: Any, server: Any) -> None:
        self.broker = broker


class Torture(Protocol):
    def echo(self, data: bytes) -> bytes: ...
    def call_back(self, service_id: int, times: int) -> list[str]: ...
    def offer(self, count: int) -> list[int]: ...
    def served(self) -> int: ...


class Broker:
    def __init__(self, kind: BrokerKind) -> None:
        self._kind = kind
        self._offered: list[Any] = []

    def echo(self, data: bytes) -> bytes:
        return data

    def call_back(self, service_id: int, times: int) -> list[str]:
        with self._kind.broker.dial(service_id) as channel:
            return [greet(channel) for _ in range(times)]

    def offer(self, count: int) -> list[int]:
        broker = self._kind.broker
        ids = [broker.next_id() for _ in range(count)]
        self._offered += [broker.accept_and_serve(id, greeter(f"Hello from service {id}!")) for id in ids]
        return ids

    def served(self) -> int:
        """Close all that was offered; how many there were."""
        offered, self._offered = self._offered, []
        for each in offered:
            each.close()
        return len(offered)


TORTURE = Contract(Torture, service="torture.Torture")
KIND = BrokerKind()
PLUGINS = {"torture": TORTURE, "broker": KIND}

if __name__ == "__main__":
    serve(PLUGINS, {"torture": Broker(KIND)}, handshake=HANDSHAKE)
