"""A contract on the wire: for each method, arguments and results to bytes and back.

The engines below move bytes only. Everything here is compiled from a service in a private pool, whether its messages
were derived from hints or given, by one set of rules:

- Request fields are the parameters, by name. Fields that the interface does not name keep their default.
- The result's hint decides how a response is read: nothing for `None`; a message class as it is; a dataclass by the
  names of its fields, when the response has them all; otherwise the one field that fits.
- A client stream's items are read from request messages in the same way, but a field with the iterator's name comes
  first. When there are other parameters, the first message carries them and no item.
- Defaults are the interface's and are filled in by the caller.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from hybridload.contract.hints import MessageClass, Misfit, Record, Shape, describe_shape
from hybridload.contract.service import Kind, Method, Objects, Service
from hybridload.contract.values import (
    Body,
    Codecs,
    Slot,
    Unfit,
    check_exclusive,
    exclusive,
    field_named,
    listed,
)

if TYPE_CHECKING:
    from hybridload.contract.descriptors import Given

RESULT = "result"
"""The field of a derived response."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_MISSING: Any = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class WireMethod:
    """One method as functions from values to bytes and back. All of them are plain functions, made once.

    :param encode_arguments: ``(args, kwargs, objects) -> bytes`` for one request message. Raises `TypeError` as Python
        does for arguments that the signature refuses, and `TypeError`, `ValueError` or `OverflowError` naming the
        argument that cannot be sent.
    :param encode_argument_stream: ``(args, kwargs, objects) -> Iterator[bytes]`` for a client stream; what is wrong
        with the arguments beside the stream is raised at once, what is wrong with an item when its turn comes.
    :param encode_argument_stream_async: the same for an async iterator of items.
    :param decode_arguments: ``(data, objects) -> (args, kwargs)`` to call an implementation with.
    :param decode_argument_stream: ``(chunks, objects) -> (args, kwargs)``; reads the first chunk when there are other
        parameters, and the others as the implementation iterates.
    :param decode_argument_stream_async: the same, awaited, for an async iterator of chunks.
    :param encode_result: ``(value, objects) -> bytes`` for a result or one item of a result's stream.
    :param decode_result: ``(data, objects) -> value``.
    """

    method: Method
    encode_arguments: Callable[[tuple[Any, ...], dict[str, Any], Objects | None], bytes]
    encode_argument_stream: Callable[[tuple[Any, ...], dict[str, Any], Objects | None], Iterator[bytes]]
    encode_argument_stream_async: Callable[[tuple[Any, ...], dict[str, Any], Objects | None], AsyncIterator[bytes]]
    decode_arguments: Callable[[bytes, Objects | None], Arguments]
    decode_argument_stream: Callable[[Iterator[bytes], Objects | None], Arguments]
    decode_argument_stream_async: Callable[[AsyncIterator[bytes], Objects | None], Any]
    encode_result: Callable[[Any, Objects | None], bytes]
    decode_result: Callable[[bytes, Objects | None], Any]


@dataclass(frozen=True, slots=True)
class Wire:
    """A service's wire form.

    :param methods: by Python name.
    """

    methods: Mapping[str, WireMethod]
    service: Service
    files: tuple[descriptor_pb2.FileDescriptorProto, ...] = field(repr=False)

    def file_descriptor_set(self) -> bytes:
        """The service's file and all that it imports, as a serialized `FileDescriptorSet`, imports first."""
        return descriptor_pb2.FileDescriptorSet(file=self.files).SerializeToString()

    def proto_text(self) -> str:
        """The service as a .proto file, for authors in other languages."""
        from hybridload.contract.proto_text import file_text

        package, _, name = self.service.full_name.rpartition(".")
        own = next(file for file in self.files if file.package == package and any(s.name == name for s in file.service))
        return file_text(own, {method.wire_name: method for method in self.service.methods})


def given_wire(service: Service, given: Given, *, derived: bool = False) -> tuple[Wire, list[str]]:
    """Compile a service's methods against its descriptors.

    :param derived: whether the descriptors were derived from the hints, so that the response's field is known.
    :returns: the wire form, and a line for each method that does not fit, with its file and line.
    """
    codecs = Codecs()
    methods: dict[str, WireMethod] = {}
    mismatches: list[str] = []
    for method in service.methods:
        try:
            descriptor = given.descriptor.methods_by_name[method.wire_name]
            methods[method.name] = _Compilation(method, descriptor, codecs, derived).wire_method()
        except Misfit as error:
            mismatches.append(f"{method.name}() at {method.location}: {error}")
    return Wire(methods, service, given.files), mismatches


