"""A contract's methods as callables that travel over a channel.

The channel is shaped as `grpc.Channel` and moves bytes; the contract turns values into bytes and back. A call's way:
bind and encode the arguments, send, wait, decode. Nothing else happens on it unless it fails.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from hybridload.contract import Kind
from hybridload.contract.hints import has_reference
from hybridload.deadlines import end_of_calls, ending_at, whole_in_time
from hybridload.goplugin.threads import OutOfThreads, start_new_thread
from hybridload.handle import named_after

if TYPE_CHECKING:
    from hybridload.contract import Method, Objects, Service
    from hybridload.contract.wire import WireMethod
    from hybridload.goplugin.grpc.async_calls import AsyncMethod, AsyncResponses

Decode = Callable[[bytes, "Objects | None"], Any]


class CallContext(Protocol):
    """What a stub must know of the plugin that it calls."""

    rpc_error: tuple[type[Exception], ...]
    """What the channel raises."""

    def timeout(self) -> float | None:
        """Seconds that the next call may take; `None` for no limit."""

    def translate(self, error: Any, timeout: float | None, *, stream: bool = False) -> Exception:
        """The exception that the caller sees for one that the channel raised.

        :param stream: whether it ends a stream of results.
        """


def contract_methods(
    service: Service, channel: Any, context: CallContext, objects: Objects | None = None
) -> Mapping[str, Callable[..., Any]]:
    """One callable per method of `service`, named and documented as the method.

    :param channel: shaped as `grpc.Channel`.
    :param objects: how values that are interfaces travel; `None` where they cannot.
    """
    wire = service.wire()

    def stub(method: Method) -> Callable[..., Any]:
        made: Callable[..., Any] = _STUBS[method.kind, method.is_async](
            channel, wire.methods[method.name], method, context, objects
        )
        if has_reference(method.result_shape) and method.kind not in (Kind.SERVER_STREAM, Kind.BIDI):
            return whole_in_time(made, context.timeout, method.is_async)
        return made

    return {method.name: named_after(method, service, stub(method)) for method in service.methods}


def _unary(channel: Any, wire: WireMethod, method: Method, context: CallContext, objects: Objects | None) -> Any:
    send = channel.unary_unary(method.path)
    encode, decode, limit, rpc_error = wire.encode_arguments, wire.decode_result, context.timeout, context.rpc_error

    def call(*args: Any, **kwargs: Any) -> Any:
        request = encode(args, kwargs, objects)
        timeout = limit()
        try:
            response = send(request, timeout=timeout)
        except rpc_error as error:
            failure = context.translate(error, timeout)
        else:
            return decode(response, objects)
        try:
            raise failure
        finally:
            del failure  # it holds this frame

    return call


def _client_stream(
    channel: Any, wire: WireMethod, method: Method, context: CallContext, objects: Objects | None
) -> Any:
    send = _send_stream(channel, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        requests = _Requests(wire.encode_argument_stream(args, kwargs, objects))
        timeout = context.timeout()
        try:
            response = send(requests, timeout=timeout)
        except context.rpc_error as error:
            failure = requests.error or context.translate(error, timeout)
        else:
            return wire.decode_result(response, objects)
        try:
            raise failure
        finally:
            del failure  # it holds this frame

    return call


def _send_stream(channel: Any, method: Method) -> Callable[..., bytes]:
    """Send a stream of requests and wait for the answer.

    A Go handler that takes a stream and just returns has answered OK without a message, as in go-plugin's own streaming
    example. Where nothing is to be returned that will do, though gRPC calls it a fault of the server.
    """
    if method.result_shape is not None:
        return channel.stream_unary(method.path)  # type: ignore[no-any-return]
    open_stream = channel.stream_stream(method.path)

    def send(requests: Iterator[bytes], timeout: float | None) -> bytes:
        return b"".join(open_stream(requests, timeout=timeout))

    return send


def _server_stream(
    channel: Any, wire: WireMethod, method: Method, context: CallContext, objects: Objects | None
) -> Any:
    send, decoder = channel.unary_stream(method.path), _item_decoder(wire, method)

    def call(*args: Any, **kwargs: Any) -> RemoteStream:
        request = wire.encode_arguments(args, kwargs, objects)
        timeout = context.timeout()
        return RemoteStream(_opened(send, request, timeout, context), decoder(timeout), context, objects, timeout)

    return call


def _bidi_stream(channel: Any, wire: WireMethod, method: Method, context: CallContext, objects: Objects | None) -> Any:
    send, decoder = channel.stream_stream(method.path), _item_decoder(wire, method)

    def call(*args: Any, **kwargs: Any) -> RemoteStream:
        requests = _Requests(wire.encode_argument_stream(args, kwargs, objects))
        timeout = context.timeout()
        opened = _opened(send, requests, timeout, context)
        return RemoteStream(opened, decoder(timeout), context, objects, timeout, requests)

    return call


def _item_decoder(wire: WireMethod, method: Method) -> Callable[[float | None], Decode]:
    """Makes what decodes the items of a stream that may take so many seconds: objects are dialled in its time."""
    decode: Decode = wire.decode_result
    if not has_reference(method.result_shape):
        return lambda timeout: decode

    def adopt(until: float | None, chunk: bytes, objects: Objects | None) -> Any:
        with ending_at(until):
            return decode(chunk, objects)

    return lambda timeout: functools.partial(adopt, end_of_calls(timeout))


def _opened(send: Any, requests: Any, timeout: float | None, context: CallContext) -> Any:
    """Start a streaming call; a channel that was closed says so here, and not at the first item."""
    try:
        return send(requests, timeout=timeout)
    except context.rpc_error as error:
        failure = context.translate(error, timeout)
    try:
        raise failure
    finally:
        del failure  # it holds this frame


class _Requests:
    """The requests of a stream, and the exception that the caller's own iterator raised while they were taken."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise


