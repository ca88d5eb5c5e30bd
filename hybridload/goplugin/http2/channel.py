"""The client: a channel of the shape of `grpc.Channel`, over streams that somebody else opens.

Everything that ``*_pb2_grpc.py`` does with a channel works on it; errors are what `status` says. What there is not:
name resolution, load balancing, credentials, ``wait_for_ready`` (accepted and ignored: the server is a process that is
known to run).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hybridload.frozen import replace
from hybridload.goplugin.streams.base import Stream, StreamError
from hybridload.goplugin.threads import OutOfThreads

from .calls import Call, Deserializer, Responses, StreamCall, UnaryCall, iteration_failed
from .client_link import ClientLink
from .connection import ConnectionClosed
from .header_blocks import literal, named
from .limits import Limits
from .messages import ACCEPTED, LARGEST_MESSAGE, MessageError, check_size, compress
from .metadata import encode_metadata, encode_timeout
from .pool import Dial, Pool, PoolClosed
from .status import Status, StatusCode, rpc_error
from .timers import Timers
from .workers import Workers, WorkersClosed

if TYPE_CHECKING:
    from .loop_channel import LoopMethod, SharedLinks

logger = logging.getLogger(__name__)

Serializer = Callable[[Any], bytes] | None
MetadataInput = Iterable[tuple[str, str | bytes]] | None

_ATTEMPTS = 3
_JOIN_TIMEOUT = 1.0
"""Seconds that `close` waits for threads that may be inside a request iterator of the user's."""

_CLIENT_LIMITS = Limits(max_streams=0, stream_window=1 << 20)


