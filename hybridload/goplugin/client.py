"""The host's side of one plugin: start it, come to terms, talk to it, end it.

A client has one life. `start` runs the process, reads the handshake line and connects; `kill` asks the plugin to end,
waits, and kills it when it does not. Whatever goes wrong on the way is raised under its own name with the plugin's last
words, and leaves no process, thread or descriptor behind. The environment protocol, the order of what is checked and
the time limits are those of go-plugin v1.8.0 (client.go) unless a comment says otherwise.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from hybridload.contract import Contract
from hybridload.errors import (
    ConfigError,
    CookieMismatch,
    ExitedBeforeHandshake,
    HandshakeError,
    PluginClosed,
    PluginCrashed,
    StartTimeout,
    VersionMismatch,
)
from hybridload.external import External
from hybridload.goplugin.lifeline import Lifeline
from hybridload.goplugin.line import MAX_LINE, HandshakeLine
from hybridload.goplugin.logs import LogReader, emit
from hybridload.goplugin.output import OutputSink
from hybridload.goplugin.plugins import PluginSet, read_plugin_set
from hybridload.goplugin.process import PluginProcess, ProcessSpec, describe_exit
from hybridload.handle import Methods, handle_class, new_handle
from hybridload.handshake import Handshake

if TYPE_CHECKING:
    from hybridload.goplugin.certificates import Certificate
    from hybridload.goplugin.transport import TLS

PROTOCOL_VARIABLES = (
    "PLUGIN_MIN_PORT",
    "PLUGIN_MAX_PORT",
    "PLUGIN_PROTOCOL_VERSIONS",
    "PLUGIN_CLIENT_CERT",
    "PLUGIN_MULTIPLEX_GRPC",
    "PLUGIN_UNIX_SOCKET_DIR",
    "PLUGIN_UNIX_SOCKET_GROUP",
)
"""What a host tells its plugin through the environment. A host that is a plugin itself must not hand its own on."""

_MIN_PORT, _MAX_PORT = 10000, 25000
_STDERR_LINES = 20
# Seconds, as go-plugin waits after it asked a plugin to end.
_GRACE = 2.0
_PING_TIMEOUT = 5.0
# The words of go-plugin's and of hybridload's plugins for a person who starts one at a shell.
_COOKIE_WORDS = re.compile(r"this binary is a plugin|magic cookie|not meant to be executed directly", re.IGNORECASE)


class Client:
    """A plugin in its own process, spoken to in the go-plugin protocol.

    :param command: a program's path, a list of arguments (a bare name is looked up on PATH), or an `External`.
    :param plugins: kind -> contract, interface or hand-written plugin; or one such mapping per version.
    :param handshake: must be the plugin's own.
    :param name: how messages and log records call the plugin; the program's name by default.
    :param sha256: hexadecimal digest that the program's file must have. The bytes that were checked are those that run.
    :param allowed_protocols: which of ``"grpc"`` and ``"netrpc"`` the plugin may speak.
    :param start_timeout: seconds from the start of the process to a working connection.
    :param call_timeout: seconds that one call may take; `None` for no limit.
    :param env: added to the environment.
    :param inherit_env: whether the plugin gets the host's environment, or the names of the variables it gets.
    :param cwd: working directory; the host's by default.
    :param sync_stdout: file, text or binary, for what the plugin prints; `None` logs it line by line.
    :param sync_stderr: the same for what it prints on standard error (its log lines always go to `logger`).
    :param logger: gets the plugin's log records; ``hybridload.plugin.<name>`` by default.
    :param module_logger: a record that names a module goes to that child of it; `logger` by default.
    :param lifeline: kills the plugin when the host dies; one of the client's own by default.
    :param engine: what carries gRPC: ``"direct"`` or ``"grpcio"``; the environment variable `HYBRIDLOAD_ENGINE` says
        so by default.
    :raises ConfigError: an argument is wrong.
    :raises ContractError: an interface of the set cannot travel.
    """

    def __init__(
        self,
        command: str | os.PathLike[str] | Sequence[str] | External,
        *,
        plugins: PluginSet,
        handshake: Handshake,
        name: str | None = None,
        auto_mtls: bool = False,
        multiplex: bool = False,
        sha256: str | None = None,
        allowed_protocols: Sequence[str] = ("grpc",),
        start_timeout: float = 60.0,
        call_timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        inherit_env: bool | Sequence[str] = True,
        cwd: str | os.PathLike[str] | None = None,
        sync_stdout: IO[Any] | None = None,
        sync_stderr: IO[Any] | None = None,
        logger: logging.Logger | None = None,
        module_logger: logging.Logger | None = None,
        lifeline: Lifeline | None = None,
        engine: str | None = None,
    ) -> None:
        if not isinstance(handshake, Handshake):
            raise ConfigError(f"handshake is {handshake!r}: give a Handshake(cookie_key, cookie_value).")
        self._handshake = handshake
        self._versions = read_plugin_set(plugins, handshake)
        self._external = _external(command, sha256, env, cwd)
        self.name = name or Path(self._external.command[0]).name
        if multiplex:
            raise ConfigError(f"Plugin {self.name!r}: multiplex is not supported yet.", plugin=self.name)
        self._auto_mtls = auto_mtls
        self._certificate: Certificate | None = None
        self._engine = engine
        self._allowed = _protocols(allowed_protocols, self.name)
        self._start_timeout = _seconds("start_timeout", start_timeout, self.name)
        self._call_timeout = None if call_timeout is None else _seconds("call_timeout", call_timeout, self.name)
        self._inherit_env = inherit_env
        self._logger = logger or logging.getLogger(f"hybridload.plugin.{self.name}")
        self._lifeline = lifeline
        self._own_lifeline = lifeline is None
        self._module_logger = module_logger or self._logger
        self._stdout = OutputSink(sync_stdout, self._logger.getChild("stdout"))
        self._stderr = OutputSink(sync_stderr, self._logger.getChild("stderr"))
        self._first_line = _FirstLine(self._stdout)
        self._log_lines = LogReader()
        self._last_words: deque[str] = deque(maxlen=_STDERR_LINES)
        # Held by the one thread that starts or kills; `_closing` reaches a start that is still waiting.
        self._lock = threading.Lock()
        # What the process needs for as long as it runs: a copy of a program out of a zipped package.
        self._resources = ExitStack()
        self._closing = threading.Event()
        self._process: PluginProcess | None = None
        self._connection: Any = None
        self._line: HandshakeLine | None = None

    def start(self) -> None:
        """Run the plugin and connect to it. A client that runs already is left as it is.

        :raises PluginNotFound: there is no such program.
        :raises PermissionDenied: it cannot be run.
        :raises ChecksumMismatch: it is not the file whose digest was given.
        :raises HandshakeError: it does not come to terms with this host; the subclass says in which way.
        :raises PluginClosed: the client was killed, before or meanwhile. A client starts only once.
        """
        with self._lock:
            if self._closing.is_set():
                raise self._closed()
            if self._connection is not None:
                return
            try:
                self._start()
            except BaseException:
                self._closing.set()
                self._end()
                raise

    def dispense(self, kind: str) -> Any:
        """An object whose methods run in the plugin; for a hand-written plugin, what its `grpc_client` returns.

        Starts the plugin if need be. Each call gives a new object.

        :raises ConfigError: the plugin set of the negotiated version has no such kind.
        """
        made = self.dispense_methods(kind)
        contract = self._versions[self.app_version][kind]
        if not isinstance(contract, Contract):
            return made
        return new_handle(handle_class(contract.complete()), made, self.__str__)

    def dispense_methods(self, kind: str) -> Methods:
        """The bare callables behind `dispense`, by method name, for whoever has an object to put them in."""
        self.start()
        methods: Methods = self._connected().dispense(kind)
        return methods

    def ping(self, timeout: float = _PING_TIMEOUT) -> None:
        """Check that the plugin answers.

        :param timeout: seconds.
        :raises CallTimeout, PluginCrashed, PluginClosed, RemoteError: what is wrong with it.
        """
        self._connected().ping(timeout)

    def kill(self) -> None:
        """End the plugin: ask it to, give it two seconds, kill it. Waits until it is gone. Safe to call twice."""
        self._closing.set()
        process = self._process
        if process is not None and self._connection is None:
            process.kill()  # a start is waiting for the line
        with self._lock:
            self._end()

    def __enter__(self) -> Client:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def __str__(self) -> str:
        return f"{self.name!r} (pid {self.pid})" if self.pid is not None else f"{self.name!r}"

    @property
    def pid(self) -> int | None:
        """The process's id; `None` before the start."""
        return self._process.pid if self._process is not None else None

    @property
    def exited(self) -> bool:
        """Whether the process was started and is gone."""
        return self._process is not None and self._process.ended

    @property
    def returncode(self) -> int | None:
        """The exit status, or minus the signal's number; `None` while it runs."""
        return self._process.returncode if self._process is not None else None

    @property
    def protocol(self) -> str:
        """What the plugin speaks: ``"grpc"`` or ``"netrpc"``.

        :raises PluginClosed: it was never started.
        """
        return self._handshaken().protocol

    @property
    def app_version(self) -> int:
        """The negotiated version of the application protocol.

        :raises PluginClosed: it was never started.
        """
        return self._handshaken().app_version

    @property
    def stderr(self) -> tuple[str, ...]:
        """The last lines that the plugin wrote on standard error."""
        return tuple(self._last_words)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the process's end; whether it came within `timeout` seconds."""
        return self._process is None or self._process.wait(timeout)

    def gone(self, wait: float = 0) -> Exception | None:
        """Why calls can no longer succeed, or `None` when they can.

        :param wait: seconds to wait for the process's end.
        """
        if self._closing.is_set():
            return self._closed()
        if self._process is not None and self._process.wait(wait):
            return self._closed() if self._closing.is_set() else self._crashed()
        return None

    # -- starting

    def _start(self) -> None:
        argv = self._resources.enter_context(self._external.resolve(plugin=self.name))
        if self._own_lifeline:
            self._lifeline = Lifeline()
        if self._auto_mtls:
            from hybridload.goplugin.certificates import generate_certificate

            self._certificate = generate_certificate()
        spec = ProcessSpec(
            argv=argv,
            env=self._environment(),
            cwd=None if self._external.cwd is None else os.fspath(self._external.cwd),
            sha256=self._external.sha256,
        )
        self._process = PluginProcess(
            spec,
            name=self.name,
            on_stdout=self._first_line.feed,
            on_stderr=self._read_stderr,
            on_exit=self._exited,
            lifeline=self._lifeline,
        )
        # A kill that came before there was a process to kill is seen here.
        raw = b"" if self._closing.is_set() else self._first_line.wait(self._start_timeout)
        if self._closing.is_set():
            raise self._closed()
        self._line = self._accept(raw)
        self._connection = self._connect(self._line)

    def _environment(self) -> dict[str, str]:
        if self._inherit_env is True:
            env = dict(os.environ)
        elif self._inherit_env is False:
            env = {}
        else:
            env = {key: os.environ[key] for key in self._inherit_env if key in os.environ}
        for key in PROTOCOL_VARIABLES:
            env.pop(key, None)
        # Go lets the host's own variables win over the command's; what was set for this plugin is meant for it.
        env.update(self._external.env)
        env[self._handshake.cookie_key] = self._handshake.cookie_value
        env["PLUGIN_MIN_PORT"] = str(_MIN_PORT)
        env["PLUGIN_MAX_PORT"] = str(_MAX_PORT)
        if self._certificate is not None:
            env["PLUGIN_CLIENT_CERT"] = self._certificate.pem.decode()
        env["PLUGIN_PROTOCOL_VERSIONS"] = ",".join(str(version) for version in sorted(self._versions))
        return env

    def _accept(self, raw: bytes | None) -> HandshakeLine:
        if raw is None:
            raise StartTimeout(
                self._with_last_words(
                    f"Plugin {self.name!r} printed no handshake line within {self._start_timeout:g} s and was killed. "
                    "Give it a longer start_timeout, or see in its log what it waits for"
                ),
                plugin=self.name,
                stderr=self.stderr,
            )
        if not raw:
            raise self._no_line()
        try:
            line = HandshakeLine.parse(raw)
        except HandshakeError as error:
            raise type(error)(
                self._with_last_words(f"Plugin {self.name!r}: {error}"), plugin=self.name, stderr=self.stderr
            ) from error
        if line.app_version not in self._versions:
            ours = ", ".join(str(version) for version in sorted(self._versions))
            raise VersionMismatch(
                f"Plugin {self.name!r} serves version {line.app_version} of its application protocol, and this host "
                f"knows {ours}: use a plugin and a host that have a version in common.",
                plugin=self.name,
            )
        if line.protocol not in self._allowed:
            raise VersionMismatch(
                f"Plugin {self.name!r} speaks {line.protocol}, and this host allows {', '.join(self._allowed)} "
                "(allowed_protocols).",
                plugin=self.name,
            )
        return line

    def _no_line(self) -> Exception:
        assert self._process is not None
        if not self._process.wait(_GRACE):
            return ExitedBeforeHandshake(
                self._with_last_words(
                    f"Plugin {self.name!r} closed its standard output without a handshake line and was killed"
                ),
                plugin=self.name,
                stderr=self.stderr,
            )
        code = self._process.returncode
        said = "\n".join(self.stderr)
        if code not in (None, 0) and _COOKIE_WORDS.search(said):
            return CookieMismatch(
                self._with_last_words(
                    f"Plugin {self.name!r} refused the magic cookie {self._handshake.cookie_key}="
                    f"{self._handshake.cookie_value}: give host and plugin the same Handshake"
                ),
                plugin=self.name,
                returncode=code,
                stderr=self.stderr,
            )
        return ExitedBeforeHandshake(
            self._with_last_words(
                f"Plugin {self.name!r} ended {describe_exit(code)} before it printed a handshake line. "
                "Run it by hand with the cookie set to see why"
            ),
            plugin=self.name,
            returncode=code,
            stderr=self.stderr,
        )

    def _connect(self, line: HandshakeLine) -> Any:
        from hybridload.goplugin.grpc.connection import GRPCConnection
        from hybridload.goplugin.grpc.engine import Endpoint
        from hybridload.goplugin.grpc.engines import engine_named
        from hybridload.goplugin.transport import SocketTransport

        transport = SocketTransport(self._tls(line))
        where = f"{line.network} {line.address}"
        return GRPCConnection(
            Endpoint(
                lambda: transport.connect(line.network, line.address, self._start_timeout),
                where,
                plain=(line.network, line.address) if transport.tls is None else None,
            ),
            transport,
            engine_named(self._engine),
            self._versions[line.app_version],
            name=self.name,
            fate=self.gone,
            stdout=self._stdout,
            stderr=self._stderr,
            call_timeout=self._call_timeout,
            connect_timeout=self._start_timeout,
        )

    def _tls(self, line: HandshakeLine) -> TLS | None:
        if self._certificate is None or line.certificate is None:
            return None
        from hybridload.goplugin.streams.tls import client_context, server_context
        from hybridload.goplugin.transport import TLS

        return TLS(
            client_context(self._certificate, line.certificate), server_context(self._certificate, line.certificate)
        )

    # -- while it runs

    def _read_stderr(self, data: bytes) -> None:
        for entry in self._log_lines.feed(data):
            self._last_words.append(entry.message)
            emit(entry, self._logger, self.name, self._module_logger)

    def _exited(self, returncode: int) -> None:
        for entry in self._log_lines.finish():
            self._last_words.append(entry.message)
            emit(entry, self._logger, self.name, self._module_logger)
        self._first_line.finish()
        if not self._closing.is_set():
            self._logger.warning("plugin %s ended %s", self.name, describe_exit(returncode))

    def _connected(self) -> Any:
        connection = self._connection
        if connection is None:
            raise (
                self._closed()
                if self._closing.is_set()
                else PluginClosed(f"Plugin {self.name!r} is not running: call start() first.", plugin=self.name)
            )
        return connection

    def _handshaken(self) -> HandshakeLine:
        if self._line is None:
            raise PluginClosed(f"Plugin {self.name!r} has not been started: call start() first.", plugin=self.name)
        return self._line

    # -- ending

    def _end(self) -> None:
        """End the process and everything around it; called with the lock held, and again without effect."""
        process, connection = self._process, self._connection
        if process is not None:
            if connection is not None and not process.ended:
                connection.shutdown(_GRACE)
                if not process.wait(_GRACE):
                    self._logger.warning("plugin %s did not end when it was asked to; killing it", self.name)
            process.close()
        if connection is not None:
            self._connection = None
            connection.close()
        if self._own_lifeline and self._lifeline is not None:
            self._lifeline.close()
        self._resources.close()

    def _closed(self) -> PluginClosed:
        return PluginClosed(f"Plugin {self.name!r} was closed; load it again to use it.", plugin=self.name)

    def _crashed(self) -> PluginCrashed:
        code = self.returncode
        return PluginCrashed(
            self._with_last_words(f"Plugin {self.name!r} ended {describe_exit(code)} while it was in use"),
            plugin=self.name,
            returncode=code,
            stderr=self.stderr,
        )

    def _with_last_words(self, message: str) -> str:
        lines = self.stderr
        if not lines:
            return f"{message}. It wrote nothing on standard error."
        return f"{message}. Its last words on standard error:\n" + "\n".join(f"  {line}" for line in lines)


