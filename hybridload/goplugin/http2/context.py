"""Calls as the server sees them: what has come for each so far, and what a handler is given.

`ServerCall` is the state, fed by the connection with the link's lock held; `Context` is the part that handlers see, of
the shape of `grpc.ServicerContext`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from .events import Headers
from .header_blocks import encode, literal, named
from .inbox import Inbox
from .messages import GZIP, IDENTITY, MessageError
from .metadata import Metadata, decode_metadata, decode_timeout, encode_message, encode_metadata
from .status import Status, StatusCode, public_code
from .timers import Timer

if TYPE_CHECKING:
    from .loop_news import LoopNews
    from .server_link import ServerLink

RESPONSE_HEAD = b"\x88" + named(31, b"application/grpc")
"""The constant part of a response's header block: status 200 and the content type."""

TRAILERS_OK = literal(b"grpc-status", b"0")

PLAIN_OK = Status(StatusCode.OK, "")
"""The status of a handler that said nothing about it."""

_MESSAGE_LIMIT = 4096
"""Bytes of a status message that are sent to a peer whose limit the whole would exceed."""


class HandlerCallDetails(NamedTuple):
    """What a generic handler is asked with: `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: Metadata


class Request(NamedTuple):
    """What a request's header list says.

    :param refusal: an HTTP status for what is not gRPC; empty for what is.
    :param timeout: seconds; `None` without a deadline.
    :param details: what generic handlers are asked with.
    """

    path: str
    metadata: Metadata
    timeout: float | None
    encoding: str
    accepts_gzip: bool
    refusal: bytes
    details: HandlerCallDetails


class Abort(Exception):
    """Leaves a handler that has set its status with `Context.abort`."""


class RequestsEnded(Exception):
    """The call ended while its handler was waiting for the next request."""


def read_request(headers: Headers) -> Request:
    """Take a request's header list apart."""
    fields = dict(headers)
    refusal = b""
    if fields.get(b":method") != b"POST":
        refusal = b"405"
    elif not fields.get(b"content-type", b"").startswith(b"application/grpc"):
        refusal = b"415"
    timeout = fields.get(b"grpc-timeout")
    path = fields[b":path"].decode("latin-1")
    metadata = decode_metadata(headers)
    return Request(
        path=path,
        metadata=metadata,
        timeout=None if timeout is None else decode_timeout(timeout),
        encoding=fields.get(b"grpc-encoding", b"identity").decode("latin-1"),
        accepts_gzip=b"gzip" in fields.get(b"grpc-accept-encoding", b""),
        refusal=refusal,
        details=HandlerCallDetails(path, metadata),
    )


