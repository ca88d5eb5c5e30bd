"""A Python object as a go-plugin plugin: what any go-plugin host, in Go or Python, can start.

The order of things, which is go-plugin's (server.go of v1.8.0) unless a comment says otherwise:

1. The magic cookie is checked. Without it a person started the program: a text on standard error, exit status 1.
2. Plugin set and implementations are read and checked, and the version is chosen.
3. Everything is made ready: threads, server, socket, the log handler, what stands in for `sys.stdout` and `sys.stderr`.
4. The handshake line is written to descriptor 1, which was kept free of anything else until then.
5. Calls are served until the host asks for the end (Shutdown), a signal does (SIGTERM, SIGHUP, SIGQUIT), or the host
   is gone. SIGINT is ignored: a terminal sends it to the whole group, and the host decides.
6. The end: no new calls; those in flight have `CALL_GRACE` seconds; implementations are closed; what was printed is
   delivered; only then is Shutdown answered, because a Go host hangs up as soon as it is. Then `serve` returns, with
   nothing left of threads, files and replaced streams, and the program goes on or ends.

Signals are for the main thread; in any other, `serve` works without them.

Two ways to serve do without a host that starts the program: in test mode (see `ServeTest`) there are no steps 1 and 4,
and with ``debug=`` a person starts it, sees what to set for a host to take it up, and ends it with Ctrl-C.
"""

from __future__ import annotations

import logging as _logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from hybridload import platforms
from hybridload.contract import Contract
from hybridload.errors import ConfigError, ContractError, PluginError
from hybridload.goplugin.handshake_output import HandshakeOutput, buffer_stdout
from hybridload.goplugin.host_environment import SOCKET_GROUP, HostEnvironment, forget
from hybridload.goplugin.host_watch import HostWatch
from hybridload.goplugin.plugins import PluginSet, VersionedPlugins, read_plugin_set
from hybridload.goplugin.serve_logs import InstalledLogging
from hybridload.goplugin.served_output import OutputBuffer, ReplacedStreams, write_rest
from hybridload.goplugin.serving import (
    PROTOCOLS,
    Protocols,
    Served,
    ServeOptions,
    ServeTest,
    Serving,
    Surroundings,
    choose_protocol,
)
from hybridload.goplugin.socket_folder import SocketFolder
from hybridload.goplugin.threads import Thread
from hybridload.handshake import Handshake
from hybridload.implementation import close_implementation
from hybridload.limits import given_max_message

if TYPE_CHECKING:
    import ssl

    from hybridload.goplugin.line import HandshakeLine
    from hybridload.goplugin.reattach import ReattachConfig
    from hybridload.goplugin.transport import TLS

log = _logging.getLogger(__name__)

# At import, because a program prints between its imports and `serve`.
buffer_stdout(os.environ)

Implementations = Mapping[str, object] | Mapping[int, Mapping[str, object]]
"""kind -> the object that implements it; or version -> such a mapping, where the plugin set is versioned."""

CALL_GRACE = 1.0
"""Seconds that calls in flight have when the plugin ends. A Go host kills two seconds after Shutdown is answered."""
STREAM_GRACE = 0.25
"""Seconds beyond that for open streams, which may have no end of their own."""
OUTPUT_GRACE = 0.5
"""Seconds in which the host has to take what was printed."""
ANSWER_GRACE = 0.25
"""Seconds for the answers that are still on their way."""

_ENDING_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))


