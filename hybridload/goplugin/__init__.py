"""The go-plugin protocol on its own, in its own words: start a plugin's process, come to terms, talk to it, end it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hybridload.goplugin.plugins import GRPCPlugin, NetRPCPlugin, PluginSet

if TYPE_CHECKING:
    from hybridload.goplugin.client import Client, cleanup_clients
    from hybridload.goplugin.discovery import discover
    from hybridload.goplugin.reattach import ReattachConfig
    from hybridload.goplugin.runner import Runner
    from hybridload.goplugin.serve import serve_mux
    from hybridload.goplugin.serving import ServeTest
    from hybridload.goplugin.transport import TLS

__all__ = [
    "TLS",
    "Client",
    "GRPCPlugin",
    "NetRPCPlugin",
    "PluginSet",
    "ReattachConfig",
    "Runner",
    "ServeTest",
    "cleanup_clients",
    "discover",
    "serve_mux",
]

# The in-process path imports this package for the plugin set alone.
_WHERE = {
    "Client": "client",
    "ReattachConfig": "reattach",
    "Runner": "runner",
    "ServeTest": "serving",
    "TLS": "transport",
    "cleanup_clients": "client",
    "discover": "discovery",
    "serve_mux": "serve",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
