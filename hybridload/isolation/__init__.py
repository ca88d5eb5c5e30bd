"""How isolated a plugin runs: one driver per isolation, behind one small interface.

A driver turns a request into a running plugin or raises a `PluginError` that says why it cannot. What a running plugin
offers is the same for all: its methods for a kind, what became of it, and its end. A driver for containers or a cluster
would be one more file.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hybridload.goplugin.lifeline import Lifeline
    from hybridload.goplugin.plugins import VersionedPlugins
    from hybridload.handle import Methods
    from hybridload.handshake import Handshake
    from hybridload.sources import Resolution, Sources


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that a driver may need to run one plugin.

    :param kind: the kind that was asked for first; a running plugin may be asked for others.
    :param plugin_reference: where a child process finds the plugin set, as ``module:NAME``; `None` when unknown.
    """

    name: str
    kind: str
    plugins: VersionedPlugins
    plugin_reference: str | None
    handshake: Handshake
    resolution: Resolution
    sources: Sources
    lifeline: Lifeline


class Running(Protocol):
    """A plugin that runs in some isolation. Whoever opened it closes it."""

    pid: int | None
    """The process's id, the host's own for in-process."""
    protocol: str | None
    """``"grpc"`` or ``"netrpc"``; `None` in-process."""
    version: int
    """The version of the plugin set that is in use."""
    direct: bool
    """Whether the methods are the real object's own, which nothing may wrap."""

    def methods(self, kind: str) -> Methods:
        """The callables for a kind of the plugin set, by method name.

        :raises ConfigError, ContractError: the plugin has no such kind.
        """

    def gone(self) -> Exception | None:
        """Why calls can no longer succeed; `None` while they can."""

    def close(self) -> None:
        """End it and wait until it is gone. Safe to call twice."""


class Driver(Protocol):
    """Runs plugins in one isolation."""

    def open(self, request: Request) -> Running:
        """Start the plugin.

        :raises PluginError: why it cannot run in this isolation.
        """


def driver(isolation: str) -> Driver:
    """The driver of an isolation. Imported when first asked for: an in-process-only host needs no other."""
    module, name = _DRIVERS[isolation]
    made: Driver = getattr(import_module(module), name)()
    return made


_DRIVERS = {
    "in-process": ("hybridload.isolation.in_process", "InProcess"),
    "subprocess": ("hybridload.isolation.subprocess", "Subprocess"),
    "external": ("hybridload.isolation.external", "ExternalBinary"),
}