class Channel:
    """Calls to one server.

    :param dial: opens a connection to it, in at most so many seconds. Called in the thread that needs one, from several
        at once.
    :param max_connections: how many there are at most; 1 where the way to the server can be opened only once.
    :param max_send: the largest request, in bytes; `None` for no limit.
    :param max_receive: the largest response, in bytes; `None` for no limit.
    :param dial_ahead: a connection takes long to open: a call that finds none idle shares one while another is opened.
    :param leaves_idle: a connection costs next to nothing: the first stream opens one and leaves an idle one to calls.
    :param authority: what the server is told that it is called.
    """

    def __init__(
        self,
        dial: Dial,
        *,
        max_connections: int = 8,
        max_send: int | None = None,
        max_receive: int | None = None,
        dial_ahead: bool = False,
        leaves_idle: bool = False,
        authority: str = "localhost",
        limits: Limits = _CLIENT_LIMITS,
    ) -> None:
        self.max_send = max_send
        self.max_receive = max_receive
        # Where there can be no other connection, this one is used for as long as the server lets us.
        self._limits = limits if max_connections > 1 else replace(limits, cancellations=0)
        self._workers = Workers("hybridload-http2-call")
        self._timers = Timers("hybridload-http2-deadlines")
        self._pool = Pool(dial, self._adopt, max_connections, self._workers if dial_ahead else None, leaves_idle)
        self._shared: SharedLinks | None = None
        # The constant parts of a request's header block: before the path, and after it.
        self._head = b"\x83\x86" + named(1, authority.encode())  # POST, http
        self._tail = (
            named(31, b"application/grpc")
            + literal(b"te", b"trailers")
            + literal(b"grpc-accept-encoding", ACCEPTED)
            + named(58, b"grpc-python-hybridload")
        )

    def _adopt(self, stream: Stream) -> ClientLink:
        return ClientLink(stream, self._workers, self._timers, self._limits)

    def unary_unary(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = False,
    ) -> UnaryUnary:
        return UnaryUnary(self, method, request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = False,
    ) -> UnaryStream:
        return UnaryStream(self, method, request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = False,
    ) -> StreamUnary:
        return StreamUnary(self, method, request_serializer, response_deserializer)

    def stream_stream(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool | None = False,
    ) -> StreamStream:
        return StreamStream(self, method, request_serializer, response_deserializer)

    def on_loops(self, method: str) -> LoopMethod:
        """A method, of any kind, for coroutines: no thread waits for its calls."""
        from .loop_channel import LoopMethod, SharedLinks

        if self._shared is None:
            self._shared = SharedLinks(self._pool, self._workers)
        return LoopMethod(self, self._shared, method)

    def subscribe(self, callback: Callable[[Any], None], try_to_connect: bool = False) -> None:
        """Accepted for the sake of the shape: connections are made when they are needed, and never reported."""

    def unsubscribe(self, callback: Callable[[Any], None]) -> None:
        """See `subscribe`."""

    def close(self) -> None:
        """End all calls (CANCELLED), close the connections, join the threads. Safe to call twice.

        A thread that is inside a request iterator of the user's when the call ends leaves when the iterator returns.
        """
        for link in self._pool.close():
            link.close()
        self._timers.close()
        if not self._workers.close(_JOIN_TIMEOUT):
            logger.debug("a request iterator, or a callback, has not returned: its thread is left behind")

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # How a call is made; for the multicallables below.

    def path_block(self, method: str) -> bytes:
        """The encoded :path field."""
        return named(4, method.encode())

    def header_block(self, path: bytes, timeout: float | None, metadata: MetadataInput, gzip: bool) -> bytes:
        """A request's header block. `path` is the encoded :path field."""
        if timeout is None and not metadata and not gzip:
            return self._head + path + self._tail
        extra = b"" if timeout is None else literal(b"grpc-timeout", encode_timeout(timeout))
        if gzip:
            extra += literal(b"grpc-encoding", b"gzip")
        return self._head + path + self._tail + extra + (encode_metadata(metadata) if metadata else b"")

    def run(self, call: UnaryCall, block: bytes, message: bytes) -> UnaryCall:
        """Make a unary call in this thread and return it when it is over: `call`, or one that repeats it."""
        pool = self._pool
        for attempt in range(_ATTEMPTS):
            if attempt:
                call = call.again()
            try:
                link = pool.take(call.deadline)
            except (PoolClosed, StreamError, TimeoutError) as error:
                raise _not_connected(call, error) from error
            try:
                alone, pool.latest = pool.latest == id(link), id(link)
                link.run(call, block, message, alone)
            except ConnectionClosed:
                continue
            except OutOfThreads as error:
                raise _refused(call, error) from error
            except BaseException:
                link.cancel(call, Status(StatusCode.CANCELLED, "the calling thread was interrupted"))
                raise
            finally:
                pool.give_back(link)
            if not call.unprocessed or attempt == _ATTEMPTS - 1:
                return call
        raise _unavailable(call, "every connection is closed as soon as it is opened")

    def begin(self, call: Any, block: bytes, message: bytes | None) -> Any:
        """Begin any other call, and return it. With a `message`, that is the whole request."""
        pool = self._pool
        for _ in range(_ATTEMPTS):
            try:
                link = pool.take_for_stream(call.deadline)
            except (PoolClosed, StreamError, TimeoutError) as error:
                raise _not_connected(call, error) from error
            try:
                link.secure_reader()
                link.begin(call, block, message, ends=message is not None)
            except ConnectionClosed:
                pool.give_back(link)
                continue
            except OutOfThreads as error:
                pool.give_back(link)
                raise _refused(call, error) from error
            except BaseException:
                link.cancel(call, Status(StatusCode.CANCELLED, "the calling thread was interrupted"))
                pool.give_back(link)
                raise
            call.when_over(partial(pool.give_back, link))
            self._watch(call, link)
            return call
        raise _unavailable(call, "every connection is closed as soon as it is opened")

    def _watch(self, call: Call, link: ClientLink) -> None:
        """Nobody may be waiting for it: somebody reads, and the deadline has a timer."""
        with link.lock:
            if call.status is not None:
                return
            link.read_for_others()
            if call.deadline is None:
                return
            try:
                call.timer = self._timers.at(call.deadline, lambda: link.expire(call))
            except OutOfThreads as error:
                logger.debug("%s ends late if nobody waits for it: %s", call.method, error)

    def send_requests(self, call: Call, requests: Iterable[Any], serialize: Serializer) -> None:
        """Send what the user's iterator gives, in a thread of its own."""
        try:
            self._workers.submit(lambda: self._send_requests(call, iter(requests), serialize))
        except WorkersClosed:
            call.cancel()
        except OutOfThreads as error:
            raise _refused(call, error) from error

    def _send_requests(self, call: Call, requests: Iterator[Any], serialize: Serializer) -> None:
        link = call.link
        while not call.is_over():
            try:
                request = next(requests)
                message = self.serialized(request, serialize, bool(call.compressed))
            except StopIteration:
                link.end_sending(call)
                return
            except MessageError as error:
                link.cancel(call, error.status)
                return
            except Exception:
                link.cancel(call, iteration_failed())
                return
            try:
                link.send_message(call, message, ends=False)
            except Exception:
                logger.exception("sending a request of %s failed", call.method)
                call.cancel()

    def serialized(self, request: Any, serialize: Serializer, gzip: bool) -> bytes:
        """:raises MessageError: it cannot be serialized, or is too large."""
        try:
            message = request if serialize is None else serialize(request)
        except Exception as error:
            details = f"Exception serializing request! {type(error).__name__}: {error}"
            raise MessageError(StatusCode.INTERNAL, details) from error
        if gzip:
            message = compress(message)
        if self.max_send is not None or len(message) > LARGEST_MESSAGE:
            check_size(message, self.max_send)
        return message


