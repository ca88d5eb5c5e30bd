"""The messages of `proto/greeter.proto` and of three calls of `torture.proto`, for libraries that want classes."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

GREET = "/proto.GreeterService/Greet"
ECHO = "/torture.Torture/Echo"
COUNT = "/torture.Torture/Count"

_STRING, _BYTES, _INT64 = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_BYTES, 3
_MESSAGES: dict[str, tuple[tuple[str, int], ...]] = {
    "Empty": (),
    "GreetResponse": (("message", _STRING),),
    "Data": (("data", _BYTES),),
    "CountRequest": (("count", _INT64),),
    "Item": (("number", _INT64),),
}


def _classes() -> dict[str, Any]:
    file = FileDescriptorProto(name="benchmark.proto", package="benchmark", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, 1):
            message.field.add(
                name=field,
                number=number,
                type=kind,  # type: ignore[arg-type]
                label=FieldDescriptorProto.LABEL_OPTIONAL,
            )
    pool = DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"benchmark.{name}")) for name in _MESSAGES}


CLASSES = _classes()
Empty, GreetResponse, Data = CLASSES["Empty"], CLASSES["GreetResponse"], CLASSES["Data"]
CountRequest, Item = CLASSES["CountRequest"], CLASSES["Item"]
