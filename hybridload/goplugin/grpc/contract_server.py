"""A contract and an object that implements it, as a gRPC service: bytes in, the object's method, bytes out.

- An exception of the object travels as a status whose details the other side can rebuild it from
  (see `contract.exceptions`). So does what is no `Exception`, such as `SystemExit`: it fails the call alone.
- A request that cannot be read is INVALID_ARGUMENT: it is the caller's fault and no exception of the object.
- Iterators that the object returns are closed when the caller goes away before their end.
- Whatever the object calls in turn is held to the call's own deadline, in every step of a stream as well.
- `async def` methods run on one event loop, on a thread of its own that starts with the first of them, and no thread
  waits for them. When the caller goes away, they are cancelled.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn

from hybridload.contract import Kind, encode_exception
from hybridload.deadlines import ending_at
from hybridload.goplugin.event_loop import EventLoop
from hybridload.goplugin.grpc.handlers import Behavior, Engine, ServiceHandler, method_handler

if TYPE_CHECKING:
    from hybridload.contract import Objects, Service
    from hybridload.contract.wire import WireMethod

STATUS_DETAILS = "grpc-status-details-bin"


def contract_service(
    service: Service, implementation: object, *, engine: Engine, loop: EventLoop, objects: Objects | None = None
) -> ServiceHandler:
    """The handler that serves `implementation` as `service`.

    :param loop: runs asynchronous methods; the caller closes it.
    :param objects: how values that are interfaces travel; `None` where they cannot.
    """
    wire = service.wire()
    calls = _Calls(service, engine, objects)
    return ServiceHandler(
        service.full_name,
        {
            method.wire_name: method_handler(
                _BEHAVIORS[method.kind, method.is_async](
                    calls, wire.methods[method.name], getattr(implementation, method.name)
                ),
                request_streaming=method.kind.streams_arguments,
                response_streaming=method.kind.streams_result,
                loop=loop if method.is_async else None,
            )
            for method in service.methods
        },
    )


class _Calls:
    """What the behaviors of one service share."""

    def __init__(self, service: Service, engine: Engine, objects: Objects | None) -> None:
        self.contract = service.contract
        self.engine = engine
        self.objects = objects

    def fail(self, error: BaseException, context: Any) -> NoReturn:
        """End a call with what the object raised."""
        status = encode_exception(error, self.contract)
        details = ((STATUS_DETAILS, status.details),) if status.details else ()
        raise self.engine.abort(context, status.code, status.message, details)

    def refuse(self, error: Exception, context: Any) -> NoReturn:
        """End a call whose request cannot be read."""
        raise self.engine.abort(context, "INVALID_ARGUMENT", f"the request cannot be read: {error}")


def _end_of(context: Any) -> float | None:
    """When a call has to have ended, and with it what its method calls; on the clock of `time.monotonic`."""
    left = context.time_remaining()
    return None if left is None or left > _LONGEST else time.monotonic() + left


_LONGEST = 366 * 86400.0
"""Seconds. grpcio gives some hundred years for a call without a deadline."""

Build = Callable[[_Calls, "WireMethod", Callable[..., Any]], Behavior]


def _unary(calls: _Calls, wire: WireMethod, method: Callable[..., Any]) -> Behavior:
    decode, encode, objects = wire.decode_arguments, wire.encode_result, calls.objects

    def behavior(request: bytes, context: Any) -> bytes:
        try:
            args, kwargs = decode(request, objects)
        except Exception as error:
            calls.refuse(error, context)
        try:
            left = context.time_remaining()
            if left is None or left > _LONGEST:
                return encode(method(*args, **kwargs), objects)
            with ending_at(time.monotonic() + left):
                return encode(method(*args, **kwargs), objects)
        except BaseException as error:
            calls.fail(error, context)

    return behavior


def _server_stream(calls: _Calls, wire: WireMethod, method: Callable[..., Any]) -> Behavior:
    decode, objects = wire.decode_arguments, calls.objects

    def behavior(request: bytes, context: Any) -> Iterator[bytes]:
        try:
            args, kwargs = decode(request, objects)
        except Exception as error:
            calls.refuse(error, context)
        yield from _results(calls, wire, lambda: method(*args, **kwargs), context)

    return behavior


def _client_stream(calls: _Calls, wire: WireMethod, method: Callable[..., Any]) -> Behavior:
    decode, encode, objects = wire.decode_argument_stream, wire.encode_result, calls.objects

    def behavior(requests: Iterator[bytes], context: Any) -> bytes:
        try:
            args, kwargs = decode(requests, objects)
        except Exception as error:
            calls.refuse(error, context)
        try:
            with ending_at(_end_of(context)):
                return encode(method(*args, **kwargs), objects)
        except BaseException as error:
            calls.fail(error, context)

    return behavior


def _bidi(calls: _Calls, wire: WireMethod, method: Callable[..., Any]) -> Behavior:
    decode, objects = wire.decode_argument_stream, calls.objects

    def behavior(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        try:
            args, kwargs = decode(requests, objects)
        except Exception as error:
            calls.refuse(error, context)
        yield from _results(calls, wire, lambda: method(*args, **kwargs), context)

    return behavior


def _results(calls: _Calls, wire: WireMethod, call: Callable[[], Any], context: Any) -> Iterator[bytes]:
    """The items of the iterator that a method returns, encoded; it is closed whatever ends the stream."""
    encode, objects, in_time = wire.encode_result, calls.objects, ending_at(_end_of(context))
    items: Any = None
    try:
        while True:
            try:
                # The context of each step is the thread's that asks for it.
                with in_time:
                    if items is None:
                        items = iter(call())
                    chunk = encode(next(items), objects)
            except StopIteration:
                return
            except BaseException as error:
                calls.fail(error, context)
            yield chunk
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _async_unary(calls: _Calls, wire: WireMethod, method: Callable[..., Any]) -> Behavior:
    decode, encode, objects = wire.decode_arguments, wire.encode_result, calls.objects

    def behavior(request: bytes, context: Any) -> Awaitable[bytes]:
        # Here and not on the loop: arguments that are objects are dialled.
        try:
            args, kwargs = decode(request, objects)
        except Exception as error:
            calls.refuse(error, context)
        return answer(args, kwargs, context)

    async def answer(args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> bytes:
        try:
            with ending_at(_end_of(context)):
                return encode(await method(*args, **kwargs), objects)
        except GeneratorExit:
            raise
        except BaseException as error:
            calls.fail(error, context)

    return behavior


def _async_server_stream(calls: _Calls, wire: WireMethod, method: Callable[..., Any]) -> Behavior:
    decode, objects = wire.decode_arguments, calls.objects

    def behavior(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            args, kwargs = decode(request, objects)
        except Exception as error:
            calls.refuse(error, context)
        return _async_results(calls, wire, lambda: method(*args, **kwargs), context)

    return behavior


def _async_client_stream(calls: _Calls, wire: WireMethod, method: Callable[..., Any]) -> Behavior:
    decode, encode, objects = wire.decode_argument_stream_async, wire.encode_result, calls.objects

    async def behavior(requests: AsyncIterator[bytes], context: Any) -> bytes:
        try:
            args, kwargs = await decode(requests, objects)
        except Exception as error:
            calls.refuse(error, context)
        try:
            with ending_at(_end_of(context)):
                return encode(await method(*args, **kwargs), objects)
        except GeneratorExit:
            raise
        except BaseException as error:
            calls.fail(error, context)

    return behavior


def _async_bidi(calls: _Calls, wire: WireMethod, method: Callable[..., Any]) -> Behavior:
    decode, objects = wire.decode_argument_stream_async, calls.objects

    async def behavior(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            args, kwargs = await decode(requests, objects)
        except Exception as error:
            calls.refuse(error, context)
        async with aclosing(_async_results(calls, wire, lambda: method(*args, **kwargs), context)) as results:
            async for chunk in results:
                yield chunk

    return behavior


async def _async_results(
    calls: _Calls, wire: WireMethod, call: Callable[[], Any], context: Any
) -> AsyncGenerator[bytes, None]:
    """The same as `_results` for an asynchronous iterator."""
    encode, objects, in_time = wire.encode_result, calls.objects, ending_at(_end_of(context))
    items: Any = None
    try:
        while True:
            try:
                with in_time:
                    if items is None:
                        items = aiter(call())
                    chunk = encode(await anext(items), objects)
            except StopAsyncIteration:
                return
            except GeneratorExit:
                raise
            except BaseException as error:
                calls.fail(error, context)
            yield chunk
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


_BEHAVIORS: dict[tuple[Kind, bool], Build] = {
    (Kind.UNARY, False): _unary,
    (Kind.SERVER_STREAM, False): _server_stream,
    (Kind.CLIENT_STREAM, False): _client_stream,
    (Kind.BIDI, False): _bidi,
    (Kind.UNARY, True): _async_unary,
    (Kind.SERVER_STREAM, True): _async_server_stream,
    (Kind.CLIENT_STREAM, True): _async_client_stream,
    (Kind.BIDI, True): _async_bidi,
}
