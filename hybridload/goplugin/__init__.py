"""The go-plugin protocol on its own, in its own words: start a plugin's process, come to terms, talk to it, end it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hybridload.goplugin.plugins import GRPCPlugin, NetRPCPlugin, PluginSet

if TYPE_CHECKING:
    from hybridload.goplugin.client import Client

__all__ = ["Client", "GRPCPlugin", "NetRPCPlugin", "PluginSet"]


def __getattr__(name: str) -> Any:
    # The in-process path imports this package for the plugin set alone.
    if name == "Client":
        from hybridload.goplugin.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
