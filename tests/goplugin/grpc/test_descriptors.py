"""The index of what a server can tell of its services."""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool

from hybridload.goplugin.grpc import messages
from hybridload.goplugin.grpc.descriptors import DescriptorIndex


def file(text: str) -> descriptor_pb2.FileDescriptorProto:
    from google.protobuf import text_format

    return text_format.Parse(text, descriptor_pb2.FileDescriptorProto())


COMMON = file('name: "common.proto" package: "proto" message_type { name: "Empty" }')
OTHER_COMMON = file(
    'name: "common.proto" package: "proto" '
    'message_type { name: "Empty" field { name: "x" number: 1 label: 1 type: 5 } }'
)


def greeter(service: str) -> descriptor_pb2.FileDescriptorProto:
    return file(
        f'name: "greeter.proto" package: "proto" dependency: "common.proto" service {{ name: "{service}" method {{ '
        'name: "Greet" input_type: ".proto.Empty" output_type: ".proto.Empty" } }'
    )


def test_files_of_one_name_that_differ_are_told_apart_with_their_imports() -> None:
    index = DescriptorIndex.of(["proto.A", "proto.B"], [[COMMON, greeter("A")], [OTHER_COMMON, greeter("B")]])
    pools = {}
    for service in index.services:
        found = index.file_of_symbol(service)
        assert found is not None
        pool = descriptor_pool.DescriptorPool()
        for each in reversed(list(index.with_dependencies(found))):
            pool.AddSerializedFile(each.SerializeToString())
        pools[service] = pool.FindServiceByName(service)
    assert pools["proto.A"].file.name != pools["proto.B"].file.name
    assert [len(pools[name].methods_by_name["Greet"].input_type.fields) for name in index.services] == [0, 1]


def test_files_that_are_the_same_are_kept_once() -> None:
    index = DescriptorIndex.of(["proto.A", "proto.B"], [[COMMON, greeter("A")], [COMMON, greeter("B")]])
    found = index.file_of_symbol("proto.B")
    assert found is not None
    assert [each.name for each in index.with_dependencies(found)] == ["2/greeter.proto", "common.proto"]


def test_everything_that_has_a_name_is_found() -> None:
    index = DescriptorIndex.of(
        [],
        [
            [
                file(
                    'name: "a.proto" package: "a" '
                    'message_type { name: "M" field { name: "f" number: 1 label: 1 type: 5 oneof_index: 0 } '
                    'oneof_decl { name: "o" } nested_type { name: "N" enum_type { name: "E" '
                    'value { name: "V" number: 0 '
                    '} } } extension { name: "x" number: 101 label: 1 type: 5 extendee: ".a.T" } } '
                    'message_type { name: "T" extension_range { start: 100 end: 200 } } '
                    'enum_type { name: "F" value { name: "W" number: 0 } } '
                    'extension { name: "y" number: 100 label: 1 type: 5 extendee: ".a.T" }'
                )
            ]
        ],
    )
    for symbol in ("a.M", "a.M.f", "a.M.o", "a.M.N", "a.M.N.E", "a.M.N.V", "a.M.x", "a.F", "a.W", "a.y", ".a.M"):
        assert index.file_of_symbol(symbol) is not None, symbol
    assert index.file_of_symbol("a.M.N.E.V") is None
    assert index.extension_numbers("a.T") == [100, 101]
    assert index.extension_numbers("a.M") == []
    assert index.extension_numbers("a.X") is None
    assert index.file_of_extension("a.T", 101) is not None
    assert index.file_of_extension("a.T", 102) is None


def test_what_generated_code_has_registered_describes_hand_written_plugins() -> None:
    pool = descriptor_pool.Default()
    name = "hybridload.tests.descriptors"
    pool.AddSerializedFile(file(f'name: "{name}.proto" package: "{name}" service {{ name: "S" }}').SerializeToString())
    index = DescriptorIndex.of([f"{name}.S", "unknown.S"], [messages.protocol_files()])
    found = index.file_of_symbol(f"{name}.S")
    assert found is not None
    assert found.name == f"{name}.proto"
    assert index.services == (f"{name}.S", "unknown.S")
    assert index.file_of_symbol("unknown.S") is None


def test_the_protocol_itself_is_described() -> None:
    index = DescriptorIndex.of([], [messages.protocol_files()])
    broker = index.file_of_symbol("plugin.GRPCBroker.StartStream")
    assert broker is not None
    assert broker.name == "plugin/broker.proto"
