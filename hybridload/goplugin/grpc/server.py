"""The serving half of the grpcio engine. Only this file and `grpcio_channel.py` import grpc.

What grpcio does and what is made of it here:

- It runs a call on the pool that the behavior's `experimental_thread_pool` names, so every behavior is given the
  threads of its lane (see `handlers`).
- An exception that is no `Exception` (`SystemExit`, say) leaves its call without an answer for ever: it is turned into
  a status here.
- Its limits for messages and pings are meant for the open internet; between a host and its plugin there are none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn
from urllib.parse import quote

import grpc

from hybridload.goplugin.grpc.bridge import Bridge, ServerSocket
from hybridload.goplugin.grpc.grpcio_channel import arguments
from hybridload.goplugin.grpc.handlers import (
    CALLS,
    CONTROL,
    LANES,
    STREAMS,
    Behavior,
    MethodHandler,
    ServiceHandler,
    behavior_name,
    service_names,
)
from hybridload.goplugin.grpc.threads import CallThreads
from hybridload.goplugin.grpc.waiting import waiting_behavior
from hybridload.goplugin.streams.base import Listener
from hybridload.goplugin.threads import OutOfThreads
from hybridload.limits import RECEIVE_OPTION

log = logging.getLogger(__name__)

# A call that waits for a call back into this process holds its thread, so the number is far above what calls compute at
# once; open streams have threads of their own without a limit.
CALL_THREADS = 256

_OPTIONS: tuple[tuple[str, Any], ...] = (
    # grpcio's default is 4 MiB; who makes a server for a plugin says what is taken.
    (RECEIVE_OPTION, -1),
    ("grpc.max_send_message_length", -1),
    # A host may ping as often as it likes, with or without calls in flight.
    ("grpc.http2.min_ping_interval_without_data_ms", 1),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    # Two plugins on one port would share its connections.
    ("grpc.so_reuseport", 0),
)


class Lanes:
    """The threads of a plugin, by lane. Every server of the process uses the same ones.

    :param call_threads: how many calls may run at once; streams, health and Shutdown do not count.
    """

    def __init__(self, call_threads: int = CALL_THREADS) -> None:
        limits = {CALLS: call_threads, CONTROL: 4}
        self._threads = {lane: CallThreads(f"hybridload {lane}", limits.get(lane)) for lane in LANES}

    def __getitem__(self, lane: str) -> CallThreads:
        return self._threads[lane]

    def close(self, timeout: float) -> bool:
        """Join all threads; whether all of them ended. Each lane gets `timeout` seconds."""
        ended = [threads.close(timeout) for threads in self._threads.values()]
        return all(ended)


class GrpcioServer:
    """A gRPC server on one address; to generated code it is a `grpc.Server`.

    :param lanes: runs the calls; the caller closes it after the server.
    :param options: grpc channel arguments, which win over ours.
    """

    binds_sockets = True

    def __init__(
        self, lanes: Lanes, options: Sequence[tuple[str, Any]] = (), on_idle: Callable[[], None] | None = None
    ) -> None:
        self._lanes = lanes
        self._on_idle = on_idle
        self._router = _Router(lanes)
        self._server: Any = grpc.server(lanes[CALLS], options=arguments(_OPTIONS, options))
        handlers: Any = (self._router,)
        self._server.add_generic_rpc_handlers(handlers)
        self._started = False
        self._socket: ServerSocket | None = None
        self._bridges: list[Bridge] = []

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any]) -> None:
        self._router.add(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        self._router.add((ServiceHandler(service_name, method_handlers),))

    @property
    def services(self) -> tuple[str, ...]:
        """The full names of the services that were added."""
        return service_names(self._router.handlers)

    def abort(
        self, context: Any, code: str, message: str, trailing_metadata: Sequence[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        abort(context, code, message, trailing_metadata)

    def listen(self, network: str, address: str) -> str:
        """Listen on a socket's path, or on ``host:port`` where port 0 means any; returns the address with its port.

        :raises OSError: when the address cannot be had.
        """
        # A target is a URI: `%`, `?` and `#` in a path mean something else there.
        target = f"unix:{quote(address)}" if network == "unix" else address
        try:
            port = self._server.add_insecure_port(target)
        except RuntimeError as error:
            raise OSError(f"{network} address {address} cannot be listened on: {error}") from error
        return address if network == "unix" else f"{address.rpartition(':')[0]}:{port}"

    def start(self) -> None:
        """Serve, from grpcio's own threads and those of the lanes."""
        if not self._started:
            self._started = True
            self._server.start()

    def serve(self, listener: Listener) -> None:
        """Serve what a listener accepts, across a bridge, from now until `stop`, which closes the listener."""
        if self._socket is None:
            self._socket = ServerSocket(lambda path: self.listen("unix", path))
            self.start()
        self._bridges.append(
            Bridge(listener, self._socket.connect, name=f"to {listener.address}", on_idle=self._look_idle)
        )

    def _look_idle(self) -> None:
        if self._on_idle is not None and not self.connected:
            self._on_idle()

    @property
    def connected(self) -> bool:
        """Whether anybody is connected through a listener."""
        return any(bridge.connected for bridge in self._bridges)

    def wait_idle(self, lane: str, timeout: float) -> bool:
        """Wait until no call of a lane is in flight; whether that came within `timeout` seconds."""
        return self._lanes[lane].wait_idle(timeout)

    def refuse_calls(self) -> None:
        """Answer new calls of the user's methods with UNAVAILABLE; those in flight, and the protocol's own, go on."""
        self._router.refuse()

    def stop(self, grace: float) -> bool:
        """Take no new calls, give those in flight `grace` seconds, end the others, and wait for the end.

        :returns: whether the end came within a second after the grace.
        """
        if not self._started:
            # grpcio insists that a server that listens is stopped, and only a started one can be.
            self.start()
        for bridge in self._bridges:
            bridge.stop_accepting()
        ended: bool = self._server.stop(grace=grace).wait(grace + 1.0)
        for bridge in self._bridges:
            bridge.close()
        if self._socket is not None:
            self._socket.close()
        return ended