def serve(
    plugins: PluginSet,
    implementations: Implementations | None = None,
    *,
    handshake: Handshake,
    outlive_host: bool = False,
    logging: bool = True,
    tls: TLS | ssl.SSLContext | None = None,
    network: str = "unix",
    server_options: Sequence[tuple[str, Any]] = (),
    max_message: int | str | None = None,
    engine: str | None = None,
    protocols: Protocols = PROTOCOLS,
    test: ServeTest | None = None,
    debug: bool | str = False,
) -> None:
    """Serve Python objects to the go-plugin host that started this program. Returns when the host ends it.

    What is printed with `print` or through `sys.stdout` and `sys.stderr` meanwhile reaches the host's sync stdout and
    stderr; what `logging` logs is written to standard error as hclog JSON.

    :param plugins: kind -> contract, interface or hand-written plugin; or one such mapping per version.
    :param implementations: kind -> the object, nested by version as `plugins` is. A hand-written plugin needs none.
        An object's `close()`, if it has one, is called at the end.
    :param handshake: must be the host's own.
    :param outlive_host: stay when the host dies, for another one that reattaches. By default nothing is left of the
        plugin a few seconds after its host is gone, in whatever way.
    :param logging: put an `HclogHandler` on the root logger while serving.
    :param tls: own TLS material instead of what the host asks for (AutoMTLS): a server context, or a `TLS` of client
        and server context where the host is called back.
    :param network: ``"unix"``, or ``"tcp"`` for a port of the range that the host allows.
    :param server_options: grpc channel arguments of the server, e.g. ``("grpc.max_send_message_length", 4 << 20)``.
    :param max_message: the largest message that is taken from the host, in bytes once it is decompressed, or as
        ``"64MB"`` or ``"1GiB"``; ``"unlimited"`` for no limit, 256 MiB by default. It holds for requests, each message
        of a stream, and answers to callbacks, in both protocols. What the host takes it says itself.
    :param engine: what carries gRPC: ``"direct"`` or ``"grpcio"``; the environment variable `HYBRIDLOAD_ENGINE` says
        so by default.
    :param protocols: what the plugin may be served over, ``"grpc"`` and ``"netrpc"``, in the order of preference: the
        first that every kind of the negotiated version can travel over is taken. For a host that speaks net/rpc alone,
        give ``"netrpc"``; where that depends on the version, a mapping such as ``{2: "netrpc", 3: "grpc"}``.
    :param test: serve in this process as it is, for tests and debuggers; see `ServeTest`.
    :param debug: serve until Ctrl-C, with no host that starts this program, and print what to set for a hybridload host
        to take it up: `HYBRIDLOAD_REATTACH`. The plugin's name over there, or true for the program's name.
    :raises SystemExit: with status 1 and a text on standard error, when no go-plugin host has started this program.
    :raises ConfigError: plugin set and implementations do not match.
    :raises ContractError: an interface cannot travel, or an object does not implement it.
    """
    largest, given = given_max_message(max_message, server_options, "server_options")
    options = ServeOptions(
        tls=tls,
        network=network,
        server_options=given,
        max_message=largest,
        engine=engine,
        protocols=protocols,
    )
    if test is not None:
        _in_test_mode(test, lambda: read_served(plugins, implementations, handshake), options)
        return
    if debug:
        name = debug if isinstance(debug, str) else os.path.splitext(os.path.basename(sys.argv[0]))[0]
        serve_by_hand(name, read_served(plugins, implementations, handshake), options=options)
        return
    check_cookie(handshake)
    with ExitStack() as stack:
        host = stack.enter_context(HostSide(outlive_host=outlive_host))
        serve_to(host, read_served(plugins, implementations, handshake), logging=logging, options=options)


def serve_mux(plugins: Mapping[str, Callable[[], object]]) -> None:
    """Serve one of several plugins that one program holds: the one that its only argument names (go-plugin's
    `ServeMux`).

    :param plugins: name -> a function that calls `serve`, e.g. a `functools.partial` of it. Only one is called.
    :raises SystemExit: with status 1 and a text on standard error, when the argument is missing or names none.
    """
    arguments = sys.argv[1:]
    known = f"Its plugins are: {', '.join(sorted(plugins))}."
    if len(arguments) != 1:
        _refuse(f"This program holds several plugins, and a host starts it with the name of one. {known}")
    if arguments[0] not in plugins:
        _refuse(f"This program holds no plugin {arguments[0]!r}. {known}")
    plugins[arguments[0]]()


class HostSide:
    """What binds this process to its host before anything is served: descriptor 1, and the watch.

    Made as early as possible, because what runs in between can print, and can block while the host dies. A context
    manager that lets go of both.

    :param outlive_host: do without the watch.
    :raises SystemExit: there is no standard output for the handshake line.
    """

    def __init__(self, *, outlive_host: bool) -> None:
        try:
            self.output = HandshakeOutput()
        except OSError as error:
            _refuse(f"This plugin cannot tell its host where it serves: it has no standard output ({error}).")
        self.watch = None if outlive_host else HostWatch(self.output.descriptor)

    def __enter__(self) -> HostSide:
        return self

    def __exit__(self, *_: object) -> None:
        if self.watch is not None:
            self.watch.close()
        self.output.close()


