"""Go's net/rpc without I/O: calls into bytes, bytes into replies, and the same from the server's side.

On a connection each direction is one gob stream. A call is a `Request` and its argument; an answer is a `Response` and
the reply's value, or any value (Go sends an empty struct) when the response has an error, which is text. Answers come
in any order and are matched by the sequence number, which the client counts from 0. A header and its body always come
in pairs, so a body that nobody wants, or that does not fit, is passed over and the connection goes on.

A connection ends for good with `GobCorrupt`. Neither class holds a lock, and the two directions share nothing that
needs one: calls of `RpcClient.call`, or of `RpcServer.reply` and `error`, must be one after the other and their bytes
must go out in that order; calls of `receive` must be one after the other in the order of the bytes.

The texts of the server's own errors are those of Go's net/rpc, because callers compare them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from hybridload.goplugin.message_limits import too_large
from hybridload.goplugin.netrpc import adopted
from hybridload.goplugin.netrpc.gob import (
    ANYTHING,
    NEED_DATA,
    Decoder,
    Encoder,
    Field,
    GobCorrupt,
    GobMismatch,
    GobTooLarge,
    GoType,
    Limits,
    Registry,
    String,
    Struct,
    Uint,
)
from hybridload.goplugin.netrpc.gob.wire import STRING, UINT, WireStruct, put_bytes, put_int


class _Request(NamedTuple):
    method: str
    seq: int


class _Response(NamedTuple):
    method: str
    seq: int
    error: str


REQUEST: Final = Struct("Request", (Field("ServiceMethod", String(), "method"), Field("Seq", Uint(), "seq")), _Request)
RESPONSE: Final = Struct(
    "Response",
    (Field("ServiceMethod", String(), "method"), Field("Seq", Uint(), "seq"), Field("Error", String(), "error")),
    _Response,
)
_RESPONSE_FIELDS: Final = (("ServiceMethod", STRING), ("Seq", UINT), ("Error", STRING))
EMPTY: Final = Struct("")
"""Go's `struct{}`, the body of an answer that is an error."""


def _header(decoder: Decoder, header: Struct) -> Any:
    """The next header, or `NEED_DATA`. With any other value in its place, headers and bodies are out of step."""
    try:
        return decoder.next_value(header)
    except GobMismatch as mismatch:
        raise GobCorrupt(f"Not net/rpc, where a {header.name} was due. {mismatch}") from None


class Reply(NamedTuple):
    """What came of a call.

    :param seq: the call's number.
    :param value: the reply, when there is no error.
    :param error: the text of the server's error.
    :param mismatch: why the reply could not be taken for what the call expects.
    :param undialled: the objects in the value, for `adopted.dial`.
    """

    seq: int
    value: Any = None
    error: str | None = None
    mismatch: GobMismatch | None = None
    undialled: Sequence[adopted.Dialling] = ()


class _Expected(NamedTuple):
    """What a call waits for; `header` is that of an answer without an error, empty where it is not foreseen."""

    reply_type: GoType | None
    header: bytes


class _Headers:
    """Headers without an error, made and recognised by their bytes.

    They are alike in `Request` and `Response`, and from call to call only the number changes. So they are put together
    from what the first call of a method left, and an answer is known by its header before it comes. On a quiet
    connection, where every step of Python is a cold one, that is half of what a small call costs.
    """

    def __init__(self) -> None:
        self._names: dict[str, bytes] = {}

    def learn(self, name: str) -> None:
        """From now on headers of this method can be made; its first one was a value like any other."""
        out = bytearray(b"\1")
        put_bytes(out, name.encode("utf-8", "surrogateescape"))
        self._names[name] = bytes(out)

    def fields(self, name: str, seq: int) -> bytes | None:
        """The fields of a header as they are on the wire; `None` for a method that is new or has no name."""
        named = self._names.get(name)
        if named is None or not name:
            return None
        if not seq:
            return named + b"\0"
        if seq < 128:
            return b"%b\1%c\0" % (named, seq)
        size = (seq.bit_length() + 7) >> 3
        return b"%b\1%c%b\0" % (named, 256 - size, seq.to_bytes(size, "big"))


