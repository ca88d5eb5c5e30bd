"""The store as a program that any go-plugin host starts: ``memory-store``."""

from __future__ import annotations

from kv_sdk import HANDSHAKE, PLUGINS

from hybridload import serve
from memory_store import MemoryStore


def main() -> None:
    serve(PLUGINS, {"kv": MemoryStore()}, handshake=HANDSHAKE)


if __name__ == "__main__":
    main()
