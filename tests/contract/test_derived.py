"""Messages derived from hints: numbers, names, the printed .proto, and what Go's tutorials expect on the wire."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Protocol

import pytest
from google.protobuf import descriptor_pb2

from hybridload.contract import Contract, Field
from hybridload.contract.wire import Wire
from hybridload.errors import ContractError

from .conftest import Registry, protoc

ROOT = Path(__file__).parents[2]


class Greeter(Protocol):
    def greet(self) -> str: ...


class Mood(enum.Enum):
    HAPPY = "h"
    VeryHappy = "v"
    sad = "s"


class Level(enum.IntEnum):
    LOW = -5
    HIGH = 7


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Leaf:
    name: str
    size: Annotated[int, Field(5)] = 0


@dataclass
class Tree:
    leaf: Leaf
    branches: list[Tree] = field(default_factory=list)
    by_name: dict[str, Tree] = field(default_factory=dict)
    up: Tree | None = None
    mood: Mood = Mood.HAPPY
    levels: list[Level] = field(default_factory=list)
    access: Access = Access.READ
    grid: list[list[float]] = field(default_factory=list)
    holes: list[str | None] = field(default_factory=list)
    maybe: list[int] | None = None
    when: datetime | None = None
    lasts: timedelta = timedelta(0)


class Adder(Protocol):
    def sum(self, a: int, b: int) -> int: ...


class Everything(Protocol):
    def plant(self, tree: Tree, *, deep: bool = False) -> Tree: ...
    def all_scalars(self, s: str, i: int, f: float, b: bool, y: bytes) -> None: ...
    def maps(self, a: dict[int, list[str]], b: dict[bool, dict[str, Mood]]) -> dict[str, datetime | None]: ...
    def watch(self, since: datetime | None = None) -> Iterator[Tree]: ...
    def upload(self, name: str, chunks: Iterator[bytes]) -> int: ...
    def talk(self, words: Iterator[list[str]]) -> Iterator[str | None]: ...
    def call(self, adder: Adder, more: list[Adder], other: Adder | None = None) -> Adder: ...
    def get_2_items(self) -> tuple[Level, ...]: ...


def wire(interface: type) -> Wire:
    return Contract(interface).complete().wire()


def test_a_derived_greeter_speaks_the_tutorials_wire() -> None:
    greet = wire(Greeter).methods["greet"]
    assert greet.encode_arguments((), {}, None) == b""
    assert greet.encode_result("Hello!", None) == b"\x0a\x06Hello!"
    assert greet.decode_result(b"\x0a\x06Hello!", None) == "Hello!"
    given = Contract(Greeter, "proto.GreeterService", proto=ROOT / "proto" / "greeter.proto").complete()
    assert given.methods[0].path == greet.method.path
    assert given.wire().methods["greet"].encode_result("Hello!", None) == b"\x0a\x06Hello!"


def test_numbers_are_positions_unless_pinned() -> None:
    class Store(Protocol):
        def put(self, a: str, b: Annotated[int, Field(7)], c: Leaf) -> None: ...

    text = wire(Store).proto_text()
    assert "message PutRequest {\n  string a = 1;\n  int64 b = 7;\n  .proto.Leaf c = 3;\n}" in text
    assert "message Leaf {\n  string name = 1;\n  int64 size = 5;\n}" in text
    assert "message PutResponse {\n}" in text


def test_the_printed_proto_compiles_to_the_same_descriptors(tmp_path: Path) -> None:
    contract = Contract(Everything, "acme.v1.Everything").complete()
    (tmp_path / "printed.proto").write_text(contract.wire().proto_text())
    protoc(tmp_path, "printed.proto", f"--descriptor_set_out={tmp_path / 'out.bin'}")
    (compiled,) = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "out.bin").read_bytes()).file
    ours = descriptor_pb2.FileDescriptorSet.FromString(contract.wire().file_descriptor_set()).file[-1]
    compiled.name = ours.name
    for message in compiled.message_type:
        strip_json_names(message)
    assert compiled.service == ours.service
    assert by_name(compiled.message_type) == by_name(ours.message_type)
    assert by_name(compiled.enum_type) == by_name(ours.enum_type)
    assert compiled == ours


def strip_json_names(message: Any) -> None:
    """protoc writes down the JSON names that follow from the names."""
    for each in message.field:
        each.ClearField("json_name")
    for nested in message.nested_type:
        strip_json_names(nested)


def by_name(items: Any) -> dict[str, Any]:
    return {item.name: item for item in items}


def test_a_given_service_is_printed_so_that_it_compiles(compile_proto: Callable[[str], bytes], tmp_path: Path) -> None:
    original = (Path(__file__).parent / "shop.proto").read_text()
    data = compile_proto(original)

    class Shop(Protocol):
        def get(self, name: str) -> int:
            """Look an item up.

            By its name.
            """
            ...

    service = Contract(Shop, "hybridload_tests.shop.Shop", descriptor_set=data).complete()
    text = service.wire().proto_text()
    assert "  // Look an item up.\n  //\n  // By its name.\n  rpc Get(" in text
    again = compile_proto(text)
    assert by_name(descriptor_pb2.FileDescriptorSet.FromString(again).file[-1].message_type) == by_name(
        descriptor_pb2.FileDescriptorSet.FromString(data).file[-1].message_type
    )


def test_enums_travel_by_number_or_by_ordinal() -> None:
    text = wire(Everything).proto_text()
    assert "enum Mood {\n  MOOD_HAPPY = 0;\n  MOOD_VeryHappy = 1;\n  MOOD_sad = 2;\n}" in text
    assert "enum Level {\n  LEVEL_UNSPECIFIED = 0;\n  LEVEL_LOW = -5;\n  LEVEL_HIGH = 7;\n}" in text
    assert "enum Access {\n  ACCESS_UNSPECIFIED = 0;\n  ACCESS_READ = 1;\n  ACCESS_WRITE = 2;\n}" in text


def test_a_number_that_is_no_member_is_refused_when_received() -> None:
    class Painter(Protocol):
        def paint(self, level: Level, moods: list[Mood]) -> None: ...

    paint = wire(Painter).methods["paint"]
    with pytest.raises(ValueError, match=r"^paint\(\) argument 'level' is 0, which is no member of Level$"):
        paint.decode_arguments(b"", None)
    with pytest.raises(ValueError, match=r"^paint\(\) argument 'moods' is 9, which is no member of Mood$"):
        paint.decode_arguments(b"\x08\x07\x12\x01\x09", None)


def test_everything_comes_back_as_it_was() -> None:
    tree = Tree(
        Leaf("a", 3),
        [Tree(Leaf("b"))],
        {"x": Tree(Leaf("c"), levels=[Level.LOW, Level.HIGH])},
        Tree(Leaf("d"), maybe=[]),
        Mood.sad,
        [],
        Access.READ | Access.WRITE,
        [[1.5], [], [-0.0, 2]],
        ["", None, "x"],
        [1, 2],
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        timedelta(microseconds=-1),
    )
    plant = wire(Everything).methods["plant"]
    assert plant.decode_arguments(plant.encode_arguments((tree,), {}, None), None) == ((tree,), {"deep": False})
    assert plant.decode_result(plant.encode_result(tree, None), None) == tree


def test_names_that_are_taken_get_a_number() -> None:
    @dataclass
    class GetRequest:
        a: int

    @dataclass
    class Leaf:
        b: int

    class Taken(Protocol):
        def get(self, x: GetRequest, y: Leaf, z: test_leaf) -> None: ...  # type: ignore[valid-type]

    test_leaf = globals()["Leaf"]
    text = wire(Taken).proto_text()
    assert ".proto.GetRequest2 x = 1;\n  .proto.Leaf y = 2;\n  .proto.Leaf2 z = 3;" in text


def test_callbacks_travel_as_ids(registry: Registry) -> None:
    call = wire(Everything).methods["call"]
    one, two, three = object(), object(), object()
    data = call.encode_arguments((one, [two, three]), {}, registry)
    assert call.decode_arguments(data, registry) == ((one, [two, three], None), {})
    assert call.decode_result(call.encode_result(one, registry), registry) is one
    _, contract = registry.exported[1]
    assert isinstance(contract, Contract)
    assert contract.complete().full_name == "proto.AdderService"


def test_callbacks_without_a_broker_are_refused(registry: Registry) -> None:
    call = wire(Everything).methods["call"]
    with pytest.raises(ContractError, match=r"^call\(\) argument 'adder' is an object to call back, and there is no"):
        call.encode_arguments((object(), []), {}, None)
    with pytest.raises(TypeError, match=r"^call\(\) argument 'adder' must be Adder, not None"):
        call.encode_arguments((None, []), {}, registry)
    with pytest.raises(ValueError, match=r"^call\(\) argument 'adder' has no service id, so there is no Adder to call"):
        call.decode_arguments(b"", registry)