class _Method:
    """What the four multicallables share."""

    __slots__ = ("_block", "_channel", "_deserialize", "_path", "_serialize", "_timed", "method")

    def __init__(self, channel: Channel, method: str, serialize: Serializer, deserialize: Deserializer) -> None:
        self.method = method
        self._channel = channel
        self._path = channel.path_block(method)
        self._block = channel.header_block(self._path, None, None, False)
        self._timed = (0.0, b"")  # the last time-out and its header block: most callers always give the same
        self._serialize = serialize
        self._deserialize = deserialize

    def _prepare(
        self, kind: type[Any], timeout: float | None, metadata: MetadataInput, compression: Any, single: bool
    ) -> tuple[Any, bytes, bool]:
        """The call object, its header block, and whether to gzip."""
        deadline = None if timeout is None else time.monotonic() + timeout
        call = kind(self.method, self._deserialize, deadline, self._channel.max_receive, single)
        if metadata is None and compression is None:
            return call, self._block if timeout is None else self._timed_block(timeout), False
        gzip = is_gzip(compression)
        call.compressed = int(gzip)
        return call, self._channel.header_block(self._path, timeout, metadata, gzip), gzip

    def _timed_block(self, timeout: float) -> bytes:
        last, block = self._timed
        if last != timeout:
            block = self._channel.header_block(self._path, timeout, None, False)
            self._timed = (timeout, block)
        return block

    def _message(self, request: Any, gzip: bool) -> bytes:
        try:
            return self._channel.serialized(request, self._serialize, gzip)
        except MessageError as error:
            raise rpc_error(error.status, (), self.method) from error


class UnaryUnary(_Method):
    """Callable: one request, one response."""

    __slots__ = ()

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: MetadataInput = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        """Call and wait for the response.

        :param timeout: in seconds.
        :raises RpcError: the call ended with another status than OK.
        """
        if metadata is not None or compression is not None:
            return self._run(request, timeout, metadata, compression).response()
        channel = self._channel
        if self._serialize is not None or channel.max_send is not None or len(request) > LARGEST_MESSAGE:
            request = self._message(request, False)
        if timeout is None:
            call = UnaryCall(self.method, self._deserialize, None, channel.max_receive, True)
            return channel.run(call, self._block, request).response()
        deadline = time.monotonic() + timeout
        call = UnaryCall(self.method, self._deserialize, deadline, channel.max_receive, True)
        return channel.run(call, self._timed_block(timeout), request).response()

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: MetadataInput = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> tuple[Any, UnaryCall]:
        """As calling it; the second value has the metadata and the status."""
        call = self._run(request, timeout, metadata, compression)
        return call.response(), call

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: MetadataInput = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> UnaryCall:
        """Begin the call and return at once."""
        call, block, gzip = self._prepare(UnaryCall, timeout, metadata, compression, True)
        self._channel.begin(call, block, self._message(request, gzip))
        future: UnaryCall = call
        return future

    def _run(self, request: Any, timeout: float | None, metadata: MetadataInput, compression: Any) -> UnaryCall:
        call: UnaryCall
        call, block, gzip = self._prepare(UnaryCall, timeout, metadata, compression, True)
        return self._channel.run(call, block, self._message(request, gzip))


