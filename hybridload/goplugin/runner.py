"""What starts a plugin: a process on this machine, unless a host brings something else (go-plugin's `Runner`).

A runner for containers starts one with the folder of the sockets mounted, and says how a socket's path on one side is
written on the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hybridload.goplugin.addresses import is_at, local_address
from hybridload.goplugin.lifeline import Lifeline
from hybridload.goplugin.line import Network
from hybridload.goplugin.process import Child, PluginProcess, ProcessSpec


class RunningPlugin(Protocol):
    """A plugin that was started or attached to, whatever it runs in."""

    @property
    def pid(self) -> int | None:
        """The process's id on this machine; `None` where it has none here."""

    @property
    def returncode(self) -> int | None:
        """The exit status, or minus the signal's number; `None` while it runs, or when nobody can tell."""

    @property
    def ended(self) -> bool:
        """Whether it is gone, its last output read and `on_exit` called."""

    def poll(self) -> bool:
        """Whether it is gone, though its last output may still be on its way."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is gone; whether that came within `timeout` seconds."""

    def kill(self) -> None:
        """Kill it. Returns at once."""

    def close(self) -> None:
        """Kill what still runs and wait until nothing is left. Safe to call twice."""


class Runner(Protocol):
    """Starts plugins."""

    def start(
        self,
        spec: ProcessSpec,
        *,
        name: str,
        on_stdout: Callable[[bytes], None],
        on_stderr: Callable[[bytes], None],
        on_exit: Callable[[int | None], None],
        lifeline: Lifeline | None,
    ) -> RunningPlugin:
        """Start one.

        :param spec: command, environment, folder; ``PLUGIN_UNIX_SOCKET_DIR`` in the environment is the folder on this
            machine that the plugin has to put its sockets in, under whatever name it has there.
        :param on_stdout: called with each chunk of standard output, from one thread; ``b""`` is its end.
        :param on_stderr: the same for standard error.
        :param on_exit: called once, after the last chunk, with the exit status or minus the signal's number; `None`
            when nobody can tell.
        :param lifeline: kills the process when the host ends without having done so; `None` to let it live on.
        :raises PluginError: why it cannot be started.
        """

    def plugin_to_host(self, network: Network, address: str) -> tuple[Network, str]:
        """An address that the plugin told, as this side can connect to it.

        What is returned is connected to, wherever it is.

        :raises AddressRefused: it is none that a plugin may send this side to.
        """

    def host_to_plugin(self, network: str, address: str) -> tuple[str, str]:
        """An address that this side listens on, as the plugin can connect to it."""

    def diagnose(self) -> str:
        """Why a plugin may not have started, for whoever reads the error; empty when there is nothing to say."""


class LocalRunner:
    """Starts processes on this machine, where both sides call things by the same name.

    :param spawn: how; each as a program of its own by default.
    :param known: network and address of a plugin that runs already, which this side knows by itself.
    """

    # Also for those who derive and do not call `__init__`.
    _spawn: Callable[[ProcessSpec, str], Child] | None = None
    _known: tuple[Network, str] | None = None

    def __init__(
        self,
        spawn: Callable[[ProcessSpec, str], Child] | None = None,
        *,
        known: tuple[Network, str] | None = None,
    ) -> None:
        self._spawn = spawn
        self._known = known

    def start(
        self,
        spec: ProcessSpec,
        *,
        name: str,
        on_stdout: Callable[[bytes], None],
        on_stderr: Callable[[bytes], None],
        on_exit: Callable[[int | None], None],
        lifeline: Lifeline | None,
    ) -> RunningPlugin:
        return PluginProcess(
            spec,
            name=name,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            on_exit=on_exit,
            lifeline=lifeline,
            spawn=self._spawn,
        )

    def plugin_to_host(self, network: Network, address: str) -> tuple[Network, str]:
        if self._known is not None and is_at(self._known, network, address):
            return network, address
        return network, local_address(network, address)

    def host_to_plugin(self, network: str, address: str) -> tuple[str, str]:
        return network, address

    def diagnose(self) -> str:
        return ""
