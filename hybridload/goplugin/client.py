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
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from hybridload import platforms
from hybridload.contract import Contract, Kind
from hybridload.deadlines import check_seconds
from hybridload.errors import (
    ConfigError,
    CookieMismatch,
    ExitedBeforeHandshake,
    HandshakeError,
    PluginClosed,
    PluginCrashed,
    PluginError,
    StartTimeout,
    VersionMismatch,
    start_failed,
)
from hybridload.exits import aside, at_exit, ending
from hybridload.external import External
from hybridload.goplugin.addresses import AddressRefused
from hybridload.goplugin.last_words import LastWords
from hybridload.goplugin.lifeline import SHARED_LIFELINE, Lifeline
from hybridload.goplugin.lifetime import Lifetime
from hybridload.goplugin.line import MAX_LINE, HandshakeLine
from hybridload.goplugin.logs import MAX_LINE as MAX_LOG_LINE
from hybridload.goplugin.logs import LogEntry, LogReader, PluginLog
from hybridload.goplugin.output import Output, OutputSink
from hybridload.goplugin.plugins import PluginSet, read_plugin_set
from hybridload.goplugin.process import MARK, ProcessSpec, describe_exit
from hybridload.goplugin.reattach import AttachedProcess, ReattachConfig
from hybridload.goplugin.reattach_variable import REATTACH_VARIABLE
from hybridload.goplugin.runner import LocalRunner, Runner, RunningPlugin
from hybridload.goplugin.socket_folder import SocketFolder
from hybridload.handle import Methods, handle_class, new_handle
from hybridload.handshake import Handshake
from hybridload.limits import Limits, given_max_message

if TYPE_CHECKING:
    import ssl

    from hybridload.contract import Service
    from hybridload.goplugin.certificates import Certificate
    from hybridload.goplugin.grpc.engine import Endpoint
    from hybridload.goplugin.streams.base import Listener, Stream
    from hybridload.goplugin.transport import TLS, Transport

log = logging.getLogger(__name__)

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
# Seconds, as go-plugin waits after it asked a plugin to end.
_GRACE = 2.0
# Seconds that a plugin which did not come to terms is given to end by itself: its exit status and last words say why.
_PARTING = 0.25
_LOOK_AGAIN = 0.05
_PING_TIMEOUT = 5.0
# Bytes of an unfinished line that an error shows.
_SHOWN = 200
# How go-plugin calls the sockets that it puts into the temporary folder.
_OLD_SOCKET = re.compile(r"plugin\d+")
# The words of go-plugin's and of hybridload's plugins for a person who starts one at a shell.
_COOKIE_WORDS = re.compile(r"this binary is a plugin|magic cookie|not meant to be executed directly", re.IGNORECASE)


