"""The plugin is a Python object in the host's own interpreter; a call is a plain method call."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hybridload.contract import Contract
from hybridload.errors import ConfigError
from hybridload.implementation import build_implementation, check_implementation, close_implementation

if TYPE_CHECKING:
    from collections.abc import Callable

    from hybridload.contract import Service
    from hybridload.goplugin.plugins import VersionedPlugins
    from hybridload.handle import Methods
    from hybridload.isolation import Request


class InProcess:
    """Builds the object that an entry point names."""

    def open(self, request: Request) -> InProcessPlugin:
        found = request.sources.load_object(request.resolution)
        version = max(request.plugins)
        service = _service(request.plugins, version, request.kind, request.name)
        built = build_implementation(found, service, request.resolution.settings.options, plugin=request.name)
        return InProcessPlugin(built, request.plugins, version, request.name, strict=request.strict)


class InProcessPlugin:
    """A Python object, offered as a running plugin.

    :param strict: whether its calls travel through the contract.
    """

    protocol = None
    direct = True

    def __init__(self, built: object, plugins: VersionedPlugins, version: int, name: str, *, strict: bool) -> None:
        self.pid: int | None = os.getpid()
        self.version = version
        self._built: object | None = built
        self._plugins = plugins
        self._name = name
        self._strict = strict

    def methods(self, kind: str) -> Methods:
        service = _service(self._plugins, self.version, kind, self._name)
        check_implementation(self._built, service, plugin=self._name)
        if self._strict:
            from hybridload.isolation.strict import strict_methods

            return strict_methods(service, self._built, self._name)
        return {method.name: getattr(self._built, method.name) for method in service.methods}

    def gone(self) -> Exception | None:
        return None

    def ping(self, timeout: float) -> None:
        """It answers as long as the host does."""

    def when_gone(self, callback: Callable[[], None]) -> None:
        """It never ends by itself."""

    def condemn(self, why: str) -> None:
        """Nothing can be done to it."""

    def close(self) -> None:
        built, self._built = self._built, None
        if built is not None:
            close_implementation(built, self._name)


def _service(plugins: VersionedPlugins, version: int, kind: str, name: str) -> Service:
    contract = plugins[version].get(kind)
    if not isinstance(contract, Contract):
        raise ConfigError(
            f"Plugin {name!r}: the kind {kind!r} of version {version} is "
            + ("missing" if contract is None else "a hand-written plugin, which has no interface to check against")
            + "; only a contract can run in-process.",
            plugin=name,
        )
    return contract.complete()