class _Compilation:
    """Compiles one method."""

    def __init__(self, method: Method, descriptor: MethodDescriptor, codecs: Codecs, derived: bool) -> None:
        self.method = method
        self.descriptor = descriptor
        self.codecs = codecs
        self.derived = derived
        self.call = f"{method.name}()"

    def wire_method(self) -> WireMethod:
        self._check_kind()
        bind = binder(self.method)
        request = self._request()
        item = self._item()
        response = self._response()
        return WireMethod(
            self.method,
            _encode_arguments(self.call, bind, request),
            _encode_stream(self.call, bind, request, item),
            _encode_stream_async(self.call, bind, request, item),
            _decode_arguments(self.call, request),
            _decode_stream(self.call, request, item),
            _decode_stream_async(self.call, request, item),
            _encode_value(f"{self.call} result", response),
            _decode_value(f"{self.call} result", response),
        )

    def _check_kind(self) -> None:
        descriptor = self.descriptor
        declared = {
            (False, False): Kind.UNARY,
            (False, True): Kind.SERVER_STREAM,
            (True, False): Kind.CLIENT_STREAM,
            (True, True): Kind.BIDI,
        }[bool(descriptor.client_streaming), bool(descriptor.server_streaming)]
        if declared is not self.method.kind:
            raise Misfit(
                f"by its hints it is a {self.method.kind.value} method, but {descriptor.full_name} is a "
                f"{declared.value} one; an Iterator as parameter or result makes the difference"
            )

    def _request(self) -> _Request:
        message = self.descriptor.input_type
        parameters = [parameter for parameter in self.method.parameters if not parameter.stream]
        only = parameters[0] if len(parameters) == 1 else None
        if only and isinstance(only.shape, MessageClass) and field_named(message, only.name) is None:
            body = self._for("parameter", only.name, lambda: self.codecs.body(only.shape, message))
            slots = [Slot(only.name, body.fill, body.read)]
        else:
            slots = [self._parameter_slot(message, parameter.name, parameter.shape) for parameter in parameters]
        named = list(zip([parameter.name for parameter in parameters], slots, strict=True))
        stream = self.method.stream_parameter
        return _Request(
            message=GetMessageClass(message),
            slots=tuple(named),
            checks=exclusive(named),
            keywords=tuple(parameter.name for parameter in self.method.parameters if parameter.keyword_only),
            order=tuple(parameter.name for parameter in self.method.parameters),
            stream=stream.name if stream else None,
        )

    def _parameter_slot(self, message: Descriptor, name: str, shape: Shape) -> Slot:
        descriptor = field_named(message, name)
        if descriptor is None:
            raise Misfit(
                f"parameter {name!r} has no field in the request {message.full_name}, "
                f"which has {listed(field.name for field in message.fields)}"
            )
        return self._for("parameter", name, lambda: self.codecs.slot(shape, descriptor))  # type: ignore[no-any-return]

    def _for(self, what: str, name: str, compile_it: Callable[[], Any]) -> Any:
        try:
            return compile_it()
        except Misfit as error:
            raise Misfit(f"{what} {name!r}: {error}") from error

    def _item(self) -> _Value | None:
        stream = self.method.stream_parameter
        if stream is None:
            return None
        message = self.descriptor.input_type
        if field_named(message, stream.name) is not None:
            slot = self._parameter_slot(message, stream.name, stream.shape)
            return _Value.of_slot(message, slot)
        others = {parameter.name for parameter in self.method.parameters if not parameter.stream}
        return self._for("parameter", stream.name, lambda: self._whole_or_field(stream.shape, message, others))  # type: ignore[no-any-return]

    def _response(self) -> _Value:
        message, shape = self.descriptor.output_type, self.method.result_shape
        if shape is None:
            return _Value(GetMessageClass(message))
        if self.derived:
            slot = self.codecs.slot(shape, message.fields_by_name[RESULT])
            return _Value.of_slot(message, slot)
        try:
            return self._whole_or_field(shape, message, set())
        except Misfit as error:
            raise Misfit(f"the result: {error}") from error

    def _whole_or_field(self, shape: Shape, message: Descriptor, taken: set[str]) -> _Value:
        """A value that is a whole message, or else the one field of it that fits."""
        reason = ""
        try:
            body: Body = self.codecs.body(shape, message)
            return _Value(GetMessageClass(message), body.fill, body.read)
        except Misfit as error:
            reason = str(error)
        fitting: list[Slot] = []
        for candidate in message.fields:
            if candidate.name in taken:
                continue
            try:
                fitting.append(self.codecs.slot(shape, candidate))
            except Misfit as error:
                reason = str(error) if not isinstance(shape, (Record, MessageClass)) else reason
        if len(fitting) == 1:
            return _Value.of_slot(message, fitting[0])
        fields = listed(field.name for field in message.fields)
        if fitting:
            raise Misfit(
                f"{describe_shape(shape)} fits more than one field of {message.full_name} "
                f"({listed(slot.name for slot in fitting)}); use a dataclass that names those you want"
            )
        if len(message.fields) == 1 or isinstance(shape, Record):
            raise Misfit(reason)
        raise Misfit(f"{describe_shape(shape)} fits no field of {message.full_name}, which has {fields}")