def trailers_block(status: Status, limit: int | None) -> bytes:
    """The last header block of a call. Metadata is left out when the whole would be more than the peer accepts."""
    fields = [(b"grpc-status", b"%d" % status.code.value[0])]
    if status.details:
        fields.append((b"grpc-message", encode_message(status.details)))
    block = encode(fields) + encode_metadata(status.trailing_metadata)
    if limit is not None and len(block) + 32 * (4 + len(status.trailing_metadata)) > limit:
        room = max(0, min(_MESSAGE_LIMIT, limit // 4))
        block = encode((fields[0], (b"grpc-message", encode_message(status.details[:room]))))
    return block


class ServerCall(Inbox):
    """One call: what came, what was answered, whether it is over."""

    # What most calls never change stands on the class: a call is made in a microsecond.
    link: ServerLink
    request_ended = False
    handler: Any = None
    started = False
    """Whether the handler was, or is about to be, run."""
    over = False
    """Whether the status was sent, or nobody waits for it any more."""
    cut_off = False
    """Whether it was over before its handler had answered."""
    initial_sent = False
    timer: Timer | None = None
    deadline: float | None = None
    code: StatusCode | None = None
    details = ""
    initial: Metadata = ()
    trailing: Metadata = ()
    aborted = False
    gzip = False
    """Whether messages are to be compressed."""
    silent = True
    """Whether the handler has said nothing yet about how it is answered: none of the six above."""
    receiver = "SERVER"
    _news: threading.Condition | LoopNews | None = None
    _callbacks: list[Callable[[], None]] | None = None

    def __init__(self, link: ServerLink, stream_id: int, request: Request, max_receive: int | None) -> None:
        self.link = link
        self.stream_id = stream_id
        self.request = request
        self.messages = deque()
        self.max_receive = max_receive
        if request.timeout is not None:
            self.deadline = time.monotonic() + request.timeout

    # What comes from the connection. Called with the link's lock held.

    def spoil(self, status: Status) -> None:
        if not self.over:
            self.cut_off = True
            self.link._finish(self, status)

    def on_data(self, data: bytes | memoryview, ends: bool) -> Status | None:
        """Take a piece of the body. A status is returned when the call cannot go on."""
        if self.request.refusal:
            self.link.connection.consumed(self.stream_id, len(data))
            self.request_ended = ends
            return None
        try:
            self.put(data, self.request.encoding)
        except MessageError as error:
            return error.status
        if ends:
            return self.on_end()
        if self._news is not None:
            self._news.notify_all()
        if len(self.messages) > 1 and self.handler is not None and not self.handler.request_streaming:
            return Status(StatusCode.INTERNAL, "several messages in a unary request")
        return None

    def on_end(self) -> Status | None:
        """The client has sent its last message."""
        self.request_ended = True
        if self._news is not None:
            self._news.notify_all()
        if self.inside:
            return Status(StatusCode.INTERNAL, "the request ends in the middle of a message")
        return None

    def end(self) -> Sequence[Callable[[], None]]:
        """It is over; returns what is to be called back, once the lock is let go."""
        self.over = True
        if self.timer is not None:
            self.timer.cancel()
        if self._news is not None:
            self._news.notify_all()
        callbacks, self._callbacks = self._callbacks, None
        return callbacks or ()

    def tell(self) -> None:
        """Wake the handler, if it waits for news."""
        if self._news is not None:
            self._news.notify_all()

    def wait_for_news(self) -> None:
        """Wait until `tell`. Called with the link's lock held, which is let go."""
        if self._news is None:
            self._news = threading.Condition(self.link.lock)
        assert isinstance(self._news, threading.Condition)
        self._news.wait()

    def tell_loop(self, news: LoopNews) -> None:
        """From now on an event loop is told, and no thread waits. Called with the link's lock held."""
        self._news = news

    # For the handler's thread

    def next_message(self) -> bytes:
        """The next message of a request stream.

        :raises StopIteration: there are no more.
        :raises RequestsEnded: the call is over before the stream is.
        """
        link = self.link
        with link.lock:
            while not self.messages:
                if self.over:
                    raise RequestsEnded(f"{self.request.path} is over")
                if self.request_ended:
                    raise StopIteration
                self.wait_for_news()
            message = self.take_message()
        if link.connection.due:
            link.flush_or_delegate()
        return message

    def add_callback(self, callback: Callable[[], None]) -> bool:
        with self.link.lock:
            if self.over:
                return False
            self._callbacks = [*(self._callbacks or []), callback]
            return True

    # What the handler has said about the answer

    def status(self) -> Status:
        """What the handler has decided on."""
        if self.code is None and not self.details and not self.trailing:
            return PLAIN_OK
        code = StatusCode.OK if self.code is None else self.code
        if code is StatusCode.OK and not self.details and not self.trailing:
            return PLAIN_OK
        return Status(code, self.details, self.trailing)

    def status_for(self, code: StatusCode, details: str) -> Status:
        """What a failure ends with: the handler's own code wins."""
        return Status(self.code or code, self.details or details, self.trailing)

    def response_head(self) -> bytes:
        """The first header block."""
        if not self.initial and not self.gzip:
            return RESPONSE_HEAD
        encoding = literal(b"grpc-encoding", (GZIP if self.gzip else IDENTITY).encode())
        return RESPONSE_HEAD + encoding + encode_metadata(self.initial)


class Requests:
    """A request stream as a handler sees it: an iterator of requests."""

    __slots__ = ("_call", "_deserialize")

    def __init__(self, call: ServerCall, deserialize: Callable[[bytes], Any] | None) -> None:
        self._call = call
        self._deserialize = deserialize

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        message = self._call.next_message()
        return message if self._deserialize is None else self._deserialize(message)

    def next(self) -> Any:
        return self.__next__()


class Context:
    """What a handler may ask and say about its call: `grpc.ServicerContext`.

    Codes may be given as members of `status.StatusCode` or of `grpc.StatusCode`.
    """

    def __init__(self, call: ServerCall) -> None:
        self._call = call

    # About the call

    def is_active(self) -> bool:
        """Whether anybody still waits for the answer."""
        return not self._call.over

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline; `None` without one."""
        deadline = self._call.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def invocation_metadata(self) -> Metadata:
        return self._call.request.metadata

    def peer(self) -> str:
        return self._call.link.stream.peer

    def peer_identities(self) -> None:
        return None

    def peer_identity_key(self) -> None:
        return None

    def auth_context(self) -> dict[str, Iterable[bytes]]:
        return {}

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call `callback` when the call is over, however it ends. False, and never, when it is over already."""
        return self._call.add_callback(callback)

    def cancel(self) -> bool:
        """End the call with CANCELLED. False when it was over."""
        return self._call.link.finish(self._call, Status(StatusCode.CANCELLED, "cancelled by the handler"))

    # The answer

    def send_initial_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Send the response's headers now. Once, and before the first response."""
        if self._call.initial_sent:
            raise ValueError("Initial metadata no longer allowed!")
        self._call.silent = False
        self._call.initial = _checked(metadata)
        self._call.link.send_initial(self._call)

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        self._call.silent = False
        self._call.trailing = _checked(metadata)

    def trailing_metadata(self) -> Metadata:
        return self._call.trailing

    def set_code(self, code: Any) -> None:
        self._call.silent = False
        self._call.code = StatusCode.of(code)

    def set_details(self, details: str) -> None:
        self._call.silent = False
        self._call.details = _text(details)

    def code(self) -> Any:
        return None if self._call.code is None else public_code(self._call.code)

    def details(self) -> str:
        return self._call.details

    def abort(self, code: Any, details: str) -> NoReturn:
        """Leave the handler and end the call with a status that is not OK."""
        self._call.silent = False
        self._call.code = StatusCode.of(code)
        self._call.details = _text(details)
        if self._call.code is StatusCode.OK:
            self._call.code, self._call.details = StatusCode.UNKNOWN, "abort was called with OK"
        self._call.aborted = True
        raise Abort(f"{self._call.code.name}: {self._call.details}")

    def abort_with_status(self, status: Any) -> NoReturn:
        """As `abort`, with the `code`, `details` and `trailing_metadata` of an object."""
        if status.trailing_metadata:
            self._call.trailing = (*self._call.trailing, *_checked(status.trailing_metadata))
        self.abort(status.code, status.details)

    def set_compression(self, compression: Any) -> None:
        """Compress the responses with gzip, where the client understands it. Before the first response."""
        named_gzip = compression == 2 or str(getattr(compression, "name", compression)).lower() == GZIP
        self._call.silent = False
        self._call.gzip = bool(named_gzip) and self._call.request.accepts_gzip

    def disable_next_message_compression(self) -> None:
        """Accepted for the sake of the shape: compressing is allowed, never due."""


def _checked(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """:raises ValueError: it cannot travel. Here, where the handler is to blame, and not when it is sent."""
    items = tuple((key, value) for key, value in metadata)
    encode_metadata(items)
    return items  # type: ignore[return-value]  # plain pairs do


def _text(details: str | bytes) -> str:
    return details.decode("utf-8", "replace") if isinstance(details, bytes) else str(details)
