"""A plugin of no go-plugin library, whose server reflection is hostile in the way that its argument names."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from hybridload.goplugin.grpc import messages

KINDS = messages.reflection("v1")
MIB = 1 << 20


def file(name: str, *imports: str, service: bool = False) -> FileDescriptorProto:
    made = FileDescriptorProto(name=name, package="evil", syntax="proto3", dependency=imports)
    if service:
        made.message_type.add(name="M")
        method = made.service.add(name="S").method.add(name="Go", input_type=".evil.M", output_type=".evil.M")
        method.server_streaming = True
    return made


def wide() -> FileDescriptorProto:
    return file("f0", *(f"g{number}" for number in range(20_000)), service=True)


def large() -> FileDescriptorProto:
    made = file("f0", service=True)
    made.source_code_info.location.add(leading_comments="x" * (20 * MIB))
    return made


def nested_map() -> FileDescriptorProto:
    """A map whose values are the map's own entries."""
    made = file("f0", service=True)
    entry = made.message_type[0].nested_type.add(name="Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".evil.M.Entry")
    made.message_type[0].field.add(name="all", number=1, label=3, type=11, type_name=".evil.M.Entry")
    return made


def no_map() -> FileDescriptorProto:
    made = nested_map()
    del made.message_type[0].nested_type[0].field[:]
    return made


def next_of(asked: str) -> str:
    return f"f{int(asked[1:] or 0) + 1}"


# attack -> the files that are answered to a question for a file, or "" for the service
FILES: dict[str, Any] = {
    "good": lambda asked: [file("f0", service=True)],
    "long": lambda asked: [file("f0", "f1", service=True), *(file(f"f{n}", f"f{n + 1}") for n in range(1, 1500)),
                           file("f1500")],
    "wide": lambda asked: [wide()],
    "chain": lambda asked: [file("f0", "f1", service=True), *(file(f"f{n}", f"f{n + 1}") for n in range(1, 5000))],
    "cycle": lambda asked: [file("f0", "f1", service=True), file("f1", "f0")],
    "self": lambda asked: [file("f0", "f0", service=True)],
    "endless": lambda asked: [file(asked or "f0", next_of(asked or "f0"), service=not asked)],
    "another": lambda asked: [file("f0", "f1", service=True)],
    "garbage": lambda asked: [b"\xff\xff\xff garbage"],
    "no text": lambda asked: [b"\x0a\x02\xff\xff"],
    "large": lambda asked: [large()],
    "nothing": lambda asked: [],
    "nested map": lambda asked: [nested_map()],
    "no map": lambda asked: [no_map()],
}  # fmt: skip


def answer(attack: str, question: Any) -> bytes:
    answer = KINDS.response()
    if question.HasField("list_services"):
        names = {"many": 5000, "long list": 100_000}.get(attack, 1)
        for number in range(names):
            answer.list_services_response.service.add(name=f"evil.S{number or ''}")
        return answer.SerializeToString()  # type: ignore[no-any-return]
    files = FILES.get(attack, FILES["good"])(question.file_by_filename)
    answer.file_descriptor_response.file_descriptor_proto.extend(
        each if isinstance(each, bytes) else each.SerializeToString() for each in files
    )
    return b"\xff" if attack == "no answer" else answer.SerializeToString()


class Plugin(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(self, attack: str) -> None:
        self.attack = attack

    def service(self, details: Any) -> Any:
        if details.method == messages.HEALTH_CHECK:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")
        if details.method == messages.SHUTDOWN:
            return grpc.unary_unary_rpc_method_handler(self.shutdown)
        if details.method == f"/{messages.reflection_service('v1')}/ServerReflectionInfo":
            return grpc.stream_stream_rpc_method_handler(self.reflect)
        if details.method == "/evil.S/Go":
            return grpc.unary_stream_rpc_method_handler(self.go)
        return None

    def shutdown(self, request: bytes, context: Any) -> bytes:
        threading.Timer(0.1, os._exit, (0,)).start()
        return b""

    def reflect(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for request in requests:
            if self.attack == "silent":
                time.sleep(3600)
            yield answer(self.attack, KINDS.request.FromString(request))

    def go(self, request: bytes, context: Any) -> Iterator[bytes]:
        while True:
            yield b""
            time.sleep(0.1)


def main() -> None:
    server = grpc.server(
        ThreadPoolExecutor(16),
        [Plugin(sys.argv[1])],
        options=[("grpc.max_send_message_length", -1)],
    )
    path = os.path.join(os.environ["PLUGIN_UNIX_SOCKET_DIR"], "hostile")
    server.add_insecure_port(f"unix:{path}")
    server.start()
    print(f"1|1|unix|{path}|grpc|", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