class Client:
    """A plugin in its own process, spoken to in the go-plugin protocol.

    :param command: a program's path, a list of arguments (a bare name is looked up on PATH), or an `External`.
    :param plugins: kind -> contract, interface or hand-written plugin; or one such mapping per version.
    :param handshake: must be the plugin's own; `None` sends no cookie, which few plugins put up with.
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
    :param lifeline: kills the plugin when the host dies; by default one that all such clients share.
    :param engine: what carries gRPC: ``"direct"`` or ``"grpcio"``; the environment variable `HYBRIDLOAD_ENGINE` says
        so by default.
    :param auto_mtls: make a certificate for this one connection and have the plugin do the same; each side trusts
        exactly the other's. A plugin that cannot do it is refused.
    :param tls: own TLS material instead: a client context, or a `TLS` of client and server context where the plugin
        calls back. The plugin must serve with its counterpart.
    :param multiplex: have all gRPC connections share one socket. A plugin that cannot do it is refused. Over net/rpc
        they always do.
    :param min_port: the least tcp port that a plugin which listens on tcp may use.
    :param max_port: the greatest.
    :param unix_socket_dir: where the folder with the plugin's sockets is made; the temporary folder by default.
    :param unix_socket_group: members of that group may connect, for a plugin that runs as another user.
    :param stderr: gets every byte of the plugin's raw standard error, besides `logger`.
    :param log_buffer_size: bytes of one log line that are kept together; a longer one is logged in pieces.
    :param channel_options: grpc channel arguments, e.g. ``("grpc.max_send_message_length", 4 << 20)``.
    :param max_message: the largest message that is taken from the plugin, in bytes once it is decompressed, or as
        ``"64MB"`` or ``"1GiB"``; ``"unlimited"`` for no limit, 256 MiB by default. It holds for answers, each message
        of a stream, and arguments of callbacks, in both protocols. What the plugin takes it says itself.
    :param outlive_host: let the plugin live on when the host ends without having killed it, for a later host that
        reattaches. A Python plugin has to be served with ``outlive_host=True`` as well.
    :param managed: have `cleanup_clients` kill it.
    :param runner: starts the plugin; a process on this machine by default.
    :param limits: what the process may use at the most.
    :raises ConfigError: an argument is wrong.
    :raises ContractError: an interface of the set cannot travel.
    """

    def __init__(
        self,
        command: str | os.PathLike[str] | Sequence[str] | External | None,
        *,
        plugins: PluginSet,
        handshake: Handshake | None,
        name: str | None = None,
        auto_mtls: bool = True,
        multiplex: bool = False,
        sha256: str | None = None,
        allowed_protocols: Sequence[str] = ("grpc", "netrpc"),
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
        tls: TLS | ssl.SSLContext | None = None,
        min_port: int = _MIN_PORT,
        max_port: int = _MAX_PORT,
        unix_socket_dir: str | os.PathLike[str] | None = None,
        unix_socket_group: str | None = None,
        stderr: IO[bytes] | None = None,
        log_buffer_size: int = MAX_LOG_LINE,
        channel_options: Sequence[tuple[str, Any]] = (),
        outlive_host: bool = False,
        managed: bool = False,
        runner: Runner | None = None,
        limits: Limits | None = None,
        max_message: int | str | None = None,
    ) -> None:
        if handshake is not None and not isinstance(handshake, Handshake):
            raise ConfigError(f"handshake is {handshake!r}: give a Handshake(cookie_key, cookie_value).")
        self._handshake = handshake
        self._versions = read_plugin_set(plugins, handshake)
        self._external = _external(command if command is not None else "(reattached)", sha256, env, cwd)
        self.name = name or Path(self._external.command[0]).name
        self._own_tls = None if tls is None else _own_tls(tls, self.name)
        self._made_tls: TLS | None = None
        self._auto_mtls = auto_mtls and tls is None
        self._multiplex = multiplex
        self._ports = _ports(min_port, max_port, self.name)
        self._socket_dir = None if unix_socket_dir is None else _absolute(unix_socket_dir, self.name)
        self._socket_group = unix_socket_group
        self._raw_stderr = stderr
        self._max_message, self._channel_options = given_max_message(max_message, channel_options, "channel_options")
        self._outlive_host = outlive_host
        self._limits = limits or Limits()
        self._runner: Runner = runner or LocalRunner()
        self._attach: ReattachConfig | None = None
        self._certificate: Certificate | None = None
        self._engine = engine
        self._allowed = _protocols(allowed_protocols, self.name)
        self._start_timeout = check_seconds("start_timeout", start_timeout, plugin=self.name)
        self._call_timeout = call_timeout
        if call_timeout is not None:
            self._call_timeout = check_seconds("call_timeout", call_timeout, plugin=self.name)
        self._inherit_env = inherit_env
        self._logger = logger or logging.getLogger(f"hybridload.plugin.{self.name}")
        self._lifeline = lifeline
        self._own_lifeline = lifeline is None
        self._log = PluginLog(self._logger, self.name, module_logger)
        self._stdout = Output(sync_stdout, PluginLog(self._logger.getChild("stdout"), self.name))
        self._stderr = Output(sync_stderr, PluginLog(self._logger.getChild("stderr"), self.name))
        self._first_line = _FirstLine(self._stdout.sink())
        self._log_lines = LogReader(log_buffer_size)
        self._last_words = LastWords()
        # Held by the one thread that starts or kills; `_closing` reaches a start that is still waiting.
        # Reentrant, for a signal handler that interrupts that: `_busy`, the thread that does so, tells it.
        self._lock = threading.RLock()
        self._busy: int | None = None
        # What the process needs for as long as it runs: a copy of a program out of a zipped package.
        self._resources = ExitStack()
        self._closing = threading.Event()
        self._process: RunningPlugin | None = None
        self._connection: Any = None
        self._verdict: str | None = None
        self._when_gone: list[Callable[[], None]] = []
        self._line: HandshakeLine | None = None
        self._printed: bytes | None = None
        self._folder: str | None = None
        self._lifetime = Lifetime()
        self._announced: HandshakeLine | None = None
        # In a forked child this is somebody else's plugin.
        self._owner = os.getpid()
        if managed:
            _managed.add(self)

    @classmethod
    def reattach(
        cls,
        config: ReattachConfig,
        *,
        plugins: PluginSet,
        handshake: Handshake | None,
        name: str | None = None,
        **options: Any,
    ) -> Client:
        """A client for a plugin that runs already.

        Killing it ends the plugin, as if this host had started it, unless the plugin is in test mode; `release` lets
        go of it without.

        :param config: where it is; from `reattach_config` of the client that started it, or from whoever runs it.
        :param options: those parameters of a client that do not concern starting.
        :raises ConfigError, ContractError: an argument is wrong.
        """
        options = {"runner": LocalRunner(known=(config.network, config.address)), **options}
        client = cls(None, plugins=plugins, handshake=handshake, name=name or f"pid {config.pid}", **options)
        client._attach = config
        return client

    @property
    def reattach_config(self) -> ReattachConfig:
        """What another process needs to use this plugin. Secret under AutoMTLS: it holds this host's key.

        :raises PluginClosed: the plugin does not run.
        :raises ConfigError: a multiplexed plugin, which takes one connection in its life.
        """
        if self._attach is not None:
            return self._attach
        line = self._handshaken()
        process = self._process
        if process is None or process.pid is None or self._closing.is_set():
            raise self._closed()
        if self._multiplex and line.protocol == "grpc":
            raise ConfigError(
                f"Plugin {self.name!r} is multiplexed: it takes one connection in its life, so nobody can reattach.",
                plugin=self.name,
            )
        return ReattachConfig(
            protocol=line.protocol,
            protocol_version=line.app_version,
            network=line.network,
            address=line.address,
            pid=process.pid,
            started=platforms.start_time(process.pid),
            certificate=self._certificate,
            plugin_certificate=line.certificate,
        )

    def start(self) -> None:
        """Run the plugin and connect to it. A client that runs already is left as it is.

        :raises PluginNotFound: there is no such program.
        :raises PermissionDenied: it cannot be run.
        :raises ChecksumMismatch: it is not the file whose digest was given.
        :raises HandshakeError: it does not come to terms with this host; the subclass says in which way.
        :raises ProcessError: this host or the system is short of something that a start takes; the cause says of what.
        :raises PluginClosed: the client was killed, before or meanwhile. A client starts only once.
        """
        with self._lock:
            if self._closing.is_set():
                raise self._closed()
            if self._connection is not None:
                return
            if self._busy:
                raise PluginError(
                    f"Plugin {self.name!r} is being started by this very thread, which a signal handler or a finalizer "
                    "has interrupted: start it on another thread, or later.",
                    plugin=self.name,
                )
            if ending():
                raise PluginClosed(f"Plugin {self.name!r} cannot start: the interpreter is ending.", plugin=self.name)
            at_exit(self, Client._exit)
            self._busy = threading.get_ident()
            try:
                self._start()
            except BaseException as error:
                self._closing.set()
                self._end()
                if isinstance(error, PluginError) or not isinstance(error, Exception):
                    raise
                raise start_failed(error, self.name) from error
            finally:
                self._busy = None

    def dispense(self, kind: str) -> Any:
        """An object whose methods run in the plugin; for a hand-written plugin, what its client half returns.

        Starts the plugin if need be. Each call gives a new object.

        :raises ConfigError: the plugin set of the negotiated version has no such kind.
        """
        made = self.dispense_methods(kind)
        contract = self._versions[self.app_version][kind]
        if not isinstance(contract, Contract):
            _hold(self, made)
            return made
        service = contract.complete()
        return new_handle(handle_class(service), _holding(self, service, made), self.__str__)

    def dispense_methods(self, kind: str) -> Methods:
        """The bare callables behind `dispense`, by method name, for whoever has an object to put them in."""
        self.start()
        methods: Methods = self._connected().dispense(kind)
        return methods

    def ping(self, timeout: float = _PING_TIMEOUT) -> None:
        """Check that the plugin answers.

        :param timeout: seconds.
        :raises CallTimeout, PluginCrashed, PluginClosed, RemoteError: what is wrong with it.
        :raises ConfigError: `timeout` is no number of seconds.
        """
        self._connected().ping(check_seconds("timeout", timeout, plugin=self.name))

    def kill(self) -> None:
        """End the plugin: ask it to, give it two seconds, kill it. Waits until it is gone. Safe to call twice.

        In a signal handler that interrupts a start or an end on the same thread, that one sees to the rest.

        In a forked child of the process that started the plugin it does nothing.
        """
        if os.getpid() != self._owner:
            return
        self._closing.set()
        process = self._process
        if process is not None and (self._connection is None or ending()):
            process.kill()  # a start is waiting for the line, or no thread can be waited for any more
        if not ending():
            with self._lock:
                self._end_alone()

    def _end_alone(self) -> None:
        """With the lock: end it, unless this interrupts one who starts or ends it on the same thread and will."""
        if not self._busy:
            self._busy = threading.get_ident()
            try:
                self._end()
            finally:
                self._busy = None

    def _exit(self) -> None:
        """At the interpreter's end: kill it, unless it is to live on, and let go of it."""
        if os.getpid() != self._owner or self._outlive_host:
            return
        self._closing.set()
        process = self._process
        if process is not None and self._attach is None:
            process.kill()
        # Not waited for when it is held by a start that is stuck: then the lifeline does the rest.
        if self._lock.acquire(timeout=_GRACE):
            try:
                self._end_alone()
            finally:
                self._lock.release()

    def __del__(self) -> None:
        # What is dispensed holds the client, and no thread does.
        process = getattr(self, "_process", None)
        if process is None or self._closing.is_set() or ending():
            return
        if os.getpid() != self._owner or self._outlive_host:
            return
        if self._attach is not None:
            aside(self.release, f"hybridload {self.name} close")
            return
        if self._own_lifeline:  # a loader speaks for itself
            words = (
                f"The client of plugin {self} was dropped without kill(): the plugin ends now. Use a with statement."
            )
            warnings.warn(words, ResourceWarning, stacklevel=2, source=self)
        aside(self.kill, f"hybridload {self.name} close")

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
        return self._process is not None and self._process.poll()

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
    def command(self) -> tuple[str, ...]:
        """The program and its arguments, as they were given."""
        return self._external.command

    def lacks_stdio(self) -> bool:
        """Whether the plugin has told that it has no stdio service; waits a moment for it to do so.

        :raises PluginClosed: it does not run.
        """
        lacks: bool = self._connected().lacks_stdio()
        return lacks

    def offers(self, kind: str, timeout: float = 60.0) -> bool | None:
        """Whether the plugin can dispense a kind, be it in the plugin set or not; `None` where only a call would tell,
        which is so over gRPC.

        :param timeout: seconds that it may take to say so.
        :raises PluginClosed: it does not run.
        """
        if self.protocol == "grpc":
            return None
        has: bool = self._connected().offers(kind, timeout)
        return has

    @property
    def printed_line(self) -> str | None:
        """The plugin's first line as it came, also when it was refused; `None` before."""
        return None if self._printed is None else self._printed.decode("utf-8", "backslashreplace").rstrip("\r\n")

    @property
    def announced(self) -> HandshakeLine | None:
        """What that line says, also when this client cannot do with it; `None` when it is no handshake line."""
        return self._announced

    @property
    def channel(self) -> Any:
        """The channel to the plugin, shaped as `grpc.Channel`: for generated stubs that no plugin set has.

        :raises PluginClosed: it does not run.
        """
        return self._connected().channel

    @property
    def rpc_error(self) -> Any:
        """A tuple of what calls on `channel` raise.

        :raises PluginClosed: it does not run.
        """
        return self._connected().rpc_error

    def explain(self, error: Exception, timeout: float | None = None) -> Exception:
        """What a failed call on `channel` means, as the methods of a contract would raise it.

        :param error: one of `rpc_error`.
        :param timeout: seconds that the call had.
        """
        explained: Exception = self._connected().translate(error, timeout)
        return explained

    @property
    def stderr(self) -> tuple[str, ...]:
        """The last lines that the plugin wrote on standard error."""
        return self._last_words.lines()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the process's end; whether it came within `timeout` seconds."""
        return self._process is None or self._process.wait(timeout)

    def gone(self, wait: float = 0) -> Exception | None:
        """Why calls can no longer succeed, or `None` when they can.

        :param wait: seconds to wait for the process's end.
        """
        if self._closing.is_set():
            return self._closed()
        process = self._process
        if process is None or not _ends(process, wait):
            return None
        process.wait(_PARTING)  # what it wrote in the end is part of the error
        return self._closed() if self._closing.is_set() else self._crashed()

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, on some thread, when the process has ended without having been asked to; now when it
        has already. It may be called twice."""
        self._when_gone.append(callback)
        if self.exited and not self._closing.is_set():
            callback()

    def condemn(self, why: str) -> None:
        """Kill a plugin that is of no use any more, at once. Calls in flight raise `PluginCrashed`.

        :param why: what it did, as the rest of a sentence about it.
        """
        self._verdict = why
        if self._process is not None:
            self._process.kill()

    # -- starting

    def _start(self) -> None:
        deadline = time.monotonic() + self._start_timeout
        if self._attach is not None:
            self._line = self._attached_line(self._attach)
            self._process = AttachedProcess(self._attach, name=self.name, on_exit=partial(_weakly(self._exited), None))
            self._connection = self._connect(self._line, deadline)
            return
        argv = self._resources.enter_context(self._external.resolve(plugin=self.name))
        if self._own_lifeline and not self._outlive_host:
            self._lifeline = SHARED_LIFELINE.join()
        if self._auto_mtls:
            from hybridload.goplugin.certificates import generate_certificate

            self._certificate = generate_certificate()
        spec = ProcessSpec(
            argv=argv,
            # A plugin that outlives this host cannot have its sockets in a folder that ends with the host.
            env=self._environment(None if self._outlive_host else self._socket_folder()),
            cwd=None if self._external.cwd is None else os.fspath(self._external.cwd),
            sha256=self._external.sha256,
            outlive_host=self._outlive_host,
            limits=self._limits,
        )
        self._process = self._runner.start(
            spec,
            name=self.name,
            on_stdout=self._first_line.feed,
            on_stderr=_weakly(self._read_stderr),
            on_exit=_weakly(self._exited),
            lifeline=None if self._outlive_host else self._lifeline,
        )
        _import_connection(self._engine, tls=self._auto_mtls)
        # A kill that came before there was a process to kill is seen here.
        raw = b"" if self._closing.is_set() else self._first_line.wait(deadline - time.monotonic())
        if self._closing.is_set():
            raise self._closed()
        self._line = self._accept(raw, deadline)
        self._own_address(self._line)
        self._connection = self._connect(self._line, deadline)

    def _socket_folder(self) -> str:
        """A folder for the plugin's sockets, removed at its end: one that is killed cannot remove them itself."""
        announce = None if self._lifeline is None else partial(self._guard_folder, self._lifeline)
        try:
            folder = SocketFolder(parent=self._socket_dir, group=self._socket_group, announce=announce)
        except LookupError as error:
            raise ConfigError(f"Plugin {self.name!r}: unix_socket_group: {error}.", plugin=self.name) from error
        self._resources.callback(folder.close)
        self._folder = folder.path
        return folder.path

    def _guard_folder(self, lifeline: Lifeline, path: str) -> None:
        self._resources.callback(lifeline.release_folder, lifeline.guard_folder(path))

    def _own_address(self, line: HandshakeLine) -> None:
        """Remove a socket that the plugin has put elsewhere: one of go-plugin 1.0, when it is killed, leaves it."""
        folder, name = os.path.split(line.address)
        if self._folder is None or line.network != "unix" or folder == self._folder or not _OLD_SOCKET.fullmatch(name):
            return
        here = self._external.env.get("TMPDIR") or platforms.temporary_folder()
        if os.path.realpath(folder) == os.path.realpath(here) and platforms.is_socket(line.address):
            self._resources.callback(_unlink, line.address)
            if self._lifeline is not None:
                self._guard_folder(self._lifeline, line.address)

    def _attached_line(self, config: ReattachConfig) -> HandshakeLine:
        """What the plugin's handshake line said, as far as the config tells."""
        self._certificate = config.certificate
        version = config.protocol_version
        if version not in self._versions:
            # A Go host's own config has no version outside test mode.
            version = self._handshake.protocol_version if version == 0 and self._handshake else version
        if version not in self._versions:
            ours = ", ".join(map(str, sorted(self._versions)))
            raise VersionMismatch(
                f"Plugin {self.name!r} serves version {version} of its application protocol, and this host knows "
                f"{ours}.",
                plugin=self.name,
            )
        return HandshakeLine(version, config.network, config.address, config.protocol, config.plugin_certificate)

    def _environment(self, socket_folder: str | None) -> dict[str, str]:
        if self._inherit_env is True:
            env = dict(os.environ)
        elif self._inherit_env is False:
            env = {}
        else:
            env = {key: os.environ[key] for key in self._inherit_env if key in os.environ}
        # What runs under a debugger is meant for this host, and may be named with its key.
        for key in (*PROTOCOL_VARIABLES, REATTACH_VARIABLE, MARK):
            env.pop(key, None)
        if socket_folder is not None:
            env["PLUGIN_UNIX_SOCKET_DIR"] = socket_folder
        if self._socket_group is not None:
            env["PLUGIN_UNIX_SOCKET_GROUP"] = self._socket_group
        # Go lets the host's own variables win over the command's; what was set for this plugin is meant for it.
        env.update(self._external.env)
        if self._handshake is not None:
            env[self._handshake.cookie_key] = self._handshake.cookie_value
        env["PLUGIN_MIN_PORT"], env["PLUGIN_MAX_PORT"] = map(str, self._ports)
        if self._multiplex:
            env["PLUGIN_MULTIPLEX_GRPC"] = "true"
        if self._certificate is not None:
            env["PLUGIN_CLIENT_CERT"] = self._certificate.pem.decode()
        env["PLUGIN_PROTOCOL_VERSIONS"] = ",".join(str(version) for version in sorted(self._versions))
        return env

    def _accept(self, raw: bytes | None, deadline: float) -> HandshakeLine:
        if raw is None:
            raise self._refused(
                StartTimeout,
                f"printed no handshake line within {self._start_timeout:g} s and was killed{self._first_line.begun()}. "
                "Give it a longer start_timeout, or see in its log what it waits for",
                parting=0,
            )
        if not raw:
            raise self._no_line(deadline)
        self._printed = raw
        try:
            line = HandshakeLine.parse(raw)
        except HandshakeError as error:
            raise self._refused(type(error), f"does not speak go-plugin's handshake. {error}") from error
        self._announced = line
        if line.app_version not in self._versions:
            ours = ", ".join(str(version) for version in sorted(self._versions))
            raise self._refused(
                VersionMismatch,
                f"serves version {line.app_version} of its application protocol, and this host knows {ours}: "
                "use a plugin and a host that have a version in common",
            )
        if line.protocol not in self._allowed:
            raise self._refused(
                VersionMismatch,
                f"speaks {line.protocol}, and this host allows {', '.join(self._allowed)} (allowed_protocols)",
            )
        if line.certificate is not None and not self._auto_mtls:
            raise self._refused(HandshakeError, "wants TLS, which this host did not ask for")
        if line.certificate is None and self._auto_mtls:
            raise self._refused(
                HandshakeError,
                "was asked for TLS (AutoMTLS) and sent no certificate: it cannot do it. "
                "Use a newer plugin, or set auto_mtls = false for it",
            )
        if self._multiplex and line.protocol == "grpc" and not line.multiplex:
            raise self._refused(
                HandshakeError,
                "was asked to share one socket (multiplex) and cannot do it. "
                "Use a plugin built with go-plugin 1.6 or newer, or set multiplex = false for it",
            )
        return line

    def _no_line(self, deadline: float) -> HandshakeError:
        """The error for a plugin whose output ended without a line, which mostly is the end of its process."""
        assert self._process is not None
        if not self._process.wait(min(_GRACE, max(0.0, deadline - time.monotonic()))):
            return self._refused(
                ExitedBeforeHandshake,
                "closed its standard output without a handshake line and was killed. "
                "A plugin keeps its standard output open until it ends",
                parting=0,
            )
        code = self._process.returncode
        if code != 0 and _COOKIE_WORDS.search("\n".join(self.stderr)):
            shake = self._handshake
            return self._refused(
                CookieMismatch,
                "wants a magic cookie, and was given none: it has to be known from the plugin's documentation or source"
                if shake is None
                else f"refused the magic cookie {shake.cookie_key}={shake.cookie_value}: "
                "give host and plugin the same Handshake",
            )
        return self._refused(
            ExitedBeforeHandshake,
            f"ended {describe_exit(code)} before it printed a handshake line. "
            + ("Its limits hold for its start as well: they may be too low. " if self._limits else "")
            + "Run it by hand with the cookie set to see why",
        )

    def _refused(self, kind: type[HandshakeError], what: str, *, parting: float = _PARTING) -> HandshakeError:
        """End the process, so that all it said is here, and make the error that quotes it.

        :param what: what it did, as the rest of a sentence about it.
        :param parting: seconds that it may take to end by itself.
        """
        assert self._process is not None
        ended = self._process.wait(parting)
        # Before it is closed: what it ran in may be gone then.
        diagnosis = self._runner.diagnose()
        self._process.close()
        message = self._with_last_words(f"Plugin {self.name!r} {what.rstrip('.')}")
        return kind(
            f"{message}\n{diagnosis}" if diagnosis else message,
            plugin=self.name,
            returncode=self._process.returncode if ended else None,
            stderr=self.stderr,
        )

    def _connect(self, line: HandshakeLine, deadline: float) -> Any:
        patience = max(_PARTING, deadline - time.monotonic())
        common: dict[str, Any] = {
            "name": self.name,
            "fate": _weakly(self.gone, partial(_closed, self.name)),
            "stdout": self._stdout.sink(),
            "stderr": self._stderr.sink(),
            "call_timeout": self._call_timeout,
            "connect_timeout": patience,
            "max_message": self._max_message,
        }
        connect = self._connect_grpc if line.protocol == "grpc" else self._connect_netrpc
        try:
            self._runner.plugin_to_host(line.network, line.address)  # a refusal comes before anything is opened
            return connect(line, patience, common)
        except HandshakeError as error:
            parting = 0 if isinstance(error, StartTimeout) else _PARTING
            raise self._refused(type(error), str(error), parting=parting) from error.__cause__
        except AddressRefused as error:
            raise self._refused(HandshakeError, str(error)) from error

    def _connect_grpc(self, line: HandshakeLine, patience: float, common: Mapping[str, Any]) -> Any:
        from hybridload.goplugin.grpc.connection import GRPCConnection
        from hybridload.goplugin.grpc.engines import engine_named

        transport = self._transport(line)
        return GRPCConnection(
            self._endpoint(line, transport, patience),
            transport,
            engine_named(self._engine),
            self._versions[line.app_version],
            options=self._channel_options,
            lifetime=self._lifetime,
            broken=partial(_weakly(self.condemn), "broke its connection"),
            **common,
        )

    def _connect_netrpc(self, line: HandshakeLine, patience: float, common: Mapping[str, Any]) -> Any:
        from hybridload.goplugin.netrpc.connection import NetRPCConnection
        from hybridload.goplugin.transport import SocketTransport

        transport = SocketTransport(self._tls(line), inwards=self._runner.plugin_to_host)
        return NetRPCConnection(
            lambda: transport.connect(line.network, line.address, patience),
            f"{line.network} {line.address}",
            self._versions[line.app_version],
            broken=partial(_weakly(self.condemn), "broke its connection"),
            **common,
        )

    def _endpoint(self, line: HandshakeLine, transport: Transport, patience: float) -> Endpoint:
        from hybridload.goplugin.grpc.engine import Endpoint

        where = f"{line.network} {line.address}"
        if transport.multiplexed:
            return Endpoint(transport.open, where, costly=self._tls(line) is not None)
        costly = self._tls(line) is not None
        plain = None if costly else self._runner.plugin_to_host(line.network, line.address)

        def connect(timeout: float | None) -> Stream:
            limit = patience if timeout is None else min(patience, timeout)
            return transport.connect(line.network, line.address, limit)

        return Endpoint(connect, where, plain, costly)

    def _transport(self, line: HandshakeLine) -> Transport:
        from hybridload.goplugin.transport import MultiplexedTransport, SocketTransport

        tls = self._tls(line)
        if not self._multiplex:
            listen = partial(_listen, self._folder, self._socket_group)
            return SocketTransport(tls, listen, self._runner.host_to_plugin, self._runner.plugin_to_host)
        from hybridload.goplugin.streams.mux import Mux, MuxConfig
        from hybridload.goplugin.streams.sockets import connect

        network, address = self._runner.plugin_to_host(line.network, line.address)
        try:
            stream = connect(network, address, self._start_timeout)
            session = Mux(stream, client=True, config=MuxConfig(half_close=False))
        except (OSError, TimeoutError) as error:
            raise HandshakeError(
                f"Plugin {self.name!r} says that it listens on {network} {address}, but nobody answers there: {error}.",
                plugin=self.name,
            ) from error
        transport = MultiplexedTransport(session, tls, name=self.name)
        self._resources.callback(transport.close)
        return transport

    def _tls(self, line: HandshakeLine) -> TLS | None:
        if self._own_tls is not None:
            return self._own_tls
        if self._certificate is None or line.certificate is None:
            return None
        if self._made_tls is None:
            from hybridload.goplugin.transport import MutualTLS, alpn_of

            made = MutualTLS(self._certificate, line.certificate, alpn_of(line.protocol))
            try:
                made.client  # noqa: B018  # a certificate that is none is found out here
            except (OSError, ValueError) as error:  # ssl.SSLError is the former
                raise HandshakeError(
                    f"Plugin {self.name!r}: TLS is not to be had with the certificate in its handshake line or "
                    f"reattach config, or with the host's own: {error}. Start the plugin anew, or set auto_mtls=False.",
                    plugin=self.name,
                ) from error
            self._made_tls = made
        return self._made_tls

    # -- while it runs

    def _read_stderr(self, data: bytes) -> None:
        if self._raw_stderr is not None:
            self._copy_stderr(data)
        for entry in self._log_lines.feed(data):
            self._last_words.add(entry.line())
            self._log.emit(entry)

    def _copy_stderr(self, data: bytes) -> None:
        assert self._raw_stderr is not None
        try:
            self._raw_stderr.write(data)
            self._raw_stderr.flush()
        except Exception as error:  # the file is the user's, and so is what it may raise
            self._raw_stderr = None
            words = f"plugin {self.name}: the host's file for its raw standard error failed ({error}); it gets no more"
            self._log.emit(LogEntry(logging.WARNING, words))

    def _exited(self, returncode: int | None) -> None:
        entries = self._log_lines.finish()
        for entry in entries:
            self._last_words.add(entry.line())
        with ExitStack() as ending:  # all of it, whatever a log handler or a file of the user's raises
            # Before there is a connection, whoever starts it is told.
            if self._connection is not None and not self._closing.is_set():
                for callback in self._when_gone:
                    ending.callback(callback)
                words = f"plugin {self.name} ended {describe_exit(returncode)}"
                ending.callback(self._log.emit, LogEntry(logging.WARNING, words))
            ending.callback(self._lifetime.end)
            ending.callback(self._first_line.finish)
            for entry in reversed(entries):
                ending.callback(self._log.emit, entry)

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
        with ExitStack() as stack:  # whatever fails, the process is killed, and nothing else is left either
            stack.callback(self._leave_lifeline)
            stack.callback(self._resources.close)
            stack.callback(self._disconnect)
            if process is not None:
                stack.callback(process.close)
                if connection is not None and not ending() and not process.poll() and not self._is_test():
                    self._ask_to_end(process, connection)

    def _ask_to_end(self, process: RunningPlugin, connection: Any) -> None:
        try:
            asked = connection.shutdown(_GRACE)
        except Exception as error:  # there is no thread to be had, say: then it is killed without having been asked
            log.debug("plugin %s cannot be asked to end: %s", self.name, error)
            asked = False
        if not _ends(process, _GRACE if asked else 0):
            words = f"plugin {self.name} did not end when it was asked to; killing it"
            self._log.emit(LogEntry(logging.WARNING, words))
            process.kill()
            _ends(process, _GRACE)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _leave_lifeline(self) -> None:
        if self._own_lifeline and self._lifeline is not None:
            lifeline, self._lifeline = self._lifeline, None
            SHARED_LIFELINE.leave(lifeline)

    def _is_test(self) -> bool:
        """Whether whoever started the plugin ends it."""
        return self._attach is not None and self._attach.test

    def release(self) -> None:
        """Let go of a reattached plugin without ending it. Safe to call twice.

        :raises ConfigError: this client started the plugin itself.
        """
        if self._attach is None:
            raise ConfigError(
                f"Plugin {self.name!r} was started by this client, which ends it: only what was reattached can be let "
                "go of.",
                plugin=self.name,
            )
        self._closing.set()
        with self._lock:
            process, connection = self._process, self._connection
            self._connection = None
            if connection is not None:
                connection.close()
            if process is not None:
                process.close()
            self._resources.close()

    def _closed(self) -> PluginClosed:
        return _closed(self.name)

    def _crashed(self) -> PluginCrashed:
        code = self.returncode
        when = "right after its handshake line" if self._connection is None else "while it was in use"
        what = f"ended {describe_exit(code)} {when}" if self._verdict is None else f"{self._verdict} and was killed"
        return PluginCrashed(
            self._with_last_words(f"Plugin {self.name!r} {what}"),
            plugin=self.name,
            returncode=code,
            stderr=self.stderr,
        )

    def _with_last_words(self, message: str) -> str:
        lines = self.stderr
        if not lines and self._attach is not None:
            return f"{message}."  # what it writes is not seen here
        if not lines:
            return f"{message}. It wrote nothing on standard error."
        return f"{message}. Its last words on standard error:\n" + "\n".join(f"  {line}" for line in lines)


