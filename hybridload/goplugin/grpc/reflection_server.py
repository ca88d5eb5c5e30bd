"""Server reflection, v1 and v1alpha, as every Go plugin has it: which services there are, and their descriptors.

Nothing is read or indexed before somebody asks. The answers are grpc-go's: a file comes with all that it imports, less
what this stream was sent before; what is not there is an answer with an error of its own (NOT_FOUND), not the end of
the stream; and a request that asks for nothing ends it (INVALID_ARGUMENT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from hybridload.goplugin.grpc import messages
from hybridload.goplugin.grpc.handlers import PLUMBING, Engine, ServiceHandler, method_handler

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    from hybridload.goplugin.grpc.descriptors import DescriptorIndex

VERSIONS = ("v1", "v1alpha")
_NOT_FOUND = 5


def reflection_services(engine: Engine, read_index: Callable[[], DescriptorIndex]) -> tuple[ServiceHandler, ...]:
    """``grpc.reflection.v1.ServerReflection`` and the same of v1alpha.

    :param read_index: makes the index of what is served; called once, when it is first needed.
    """
    index = _Once(read_index)
    return tuple(_service(engine, index, version) for version in VERSIONS)


class _Once:
    """A value that is made when it is first asked for. Made twice, when two ask at the same moment, it does no harm."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    def __call__(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made


def _service(engine: Engine, index: Callable[[], DescriptorIndex], version: str) -> ServiceHandler:
    def answer(requests: Iterable[bytes], context: Any) -> Iterator[bytes]:
        kinds = messages.reflection(version)
        sent: set[str] = set()
        for data in requests:
            request = kinds.request.FromString(data)
            response = kinds.response(valid_host=request.host, original_request=request)
            if not _fill(response, request, index(), sent):
                raise engine.abort(context, "INVALID_ARGUMENT", "the request asks for nothing")
            yield response.SerializeToString()

    handler = method_handler(answer, lane=PLUMBING, request_streaming=True, response_streaming=True)
    return ServiceHandler(messages.reflection_service(version), {"ServerReflectionInfo": handler})


def _fill(response: Any, request: Any, index: DescriptorIndex, sent: set[str]) -> bool:
    """Answer one request; false when it asks for nothing that is known."""
    asked = request.WhichOneof("message_request")
    if asked == "list_services":
        services = response.list_services_response.service
        for name in index.services:
            services.add(name=name)
        response.list_services_response.SetInParent()
    elif asked == "all_extension_numbers_of_type":
        _fill_numbers(response, request.all_extension_numbers_of_type, index)
    elif asked == "file_by_filename":
        name = request.file_by_filename
        _fill_file(response, index.file(name), f"there is no file {name}", index, sent)
    elif asked == "file_containing_symbol":
        symbol = request.file_containing_symbol
        _fill_file(response, index.file_of_symbol(symbol), f"nothing is called {symbol}", index, sent)
    elif asked == "file_containing_extension":
        wanted = request.file_containing_extension
        found = index.file_of_extension(wanted.containing_type, wanted.extension_number)
        missing = f"{wanted.containing_type} has no extension {wanted.extension_number}"
        _fill_file(response, found, missing, index, sent)
    else:
        return False
    return True


def _fill_file(
    response: Any, file: FileDescriptorProto | None, missing: str, index: DescriptorIndex, sent: set[str]
) -> None:
    if file is None:
        _refuse(response, missing)
        return
    for each in index.with_dependencies(file):
        # The one that was asked for is part of each answer.
        if each is file or each.name not in sent:
            sent.add(each.name)
            response.file_descriptor_response.file_descriptor_proto.append(each.SerializeToString())


def _fill_numbers(response: Any, message: str, index: DescriptorIndex) -> None:
    numbers = index.extension_numbers(message)
    if numbers is None:
        _refuse(response, f"there is no message {message}")
        return
    response.all_extension_numbers_response.base_type_name = message
    response.all_extension_numbers_response.extension_number.extend(numbers)


def _refuse(response: Any, message: str) -> None:
    response.error_response.error_code = _NOT_FOUND
    response.error_response.error_message = message
