"""A contract's methods as callables that travel over a channel.

The channel is shaped as `grpc.Channel` and moves bytes; the contract turns values into bytes and back. A call's way:
bind and encode the arguments, send, wait, decode. Nothing else happens on it unless it fails.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Protocol

from hybridload.contract import Kind

if TYPE_CHECKING:
    import asyncio

    from hybridload.contract import Method, Objects, Service
    from hybridload.contract.wire import WireMethod


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
    return {
        method.name: named_stub(
            _STUBS[method.kind, method.is_async](channel, wire.methods[method.name], method, context, objects),
            method,
            service,
        )
        for method in service.methods
    }


def named_stub(stub: Any, method: Method, service: Service) -> Callable[..., Any]:
    """A stub with the name, the documentation and the signature of the method that it stands for."""
    original = getattr(service.interface, method.name)
    functools.update_wrapper(stub, original)
    del stub.__wrapped__
    stub.__signature__ = method.signature
    return stub  # type: ignore[no-any-return]


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
    send = channel.unary_stream(method.path)

    def call(*args: Any, **kwargs: Any) -> RemoteStream:
        request = wire.encode_arguments(args, kwargs, objects)
        timeout = context.timeout()
        return RemoteStream(_opened(send, request, timeout, context), wire, context, objects, timeout)

    return call


def _bidi_stream(channel: Any, wire: WireMethod, method: Method, context: CallContext, objects: Objects | None) -> Any:
    send = channel.stream_stream(method.path)

    def call(*args: Any, **kwargs: Any) -> RemoteStream:
        requests = _Requests(wire.encode_argument_stream(args, kwargs, objects))
        timeout = context.timeout()
        return RemoteStream(_opened(send, requests, timeout, context), wire, context, objects, timeout, requests)

    return call


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
    """The requests of a stream that the caller's own async iterator makes, and the exception that it raised meanwhile.

    A thread of the channel's asks for one after the other, and the caller's event loop makes each when it is asked for.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        import asyncio

        self._chunks = chunks
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._wanted: Future[bytes | None] | None = None
        self._over = False
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        import asyncio

        making = self._make()
        with self._lock:
            if self._over:
                making.close()
                raise StopIteration
            try:
                self._wanted = asyncio.run_coroutine_threadsafe(making, self._loop)
            except RuntimeError:
                making.close()
                raise
        try:
            chunk = self._wanted.result()
        except CancelledError:
            if self._over:
                raise StopIteration from None
            raise RuntimeError("the event loop that makes the requests has ended") from None
        if chunk is None:
            raise StopIteration
        return chunk

    def stop(self) -> None:
        """Ask the iterator for nothing more: the call is over. Safe to call twice, from any thread."""
        with self._lock:
            self._over = True
            wanted = self._wanted
        if wanted is not None and not self._loop.is_closed():
            wanted.cancel()

    async def _make(self) -> bytes | None:
        try:
            return await anext(self._chunks, None)
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
        wire: WireMethod,
        context: CallContext,
        objects: Objects | None,
        timeout: float | None,
        requests: _Requests | _AsyncRequests | None = None,
    ) -> None:
        self._call = call
        self._wire = wire
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
            return self._wire.decode_result(chunk, self._objects)
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
    with contextlib.suppress(RuntimeError):  # the interpreter is ending, and the connection with it
        _thread.start_new_thread(end, ())


class AsyncRemoteStream:
    """The same for `async for`. Each item is waited for on a thread, never on the event loop.

    :param open: makes the call; called when the first item is asked for, on the loop of whoever asks.
    """

    def __init__(self, open: Callable[[], RemoteStream]) -> None:
        self._open = open
        self._stream: RemoteStream | None = None
        self._pid = os.getpid()
        self._done = False
        self._when_done: list[Callable[[], None]] = []

    def __aiter__(self) -> AsyncRemoteStream:
        return self

    async def __anext__(self) -> Any:
        if self._done:
            raise StopAsyncIteration
        if self._stream is None:
            try:
                self._stream = self._open()
            except BaseException:
                self._close()
                raise
            self._stream.add_done_callback(self._close)
        import asyncio

        try:
            item = await asyncio.to_thread(next, self._stream, _END)
        except asyncio.CancelledError:
            self._close()
            raise
        if item is _END:
            raise StopAsyncIteration
        return item

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
        if self._stream is not None:
            self._stream.close()
        self._call_back()

    def _call_back(self) -> None:
        while self._when_done:
            self._when_done.pop()()


_END = object()


def _async_unary(channel: Any, wire: WireMethod, method: Method, context: CallContext, objects: Objects | None) -> Any:
    send = channel.unary_unary(method.path)

    async def call(*args: Any, **kwargs: Any) -> Any:
        request = wire.encode_arguments(args, kwargs, objects)
        timeout = context.timeout()
        try:
            response = await _outcome(send.future(request, timeout=timeout))
        except context.rpc_error as error:
            import asyncio

            # Finding out why may wait for the process's end.
            failure = await asyncio.to_thread(context.translate, error, timeout)
        else:
            return wire.decode_result(response, objects)
        try:
            raise failure
        finally:
            del failure  # it holds this frame

    return call


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _outcome(call: Any) -> bytes:
    """Wait for a call on the running event loop, without a thread of its own."""
    import asyncio

    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(_: Any) -> None:
        try:
            loop.call_soon_threadsafe(_settle, waiter)
        except RuntimeError:
            pass  # The loop was closed while the call was on its way: nobody waits any more.

    call.add_done_callback(wake)
    try:
        await waiter
    except asyncio.CancelledError:
        call.cancel()
        raise
    result: bytes = call.result()
    return result


def _async_server_stream(
    channel: Any, wire: WireMethod, method: Method, context: CallContext, objects: Objects | None
) -> Any:
    send = channel.unary_stream(method.path)

    def call(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        request = wire.encode_arguments(args, kwargs, objects)

        def open_stream() -> RemoteStream:
            timeout = context.timeout()
            return RemoteStream(_opened(send, request, timeout, context), wire, context, objects, timeout)

        return AsyncRemoteStream(open_stream)

    return call


def _async_client_stream(
    channel: Any, wire: WireMethod, method: Method, context: CallContext, objects: Objects | None
) -> Any:
    send = channel.stream_unary(method.path)

    async def call(*args: Any, **kwargs: Any) -> Any:
        requests = _AsyncRequests(wire.encode_argument_stream_async(args, kwargs, objects))
        timeout = context.timeout()
        try:
            response = await _outcome(send.future(requests, timeout=timeout))
        except context.rpc_error as error:
            import asyncio

            translated = await asyncio.to_thread(context.translate, error, timeout)
        else:
            return wire.decode_result(response, objects)
        finally:
            requests.stop()
        raise requests.error or translated

    return call


def _async_bidi_stream(
    channel: Any, wire: WireMethod, method: Method, context: CallContext, objects: Objects | None
) -> Any:
    send = channel.stream_stream(method.path)

    def call(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        chunks = wire.encode_argument_stream_async(args, kwargs, objects)

        def open_stream() -> RemoteStream:
            requests = _AsyncRequests(chunks)
            timeout = context.timeout()
            call = _opened(send, requests, timeout, context)
            stream = RemoteStream(call, wire, context, objects, timeout, requests)
            stream.add_done_callback(requests.stop)
            return stream

        return AsyncRemoteStream(open_stream)

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
