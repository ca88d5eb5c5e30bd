"""Service code, written once for any engine: which method is served by which function, and on whose threads.

Handlers have the shape that grpcio and the code of `*_pb2_grpc.py` expect of each other, so that an engine takes ours
and generated ones alike; but no grpc is imported here. Behaviors take bytes where there is no deserializer and give
bytes where there is no serializer.

An engine runs every call on a thread of the method's lane, but for asynchronous ones, which run on an event loop. Lanes
do not take each other's threads, so neither open streams nor slow calls can starve what must always be answered:

- ``CALLS``: calls of the user's methods with one request and one response.
- ``STREAMS``: the user's methods that stream; each holds its thread for as long as it is open.
- ``CONTROL``: health and Shutdown, which never block for long.
- ``PLUMBING``: streams that are part of the protocol: stdio, broker, a watched health.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from hybridload.frozen import frozen

if TYPE_CHECKING:
    from hybridload.goplugin.event_loop import EventLoop

CALLS = "calls"
STREAMS = "streams"
CONTROL = "control"
PLUMBING = "plumbing"
LANES = (CALLS, STREAMS, CONTROL, PLUMBING)

Behavior = Callable[[Any, Any], Any]


@frozen
class MethodHandler:
    """One method: the attributes of `grpc.RpcMethodHandler`, and the lane.

    Exactly one of the four behaviors is set, the one that the two `streaming` flags ask for.

    :param loop: the behavior is asynchronous, and this is where it runs: it takes an async iterator of requests, and
        returns at once, an awaitable of its response or an async iterator of them. No thread is held meanwhile.
    :param ended: called on that loop when an asynchronous behavior has come to its end.
    """

    lane: str
    request_streaming: bool = False
    response_streaming: bool = False
    request_deserializer: Callable[[bytes], Any] | None = None
    response_serializer: Callable[[Any], bytes] | None = None
    unary_unary: Behavior | None = None
    unary_stream: Behavior | None = None
    stream_unary: Behavior | None = None
    stream_stream: Behavior | None = None
    loop: EventLoop | None = None
    ended: Callable[[], None] | None = None


def method_handler(
    behavior: Behavior,
    *,
    lane: str | None = None,
    request_streaming: bool = False,
    response_streaming: bool = False,
    request_deserializer: Callable[[bytes], Any] | None = None,
    response_serializer: Callable[[Any], bytes] | None = None,
    loop: EventLoop | None = None,
) -> MethodHandler:
    """Wrap a behavior, ``(request, context) -> response``, where either may be an iterator.

    :param lane: by default `STREAMS` when anything streams, else `CALLS`.
    :param loop: where an asynchronous behavior runs; see `MethodHandler`.
    """
    behaviors: dict[str, Any] = {behavior_name(request_streaming, response_streaming): behavior}
    return MethodHandler(
        lane=lane or (STREAMS if request_streaming or response_streaming else CALLS),
        request_streaming=request_streaming,
        response_streaming=response_streaming,
        request_deserializer=request_deserializer,
        response_serializer=response_serializer,
        loop=loop,
        **behaviors,
    )


def behavior_name(request_streaming: bool, response_streaming: bool) -> str:
    """The attribute of a handler that holds its behavior, e.g. ``"unary_stream"``."""
    return f"{'stream' if request_streaming else 'unary'}_{'stream' if response_streaming else 'unary'}"


class ServiceHandler:
    """One service's methods, in the shape of `grpc.ServiceRpcHandler`.

    :param name: full name, e.g. ``"plugin.GRPCStdio"``.
    :param methods: by their name on the wire, e.g. ``"StreamStdio"``.
    """

    __slots__ = ("_methods", "_name")

    def __init__(self, name: str, methods: Mapping[str, Any]) -> None:
        self._name = name
        self._methods = {f"/{name}/{method}": handler for method, handler in methods.items()}

    def service_name(self) -> str:
        return self._name

    def methods(self) -> Mapping[str, Any]:
        """Path -> handler: all that `service` ever answers."""
        return self._methods

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call, or `None` when the method is not this service's."""
        return self._methods.get(handler_call_details.method)


def service_names(handlers: Sequence[Any]) -> tuple[str, ...]:
    """The services of those handlers that tell, sorted. A generic handler need not."""
    return tuple(sorted({name() for handler in handlers if (name := getattr(handler, "service_name", None))}))


class Engine(Protocol):
    """What service code asks of whatever serves it."""

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any]) -> None:
        """Serve what the handlers know, in the shape of `grpc.GenericRpcHandler`; earlier ones are asked first."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """Serve a service's methods, by their name on the wire; what generated code calls besides the former."""

    def abort(
        self, context: Any, code: str, message: str, trailing_metadata: Sequence[tuple[str, str | bytes]] = ()
    ) -> Exception:
        """End the call with a status other than OK. Never returns: it raises what ends the behavior.

        :param code: the status code's name, e.g. ``"NOT_FOUND"``.
        """
