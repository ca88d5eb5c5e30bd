"""What hosts and stores share: the interface, how it travels, and the handshake.

There is no .proto behind it: the messages are derived from the hints. For authors of stores in other languages the same
is printed in `kv.proto` (``STORE.complete().wire().proto_text()``).
"""

from __future__ import annotations

from typing import Protocol

from hybridload import Contract, Handshake, PluginSet

__all__ = ["HANDSHAKE", "PLUGINS", "STORE", "Store"]


class Store(Protocol):
    """Keeps values under keys."""

    def get(self, key: str) -> bytes:
        """Fails with NOT_FOUND, in Python a KeyError, when there is no such key."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Keeps the value, in place of an earlier one."""
        ...


STORE = Contract(Store, service="kv.KeyValue")
HANDSHAKE = Handshake("KV_PLUGIN", "store", protocol_version=1)
PLUGINS: PluginSet = {"kv": STORE}