def _ends(process: RunningPlugin, timeout: float) -> bool:
    """Wait for a process's end, be its output taken or not; whether it came within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not process.poll():
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        # Awake at once when all is well; `poll` sees the end of one whose output is held up.
        process.wait(min(remaining, _LOOK_AGAIN))
    return True


def _weakly(method: Callable[..., Any], otherwise: Callable[[], Any] | None = None) -> Callable[..., Any]:
    """A method, for threads that do not keep its object alive.

    :param otherwise: gives what is returned once that is gone; `None` by default.
    """
    known = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        found = known()
        if found is not None:
            return found(*args)
        return None if otherwise is None else otherwise()

    return call


def _closed(name: str) -> PluginClosed:
    return PluginClosed(f"Plugin {name!r} was closed; load it again to use it.", plugin=name)


def _listen(folder: str | None, group: str | None) -> Listener:
    """A listener of this side for a plugin, in the folder that goes with it."""
    from hybridload.goplugin.streams.sockets import UnixAccess, listen_unix

    if folder is None:
        return listen_unix()
    return listen_unix(folder, UnixAccess() if group is None else UnixAccess.for_group(group))


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _hold(client: Client, made: object) -> None:
    """Have a hand-written plugin's object keep the client that it came from, as other objects do."""
    try:
        weakref.finalize(made, _nothing, client).atexit = False
    except TypeError:
        return  # nobody can tell when it is gone: the client has to be kept by whoever made it


