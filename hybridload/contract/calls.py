"""The functions that turn one method's calls into bytes and back, made once for each method.

They are plain closures over what was compiled, because a call's cost is mostly here. What cannot be sent is refused as
Python would refuse it: `TypeError` for a wrong argument, named by its path, e.g. ``argument 'items[3].price'``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from hybridload.contract.elements import Unfit, listed
from hybridload.contract.protobuf import class_of, unwrapped, wrapped
from hybridload.contract.service import Objects
from hybridload.contract.values import Slot, check_exclusive
from hybridload.frozen import frozen

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

LARGE = 1 << 14
"""Bytes from which on the copies that protobuf makes take long."""
LARGEST = (1 << 31) - 16
"""Bytes up to which protobuf reads what is written."""


@frozen
class Request:
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


@frozen
class Value:
    """How a result or one item of a stream sits in its message; without functions, it is nothing."""

    message: Any
    put: Callable[[Any, Any, Objects | None], None] | None = None
    take: Callable[[Any, Objects | None], Any] | None = None
    attribute: str | None = None
    tag: bytes = b""

    @classmethod
    def of_slot(cls, message: Descriptor, slot: Slot) -> Value:
        return cls(class_of(message), slot.put, slot.take, slot.attribute, slot.tag)


def _error(subject: str, unfit: Unfit) -> Exception:
    return unfit.error(f"{subject}{unfit.path} {unfit.text}")


def _argument_error(call: str, unfit: Unfit) -> Exception:
    what = f"argument '{unfit.path}'" if unfit.path else "call"
    return unfit.error(f"{call} {what} {unfit.text}")


def _undecodable(subject: str, message: Any, error: Exception) -> ValueError:
    return ValueError(f"{subject}: the bytes received are no {message.DESCRIPTOR.full_name}: {error}")


def encode_arguments(call: str, bind: Any, request: Request) -> Any:
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


def _encode_argument(call: str, bind: Any, request: Request) -> Any:
    """As `encode_arguments`, for the only parameter."""
    new = request.message
    name, slot = request.slots[0]
    put, tag = slot.put, slot.tag

    def encode(args: tuple[Any, ...], kwargs: dict[str, Any], objects: Objects | None) -> bytes:
        (value,) = bind(args, kwargs)
        if tag and type(value) is bytes and LARGE <= len(value) <= LARGEST:
            return wrapped(tag, value)
        message = new()
        try:
            put(message, value, objects)
        except Unfit as unfit:
            raise _argument_error(call, unfit.within(name)) from None
        return message.SerializeToString()  # type: ignore[no-any-return]

    return encode


def decode_arguments(call: str, request: Request) -> Any:
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


def _decode_argument(call: str, request: Request) -> Any:
    """As `decode_arguments`, for the only parameter, given by position."""
    parse = request.message.FromString
    name, slot = request.slots[0]
    take, tag = slot.take, slot.tag

    def decode(data: bytes, objects: Objects | None) -> Arguments:
        if tag and len(data) >= LARGE and (value := unwrapped(tag, data)) is not None:
            return (value,), {}
        try:
            return (take(parse(data), objects),), {}
        except DecodeError as error:
            raise _undecodable(call, request.message, error) from error
        except Unfit as unfit:
            raise _argument_error(call, unfit.within(name)) from None

    return decode


def encode_value(subject: str, value: Value) -> Any:
    new, put, tag = value.message, value.put, value.tag
    if put is None:

        def encode_nothing(result: Any, objects: Objects | None) -> bytes:
            if result is not None:
                raise TypeError(f"{subject} must be None, not {type(result).__qualname__}")
            return b""

        return encode_nothing

    def encode(result: Any, objects: Objects | None) -> bytes:
        if tag and type(result) is bytes and LARGE <= len(result) <= LARGEST:
            return wrapped(tag, result)
        message = new()
        try:
            put(message, result, objects)
        except Unfit as unfit:
            raise _error(subject, unfit) from None
        return message.SerializeToString()  # type: ignore[no-any-return]

    return encode


def decode_value(subject: str, value: Value) -> Any:
    take = value.take
    if take is None:
        return lambda data, objects: None
    parse, attribute, tag = value.message.FromString, value.attribute, value.tag

    def decode_attribute(data: bytes, objects: Objects | None) -> Any:
        if tag and len(data) >= LARGE and (found := unwrapped(tag, data)) is not None:
            return found
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


def _header(call: str, bind: Any, request: Request) -> Any:
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


def encode_stream(call: str, bind: Any, request: Request, item: Value | None) -> Any:
    if item is None:
        return _not_streamed
    split = _header(call, bind, request)
    encode = encode_value(f"{call} argument '{request.stream}' item", item)

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


def encode_stream_async(call: str, bind: Any, request: Request, item: Value | None) -> Any:
    if item is None:
        return _not_streamed
    split = _header(call, bind, request)
    encode = encode_value(f"{call} argument '{request.stream}' item", item)

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


def _no_stream(call: str, request: Request, expected: str, stream: Any) -> TypeError:
    return TypeError(f"{call} argument '{request.stream}' must be {expected}, not {type(stream).__qualname__}")


def decode_stream(call: str, request: Request, item: Value | None) -> Any:
    if item is None:
        return _not_streamed
    decode_header = _decode_header(call, request)
    decode = decode_value(f"{call} argument '{request.stream}' item", item)

    def decode_stream(chunks: Iterator[bytes], objects: Objects | None) -> Arguments:
        first = next(chunks, None) if request.slots else b""
        values = decode_header(first, objects)
        values[request.stream] = (decode(chunk, objects) for chunk in chunks)
        return request.arguments(values)

    return decode_stream


def decode_stream_async(call: str, request: Request, item: Value | None) -> Any:
    if item is None:
        return _not_streamed
    decode_header = _decode_header(call, request)
    decode = decode_value(f"{call} argument '{request.stream}' item", item)

    async def decode_stream(chunks: AsyncIterator[bytes], objects: Objects | None) -> Arguments:
        first = await anext(chunks, None) if request.slots else b""
        values = decode_header(first, objects)
        values[request.stream] = (decode(chunk, objects) async for chunk in chunks)
        return request.arguments(values)

    return decode_stream


def _decode_header(call: str, request: Request) -> Any:
    names = [name for name, _ in request.slots]
    decode = decode_arguments(call, request)

    def decode_header(first: bytes | None, objects: Objects | None) -> dict[str, Any]:
        if first is None:
            raise ValueError(f"{call}: the stream ended before the message that carries {listed(names)}")
        args, kwargs = decode(first, objects)
        return {**dict(zip([name for name in names if name not in kwargs], args, strict=True)), **kwargs}

    return decode_header