class RpcClient:
    """The calling side of one connection.

    :param registry: names of the types inside interfaces, both ways.
    :param limits: what the server may send.
    """

    def __init__(self, registry: Registry | None = None, *, limits: Limits | None = None) -> None:
        self._encoder = Encoder(registry)
        self._request_type = _number(self._encoder.prepare(REQUEST))
        self._decoder = Decoder(registry, limits=limits)
        self._headers = _Headers()
        self._next_seq = 0
        self._expected: dict[int, _Expected] = {}
        # Answers without an error by the bytes of their header, once the server's number for the type is known.
        self._response_type = b""
        self._answers: dict[bytes, int] = {}
        # The answer whose body is due: its number, and its error.
        self._answer: tuple[int, str] | None = None

    @property
    def pending(self) -> tuple[int, ...]:
        """The calls without an answer: those that have failed when the connection ends."""
        return tuple(self._expected)

    def call(
        self, method: str, argument: Any, argument_type: GoType, reply_type: GoType | None = ANYTHING
    ) -> tuple[int, bytes]:
        """A call's number and what to send.

        :param method: service and method, e.g. ``"Plugin.Greet"``.
        :param reply_type: what to make of the reply; `None` passes it over.
        :raises GobError: when the argument cannot be sent; then there is no call.
        """
        seq = self._next_seq
        fields = self._headers.fields(method, seq)
        header = b""
        if fields is None:
            data = self._encoder.encode_all((_Request(method, seq), REQUEST), (argument, argument_type))
            self._headers.learn(method)
        else:
            argument_data = self._encoder.encode(argument, argument_type)
            data = _message(self._request_type + fields) + argument_data
            if self._response_type:
                header = self._response_type + fields
                self._answers[header] = seq
        self._next_seq += 1
        self._expected[seq] = _Expected(reply_type, header)
        return seq, data

    def forget(self, seq: int) -> None:
        """Nobody waits for this call any more; its answer will be passed over."""
        self._pop(seq)

    def _pop(self, seq: int) -> bool:
        expected = self._expected.pop(seq, None)
        if expected is None:
            return False
        self._answers.pop(expected.header, None)
        return True

    def receive(self, data: bytes) -> Iterator[Reply]:
        """The replies that are complete with these bytes. Take them all before more is received.

        :raises GobCorrupt: while they are taken, when the stream is broken after the replies before.
        """
        self._decoder.feed(data)
        return self._replies()

    def _replies(self) -> Iterator[Reply]:
        while True:
            answer = self._answer
            if answer is None:
                answer = self._answer = self._next_answer()
                if answer is None:
                    return
            reply = self._receive_body(*answer)
            if reply is None:
                return
            self._answer = None
            if self._pop(reply.seq):
                yield reply
            if self._decoder.at_boundary:
                return

    def _next_answer(self) -> tuple[int, str] | None:
        seq = self._decoder.take_known(self._answers)
        if seq is not None:
            return seq, ""
        response = _header(self._decoder, RESPONSE)
        if response is NEED_DATA:
            return None
        if not self._response_type:
            type_id, wire_type = self._decoder.last_type()
            if isinstance(wire_type, WireStruct) and wire_type.fields == _RESPONSE_FIELDS:
                self._response_type = _number(type_id)
        return response.seq, response.error

    def _receive_body(self, seq: int, error: str) -> Reply | None:
        expected = self._expected.get(seq)
        if error or expected is None or expected.reply_type is None:
            return Reply(seq, error=error or None) if self._decoder.skip_value() else None
        try:
            value = self._decoder.next_value(expected.reply_type)
        except BaseException as error:
            adopted.taken()  # nobody gets the objects in half a value
            if isinstance(error, GobMismatch):
                return Reply(seq, mismatch=error)
            raise
        return None if value is NEED_DATA else Reply(seq, value, undialled=adopted.taken())