class UnaryStream(_Method):
    """Callable: one request, a stream of responses."""

    __slots__ = ()

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: MetadataInput = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Responses:
        call, block, gzip = self._prepare(StreamCall, timeout, metadata, compression, False)
        channel, message = self._channel, self._message(request, gzip)

        def begin_again() -> StreamCall:
            again = StreamCall(self.method, self._deserialize, call.deadline, channel.max_receive, False)
            again.compressed = call.compressed
            return channel.begin(again, block, message)  # type: ignore[no-any-return]

        return Responses(channel.begin(call, block, message), begin_again, _ATTEMPTS)


class StreamUnary(_Method):
    """Callable: a stream of requests, one response."""

    __slots__ = ()

    def __call__(
        self,
        request_iterator: Iterable[Any],
        timeout: float | None = None,
        metadata: MetadataInput = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        return self.with_call(request_iterator, timeout, metadata, compression=compression)[0]

    def with_call(
        self,
        request_iterator: Iterable[Any],
        timeout: float | None = None,
        metadata: MetadataInput = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> tuple[Any, UnaryCall]:
        call = self.future(request_iterator, timeout, metadata, compression=compression)
        try:
            call._await_end(None)
        except BaseException:
            call.cancel()
            raise
        return call.response(), call

    def future(
        self,
        request_iterator: Iterable[Any],
        timeout: float | None = None,
        metadata: MetadataInput = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> UnaryCall:
        call, block, _ = self._prepare(UnaryCall, timeout, metadata, compression, True)
        self._channel.begin(call, block, None)
        self._channel.send_requests(call, request_iterator, self._serialize)
        future: UnaryCall = call
        return future


class StreamStream(_Method):
    """Callable: a stream of requests, a stream of responses."""

    __slots__ = ()

    def __call__(
        self,
        request_iterator: Iterable[Any],
        timeout: float | None = None,
        metadata: MetadataInput = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Responses:
        call, block, _ = self._prepare(StreamCall, timeout, metadata, compression, False)
        self._channel.begin(call, block, None)
        self._channel.send_requests(call, request_iterator, self._serialize)
        return Responses(call)


def is_gzip(compression: Any) -> bool:
    """Whether a `grpc.Compression` member, its number or a name stands for gzip. Deflate, which nobody uses, is not."""
    return compression is not None and (
        compression == 2 or str(getattr(compression, "name", compression)).lower() == "gzip"
    )


def _not_connected(call: Call, error: Exception) -> Exception:
    if isinstance(error, PoolClosed):
        return ValueError("Cannot invoke RPC on closed channel!")  # grpc's own words
    if isinstance(error, TimeoutError) and call.deadline is not None and time.monotonic() >= call.deadline:
        return rpc_error(Status(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), (), call.method)
    return _unavailable(call, f"cannot connect: {error}")


def _refused(call: Call, error: OutOfThreads) -> Exception:
    """The exception for a call that needs a thread, which is ended if it has begun."""
    status = Status(StatusCode.RESOURCE_EXHAUSTED, str(error))
    if call.stream_id:
        call.link.cancel(call, status)
    return rpc_error(status, (), call.method)


def _unavailable(call: Call, reason: str) -> Exception:
    return rpc_error(Status(StatusCode.UNAVAILABLE, reason, lost=True), (), call.method, call.deadline)
