"""What hosts and greeter plugins share: the interface, how it travels, and the handshake.

A host depends on this package and on no plugin; a plugin depends on this package and on no host.
"""

from __future__ import annotations

from typing import Protocol

from hybridload import Contract, Handshake, PluginSet

__all__ = ["GREETER", "HANDSHAKE", "PLUGINS", "Greeter"]


class Greeter(Protocol):
    """Says hello."""

    def greet(self) -> str:
        """One greeting."""
        ...


# The service's name is that of go-plugin's own greeter, so that greeters written in Go serve the same.
GREETER = Contract(Greeter, service="proto.GreeterService")
HANDSHAKE = Handshake("BASIC_PLUGIN", "hello", protocol_version=1)
PLUGINS: PluginSet = {"greeter": GREETER}