@dataclass(frozen=True, slots=True)
class _Request:
    """How the parameters, except a stream, sit in the request message.

    :param slots: parameter name and slot, in the order of the parameters.
    :param keywords: names of the keyword-only parameters.
    :param order: names of all parameters.
    :param stream: name of the iterator parameter.
    """

    message: Any
    slots: tuple[tuple[str, Slot], ...]
    checks: tuple[tuple[str, ...], ...]
    keywords: tuple[str, ...]
    order: tuple[str, ...]
    stream: str | None

    def fill(self, message: Any, values: Mapping[str, Any], objects: Objects | None) -> None:
        name = ""
        try:
            for names in self.checks:
                check_exclusive(names, [values[name] for name in names])
            for name, slot in self.slots:
                slot.put(message, values[name], objects)
        except Unfit as unfit:
            raise unfit.within(name) from None

    def arguments(self, values: dict[str, Any]) -> Arguments:
        keywords = {name: values.pop(name) for name in self.keywords}
        return tuple(values[name] for name in self.order if name in values), keywords


@dataclass(frozen=True, slots=True)
class _Value:
    """How a result or one item of a stream sits in its message; without functions, it is nothing."""

    message: Any
    put: Callable[[Any, Any, Objects | None], None] | None = None
    take: Callable[[Any, Objects | None], Any] | None = None
    attribute: str | None = None

    @classmethod
    def of_slot(cls, message: Descriptor, slot: Slot) -> _Value:
        return cls(GetMessageClass(message), slot.put, slot.take, slot.attribute)


def binder(method: Method) -> Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any, ...] | list[Any]]:
    """A function that puts a call's arguments in the order of the parameters, as a call in Python would.

    `inspect.Signature.bind` does the same in ten times the time; it is used to word the errors.
    """
    parameters = list(method.signature.parameters.values())
    positional = sum(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters)
    total = len(parameters)
    defaults = [parameter.default for parameter in parameters]
    index_of = {
        parameter.name: index
        for index, parameter in enumerate(parameters)
        if parameter.kind is not parameter.POSITIONAL_ONLY
    }

    def refuse(args: tuple[Any, ...], kwargs: dict[str, Any]) -> TypeError:
        try:
            method.signature.bind(*args, **kwargs)
        except TypeError as error:
            return TypeError(f"{method.name}() {error}")
        return TypeError(f"{method.name}() got arguments that it does not take")  # pragma: no cover

    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | list[Any]:
        count = len(args)
        if count == total and not kwargs and total == positional:
            return args
        if count > positional:
            raise refuse(args, kwargs)
        values = [*args, *defaults[count:]]
        for name, value in kwargs.items():
            index = index_of.get(name, -1)
            if index < count:
                raise refuse(args, kwargs)
            values[index] = value
        for value in values[count:]:
            if value is _MISSING:
                raise refuse(args, kwargs)
        return values

    return bind


def _error(subject: str, unfit: Unfit) -> Exception:
    return unfit.error(f"{subject}{unfit.path} {unfit.text}")


def _argument_error(call: str, unfit: Unfit) -> Exception:
    what = f"argument '{unfit.path}'" if unfit.path else "call"
    return unfit.error(f"{call} {what} {unfit.text}")


def _undecodable(subject: str, message: Any, error: Exception) -> ValueError:
    return ValueError(f"{subject}: the bytes received are no {message.DESCRIPTOR.full_name}: {error}")


