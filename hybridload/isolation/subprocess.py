"""The plugin is the same Python object in a Python process of its own, spoken to in the go-plugin protocol.

The child gets what it needs by reference: the entry point, the plugin set as ``module:NAME`` or its interfaces as
``module:qualname``, and the host's import path behind its own. It serves every kind that the object implements, and
says of the others why not. With `prefork` it is forked from a warm process, see `goplugin.prefork`, unless another
interpreter is set for it. Its log records keep the names of its loggers, so the host's logging configuration treats
them as it would in-process.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hybridload.contract import Contract
from hybridload.errors import ConfigError, ContractError, ExitedBeforeHandshake, PluginError
from hybridload.external import External
from hybridload.frozen import replace
from hybridload.goplugin.launch_spec import (
    KINDS,
    ContractReference,
    LaunchSpec,
    PluginSetReference,
    import_path,
    kinds_contract,
)
from hybridload.goplugin.runner import LocalRunner
from hybridload.goplugin.serving import PROTOCOLS
from hybridload.isolation.external import ProcessPlugin, start_client
from hybridload.limits import MAX_MESSAGE

if TYPE_CHECKING:
    from hybridload.goplugin.client import Client
    from hybridload.goplugin.plugins import VersionedPlugins
    from hybridload.handle import Methods
    from hybridload.isolation import Request


class Subprocess:
    """Starts an interpreter that serves the entry point."""

    def open(self, request: Request) -> SubprocessPlugin:
        settings, python = request.resolution.settings, request.resolution.python
        assert python is not None
        _contracts_of(request.plugins, request.kind, request.name)
        interpreter = None if settings.python is None else _interpreter(settings.python, request.name)
        reference = request.plugin_reference
        spec = LaunchSpec(
            plugin=request.name,
            kind=request.kind,
            handshake=request.handshake,
            plugins=PluginSetReference.of(request.plugins, kind=request.kind, plugin=request.name)
            if reference is None
            else PluginSetReference(reference),
            entry_point=None if python.entry_point is None else python.entry_point.value,
            group=request.sources.group,
            lookup=python.lookup,
            options=settings.options,
            path=import_path(),
            protocols=settings.protocols or PROTOCOLS,
            max_message=settings.max_message or MAX_MESSAGE,
        )
        command = External(spec.command(interpreter), env=settings.env, cwd=settings.cwd)
        told = {version: {**kinds, KINDS: kinds_contract()} for version, kinds in request.plugins.items()}
        fork = functools.partial(request.fork_server.start, lifeline=request.lifeline, timeout=settings.start_timeout)
        try:
            client = start_client(
                replace(request, plugins=told),
                command,
                env=spec.environment(),
                module_logger=logging.getLogger(),
                runner=LocalRunner(fork) if settings.prefork and interpreter is None else None,
            )
        except ExitedBeforeHandshake as error:
            raise _own_error(error, request.name) or error from error
        return SubprocessPlugin(client, request, importable=None if reference else spec.plugins.contracts)


class SubprocessPlugin(ProcessPlugin):
    """A Python object in its own process, offered as a running plugin.

    :param importable: the contracts that the process was told of; `None` when it has the whole plugin set.
    """

    def __init__(
        self, client: Client, request: Request, importable: Mapping[int, Mapping[str, ContractReference]] | None
    ) -> None:
        super().__init__(client)
        self._name = request.name
        self._kind = request.kind
        self._plugins = request.plugins
        self._importable = importable
        self._refused: Mapping[str, str] | None = None

    def methods(self, kind: str) -> Methods:
        methods = super().methods(kind)
        if kind != self._kind:
            self._check(kind)
        return methods

    def _check(self, kind: str) -> None:
        """Say what in-process isolation says of a kind that the object does not implement."""
        contract = _contracts_of(self._plugins, kind, self._name).get(self.version)
        if contract is not None and self._importable is not None and kind not in self._importable.get(self.version, {}):
            ContractReference.of(contract, plugin=self._name)  # raises what kept it out
        if self._refused is None:
            self._refused = self._client.dispense_methods(KINDS)["refused"]()
        if kind in self._refused:
            raise ContractError(self._refused[kind], plugin=self._name)


def _contracts_of(plugins: VersionedPlugins, kind: str, name: str) -> dict[int, Contract[Any]]:
    offered = {version: kinds[kind] for version, kinds in plugins.items() if kind in kinds}
    found = {version: each for version, each in offered.items() if isinstance(each, Contract)}
    if offered and not found:
        raise ConfigError(
            f"Plugin {name!r}: the kind {kind!r} is a hand-written plugin; only a contract can be served from an entry "
            "point in a subprocess.",
            plugin=name,
        )
    return found


def _own_error(error: ExitedBeforeHandshake, plugin: str) -> PluginError | None:
    """The error that ended the process, when it is one that in-process isolation raises as well.

    It is what the traceback on standard error ends with; other errors are the traceback's whole business.
    """
    for number in reversed(range(len(error.stderr))):
        kind, _, message = error.stderr[number].partition(": ")
        if kind in _OWN_ERRORS:
            return _OWN_ERRORS[kind]("\n".join((message, *error.stderr[number + 1 :])).rstrip(), plugin=plugin)
    return None


_OWN_ERRORS = {f"{kind.__module__}.{kind.__name__}": kind for kind in (ConfigError, ContractError, PluginError)}


def _interpreter(python: str, plugin: str) -> str:
    try:
        with External(python).resolve(plugin=plugin) as command:
            return command[0]
    except PluginError as error:
        raise type(error)(f"{error} (It is the interpreter that `python` sets.)", plugin=plugin) from error