def check_cookie(handshake: Handshake) -> None:
    """End the program, with a text for whoever started it, unless a host did.

    :raises ConfigError: `handshake` is none.
    :raises SystemExit: with status 1.
    """
    if not isinstance(handshake, Handshake):
        raise ConfigError(f"handshake is {handshake!r}: give a Handshake(cookie_key, cookie_value).")
    if os.environ.get(handshake.cookie_key) != handshake.cookie_value:
        _refuse(
            "This program is a plugin and is not meant to be executed directly. Start the program that it belongs to: "
            "that one loads its plugins by itself.\n"
            f"(The magic cookie, environment variable {handshake.cookie_key}, "
            + ("is not set.)" if handshake.cookie_key not in os.environ else "has another value than expected.)")
        )


def read_served(
    plugins: PluginSet, implementations: Implementations | None, handshake: Handshake
) -> dict[int, dict[str, Served]]:
    """Bring plugin set and implementations together: version -> kind -> what serves it.

    :raises ConfigError: they do not match.
    :raises ContractError: an interface cannot travel, or an object does not implement it.
    """
    versions = read_plugin_set(plugins, handshake)
    nested = all(isinstance(key, int) for key in plugins)
    given = _by_version(implementations or {}, versions, nested)
    return {
        version: _served_kinds(kinds, given[version], f" of version {version}" if nested else "")
        for version, kinds in versions.items()
    }


def serve_to(
    host: HostSide,
    served: Mapping[int, Mapping[str, Served]],
    *,
    logging: bool = True,
    options: ServeOptions | None = None,
) -> None:
    """Serve what was read to a host that was bound; see `serve`."""
    environment = HostEnvironment.read(os.environ)
    forget(os.environ)
    if environment.unreadable_versions:
        log.warning("the host lists versions that are no numbers: %s", ", ".join(environment.unreadable_versions))
    version = environment.choose_version(served)
    options = options or ServeOptions()
    protocol = choose_protocol(served[version], options.protocols_of(version))
    with _Serving(host, served[version], protocol, environment, options, logging=logging) as serving:
        serving.run(version)


def serve_by_hand(
    name: str, served: Mapping[int, Mapping[str, Served]], *, options: ServeOptions | None = None
) -> None:
    """Serve what was read to whichever host takes it up, until an interrupt or SIGTERM; see `serve` on ``debug``."""

    import json
    import shlex

    from hybridload.goplugin.reattach_variable import REATTACH_VARIABLE

    terminal = sys.stdout  # The host has no use for it.

    def announce(config: ReattachConfig) -> None:
        value = json.dumps({name: json.loads(config.to_json())})
        print(
            f"Plugin {name!r} is served by process {config.pid} until Ctrl-C. To use it, set for the host:\n\n"
            f"    {REATTACH_VARIABLE}={shlex.quote(value)}\n",
            file=terminal,
            flush=True,
        )

    test = ServeTest(on_reattach=announce, sync_stdio=True)
    with _signals(lambda _: test.cancel.set(), interrupt=True):
        _in_test_mode(test, lambda: served, options or ServeOptions())


def _in_test_mode(
    test: ServeTest, read: Callable[[], Mapping[int, Mapping[str, Served]]], options: ServeOptions
) -> None:
    try:
        served = read()
        version = min(served) if test.version is None else test.version
        if version not in served:
            raise ConfigError(f"ServeTest has version {version}, and the plugin set {', '.join(map(str, served))}.")
        protocol = choose_protocol(served[version], options.protocols_of(version))
        with _Serving(None, served[version], protocol, HostEnvironment(), options, logging=False, test=test) as serving:
            serving.run(version)
    finally:
        test.cancel.set()
        test.closed.set()