def _holding(client: Client, service: Service, methods: Methods) -> Methods:
    """Methods that keep the client, each by itself, as a stream that one of them has begun does until it ends."""
    held: dict[str, Callable[..., Any]] = {}
    for method in service.methods:
        if (made := methods.get(method.name)) is None:
            continue
        streams = method.kind in (Kind.SERVER_STREAM, Kind.BIDI)
        held[method.name] = slot = _beginning(client, made) if streams else made
        slot.__hybridload_holder__ = client  # type: ignore[attr-defined]
    return held


def _beginning(client: Client, made: Callable[..., Any]) -> Callable[..., Any]:
    def begin(*args: Any, **kwargs: Any) -> Any:
        stream = made(*args, **kwargs)
        stream.add_done_callback(partial(_nothing, client))
        return stream

    begin.__dict__.update(made.__dict__)
    for name in ("__name__", "__qualname__", "__doc__", "__module__"):
        setattr(begin, name, getattr(made, name))
    return begin


def _nothing(client: Client) -> None:
    """Of what is called at an object's end."""


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
            self._settle(line + ended)
            if rest:
                self._rest.write(rest)

    def finish(self) -> None:
        """No more comes."""
        if not self._known.is_set():
            self._settle(self._seen)
        self._rest.finish()

    def wait(self, timeout: float) -> bytes | None:
        """The line with its line feed; empty when the output ended without one, `None` after `timeout` seconds."""
        self._known.wait(timeout)
        return self._line

    def begun(self) -> str:
        """What there is of a line that has not ended, as a part of a sentence; empty when there is nothing."""
        seen = self._seen[:_SHOWN]
        return f"; it printed {seen!r} without a line feed" if seen else ""

    def _settle(self, line: bytes) -> None:
        self._seen = b""
        self._line = line
        self._known.set()