@dataclass(frozen=True, slots=True)
class Call:
    """A call to be answered, by `RpcServer.reply` or `RpcServer.error`, once.

    :param service: e.g. ``"Plugin"``.
    :param method: e.g. ``"Greet"``.
    :param undialled: the objects in the argument, for `adopted.dial`.
    """

    seq: int
    service: str
    method: str
    argument: Any = None
    undialled: Sequence[adopted.Dialling] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that cannot be made: answer it with `RpcServer.error` and `text`.

    :param service: what precedes the method's last dot; empty when it has none.
    """

    seq: int
    service: str
    method: str
    text: str


Received: TypeAlias = Call | Refusal
Services: TypeAlias = Mapping[str, Mapping[str, GoType | None]]


class RpcServer:
    """The answering side of one connection.

    :param services: for each service its methods, and for each the type of its argument; `None` passes it over.
    :param registry: names of the types inside interfaces, both ways.
    :param limits: what the client may send.
    """

    def __init__(self, services: Services, registry: Registry | None = None, *, limits: Limits | None = None) -> None:
        self._services = frozenset(services)
        self._routes = {
            f"{service}.{method}": (service, method, argument_type)
            for service, methods in services.items()
            for method, argument_type in methods.items()
        }
        self._encoder = Encoder(registry)
        self._response_type = _number(self._encoder.prepare(RESPONSE))
        self._headers = _Headers()
        self._decoder = Decoder(registry, limits=limits)
        self._request: _Request | None = None

    def receive(self, data: bytes) -> Iterator[Received]:
        """The calls that are complete with these bytes. Take them all before more is received.

        :raises GobCorrupt: while they are taken, when the stream is broken after the calls before.
        """
        self._decoder.feed(data)
        return self._calls()

    def _calls(self) -> Iterator[Received]:
        while self._receive_header():
            assert self._request is not None
            received = self._receive_body(self._request)
            if received is None:
                return
            self._request = None
            yield received

    def _receive_header(self) -> bool:
        if self._request is None:
            request = _header(self._decoder, REQUEST)
            if request is NEED_DATA:
                return False
            self._request = request
        return True

    def _receive_body(self, request: _Request) -> Received | None:
        full_name, seq = request
        route = self._routes.get(full_name)
        if route is None:
            service, _, method = full_name.rpartition(".")
            return Refusal(seq, service, method, self._refusal(full_name)) if self._decoder.skip_value() else None
        service, method, argument_type = route
        if argument_type is None:
            return Call(seq, service, method) if self._decoder.skip_value() else None
        try:
            argument = self._decoder.next_value(argument_type)
        except BaseException as error:
            adopted.taken()  # nobody gets the objects in half a value
            if isinstance(error, GobTooLarge):
                return Refusal(seq, service, method, too_large("SERVER", error.size, error.limit))
            if isinstance(error, GobMismatch):
                return Refusal(seq, service, method, str(error))
            raise
        return None if argument is NEED_DATA else Call(seq, service, method, argument, adopted.taken())

    def _refusal(self, full_name: str) -> str:
        if "." not in full_name:
            return f"rpc: service/method request ill-formed: {full_name}"
        if full_name.rpartition(".")[0] not in self._services:
            return f"rpc: can't find service {full_name}"
        return f"rpc: can't find method {full_name}"

    def reply(self, call: Call, value: Any, reply_type: GoType) -> bytes:
        """What to send when the call succeeded.

        :raises GobError: when the value cannot be sent; nothing of it was, so `error` may be sent in its place.
        """
        name = _full_name(call)
        fields = self._headers.fields(name, call.seq)
        if fields is None:
            data = self._encoder.encode_all((_Response(name, call.seq, ""), RESPONSE), (value, reply_type))
            self._headers.learn(name)
            return data
        body = self._encoder.encode(value, reply_type)
        return _message(self._response_type + fields) + body

    def error(self, call: Received, text: str) -> bytes:
        """What to send when the call failed. An empty text would mean success, so another stands in for it."""
        response = _Response(_full_name(call), call.seq, text or "error without a text")
        return self._encoder.encode_all((response, RESPONSE), (None, EMPTY))


def _full_name(call: Received) -> str:
    return f"{call.service}.{call.method}" if call.service else call.method


def _number(type_id: int) -> bytes:
    out = bytearray()
    put_int(out, type_id)
    return bytes(out)


def _message(body: bytes) -> bytes:
    if len(body) < 128:
        return b"%c%b" % (len(body), body)
    out = bytearray()
    put_bytes(out, body)
    return bytes(out)
