"""A plugin's isolation is a setting.

A host loads plugins by name; a setting says whether each is a Python object in the host, the same object in its own
process, or a hashicorp/go-plugin binary in any language. Importing this loads no grpc, no cryptography and no command
line; an in-process-only host never does. What stands behind a name is imported when the name is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own takes longer to import than all of this
if TYPE_CHECKING:
    from hybridload.contract import Contract, Field, idempotent
    from hybridload.deadlines import deadline, time_remaining
    from hybridload.errors import PluginError
    from hybridload.events import PluginEvent
    from hybridload.external import External
    from hybridload.goplugin.plugins import PluginSet
    from hybridload.goplugin.serve import serve
    from hybridload.handshake import Handshake
    from hybridload.loader import Loader, PluginStatus

__all__ = [
    "Contract",
    "External",
    "Field",
    "Handshake",
    "Loader",
    "PluginError",
    "PluginEvent",
    "PluginSet",
    "PluginStatus",
    "deadline",
    "idempotent",
    "serve",
    "time_remaining",
]

_MODULES = {
    "Contract": "hybridload.contract",
    "External": "hybridload.external",
    "Field": "hybridload.contract",
    "Handshake": "hybridload.handshake",
    "Loader": "hybridload.loader",
    "PluginError": "hybridload.errors",
    "PluginEvent": "hybridload.events",
    "PluginSet": "hybridload.goplugin.plugins",
    "PluginStatus": "hybridload.loader",
    "deadline": "hybridload.deadlines",
    "idempotent": "hybridload.contract",
    "serve": "hybridload.goplugin.serve",
    "time_remaining": "hybridload.deadlines",
}

_ROOMS = ("contract", "errors", "goplugin")
"""Packages and modules with public names of their own: ``hybridload.errors.PluginNotFound`` needs no other import."""


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _MODULES:
        found: object = getattr(import_module(_MODULES[name]), name)
    elif name in _ROOMS:
        found = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
