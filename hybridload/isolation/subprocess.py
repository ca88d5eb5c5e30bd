"""The plugin is the same Python object in a Python process of its own, spoken to in the go-plugin protocol.

The child gets what it needs by reference: the entry point, the interface as ``module:qualname`` or the plugin set as
``module:NAME``, and the host's import path behind its own. Its log records keep the names of its loggers, so the host's
logging configuration treats them as it would in-process.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from hybridload.contract import Contract
from hybridload.errors import ConfigError
from hybridload.external import External
from hybridload.goplugin.launch_spec import ContractReference, LaunchSpec, import_path
from hybridload.isolation.external import ProcessPlugin, open_client

if TYPE_CHECKING:
    from hybridload.isolation import Request


class Subprocess:
    """Starts an interpreter that serves the entry point."""

    def open(self, request: Request) -> ProcessPlugin:
        settings, python = request.resolution.settings, request.resolution.python
        assert python is not None
        version = max(request.plugins)
        interpreter = None if settings.python is None else _interpreter(settings.python, request.name)
        spec = LaunchSpec(
            plugin=request.name,
            kind=request.kind,
            version=version,
            handshake=request.handshake,
            contract=_contract(request, version),
            entry_point=None if python.entry_point is None else python.entry_point.value,
            group=request.sources.group,
            lookup=python.lookup,
            options=settings.options,
            path=import_path(),
        )
        command = External(spec.command(interpreter), env=settings.env, cwd=settings.cwd)
        return open_client(request, command, env=spec.environment(), module_logger=logging.getLogger())


def _contract(request: Request, version: int) -> ContractReference:
    if request.plugin_reference is not None:
        return ContractReference(plugins=request.plugin_reference)
    contract = request.plugins[version].get(request.kind)
    if not isinstance(contract, Contract):
        raise ConfigError(
            f"Plugin {request.name!r}: the kind {request.kind!r} is a hand-written plugin; only a contract can be "
            "served from an entry point in a subprocess.",
            plugin=request.name,
        )
    return ContractReference.of(contract, plugin=request.name)


def _interpreter(python: str, plugin: str) -> str:
    with External(python).resolve(plugin=plugin) as command:
        return command[0]
