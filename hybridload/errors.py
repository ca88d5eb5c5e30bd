"""Every exception that a user of hybridload can meet.

All of them are `PluginError`. Each message says what happened, to which plugin, and what to do next; what a program
may want to act on is an attribute. Control characters in a text of the plugin are escaped, as it may be printed.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from hybridload.control_characters import escape_controls
from hybridload.frozen import frozen


class PluginError(Exception):
    """The base of everything that hybridload raises.

    :param message: what happened and what to do next.
    :param plugin: the plugin's name, or its command where it has no name.
    """

    def __init__(self, message: str, *, plugin: str | None = None) -> None:
        super().__init__(escape_controls(message))
        self.plugin = plugin

    def __reduce__(self) -> tuple[Any, ...]:
        # Attributes given by keyword would be lost by the default, which calls the class with `args` alone.
        return (_rebuild, (type(self), self.args, self.__dict__.copy()))


def _rebuild(kind: type[PluginError], args: tuple[Any, ...], attributes: dict[str, Any]) -> PluginError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class PluginNotFound(PluginError):
    """No source has a plugin of that name."""


class ConfigError(PluginError):
    """The configuration, or an argument that stands for it, is wrong.

    The message names the file, the key and what was expected.
    """


class ContractError(PluginError):
    """An interface cannot travel, or an object does not have the methods that its interface asks for."""


class ProcessError(PluginError):
    """A plugin's process is at fault.

    :param returncode: the exit status, or minus the signal's number; `None` while it is unknown.
    :param stderr: the last lines that the plugin wrote on standard error.
    """

    def __init__(
        self, message: str, *, plugin: str | None = None, returncode: int | None = None, stderr: Sequence[str] = ()
    ) -> None:
        super().__init__(message, plugin=plugin)
        self.returncode = returncode
        self.stderr = tuple(map(escape_controls, stderr))


class HandshakeError(ProcessError):
    """The process started, but it and the host did not come to terms."""


class ExitedBeforeHandshake(HandshakeError):
    """The process ended, or closed its standard output, before it printed the handshake line."""


class CookieMismatch(ExitedBeforeHandshake):
    """The plugin's own words say that the magic cookie is missing or wrong."""


class VersionMismatch(HandshakeError):
    """The plugin speaks another version of the core or the application protocol, or a protocol that is not allowed."""


class UnrecognizedOutput(HandshakeError):
    """The first line on standard output is not a handshake line."""


class StartTimeout(HandshakeError):
    """No handshake line came within the start timeout."""


class PermissionDenied(PluginError):
    """The plugin's file exists, but it cannot be run: no permission, a directory, or not a program of this system."""


class ChecksumMismatch(PluginError):
    """The plugin's file is not the one whose SHA-256 was given.

    :param expected: lower-case hexadecimal digits.
    :param actual: lower-case hexadecimal digits.
    """

    def __init__(self, message: str, *, plugin: str | None = None, expected: str = "", actual: str = "") -> None:
        super().__init__(message, plugin=plugin)
        self.expected = expected
        self.actual = actual


@frozen
class Attempt:
    """One isolation that was tried for a plugin, and why it could not be used."""

    isolation: str
    error: Exception

    def __str__(self) -> str:
        return f"{self.isolation}: {type(self.error).__name__}: {self.error}"


class NoUsableIsolation(PluginError):
    """Every isolation of the fallback chain was tried and none can run the plugin.

    :param attempts: one for each isolation that was tried, in order.
    """

    def __init__(self, message: str, *, plugin: str | None = None, attempts: Sequence[Attempt] = ()) -> None:
        super().__init__(message, plugin=plugin)
        self.attempts = tuple(attempts)


class PluginCrashed(ProcessError):
    """The plugin's process ended while it was in use; has the exit status or signal and the last lines of stderr."""


class PluginClosed(PluginError):
    """The plugin, or the loader that owns it, was closed."""


class PluginBusy(PluginError):
    """As many calls are in flight as ``max_concurrency`` allows, and ``when_busy`` says not to wait."""


class CallTimeout(PluginError, TimeoutError):
    """A call did not end within its deadline."""


class BrokerError(PluginError):
    """A brokered connection did not come about: nobody accepts the id, or the plugin's broker is gone."""


class RemoteError(PluginError):
    """An exception of the plugin that has no counterpart here, or the remote end of a rebuilt exception's cause chain.

    :param type_name: the exception's type over there, e.g. ``"mypackage.QuotaExceeded"``; empty for a Go error.
    :param remote_traceback: the traceback's text over there; empty when there is none.
    :param code: the gRPC status code's name, e.g. ``"NOT_FOUND"``; empty when the protocol has none.
    """

    def __init__(
        self,
        message: str,
        *,
        plugin: str | None = None,
        type_name: str = "",
        remote_traceback: str = "",
        code: str = "",
    ) -> None:
        super().__init__(message, plugin=plugin)
        self.type_name = escape_controls(type_name)
        self.remote_traceback = escape_controls(remote_traceback)
        self.code = code


def start_failed(error: Exception, plugin: str) -> PluginError:
    """What kept a plugin from starting and is no `PluginError`, as one: what this host, or the system, is short of.

    :param plugin: the plugin's name.
    """
    number = getattr(error, "errno", None) or 0
    if isinstance(error, RuntimeError) and "thread" in str(error):
        number = errno.EAGAIN
    elif isinstance(error, MemoryError):
        number = errno.ENOMEM
    words = f"{type(error).__name__}: {str(error) or 'there was none left'}".rstrip(".")
    mend = _MENDS.get(number, "See the cause of this error")
    return ProcessError(f"Plugin {plugin!r} could not be started: {words}. {mend}.", plugin=plugin)


_DESCRIPTORS = "This host is at its limit of open files: raise it (ulimit -n), or close what is not needed"
_MENDS = {
    errno.EMFILE: _DESCRIPTORS,
    errno.ENFILE: _DESCRIPTORS,
    errno.ENOMEM: "Free memory, or raise this host's limit of it",
    errno.EAGAIN: "Raise the limit of processes and threads that this user or container has",
    errno.ENOSPC: "Free room there, or name another temporary folder (TMPDIR)",
    errno.EDQUOT: "Free room there, or name another temporary folder (TMPDIR)",
    errno.EROFS: "Name a temporary folder that can be written to (TMPDIR)",
    errno.EACCES: "Name a temporary folder that can be written to (TMPDIR)",
}