class _Serving:
    """One plugin being served, from making ready to the end. A context manager that takes everything down again.

    :param host: the host that started this process; `None` in test mode.
    """

    def __init__(
        self,
        host: HostSide | None,
        served: Mapping[str, Served],
        protocol: str,
        environment: HostEnvironment,
        options: ServeOptions,
        *,
        logging: bool,
        test: ServeTest | None = None,
    ) -> None:
        self._protocol = protocol
        self._options = options
        self._host = host
        self._test = test
        self._served = served
        self._environment = environment
        self._ending = threading.Event() if test is None else test.cancel
        self._answerable = threading.Event()
        self._asked = False
        self._output = OutputBuffer()
        self._stack = ExitStack()
        try:
            self._make_ready(logging)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> _Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, version: int) -> None:
        """Tell where the plugin is and serve until the end."""
        line = self._serving.line(version)
        try:
            if self._host is not None:
                self._host.output.write_line(line.format())
            elif self._test is not None and self._test.on_reattach is not None:
                self._test.on_reattach(_reattach_config(line))
        except OSError as error:
            log.warning("the host was gone before the handshake line could be written: %s", error)
        else:
            self._ending.wait()
        self._end()

    # -- before

    def _make_ready(self, logging: bool) -> None:
        stack = self._stack
        if logging:
            stack.callback(InstalledLogging().restore)
        if self._host is not None:
            stack.enter_context(_signals(self._end_soon))
        try:
            folder = SocketFolder(self._environment.socket_folder, self._environment.socket_group)
        except LookupError as error:
            raise PluginError(f"The host's {SOCKET_GROUP} cannot be used: {error}.") from error
        except OSError as error:
            raise PluginError(f"The plugin's socket cannot be made: {error}.") from error
        stack.callback(folder.close)
        if self._host is not None and self._host.watch is not None:
            self._host.watch.attend(self._host_died, folder.close)
        around = Surroundings(
            self._environment, folder, self._output, self._options, end=self._shutdown, ending=self._ending
        )
        self._serving = _serving(self._protocol, self._served, around)
        stack.callback(self._serving.close)
        if self._test is None:
            streams = ReplacedStreams(self._output)
            stack.callback(write_rest, self._output)
            stack.callback(streams.restore)
        elif self._test.sync_stdio:
            stack.callback(ReplacedStreams(self._output, copy=True).restore)
        self._serving.start()

    # -- while

    def _shutdown(self) -> None:
        """The host asks for the end; returns when it may be answered."""
        log.debug("the host asks the plugin to end")
        self._asked = True
        self._ending.set()
        self._answerable.wait()

    def _end_soon(self, number: int) -> None:
        log.debug("ending on signal %d", number)
        self._ending.set()

    def _host_died(self) -> None:
        self._ending.set()

    # -- after

    def _end(self) -> None:
        self._ending.set()
        try:
            self._serving.refuse_calls()
            if not self._serving.wait_for_calls(CALL_GRACE):
                # For whoever looks: the host, which asks for the end, knows of its own calls.
                log.info("calls are still in flight after %g s and are cut off", CALL_GRACE)
            self._serving.wait_for_streams(STREAM_GRACE)
            self._close_implementations()
            if not self._output.finish(OUTPUT_GRACE, expects_reader=self._asked):
                log.debug("the host did not take all output in time")
        finally:
            self._answerable.set()
        self._serving.wait_for_answers(ANSWER_GRACE)

    def _close_implementations(self) -> None:
        objects = {id(served.implementation): (kind, served.implementation) for kind, served in self._served.items()}
        for kind, implementation in objects.values():
            if implementation is None:
                continue
            try:
                close_implementation(implementation, kind)
            except PluginError:
                log.exception("an implementation could not be closed")


def _serving(protocol: str, served: Mapping[str, Served], around: Surroundings) -> Serving:
    if protocol == "grpc":
        from hybridload.goplugin.grpc.serving import GRPCServing

        return GRPCServing(served, around)
    from hybridload.goplugin.netrpc.serving import NetRPCServing

    return NetRPCServing(served, around)


def _reattach_config(line: HandshakeLine) -> ReattachConfig:
    from hybridload.goplugin.reattach import ReattachConfig

    pid = os.getpid()
    return ReattachConfig(
        line.protocol, line.app_version, line.network, line.address, pid, test=True, started=platforms.start_time(pid)
    )