class _FirstLine:
    """Standard output, taken apart into the handshake line and what comes after it."""

    def __init__(self, rest: OutputSink) -> None:
        self._rest = rest
        self._seen = b""
        self._line: bytes | None = None
        self._known = threading.Event()

    def feed(self, data: bytes) -> None:
        """Take a chunk; ``b""`` is the end of the output."""
        if self._known.is_set():
            self._rest.write(data)
            return
        if not data:
            self._settle(self._seen)
            return
        self._seen += data
        line, ended, rest = self._seen.partition(b"\n")
        if ended or len(self._seen) > MAX_LINE:
            self._settle(line)
            if rest:
                self._rest.write(rest)

    def finish(self) -> None:
        """No more comes."""
        if not self._known.is_set():
            self._settle(self._seen)
        self._rest.finish()

    def wait(self, timeout: float) -> bytes | None:
        """The line; empty when the output ended without one, `None` when `timeout` seconds passed."""
        self._known.wait(timeout)
        return self._line

    def _settle(self, line: bytes) -> None:
        self._seen = b""
        self._line = line
        self._known.set()


def _external(
    command: str | os.PathLike[str] | Sequence[str] | External,
    sha256: str | None,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
) -> External:
    given = command if isinstance(command, External) else External(command)
    return given.overridden(sha256=sha256, env=env or {}, cwd=None if cwd is None else Path(cwd))


def _protocols(allowed: Sequence[str], name: str) -> tuple[str, ...]:
    protocols = (allowed,) if isinstance(allowed, str) else tuple(allowed)
    if not protocols or not set(protocols) <= {"grpc", "netrpc"}:
        raise ConfigError(
            f"Plugin {name!r}: allowed_protocols is {allowed!r}: give one or both of 'grpc' and 'netrpc'.", plugin=name
        )
    if "netrpc" in protocols:
        raise ConfigError(f"Plugin {name!r}: net/rpc is not supported yet: allow 'grpc' alone.", plugin=name)
    return protocols


def _seconds(what: str, value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(f"Plugin {name!r}: {what} is {value!r}: give seconds, more than 0.", plugin=name)
    return float(value)