class _AsyncRequests:
    """The same for an async iterator."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.error: Exception | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.error = error
            raise


class RemoteStream:
    """The results of a streaming call, as they arrive. An iterator; `close`, or dropping it, cancels the call.

    In a forked child it is the parent's: there, neither does anything.
    """

    def __init__(
        self,
        call: Any,
        decode: Decode,
        context: CallContext,
        objects: Objects | None,
        timeout: float | None,
        requests: _Requests | None = None,
    ) -> None:
        self._call = call
        self._decode = decode
        self._context = context
        self._objects = objects
        self._timeout = timeout
        self._requests = requests
        self._pid = os.getpid()
        self._done = False
        self._when_done: list[Callable[[], None]] = []

    def __iter__(self) -> RemoteStream:
        return self

    def __next__(self) -> Any:
        if self._done:
            raise StopIteration
        try:
            chunk = next(self._call)
        except StopIteration:
            if self._finish():
                self._call_back()
            raise
        except self._context.rpc_error as error:
            if not self._finish():
                raise StopIteration from None  # closed by another thread
            self._call_back()
            own = self._requests.error if self._requests is not None else None
            failure = own or self._context.translate(error, self._timeout, stream=True)
        else:
            return self._decode(chunk, self._objects)
        try:
            raise failure
        finally:
            del failure  # it holds this frame

    def close(self) -> None:
        """Cancel what is still to come. Safe to call twice."""
        if self._finish() and os.getpid() == self._pid:
            self._call.cancel()
            self._call_back()

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once, when the stream has ended or was closed."""
        self._when_done.append(callback)
        if self._done:
            self._call_back()

    def __del__(self) -> None:
        if not self._done and os.getpid() == self._pid:
            _end_elsewhere(self.close)

    def _finish(self) -> bool:
        """Note the stream's end; false when it was known."""
        if self._done:
            return False
        self._done = True
        return True

    def _call_back(self) -> None:
        while self._when_done:
            self._when_done.pop()()


def _end_elsewhere(end: Callable[[], None]) -> None:
    """Have a dropped stream ended on a thread that ends with it: whoever collects garbage may be in the middle of the
    connection, with the very locks that this takes. To start a `threading.Thread` takes locks as well."""
    with contextlib.suppress(OutOfThreads):  # the channel hears of a call that is dropped by itself, only later
        start_new_thread(end)