class _signals:
    """SIGINT ignored, the other ending signals handed on, and all as before afterwards. Main thread only.

    SIGINT gets a handler that does nothing, because programs that this one starts would inherit that it is ignored.

    They are handed on by a thread: a handler runs in the middle of whatever the main thread does, maybe with the very
    lock held that setting an event takes. The thread waits for signals alone, and is joined at the end.

    :param interrupt: hand SIGINT on as well: a person started this program.
    """

    def __init__(self, end: Callable[[int], None], *, interrupt: bool = False) -> None:
        self._end = end
        self._interrupt = interrupt
        self._before: dict[int, Any] = {}
        self._came: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._thread = Thread(target=self._hand_on, name="hybridload signals", daemon=True)
        self._thread.start()
        self._set(signal.SIGINT, self._take if self._interrupt else _nothing)
        if hasattr(signal, "siginterrupt") and not self._interrupt:
            # What it would interrupt need not be prepared for that. The others have to wake the thread that waits.
            signal.siginterrupt(signal.SIGINT, False)
        for number in _ENDING_SIGNALS:
            # A signal that the program handles or ignores (nohup) is its own business.
            if signal.getsignal(number) is signal.SIG_DFL:
                self._set(number, self._take)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._thread is not None:
            self._came.put(None)
            self._thread.join()

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._came.put(number)  # safe in a handler

    def _hand_on(self) -> None:
        while (number := self._came.get()) is not None:
            self._end(number)

    def _set(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        self._before[number] = signal.signal(number, handler)


def _nothing(number: int, frame: FrameType | None) -> None:
    return


def _by_version(
    implementations: Implementations, versions: VersionedPlugins, nested: bool
) -> dict[int, Mapping[str, object]]:
    if not isinstance(implementations, Mapping):
        raise ConfigError(f"implementations is {implementations!r}: give a mapping such as {{'greeter': Hello()}}.")
    if not nested:
        return dict.fromkeys(versions, implementations)  # type: ignore[arg-type]
    unknown = [key for key in implementations if key not in versions]
    if unknown:
        raise ConfigError(
            f"implementations has {unknown[0]!r}, which is no version of the plugin set "
            f"({', '.join(map(str, versions))}): nest implementations by version as the plugin set is."
        )
    given: dict[int, Mapping[str, object]] = {}
    for version in versions:
        kinds: Any = implementations.get(version, {})  # type: ignore[call-overload]
        if not isinstance(kinds, Mapping):
            raise ConfigError(f"implementations has {kinds!r} for version {version}: give a mapping of kind to object.")
        given[version] = kinds
    return given


def _served_kinds(kinds: Mapping[str, Any], implementations: Mapping[str, object], where: str) -> dict[str, Served]:
    unknown = [kind for kind in implementations if kind not in kinds]
    if unknown:
        raise ConfigError(
            f"implementations{where} has {unknown[0]!r}, which is no kind of the plugin set ({', '.join(kinds)})."
        )
    return {kind: _served(kind, plugin, implementations, where) for kind, plugin in kinds.items()}


def _served(kind: str, plugin: Any, implementations: Mapping[str, object], where: str) -> Served:
    if not isinstance(plugin, Contract):
        if kind in implementations:
            raise ConfigError(
                f"implementations{where} has {kind!r}, which is a hand-written plugin: that carries its own."
            )
        return Served(plugin)
    if kind not in implementations:
        raise ConfigError(
            f"implementations{where} lacks {kind!r}: give the object that implements "
            f"{plugin.interface.__name__}, as in {{{kind!r}: ...}}."
        )
    implementation = implementations[kind]
    if isinstance(implementation, type):
        raise ConfigError(
            f"implementations{where} has the class {implementation.__qualname__} for {kind!r}: give an instance of it."
        )
    try:
        plugin.complete().check_implementation(implementation)
    except ContractError as error:
        raise ContractError(f"The implementation of {kind!r}{where}: {error}") from error
    return Served(plugin, implementation)


def _refuse(text: str) -> NoReturn:
    """End the program with a text for humans."""
    stream = sys.__stderr__ if sys.stderr is None else sys.stderr
    if stream is not None:
        print(text, file=stream, flush=True)
    raise SystemExit(1)
