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

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import Descriptor, MethodDescriptor

from hybridload.contract.binding import binder
from hybridload.contract.calls import (
    Arguments,
    Request,
    Value,
    decode_arguments,
    decode_stream,
    decode_stream_async,
    decode_value,
    encode_arguments,
    encode_stream,
    encode_stream_async,
    encode_value,
)
from hybridload.contract.elements import Body, field_named, listed
from hybridload.contract.hints import MessageClass, Misfit, Record, Shape, describe_shape
from hybridload.contract.protobuf import class_of, contents
from hybridload.contract.service import Kind, Method, Objects, Service
from hybridload.contract.values import Codecs, Slot, exclusive
from hybridload.frozen import field, frozen

if TYPE_CHECKING:
    from hybridload.contract.descriptors import Given

RESULT = "result"
"""The field of a derived response."""


@frozen
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


@frozen
class Wire:
    """A service's wire form.

    :param methods: by Python name.
    :param files: every file that it needs as a serialized `FileDescriptorProto`, each after those that it imports.
    """

    methods: Mapping[str, WireMethod]
    service: Service
    files: tuple[bytes, ...] = field(repr=False)

    def file_descriptor_set(self) -> bytes:
        """The service's file and all that it imports, as a serialized `FileDescriptorSet`, imports first."""
        return contents(1, self.files)

    def proto_text(self) -> str:
        """The service as a .proto file, for authors in other languages."""
        from google.protobuf.descriptor_pb2 import FileDescriptorProto

        from hybridload.contract.proto_text import file_text

        package, _, name = self.service.full_name.rpartition(".")
        files = map(FileDescriptorProto.FromString, self.files)
        own = next(file for file in files if file.package == package and any(s.name == name for s in file.service))
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
            encode_arguments(self.call, bind, request),
            encode_stream(self.call, bind, request, item),
            encode_stream_async(self.call, bind, request, item),
            decode_arguments(self.call, request),
            decode_stream(self.call, request, item),
            decode_stream_async(self.call, request, item),
            encode_value(f"{self.call} result", response),
            decode_value(f"{self.call} result", response),
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

    def _request(self) -> Request:
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
        return Request(
            message=class_of(message),
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

    def _item(self) -> Value | None:
        stream = self.method.stream_parameter
        if stream is None:
            return None
        message = self.descriptor.input_type
        if field_named(message, stream.name) is not None:
            slot = self._parameter_slot(message, stream.name, stream.shape)
            return Value.of_slot(message, slot)
        others = {parameter.name for parameter in self.method.parameters if not parameter.stream}
        return self._for("parameter", stream.name, lambda: self._whole_or_field(stream.shape, message, others))  # type: ignore[no-any-return]

    def _response(self) -> Value:
        message, shape = self.descriptor.output_type, self.method.result_shape
        if shape is None:
            return Value(class_of(message))
        if self.derived:
            slot = self.codecs.slot(shape, message.fields_by_name[RESULT])
            return Value.of_slot(message, slot)
        try:
            return self._whole_or_field(shape, message, set())
        except Misfit as error:
            raise Misfit(f"the result: {error}") from error

    def _whole_or_field(self, shape: Shape, message: Descriptor, taken: set[str]) -> Value:
        """A value that is a whole message, or else the one field of it that fits."""
        reason = ""
        try:
            body: Body = self.codecs.body(shape, message)
            return Value(class_of(message), body.fill, body.read)
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
            return Value.of_slot(message, fitting[0])
        fields = listed(field.name for field in message.fields)
        if fitting:
            raise Misfit(
                f"{describe_shape(shape)} fits more than one field of {message.full_name} "
                f"({listed(slot.name for slot in fitting)}); use a dataclass that names those you want"
            )
        if len(message.fields) == 1 or isinstance(shape, Record):
            raise Misfit(reason)
        raise Misfit(f"{describe_shape(shape)} fits no field of {message.full_name}, which has {fields}")
