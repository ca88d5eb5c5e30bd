"""A plugin's isolation is a setting.

A host loads plugins by name; a setting says whether each is a Python object in the host, the same object in its own
process, or a hashicorp/go-plugin binary in any language. Importing this loads no grpc, no cryptography and no command
line; an in-process-only host never does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hybridload.contract import Contract, Field
from hybridload.errors import PluginError
from hybridload.external import External
from hybridload.goplugin.plugins import PluginSet
from hybridload.handshake import Handshake
from hybridload.loader import Loader, PluginStatus

if TYPE_CHECKING:
    from hybridload.goplugin.serve import serve

__all__ = [
    "Contract",
    "External",
    "Field",
    "Handshake",
    "Loader",
    "PluginError",
    "PluginSet",
    "PluginStatus",
    "serve",
]


def __getattr__(name: str) -> Any:
    # A host that serves nothing does without the serving half.
    if name == "serve":
        from hybridload.goplugin.serve import serve

        return serve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
