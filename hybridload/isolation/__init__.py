"""How isolated a plugin runs: one driver per isolation, behind one small interface.

A driver turns a request into a running plugin or raises a `PluginError` that says why it cannot. What a running plugin
offers is the same for all: its methods for a kind, what became of it, and its end. A driver for containers or a cluster
would be one more file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from hybridload.frozen import field, frozen

if TYPE_CHECKING:
    from hybridload.goplugin.lifeline import Lifeline
    from hybridload.goplugin.plugins import VersionedPlugins
    from hybridload.goplugin.prefork.host import ForkServer
    from hybridload.handle import Methods
    from hybridload.handshake import Handshake
    from hybridload.sources import Resolution, Sources


class Opening:
    """A start that may be called off from another thread while it is under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kill: Callable[[], None] | None = None
        self.called_off = False

    def begin(self, kill: Callable[[], None]) -> None:
        """Something is about to start that `kill` ends, whatever it is at."""
        with self._lock:
            self._kill = kill
            called_off = self.called_off
        if called_off:
            kill()

    def call_off(self) -> None:
        """End what is starting, or will be: it fails with `PluginClosed`."""
        with self._lock:
            self.called_off = True
            kill = self._kill
        if kill is not None:
            kill()


@frozen
class Request:
    """Everything that a driver may need to run one plugin.

    :param kind: the kind that was asked for first; a running plugin may be asked for others.
    :param plugin_reference: where a child process finds the plugin set, as ``module:NAME``; `None` when unknown.
    :param fork_server: forks those that ask for it.
    :param strict: whether in-process calls travel through the contract.
    :param opening: told of what is started, so that it can be called off.
    """

    name: str
    kind: str
    plugins: VersionedPlugins
    plugin_reference: str | None
    handshake: Handshake
    resolution: Resolution
    sources: Sources
    lifeline: Lifeline
    fork_server: ForkServer
    strict: bool = False
    opening: Opening = field(default_factory=Opening)


class Running(Protocol):
    """A plugin that runs in some isolation. Whoever opened it closes it."""

    pid: int | None
    """The process's id, the host's own for in-process."""
    protocol: str | None
    """``"grpc"`` or ``"netrpc"``; `None` in-process."""
    version: int
    """The version of the plugin set that is in use."""
    direct: bool
    """Whether the methods run in this interpreter and go into the slots as they are, which nothing may wrap."""

    def methods(self, kind: str) -> Methods:
        """The callables for a kind of the plugin set, by method name.

        :raises ConfigError, ContractError: the plugin has no such kind.
        """

    def gone(self) -> Exception | None:
        """Why calls can no longer succeed; `None` while they can."""

    def ping(self, timeout: float) -> None:
        """Check that it answers within so many seconds.

        :raises PluginError: it does not, and why.
        """

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, on some thread, when the plugin has ended by itself; now when it has already."""

    def condemn(self, why: str) -> None:
        """Kill it at once: it is of no use any more. Calls in flight raise `PluginCrashed`.

        :param why: what it did, as the rest of a sentence about it.
        """

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