def abort(context: Any, code: str, message: str, trailing_metadata: Sequence[tuple[str, str | bytes]] = ()) -> NoReturn:
    """End a call of grpcio with a status; see `handlers.Engine.abort`."""
    if trailing_metadata:
        context.set_trailing_metadata(tuple(trailing_metadata))
    context.abort(grpc.StatusCode[code], message)
    raise AssertionError("abort returned")  # pragma: no cover


class _Router:
    """The one generic handler that grpcio knows: asks the others, and gives each behavior the threads of its lane."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._handlers: tuple[Any, ...] = ()
        self._placed: dict[str, tuple[Any, MethodHandler]] = {}
        self._lock = threading.Lock()
        self._refusing = False

    def refuse(self) -> None:
        self._refusing = True

    @property
    def handlers(self) -> tuple[Any, ...]:
        return self._handlers

    def add(self, handlers: Sequence[Any]) -> None:
        with self._lock:
            self._handlers = (*self._handlers, *handlers)

    def service(self, details: Any) -> MethodHandler | None:
        for handler in self._handlers:
            found = handler.service(details)
            if found is not None:
                known = self._placed.get(details.method)
                # A handler of the user's may make up a new answer for each call; ours never does.
                if known is None or known[0] is not found:
                    known = self._placed[details.method] = (found, self._place(found))
                if self._refusing and known[1].lane in (CALLS, STREAMS):
                    return self._place(found, _refuse)
                try:
                    self._lanes[known[1].lane].make_room()
                except OutOfThreads as error:
                    return _refusal(error)
                return known[1]
        return None

    def _place(self, handler: Any, instead: Behavior | None = None) -> MethodHandler:
        streams = handler.request_streaming or handler.response_streaming
        lane = getattr(handler, "lane", None) or (STREAMS if streams else CALLS)
        name = behavior_name(handler.request_streaming, handler.response_streaming)
        threads = self._lanes[lane]
        behavior = instead or getattr(handler, name)
        if instead is None and getattr(handler, "loop", None) is not None:
            behavior = waiting_behavior(handler, threads)
        wrap: Any = _StreamBehavior if handler.response_streaming else _UnaryBehavior
        return MethodHandler(
            lane=lane,
            request_streaming=handler.request_streaming,
            response_streaming=handler.response_streaming,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
            **{name: wrap(behavior, threads)},
        )


class _UnaryBehavior:
    """Runs a behavior on the threads of its lane, and answers also when what it raises is no `Exception`."""

    __slots__ = ("_behavior", "experimental_thread_pool")

    def __init__(self, behavior: Callable[[Any, Any], Any], threads: CallThreads) -> None:
        self._behavior = behavior
        self.experimental_thread_pool = threads

    def __call__(self, request: Any, context: Any) -> Any:
        try:
            return self._behavior(request, context)
        except OutOfThreads as error:  # the event loop's
            abort(context, "RESOURCE_EXHAUSTED", str(error))
        except Exception:
            raise
        except BaseException as error:
            _abort_for(error, context)


class _StreamBehavior:
    """The same for a behavior that returns an iterator, which is closed when the call ends before it does."""

    __slots__ = ("_behavior", "experimental_thread_pool")

    def __init__(self, behavior: Callable[[Any, Any], Iterator[Any]], threads: CallThreads) -> None:
        self._behavior = behavior
        self.experimental_thread_pool = threads

    def __call__(self, request: Any, context: Any) -> Iterator[Any]:
        responses: Any = None
        try:
            while True:
                try:
                    if responses is None:
                        responses = iter(self._behavior(request, context))
                    response = next(responses)
                except StopIteration:
                    return
                except OutOfThreads as error:
                    abort(context, "RESOURCE_EXHAUSTED", str(error))
                except Exception:
                    raise
                except BaseException as error:
                    _abort_for(error, context)
                # grpcio drops this generator when the caller went away, and being dropped closes it.
                yield response
        finally:
            close = getattr(responses, "close", None)
            if close is not None:
                close()


def _refuse(request: Any, context: Any) -> NoReturn:
    abort(context, "UNAVAILABLE", "the plugin is ending and takes no more calls")


class _AtOnce(ThreadPoolExecutor):
    """Runs a call where it comes, on the thread that all of grpcio's calls come from: it must not wait for anything."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class _Refusal:
    """Ends a call that there is no thread for."""

    experimental_thread_pool = _AtOnce(max_workers=1)

    def __init__(self, error: OutOfThreads) -> None:
        self._error = error

    def __call__(self, requests: Any, context: Any) -> NoReturn:
        abort(context, "RESOURCE_EXHAUSTED", str(self._error))


def _refusal(error: OutOfThreads) -> MethodHandler:
    """What any kind of call is refused with. It takes a stream of requests: for a single one grpcio would wait."""
    return MethodHandler(lane=CONTROL, request_streaming=True, response_streaming=False, stream_unary=_Refusal(error))


def _abort_for(error: BaseException, context: Any) -> NoReturn:
    log.error("a call raised %s, which would end a program; it fails the call alone", type(error).__name__)
    abort(context, "UNKNOWN", f"{type(error).__name__}: {error}")
