"""Taking over a plugin that already runs: one that another host started, or that a developer runs under a debugger.

What a later host needs to know is a `ReattachConfig`. Two things make it more than go-plugin's:

- Under AutoMTLS only the first host's certificate is let in, so the config carries that certificate and its key. It is
  a secret then: not shown by `repr`, written to files that nobody else can read, never logged.
- Pids are used again. The config says when the process started where the system tells, and a unix socket tells whose
  it is; a process that is not known to be the plugin is talked to, but never killed.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from hybridload import platforms
from hybridload.errors import ConfigError, PluginNotFound
from hybridload.files import read_file
from hybridload.frozen import field, frozen
from hybridload.goplugin.certificates import Certificate
from hybridload.goplugin.line import Network, Protocol
from hybridload.goplugin.reattach_variable import REATTACH_VARIABLE

_T = TypeVar("_T")


@frozen
class ReattachConfig:
    """Where a running plugin can be reached (go-plugin's `ReattachConfig`).

    :param protocol: ``"grpc"`` or ``"netrpc"``.
    :param protocol_version: of the application protocol. A Go host's own config has 0 outside test mode; then the
        handshake's is used.
    :param network: ``"unix"`` or ``"tcp"``.
    :param address: a socket's path, or ``host:port``.
    :param pid: the plugin's process.
    :param test: whether the plugin is in test mode: whoever started it ends it, and `kill` leaves it alone.
    :param started: when the process started, as `platforms.start_time` tells; `None` when unknown.
    :param certificate: the first host's own certificate and key, under AutoMTLS. Secret.
    :param plugin_certificate: DER of the plugin's certificate, under AutoMTLS.
    """

    protocol: Protocol
    protocol_version: int
    network: Network
    address: str
    pid: int
    test: bool = False
    started: int | None = None
    certificate: Certificate | None = field(default=None, repr=False)
    plugin_certificate: bytes | None = field(default=None, repr=False)

    def to_json(self) -> str:
        """The config as one line of JSON: Terraform's form, with what it lacks added. Secret under AutoMTLS."""
        value: dict[str, Any] = {
            "Protocol": self.protocol,
            "ProtocolVersion": self.protocol_version,
            "Pid": self.pid,
            "Test": self.test,
            "Addr": {"Network": self.network, "String": self.address},
        }
        if self.started is not None:
            value["Started"] = self.started
        if self.certificate is not None and self.plugin_certificate is not None:
            value["Certificate"] = self.certificate.pem.decode()
            value["Key"] = self.certificate.key_pem.decode()
            value["PluginCertificate"] = base64.b64encode(self.plugin_certificate).decode()
        return json.dumps(value)

    @classmethod
    def from_json(cls, text: str) -> ReattachConfig:
        """Read what `to_json` wrote, or one entry of Terraform's form.

        :raises ConfigError: it is not of that form. The text is not shown: it may hold a key.
        """
        return _read(text, _Entry, "This is no reattach config").config()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the config to a file that only this user may read. An older file of that name is replaced."""
        target = Path(path)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(self.to_json() + "\n")
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ReattachConfig:
        """Read what `save` wrote.

        :raises ConfigError: the file cannot be read, or is no reattach config.
        """
        try:
            return cls.from_json(read_file(path).decode())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The reattach config {path} cannot be read: {error}.") from error


_EXPECTED = (
    'expected {"Protocol": "grpc", "ProtocolVersion": 1, "Pid": 123, "Test": true, '
    '"Addr": {"Network": "unix", "String": "/tmp/..."}}'
)


def read_reattach_variable(environ: Mapping[str, str]) -> dict[str, ReattachConfig]:
    """The plugins that a developer runs elsewhere, by name, as `HYBRIDLOAD_REATTACH` has them in Terraform's form.

    :raises ConfigError: the variable is not of that form.
    """
    text = environ.get(REATTACH_VARIABLE, "").strip()
    if not text:
        return {}
    variable = f"Environment variable {REATTACH_VARIABLE}"
    entries = _read(text, dict[str, msgspec.Raw], f"{variable} is not what it should be, an object of name to config")
    return {
        name: _read(entry, _Entry, f"{variable}: the config of plugin {name!r} is not what it should be").config()
        for name, entry in entries.items()
    }


class _Address(msgspec.Struct, rename="pascal"):
    network: Network
    string: Annotated[str, msgspec.Meta(min_length=1, pattern=r"^[^\x00]*$")]


class _Entry(msgspec.Struct, rename="pascal"):
    """One entry of Terraform's form, with what it lacks. What is said of a wrong one shows no secret."""

    protocol: Protocol
    pid: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    addr: _Address
    protocol_version: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    test: bool = False
    started: int | None = None
    certificate: str | None = None
    key: str = ""
    plugin_certificate: bytes = b""  # base64

    def config(self) -> ReattachConfig:
        """What it says, for this side."""
        own = None if self.certificate is None else Certificate.from_pem(self.certificate.encode(), self.key.encode())
        return ReattachConfig(
            protocol=self.protocol,
            protocol_version=self.protocol_version,
            network=self.addr.network,
            address=self.addr.string,
            pid=self.pid,
            test=self.test,
            started=self.started,
            certificate=own,
            plugin_certificate=None if own is None else self.plugin_certificate,
        )


def _read(text: str | msgspec.Raw, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} ({str(error) or type(error).__name__}): {_EXPECTED}.") from None


class AttachedProcess:
    """A plugin process that somebody else started: watched on a thread of its own, and killed only when it is known to
    be the plugin.

    :param on_exit: called once, from that thread, when the process has ended.
    :raises PluginNotFound: the process no longer runs.
    """

    returncode = None

    def __init__(self, config: ReattachConfig, *, name: str, on_exit: Callable[[], None]) -> None:
        self.pid = config.pid
        self._test = config.test
        self._name = name
        self._on_exit = on_exit
        self._ended = threading.Event()
        self._process = platforms.ForeignProcess.open(config.pid)
        if self._process is None:
            raise PluginNotFound(
                f"Plugin {name!r}: the process {config.pid} of its reattach config no longer runs. Start it again.",
                plugin=name,
            )
        # Compared once the process is held: from here on the pid cannot become another's.
        self._certain = _is_plugin(config)
        if self._certain is False:
            self._process.close()
            raise PluginNotFound(
                f"Plugin {name!r}: the process {config.pid} of its reattach config is another one by now. "
                "Start the plugin again.",
                plugin=name,
            )
        self._thread = threading.Thread(target=self._watch, name=f"hybridload {name} exit", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # there is no thread to be had
            self._process.close()
            raise

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._ended.is_set()

    def poll(self) -> bool:
        """Whether the process is gone."""
        return self._ended.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the process is gone; whether that came within `timeout` seconds."""
        return self._ended.wait(timeout)

    def kill(self) -> None:
        """Kill the process, if it is known to be the plugin; never in test mode, where it is somebody else's."""
        assert self._process is not None
        if self._certain and not self._test:
            self._process.kill()

    def release(self) -> None:
        """Let go of the process without ending it. Safe to call twice."""
        assert self._process is not None
        self._process.stop_waiting()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._process.close()

    close = release

    def _watch(self) -> None:
        assert self._process is not None
        if self._process.wait():
            self._ended.set()
            self._on_exit()


def _is_plugin(config: ReattachConfig) -> bool | None:
    """Whether the process with the config's pid is the plugin; `None` when nothing can tell."""
    started = platforms.start_time(config.pid)
    if config.started is not None and started is not None:
        return config.started == started
    if config.network == "unix":
        owner = _socket_owner(config.address)
        return None if owner is None else owner == config.pid
    return None


def _socket_owner(path: str) -> int | None:
    """Which process listens on a unix socket; `None` when the system does not tell or nobody does."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.settimeout(1.0)
            probe.connect(path)
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except OSError:
            return None
    return int.from_bytes(credentials[:4], sys.byteorder)