def _encode_arguments(call: str, bind: Any, request: _Request) -> Any:
    if not request.slots:

        def encode_nothing(args: tuple[Any, ...], kwargs: dict[str, Any], objects: Objects | None) -> bytes:
            if args or kwargs:
                bind(args, kwargs)
            return b""

        return encode_nothing
    if len(request.slots) == 1 and request.stream is None:
        return _encode_argument(call, bind, request)
    new = request.message
    names = tuple(name for name, _ in request.slots)
    puts = tuple((index, slot.put) for index, (_, slot) in enumerate(request.slots))
    checks = tuple((group, tuple(names.index(name) for name in group)) for group in request.checks)

    def encode(args: tuple[Any, ...], kwargs: dict[str, Any], objects: Objects | None) -> bytes:
        values = bind(args, kwargs)
        message = new()
        index = -1
        try:
            for group, places in checks:
                check_exclusive(group, [values[place] for place in places])
            for index, put in puts:
                put(message, values[index], objects)
        except Unfit as unfit:
            raise _argument_error(call, unfit.within(names[index] if index >= 0 else "")) from None
        return message.SerializeToString()  # type: ignore[no-any-return]

    return encode


def _encode_argument(call: str, bind: Any, request: _Request) -> Any:
    """As `encode_arguments`, for the only parameter."""
    new = request.message
    name, slot = request.slots[0]
    put = slot.put

    def encode(args: tuple[Any, ...], kwargs: dict[str, Any], objects: Objects | None) -> bytes:
        (value,) = bind(args, kwargs)
        message = new()
        try:
            put(message, value, objects)
        except Unfit as unfit:
            raise _argument_error(call, unfit.within(name)) from None
        return message.SerializeToString()  # type: ignore[no-any-return]

    return encode


def _decode_arguments(call: str, request: _Request) -> Any:
    if not request.slots:
        return lambda data, objects: ((), {})
    if len(request.slots) == 1 and not request.keywords:
        return _decode_argument(call, request)
    parse = request.message.FromString
    names = tuple(name for name, _ in request.slots)
    takes = tuple(slot.take for _, slot in request.slots)
    positional = len(names) - len(request.keywords)

    def decode(data: bytes, objects: Objects | None) -> Arguments:
        values: list[Any] = []
        try:
            message = parse(data)
            for take in takes:
                values.append(take(message, objects))
        except DecodeError as error:
            raise _undecodable(call, request.message, error) from error
        except Unfit as unfit:
            raise _argument_error(call, unfit.within(names[len(values)])) from None
        if positional == len(values):
            return tuple(values), {}
        return tuple(values[:positional]), dict(zip(names[positional:], values[positional:], strict=True))

    return decode


def _decode_argument(call: str, request: _Request) -> Any:
    """As `decode_arguments`, for the only parameter, given by position."""
    parse = request.message.FromString
    name, slot = request.slots[0]
    take = slot.take

    def decode(data: bytes, objects: Objects | None) -> Arguments:
        try:
            return (take(parse(data), objects),), {}
        except DecodeError as error:
            raise _undecodable(call, request.message, error) from error
        except Unfit as unfit:
            raise _argument_error(call, unfit.within(name)) from None

    return decode


def _encode_value(subject: str, value: _Value) -> Any:
    new, put = value.message, value.put
    if put is None:

        def encode_nothing(result: Any, objects: Objects | None) -> bytes:
            if result is not None:
                raise TypeError(f"{subject} must be None, not {type(result).__qualname__}")
            return b""

        return encode_nothing

    def encode(result: Any, objects: Objects | None) -> bytes:
        message = new()
        try:
            put(message, result, objects)
        except Unfit as unfit:
            raise _error(subject, unfit) from None
        return message.SerializeToString()  # type: ignore[no-any-return]

    return encode


def _decode_value(subject: str, value: _Value) -> Any:
    take = value.take
    if take is None:
        return lambda data, objects: None
    parse, attribute = value.message.FromString, value.attribute

    def decode_attribute(data: bytes, objects: Objects | None) -> Any:
        try:
            return getattr(parse(data), attribute)  # type: ignore[arg-type]
        except DecodeError as error:
            raise _undecodable(subject, value.message, error) from error

    if attribute is not None:
        return decode_attribute

    def decode(data: bytes, objects: Objects | None) -> Any:
        try:
            return take(parse(data), objects)
        except DecodeError as error:
            raise _undecodable(subject, value.message, error) from error
        except Unfit as unfit:
            raise _error(subject, unfit) from None

    return decode


