"""What is taken from protobuf's extension module is what its public modules give, and files as data are protobuf's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from hybridload.contract.protobuf import (
    REPEATED,
    FieldType,
    MessageData,
    class_of,
    contents,
    enum_data,
    file_data,
    integer,
    method_data,
    new_pool,
    read_contents,
)


def test_pools_and_classes_are_those_of_the_public_modules() -> None:
    pool = new_pool()
    assert type(pool) is type(DescriptorPool())
    ring, other = MessageData("Ring"), MessageData("Other")
    ring.field("other", 1, FieldType.MESSAGE, ".m.Other")
    other.field("rings", 1, FieldType.MESSAGE, ".m.Ring", label=REPEATED)
    pool.AddSerializedFile(file_data("m.proto", "m", [ring, other]))
    find = pool.FindMessageTypeByName
    made = class_of(find("m.Ring"))
    assert made is GetMessageClass(find("m.Ring")) is class_of(find("m.Ring"))
    assert type(made().other) is GetMessageClass(find("m.Other"))
    assert made.FromString(made(other={"rings": [{}, {}]}).SerializeToString()).other.rings[1] == made()


def test_without_an_extension_module_contracts_work_as_well() -> None:
    program = """
import builtins, datetime, typing
from hybridload import Contract
class Clock(typing.Protocol):
    def add(self, at: datetime.datetime, times: list[int]) -> datetime.datetime: ...
wire = Contract(Clock).complete().wire().methods["add"]
at = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
args, _ = wire.decode_arguments(wire.encode_arguments((at, [1, -2]), {}, None), None)
print(args == (at, [1, -2]))
from hybridload.contract import protobuf
print(protobuf._EXTENSION)
"""
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == ["True", "None"], ran.stderr


def test_a_file_as_data_is_what_protobuf_writes() -> None:
    message = MessageData("M")
    message.field("first", 1, FieldType.STRING, oneof=message.oneof("either"))
    message.field("far", 536870911, FieldType.INT64, oneof=message.oneof("_far"), maybe=True)
    message.entry("MapEntry").field("key", 1, FieldType.BOOL)
    method = method_data("Run", ".m.M", ".m.M", streams_in=True, streams_out=False)
    enum = enum_data("E", [("E_NONE", 0), ("E_LEAST", -(2**31)), ("E_MOST", 2**31 - 1)])
    data = file_data("m.proto", "m", [message], dependencies=["a.proto"], enums=[enum], services=[("S", [method])])

    expected = FileDescriptorProto(name="m.proto", package="m", syntax="proto3", dependency=["a.proto"])
    told = expected.message_type.add(name="M", oneof_decl=[{"name": "either"}, {"name": "_far"}])
    told.field.add(name="first", number=1, type="TYPE_STRING", label="LABEL_OPTIONAL", oneof_index=0)
    told.field.add(
        name="far", number=536870911, type="TYPE_INT64", label="LABEL_OPTIONAL", oneof_index=1, proto3_optional=True
    )
    entry = DescriptorProto(name="MapEntry", options={"map_entry": True})
    entry.field.add(name="key", number=1, type="TYPE_BOOL", label="LABEL_OPTIONAL")
    told.nested_type.append(entry)
    values = [("E_NONE", 0), ("E_LEAST", -(2**31)), ("E_MOST", 2**31 - 1)]
    listed = EnumDescriptorProto(name="E", value=[{"name": name, "number": number} for name, number in values])
    expected.enum_type.append(listed)
    expected.service.add(name="S").method.add(name="Run", input_type=".m.M", output_type=".m.M", client_streaming=True)
    assert data == expected.SerializeToString(deterministic=True)
    assert list(read_contents(contents(1, [data, b""]))) == [data, b""]
    assert FileDescriptorSet.FromString(contents(1, [data])).file[0] == expected


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05abc", b"\x12\x01a", integer(1, 3), b"\x0a\xff"])
def test_what_is_no_list_of_messages_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut off|not a list"):
        list(read_contents(data))