class AsyncRemoteStream:
    """The same for `async for`: nothing waits on a thread, and a task that is cancelled cancels the call.

    :param open: makes the call; called when the first item is asked for, on the loop of whoever asks.
    """

    def __init__(
        self,
        open: Callable[[float | None], AsyncResponses],
        decode: Callable[[bytes, float | None], Awaitable[Any]],
        context: CallContext,
        requests: _AsyncRequests | None = None,
    ) -> None:
        self._open = open
        self._decode = decode
        self._context = context
        self._requests = requests
        self._timeout: float | None = None
        self._until: float | None = None
        self._responses: AsyncResponses | None = None
        self._pid = os.getpid()
        self._done = False
        self._when_done: list[Callable[[], None]] = []

    def __aiter__(self) -> AsyncRemoteStream:
        return self

    async def __anext__(self) -> Any:
        if self._done:
            raise StopAsyncIteration
        try:
            if self._responses is None:
                self._timeout = self._context.timeout()
                self._until = end_of_calls(self._timeout)
                self._responses = self._open(self._timeout)
            response = await self._responses.__anext__()
        except self._context.rpc_error as error:
            if self._done:
                raise StopAsyncIteration from None  # closed meanwhile
            self._close()
            own = self._requests.error if self._requests is not None else None
            failure = own or await _explained(self._context, error, self._timeout, stream=True)
        except GeneratorExit:
            # Collected, as when the event loop was closed: by a thread that may hold the locks which closing takes.
            self._done = True
            if os.getpid() == self._pid:
                _end_elsewhere(self._close)
            raise
        except BaseException:
            self._close()
            raise
        else:
            return await self._decode(response, self._until)
        try:
            raise failure
        finally:
            del failure  # it holds this frame

    async def aclose(self) -> None:
        """Cancel what is still to come. Safe to call twice."""
        self._close()

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once, when the stream has ended or was closed."""
        self._when_done.append(callback)
        if self._done:
            self._call_back()

    def __del__(self) -> None:
        if not self._done and os.getpid() == self._pid:
            _end_elsewhere(self._close)

    def _close(self) -> None:
        self._done = True
        if self._responses is not None and os.getpid() == self._pid:
            self._responses.cancel()
        self._call_back()

    def _call_back(self) -> None:
        while self._when_done:
            self._when_done.pop()()


async def _explained(context: CallContext, error: Any, timeout: float | None, *, stream: bool = False) -> Exception:
    """What the caller sees for an error of the channel's."""
    if getattr(error, "code", None) is None or error.code().name not in ("UNAVAILABLE", "CANCELLED"):
        return context.translate(error, timeout, stream=stream)
    import asyncio

    # Finding out why the connection broke may wait for the process's end.
    explain = functools.partial(context.translate, error, timeout, stream=stream)
    try:
        return await asyncio.to_thread(explain)
    except RuntimeError:  # there is no thread to be had: a loop that stands still for a moment is better than no reason
        return explain()


def _decoder(
    wire: WireMethod, method: Method, objects: Objects | None
) -> Callable[[bytes, float | None], Awaitable[Any]]:
    decode = wire.decode_result
    if has_reference(method.result_shape):

        async def adopted(response: bytes, until: float | None) -> Any:
            import asyncio

            with ending_at(until):
                # An object is dialled, which may take seconds.
                return await asyncio.to_thread(decode, response, objects)

        return adopted

    async def decoded(response: bytes, until: float | None) -> Any:
        return decode(response, objects)

    return decoded


def _async_method(channel: Any, method: Method) -> AsyncMethod:
    from hybridload.goplugin.grpc.async_calls import async_method  # asyncio takes long to import

    return async_method(channel, method.path)


def _async_unary(channel: Any, wire: WireMethod, method: Method, context: CallContext, objects: Objects | None) -> Any:
    send, decode = _async_method(channel, method), _decoder(wire, method, objects)

    async def call(*args: Any, **kwargs: Any) -> Any:
        request = wire.encode_arguments(args, kwargs, objects)
        timeout = context.timeout()
        try:
            response = await send.answer(request, timeout)
        except context.rpc_error as error:
            failure = await _explained(context, error, timeout)
        else:
            return await decode(response, None)
        try:
            raise failure
        finally:
            del failure  # it holds this frame

    return call


def _async_server_stream(
    channel: Any, wire: WireMethod, method: Method, context: CallContext, objects: Objects | None
) -> Any:
    send, decode = _async_method(channel, method), _decoder(wire, method, objects)

    def call(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        request = wire.encode_arguments(args, kwargs, objects)
        return AsyncRemoteStream(functools.partial(send.stream, request), decode, context)

    return call


def _async_client_stream(
    channel: Any, wire: WireMethod, method: Method, context: CallContext, objects: Objects | None
) -> Any:
    send, decode = _async_method(channel, method), _decoder(wire, method, objects)

    async def call(*args: Any, **kwargs: Any) -> Any:
        requests = _AsyncRequests(wire.encode_argument_stream_async(args, kwargs, objects))
        timeout = context.timeout()
        try:
            response = await send.answer(requests, timeout)
        except context.rpc_error as error:
            failure = requests.error or await _explained(context, error, timeout)
        else:
            return await decode(response, None)
        try:
            raise failure
        finally:
            del failure  # it holds this frame

    return call


def _async_bidi_stream(
    channel: Any, wire: WireMethod, method: Method, context: CallContext, objects: Objects | None
) -> Any:
    send, decode = _async_method(channel, method), _decoder(wire, method, objects)

    def call(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        requests = _AsyncRequests(wire.encode_argument_stream_async(args, kwargs, objects))
        return AsyncRemoteStream(functools.partial(send.stream, requests), decode, context, requests)

    return call


_STUBS: dict[tuple[Kind, bool], Callable[..., Any]] = {
    (Kind.UNARY, False): _unary,
    (Kind.SERVER_STREAM, False): _server_stream,
    (Kind.CLIENT_STREAM, False): _client_stream,
    (Kind.BIDI, False): _bidi_stream,
    (Kind.UNARY, True): _async_unary,
    (Kind.SERVER_STREAM, True): _async_server_stream,
    (Kind.CLIENT_STREAM, True): _async_client_stream,
    (Kind.BIDI, True): _async_bidi_stream,
}