def _not_streamed(*arguments: Any) -> Any:
    raise TypeError("this method's arguments are no stream")


def _header(call: str, bind: Any, request: _Request) -> Any:
    """A function that takes a stream out of a call's arguments, and encodes the others if there are any."""

    def split(args: tuple[Any, ...], kwargs: dict[str, Any], objects: Objects | None) -> tuple[Any, list[bytes]]:
        values = dict(zip(request.order, bind(args, kwargs), strict=True))
        stream = values.pop(request.stream or "")
        if not request.slots:
            return stream, []
        message = request.message()
        try:
            request.fill(message, values, objects)
        except Unfit as unfit:
            raise _argument_error(call, unfit) from None
        return stream, [message.SerializeToString()]

    return split


def _encode_stream(call: str, bind: Any, request: _Request, item: _Value | None) -> Any:
    if item is None:
        return _not_streamed
    split = _header(call, bind, request)
    encode = _encode_value(f"{call} argument '{request.stream}' item", item)

    def encode_stream(args: tuple[Any, ...], kwargs: dict[str, Any], objects: Objects | None) -> Iterator[bytes]:
        stream, first = split(args, kwargs, objects)
        try:
            items = iter(stream)
        except TypeError:
            raise _no_stream(call, request, "an iterator", stream) from None
        return _chunks(first, items, encode, objects)

    return encode_stream


def _chunks(first: list[bytes], items: Iterator[Any], encode: Any, objects: Objects | None) -> Iterator[bytes]:
    yield from first
    for item in items:
        yield encode(item, objects)


def _encode_stream_async(call: str, bind: Any, request: _Request, item: _Value | None) -> Any:
    if item is None:
        return _not_streamed
    split = _header(call, bind, request)
    encode = _encode_value(f"{call} argument '{request.stream}' item", item)

    def encode_stream(args: tuple[Any, ...], kwargs: dict[str, Any], objects: Objects | None) -> AsyncIterator[bytes]:
        stream, first = split(args, kwargs, objects)
        try:
            items = aiter(stream)
        except TypeError:
            raise _no_stream(call, request, "an async iterator", stream) from None
        return _chunks_async(first, items, encode, objects)

    return encode_stream


async def _chunks_async(
    first: list[bytes], items: AsyncIterator[Any], encode: Any, objects: Objects | None
) -> AsyncIterator[bytes]:
    for chunk in first:
        yield chunk
    async for item in items:
        yield encode(item, objects)


def _no_stream(call: str, request: _Request, expected: str, stream: Any) -> TypeError:
    return TypeError(f"{call} argument '{request.stream}' must be {expected}, not {type(stream).__qualname__}")


def _decode_stream(call: str, request: _Request, item: _Value | None) -> Any:
    if item is None:
        return _not_streamed
    decode_header = _decode_header(call, request)
    decode = _decode_value(f"{call} argument '{request.stream}' item", item)

    def decode_stream(chunks: Iterator[bytes], objects: Objects | None) -> Arguments:
        first = next(chunks, None) if request.slots else b""
        values = decode_header(first, objects)
        values[request.stream] = (decode(chunk, objects) for chunk in chunks)
        return request.arguments(values)

    return decode_stream


def _decode_stream_async(call: str, request: _Request, item: _Value | None) -> Any:
    if item is None:
        return _not_streamed
    decode_header = _decode_header(call, request)
    decode = _decode_value(f"{call} argument '{request.stream}' item", item)

    async def decode_stream(chunks: AsyncIterator[bytes], objects: Objects | None) -> Arguments:
        first = await anext(chunks, None) if request.slots else b""
        values = decode_header(first, objects)
        values[request.stream] = (decode(chunk, objects) async for chunk in chunks)
        return request.arguments(values)

    return decode_stream


def _decode_header(call: str, request: _Request) -> Any:
    names = [name for name, _ in request.slots]
    decode = _decode_arguments(call, request)

    def decode_header(first: bytes | None, objects: Objects | None) -> dict[str, Any]:
        if first is None:
            raise ValueError(f"{call}: the stream ended before the message that carries {listed(names)}")
        args, kwargs = decode(first, objects)
        return {**dict(zip([name for name in names if name not in kwargs], args, strict=True)), **kwargs}

    return decode_header
