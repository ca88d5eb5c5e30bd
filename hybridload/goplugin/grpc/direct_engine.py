"""The engine that is our own HTTP/2: it runs on any stream, without a bridge, and imports no grpcio."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from hybridload.goplugin.grpc.engine import Endpoint
from hybridload.goplugin.grpc.handlers import (
    CALLS,
    STREAMS,
    Behavior,
    MethodHandler,
    ServiceHandler,
    behavior_name,
    service_names,
)
from hybridload.goplugin.http2.server import Server
from hybridload.goplugin.http2.server_link import ServerLink
from hybridload.goplugin.http2.status import RpcError, StatusCode
from hybridload.goplugin.in_flight import InFlight
from hybridload.goplugin.streams.base import Listener
from hybridload.limits import RECEIVE_OPTION

if TYPE_CHECKING:
    from hybridload.goplugin.http2.channel import Channel

log = logging.getLogger(__name__)

NAME = "direct"


class DirectEngine:
    """Opens channels and makes servers of `hybridload.goplugin.http2`."""

    name = NAME
    rpc_error: Any = (RpcError,)

    def channel(self, endpoint: Endpoint, options: Sequence[tuple[str, Any]] = ()) -> Channel:
        # Most plugins never call anybody back.
        from hybridload.goplugin.http2.channel import Channel

        given = dict(options)
        return Channel(
            endpoint.open,
            dial_ahead=endpoint.costly,
            leaves_idle=endpoint.plain is not None,
            max_connections=endpoint.connections,
            max_send=_limit(given, "grpc.max_send_message_length"),
            max_receive=_limit(given, RECEIVE_OPTION),
        )

    def why(self, channel: Any, error: Any) -> str:
        return str(error.details())

    def lost(self, error: Any) -> bool:
        lost: bool = error.status.lost
        return lost

    def lanes(self) -> NoLanes:
        return NoLanes()

    def server(
        self, lanes: Any, options: Sequence[tuple[str, Any]] = (), *, on_idle: Callable[[], None] | None = None
    ) -> DirectServer:
        return DirectServer(options, on_idle)


class NoLanes:
    """Nothing to close: a direct server has its own threads."""

    def close(self, timeout: float) -> bool:
        """True: all of no threads have ended."""
        return True


class DirectServer:
    """A gRPC server on streams; to generated code it is a `grpc.Server`.

    It has threads of its own: the one that reads a connection runs a short call itself, so neither streams nor slow
    calls can starve anything, and it needs no lanes but to count what is in flight.
    """

    binds_sockets = False

    def __init__(self, options: Sequence[tuple[str, Any]], on_idle: Callable[[], None] | None) -> None:
        given = dict(options)
        self._server = _Watched(
            on_idle,
            max_send=_limit(given, "grpc.max_send_message_length"),
            max_receive=_limit(given, RECEIVE_OPTION),
        )
        self._handlers: tuple[Any, ...] = ()
        self._placed: dict[str, tuple[Any, Any]] = {}
        self._fixed: dict[str, MethodHandler] = {}
        self._in_flight = {lane: InFlight() for lane in (CALLS, STREAMS)}
        self._refusing = False
        self._server.add_generic_rpc_handlers([self])
        self._server.start()

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any]) -> None:
        self._handlers = (*self._handlers, *generic_rpc_handlers)
        self._fixed = {}
        for handler in self._handlers:
            if type(handler) is not ServiceHandler:
                break  # nobody knows what it will answer, and it is asked before those that follow
            for path, method in handler.methods().items():
                if path not in self._fixed:
                    self._fixed[path] = self._counted(method)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        self.add_generic_rpc_handlers((ServiceHandler(service_name, method_handlers),))

    @property
    def services(self) -> tuple[str, ...]:
        return service_names(self._handlers)

    def abort(
        self, context: Any, code: str, message: str, trailing_metadata: Sequence[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        if trailing_metadata:
            context.set_trailing_metadata(tuple(trailing_metadata))
        context.abort(StatusCode[code], message)
        raise AssertionError("abort returned")  # pragma: no cover

    def listen(self, network: str, address: str) -> str:
        raise NotImplementedError("listeners are given to it")

    def start(self) -> None:
        """Nothing to do: it serves from the moment that it is given a listener."""

    def serve(self, listener: Listener) -> None:
        self._server.add_listener(listener)

    @property
    def connected(self) -> bool:
        return bool(self._server._snapshot())

    def refuse_calls(self) -> None:
        self._refusing = True

    def wait_idle(self, lane: str, timeout: float) -> bool:
        """Wait until no call of a lane is in flight; whether that came within `timeout` seconds."""
        tally = self._in_flight.get(lane)
        return tally is None or tally.wait_for_none(timeout)

    def stop(self, grace: float) -> bool:
        return self._server.stop(grace).wait(grace + 2.0)

    def service(self, details: Any) -> Any:
        """The one generic handler that the server below knows: it asks the others, and counts their calls."""
        fixed = self._fixed.get(details.method)
        if fixed is not None and not self._refusing:
            return fixed
        for handler in self._handlers:
            found = handler.service(details)
            if found is None:
                continue
            known = self._placed.get(details.method)
            # A handler of the user's may make up a new answer for each call; ours never does.
            if known is None or known[0] is not found:
                known = self._placed[details.method] = (found, self._counted(found))
            if self._refusing and known[1].lane in self._in_flight:
                return self._counted(found, self._refuse)
            return known[1]
        return None

    def _counted(self, handler: Any, instead: Behavior | None = None) -> MethodHandler:
        streams = handler.request_streaming or handler.response_streaming
        lane = getattr(handler, "lane", None) or (STREAMS if streams else CALLS)
        name = behavior_name(handler.request_streaming, handler.response_streaming)
        behavior: Behavior = instead or getattr(handler, name)
        tally = self._in_flight.get(lane)
        loop = None if instead else getattr(handler, "loop", None)
        if tally is not None and loop is not None:
            behavior = _begun_call(behavior, tally)
        elif tally is not None:
            wrap = _counted_stream if handler.response_streaming else _counted_call
            behavior = wrap(behavior, tally)
        return MethodHandler(
            lane=lane,
            request_streaming=handler.request_streaming,
            response_streaming=handler.response_streaming,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
            loop=loop,
            ended=tally.leave if tally is not None and loop is not None else None,
            **{name: behavior},
        )

    def _refuse(self, request: Any, context: Any) -> NoReturn:
        self.abort(context, "UNAVAILABLE", "the plugin is ending and takes no more calls")


class _Watched(Server):
    """A server that tells when its last connection has ended."""

    def __init__(self, on_idle: Callable[[], None] | None, **limits: int | None) -> None:
        super().__init__(**limits)  # type: ignore[arg-type]
        self._on_idle = on_idle

    def link_ended(self, link: ServerLink) -> None:
        super().link_ended(link)
        if self._on_idle is not None and not self._snapshot():
            self._on_idle()


def _counted_call(behavior: Behavior, tally: InFlight) -> Behavior:
    def call(request: Any, context: Any) -> Any:
        tally.enter()
        try:
            return behavior(request, context)
        except Exception:
            raise
        except BaseException as error:
            _abort_for(error, context)
        finally:
            tally.leave()

    return call


def _begun_call(behavior: Behavior, tally: InFlight) -> Behavior:
    """As `_counted_call`, for an asynchronous behavior: who awaits its end says when it has come."""

    def call(request: Any, context: Any) -> Any:
        tally.enter()
        try:
            return behavior(request, context)
        except BaseException:
            tally.leave()
            raise

    return call


def _counted_stream(behavior: Behavior, tally: InFlight) -> Behavior:
    def call(request: Any, context: Any) -> Any:
        tally.enter()
        try:
            yield from behavior(request, context)
        except (Exception, GeneratorExit):
            raise
        except BaseException as error:
            _abort_for(error, context)
        finally:
            tally.leave()

    return call


def _abort_for(error: BaseException, context: Any) -> NoReturn:
    log.error("a call raised %s, which would end a program; it fails the call alone", type(error).__name__)
    context.abort(StatusCode.UNKNOWN, f"{type(error).__name__}: {error}")
    raise AssertionError("abort returned")  # pragma: no cover


def _limit(options: Mapping[str, Any], name: str) -> int | None:
    """A size limit in bytes, as grpc's channel arguments give it: below 0 is none, which is what we begin with."""
    limit: int = options.get(name, -1)
    return None if limit < 0 else limit