# Which clients `cleanup_clients` kills; go-plugin keeps the same list.
_managed: weakref.WeakSet[Client] = weakref.WeakSet()


def cleanup_clients() -> None:
    """Kill every client that was made with ``managed=True``, side by side, and wait until all are gone.

    In a signal handler that interrupts the start or the end of one on the same thread, that one sees to itself.
    """
    here, others = list[Client](), list[threading.Thread]()
    for client in list(_managed):
        if client._busy == threading.get_ident():  # another thread would wait for this one
            here.append(client)
            continue
        thread = threading.Thread(target=client.kill, name="hybridload cleanup")
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # there is none to be had
            here.append(client)
        else:
            others.append(thread)
    for client in here:
        client.kill()
    for thread in others:
        thread.join()


def _import_connection(engine: str | None, *, tls: bool) -> None:
    """Import what connecting and the first call take, which a process that is starting up leaves time for."""
    from hybridload.contract import derive  # noqa: F401
    from hybridload.goplugin.grpc import connection  # noqa: F401
    from hybridload.goplugin.grpc.engines import engine_named

    engine_named(engine)
    if tls:
        from hybridload.goplugin.streams import tls as streams_tls  # noqa: F401


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
    return protocols


def _ports(least: int, greatest: int, name: str) -> tuple[int, int]:
    if not all(type(port) is int for port in (least, greatest)) or not 0 < least <= greatest < 65536:
        raise ConfigError(
            f"Plugin {name!r}: min_port is {least!r} and max_port {greatest!r}: give two ports, the lesser one first.",
            plugin=name,
        )
    return least, greatest


def _absolute(folder: str | os.PathLike[str], name: str) -> str:
    try:
        return os.path.abspath(folder)
    except FileNotFoundError as error:
        raise ConfigError(
            f"Plugin {name!r}: unix_socket_dir {os.fspath(folder)!r} is relative to the current folder, which has been "
            "removed. Give an absolute path.",
            plugin=name,
        ) from error


def _own_tls(tls: TLS | ssl.SSLContext, name: str) -> TLS:
    import ssl

    from hybridload.goplugin.transport import TLS

    if isinstance(tls, ssl.SSLContext):
        # Nothing can be served to the plugin with a client's context; what brokers needs a `TLS`.
        return TLS(tls, tls)
    if isinstance(tls, TLS):
        return tls
    raise ConfigError(
        f"Plugin {name!r}: tls is {tls!r}: give an ssl.SSLContext, or a TLS(client=, server=).", plugin=name
    )
