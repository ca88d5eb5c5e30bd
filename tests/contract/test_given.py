"""Interfaces matched to a service that descriptors give."""

from __future__ import annotations

import enum
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from hybridload.contract import Contract, Kind
from hybridload.contract.wire import WireMethod
from hybridload.errors import ContractError

from .conftest import Registry

PACKAGE = "hybridload_tests.shop"


class Colour(enum.Enum):
    RED = "red"
    DEEP_BLUE = "deep blue"


class ColourNumber(enum.IntEnum):
    NONE = 0
    RED = 1
    DEEP_BLUE = 2


@dataclass
class Money:
    currency: str
    units: int


@dataclass
class Item:
    name: str
    price: Money = field(default_factory=lambda: Money("", 0))
    tags: list[str] = field(default_factory=list)
    stock: dict[str, int] = field(default_factory=dict)
    colour: ColourNumber = ColourNumber.NONE
    note: str | None = None
    made: datetime | None = None
    lasts: timedelta = timedelta()
    parts: list[Item] = field(default_factory=list)
    percent: float | None = None
    off: Money | None = None
    picture: bytes = b""
    crc: int = 0
    nickname: str | None = None


class AddHelper(Protocol):
    def sum(self, left: str, right: str) -> str: ...


class Shop(Protocol):
    def get(self, name: str, deep: bool = False) -> Item: ...
    def find(self, name: str | None = None, number: int | None = None, *, from_: str = "") -> Item: ...
    def count(self) -> int: ...
    def watch(self, text: str) -> Iterator[str]: ...
    def send(self, name: str, chunk: Iterator[bytes]) -> int: ...
    def talk(self, lines: Iterator[str]) -> Iterator[str]: ...
    def when(self) -> datetime: ...
    def put_back(self, add_server: AddHelper, key: str, value: int) -> None: ...
    def get_url(self, text: str) -> str: ...


def methods(interface: type, shop_pb2: ModuleType) -> dict[str, WireMethod]:
    return dict(Contract(interface, shop_pb2.DESCRIPTOR.services_by_name["Shop"]).complete().wire().methods)


def refusal(interface: type, shop_pb2: ModuleType) -> str:
    with pytest.raises(ContractError) as caught:
        Contract(interface, shop_pb2.DESCRIPTOR.services_by_name["Shop"]).complete()
    return str(caught.value)


@pytest.fixture
def shop(shop_pb2: ModuleType) -> dict[str, WireMethod]:
    return methods(Shop, shop_pb2)


def test_names_and_kinds_are_the_services(shop: dict[str, WireMethod]) -> None:
    assert {name: method.method.path for name, method in shop.items()} == {
        name: f"/{PACKAGE}.Shop/{wire}"
        for name, wire in {
            "get": "Get",
            "find": "Find",
            "count": "Count",
            "watch": "Watch",
            "send": "Send",
            "talk": "Talk",
            "when": "When",
            "put_back": "PutBack",
            "get_url": "GetURL",
        }.items()
    }
    kinds = {name: method.method.kind for name, method in shop.items()}
    assert kinds["watch"] is Kind.SERVER_STREAM
    assert kinds["send"] is Kind.CLIENT_STREAM
    assert kinds["talk"] is Kind.BIDI
    assert kinds["get"] is Kind.UNARY


def test_arguments_are_the_generated_messages_bytes(shop: dict[str, WireMethod], shop_pb2: ModuleType) -> None:
    data = shop["get"].encode_arguments(("ball",), {"deep": True}, None)
    assert shop_pb2.GetRequest.FromString(data) == shop_pb2.GetRequest(name="ball", deep=True)
    assert shop["get"].decode_arguments(data, None) == (("ball", True), {})


def test_a_dataclass_result_is_the_one_field_of_its_type(shop: dict[str, WireMethod], shop_pb2: ModuleType) -> None:
    made = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    item = Item(
        "box", Money("EUR", -3), ["a", "b"], {"x": 2**40}, ColourNumber.DEEP_BLUE, "", made, timedelta(seconds=-1.5),
        [Item("lid", percent=0.5)], None, Money("USD", 1), b"\0\xff", 2**32 - 1, "bo",
    )  # fmt: skip
    data = shop["get"].encode_result(item, None)
    message = shop_pb2.GetResponse.FromString(data).item
    assert (message.name, message.price.units, list(message.tags), dict(message.stock)) == (
        "box", -3, ["a", "b"], {"x": 2**40},
    )  # fmt: skip
    assert message.HasField("note")
    assert message.made.ToDatetime(UTC) == made
    assert message.lasts.ToTimedelta() == timedelta(seconds=-1.5)
    assert message.WhichOneof("discount") == "off"
    assert message.parts[0].WhichOneof("discount") == "percent"
    assert message.nickname.value == "bo"
    assert shop["get"].decode_result(data, None) == item


def test_what_the_sender_leaves_out_is_zero_or_none(shop: dict[str, WireMethod], shop_pb2: ModuleType) -> None:
    data = shop_pb2.GetResponse(item=shop_pb2.Item(name="bare")).SerializeToString()
    assert shop["get"].decode_result(data, None) == Item("bare")
    assert shop["get"].decode_result(b"", None) == Item("")
    assert shop["get"].decode_arguments(b"", None) == (("", False), {})


def test_a_dataclass_result_is_the_response_by_its_fields(shop: dict[str, WireMethod], shop_pb2: ModuleType) -> None:
    data = shop["find"].encode_result(Item("box", tags=["t"]), None)
    assert list(shop_pb2.Item.FromString(data).tags) == ["t"]
    assert shop["find"].decode_result(data, None) == Item("box", tags=["t"])


def test_a_trailing_underscore_stands_for_a_python_keyword(shop: dict[str, WireMethod], shop_pb2: ModuleType) -> None:
    data = shop["find"].encode_arguments((), {"from_": "here", "number": 0}, None)
    query = shop_pb2.Query.FromString(data)
    assert getattr(query, "from") == "here"
    assert query.WhichOneof("by") == "number"
    assert shop["find"].decode_arguments(data, None) == ((None, 0), {"from_": "here"})


def test_two_of_a_oneof_are_refused(shop: dict[str, WireMethod]) -> None:
    with pytest.raises(ValueError, match=r"^find\(\) call has name and number, of which at most one may be given"):
        shop["find"].encode_arguments(("a", 1), {}, None)
    with pytest.raises(ValueError, match=r"^get\(\) result has percent and off, of which at most one"):
        shop["get"].encode_result(Item("x", percent=1.0, off=Money("EUR", 1)), None)


def test_numbers_have_the_fields_range(shop: dict[str, WireMethod]) -> None:
    assert shop["count"].decode_result(shop["count"].encode_result(2**32 - 1, None), None) == 2**32 - 1
    with pytest.raises(OverflowError, match=r"^count\(\) result must be from 0 to 4294967295 \(uint32\), not -1$"):
        shop["count"].encode_result(-1, None)
    with pytest.raises(OverflowError, match=r"^get\(\) result\.price\.units must be from -2147483648 to"):
        shop["get"].encode_result(Item("x", Money("EUR", 2**31)), None)


def test_streams_carry_one_item_a_message(shop: dict[str, WireMethod], shop_pb2: ModuleType) -> None:
    line = shop_pb2.Line(text="hi").SerializeToString()
    assert shop["watch"].encode_result("hi", None) == line
    assert shop["watch"].decode_result(line, None) == "hi"
    assert list(shop["talk"].encode_argument_stream((iter(["hi", "ho"]),), {}, None)) == [
        line,
        shop_pb2.Line(text="ho").SerializeToString(),
    ]


def test_other_parameters_travel_in_a_streams_first_message(shop: dict[str, WireMethod], shop_pb2: ModuleType) -> None:
    chunks = list(shop["send"].encode_argument_stream(("file", iter([b"1", b""])), {}, None))
    assert [shop_pb2.Upload.FromString(chunk) for chunk in chunks] == [
        shop_pb2.Upload(name="file"),
        shop_pb2.Upload(chunk=b"1"),
        shop_pb2.Upload(),
    ]
    (name, items), kwargs = shop["send"].decode_argument_stream(iter(chunks), None)
    assert (name, list(items), kwargs) == ("file", [b"1", b""], {})


def test_a_result_may_be_a_whole_timestamp(shop: dict[str, WireMethod]) -> None:
    now = datetime.now(UTC)
    assert shop["when"].decode_result(shop["when"].encode_result(now, None), None) == now


def test_an_interface_travels_as_the_id_of_a_service_of_the_same_package(
    shop: dict[str, WireMethod], shop_pb2: ModuleType, registry: Registry
) -> None:
    adder = object()
    data = shop["put_back"].encode_arguments((adder, "k", 3), {}, registry)
    assert shop_pb2.PutRequest.FromString(data) == shop_pb2.PutRequest(add_server=1, key="k", value=3)
    assert shop["put_back"].decode_arguments(data, registry) == ((adder, "k", 3), {})
    (_, contract) = registry.exported[1]
    assert isinstance(contract, Contract)
    service = contract.complete()
    assert [method.path for method in service.methods] == [f"/{PACKAGE}.AddHelper/Sum"]
    assert service.wire().methods["sum"].encode_arguments(("1", "2"), {}, None) == b"\n\x011\x12\x012"


def test_generated_messages_may_be_used_as_they_are(shop_pb2: ModuleType) -> None:
    message, line = shop_pb2.Item, shop_pb2.Line

    class Raw(Protocol):
        def put(self, item: message) -> None: ...  # type: ignore[valid-type]
        def get(self, name: str) -> message: ...  # type: ignore[valid-type]
        def get_url(self, line: line) -> line: ...  # type: ignore[valid-type]

    raw = methods(Raw, shop_pb2)
    item = message(name="x", parts=[message(name="y")])
    data = raw["put"].encode_arguments((item,), {}, None)
    assert message.FromString(data) == item
    assert raw["put"].decode_arguments(data, None) == ((item,), {})
    assert type(raw["put"].decode_arguments(data, None)[0][0]) is message
    assert raw["get"].decode_result(raw["get"].encode_result(item, None), None) == item
    assert raw["get_url"].decode_result(b"\n\x02hi", None) == line(text="hi")
    with pytest.raises(TypeError, match=r"^put\(\) argument 'item' must be Item, not Line$"):
        raw["put"].encode_arguments((line(),), {}, None)


def test_enums_match_by_name_or_by_number(shop_pb2: ModuleType) -> None:
    @dataclass
    class ByName:
        name: str
        colour: Colour

    @dataclass
    class ByInt:
        colour: int

    class Shop(Protocol):
        def find(self) -> ByName: ...
        def get(self) -> ByInt: ...

    shop = methods(Shop, shop_pb2)
    data = shop["find"].encode_result(ByName("a", Colour.DEEP_BLUE), None)
    assert shop_pb2.Item.FromString(data).colour == 2
    assert shop["find"].decode_result(data, None) == ByName("a", Colour.DEEP_BLUE)
    with pytest.raises(ValueError, match=r"^find\(\) result\.colour is 0, which is no member of Colour$"):
        shop["find"].decode_result(b"", None)
    with pytest.raises(TypeError, match=r"^find\(\) result\.colour must be Colour, not str$"):
        shop["find"].encode_result(ByName("a", "red"), None)  # type: ignore[arg-type]
    assert shop["get"].decode_result(shop["get"].encode_result(ByInt(7), None), None) == ByInt(7)


def test_fields_that_the_interface_does_not_name_keep_their_default(shop_pb2: ModuleType) -> None:
    class Shop(Protocol):
        def get(self, name: str) -> int: ...

    shop = methods(Shop, shop_pb2)
    assert shop["get"].encode_arguments(("x",), {}, None) == b"\n\x01x"
    assert shop["get"].decode_result(shop_pb2.GetResponse(revision=9).SerializeToString(), None) == 9


def test_every_mismatch_is_named_with_both_sides_and_its_line(shop_pb2: ModuleType) -> None:
    class Shop(Protocol):
        def get(self, nme: str) -> Item: ...
        def put(self, name: int) -> None: ...
        def count(self) -> str: ...
        def missing(self) -> None: ...
        def watch(self, text: str) -> str: ...
        def both(self, text: str) -> str: ...
        def find(self, name: str) -> list[int]: ...
        def get_url(self, text: str | None) -> None: ...

    text = refusal(Shop, shop_pb2)
    first = Shop.get.__code__.co_firstlineno
    for line, expected in enumerate(
        (
            f"parameter 'nme' has no field in the request {PACKAGE}.GetRequest, which has name, deep",
            f"parameter 'name': int does not fit the field {PACKAGE}.Item.name, which is string",
            f"the result: str does not fit the field {PACKAGE}.CountResponse.count, which is uint32",
            f"the service {PACKAGE}.Shop has no method for missing(); it has Get, Put, Count",
            f"by its hints it is a unary method, but {PACKAGE}.Shop.Watch is a server stream one",
            f"the result: str fits more than one field of {PACKAGE}.Pair (left, right)",
            f"the result: list[int] fits no field of {PACKAGE}.Item, which has name, price",
            f"parameter 'text': str | None does not fit the field {PACKAGE}.Line.text, which cannot be absent",
        )
    ):
        assert re.search(rf"\(\) at {re.escape(__file__)}:{first + line}: {re.escape(expected)}", text) or (
            line == 6 and "Colour" in text
        ), (expected, text)


def test_a_dataclass_without_its_field_is_refused(shop_pb2: ModuleType) -> None:
    @dataclass
    class Wrong:
        name: str
        weight: float

    class Shop(Protocol):
        def find(self) -> Wrong: ...

    assert f"Wrong.weight has no field in the message {PACKAGE}.Item, which has name, price" in refusal(Shop, shop_pb2)


def test_the_default_pool_is_never_used(shop_pb2: ModuleType) -> None:
    service = Contract(Shop, shop_pb2.DESCRIPTOR.services_by_name["Shop"]).complete()
    ours = type(service.wire().methods["get"]).__name__  # built
    assert ours == "WireMethod"
    files = descriptor_pb2.FileDescriptorSet.FromString(service.wire().file_descriptor_set()).file
    names = [file.name for file in files]
    assert names[-1] == "hybridload_shop.proto"
    assert "google/protobuf/timestamp.proto" in names
    derived = Contract(AddHelper, "hybridload_tests.never.AddHelper").complete()
    derived.wire()
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindServiceByName("hybridload_tests.never.AddHelper")


GREETER = """
syntax = "proto3";
package proto;
import "words.proto";
message Empty {}
service GreeterService { rpc Greet(Empty) returns (Words); }
"""


class Greeter(Protocol):
    def greet(self) -> str: ...


def test_a_proto_file_is_compiled_with_the_imports_beside_it(tmp_path: Path) -> None:
    (tmp_path / "words.proto").write_text('syntax = "proto3"; package proto; message Words { string message = 1; }')
    (tmp_path / "greeter.proto").write_text(GREETER)
    service = Contract(Greeter, "proto.GreeterService", proto=tmp_path / "greeter.proto").complete()
    assert service.wire().methods["greet"].encode_result("hi", None) == b"\n\x02hi"
    assert Contract(Greeter, proto=str(tmp_path / "greeter.proto")).complete().full_name == "proto.GreeterService"


def test_a_relative_proto_path_is_looked_for_beside_the_interfaces_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    class Shop(Protocol):
        def count(self) -> int: ...

    Shop.__module__ = __name__
    service = Contract(Shop, f"{PACKAGE}.Shop", proto="shop.proto").complete()
    assert service.methods[0].path == f"/{PACKAGE}.Shop/Count"


def test_a_proto_file_that_is_wrong_or_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.proto").write_text("syntax = 'proto3'; message {")
    with pytest.raises(ContractError, match=r"bad\.proto does not compile:\n.*bad\.proto:1:28: Expected message name"):
        Contract(Greeter, proto=tmp_path / "bad.proto").complete()
    with pytest.raises(ContractError, match=r"there is no file .*none\.proto"):
        Contract(Greeter, proto=tmp_path / "none.proto").complete()


def test_without_grpcio_tools_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greeter.proto").write_text(GREETER)
    monkeypatch.setitem(sys.modules, "grpc_tools", None)
    with pytest.raises(ContractError, match=r"pip install 'hybridload\[proto\]'"):
        Contract(Greeter, proto=tmp_path / "greeter.proto").complete()


def test_a_descriptor_set_gives_the_service(compile_proto: Callable[[str], bytes]) -> None:
    data = compile_proto(GREETER.replace('import "words.proto";', "message Words { string message = 1; }"))
    service = Contract(Greeter, "proto.GreeterService", descriptor_set=data).complete()
    assert service.wire().methods["greet"].decode_result(b"\n\x02hi", None) == "hi"
    with pytest.raises(ContractError, match=r"no service proto\.Other in the descriptors, which have proto\.Greeter"):
        Contract(Greeter, "proto.Other", descriptor_set=data).complete()
    with pytest.raises(ContractError, match="descriptor_set is no serialized FileDescriptorSet"):
        Contract(Greeter, descriptor_set=b"\xff\xff").complete()
    with pytest.raises(ContractError, match="service is 3; give a full name or a ServiceDescriptor"):
        Contract(Greeter, 3).complete()  # type: ignore[arg-type]


def test_a_descriptor_set_without_its_imports_is_refused(shop_pb2: ModuleType) -> None:
    alone = descriptor_pb2.FileDescriptorSet(
        file=[descriptor_pb2.FileDescriptorProto.FromString(shop_pb2.DESCRIPTOR.serialized_pb)]
    )
    with pytest.raises(ContractError, match=r"imports google/protobuf/duration\.proto, which the descriptors lack"):
        Contract(Shop, descriptor_set=alone.SerializeToString()).complete()


def test_two_contracts_may_have_messages_of_one_name(compile_proto: Callable[[str], bytes]) -> None:
    numbers = [
        compile_proto(f'syntax = "proto3"; package proto; message M {{ string m = {number}; }} '
                      "message Empty {} service GreeterService { rpc Greet(Empty) returns (M); }")
        for number in (1, 2)
    ]  # fmt: skip
    first, second = (Contract(Greeter, descriptor_set=data).complete().wire().methods["greet"] for data in numbers)
    assert first.encode_result("a", None) == b"\n\x01a"
    assert second.encode_result("a", None) == b"\x12\x01a"


def test_async_streams_are_matched_as_well(shop_pb2: ModuleType) -> None:
    class Shop(Protocol):
        async def get(self, name: str) -> Item: ...
        def watch(self, text: str) -> AsyncIterator[str]: ...

    shop: dict[str, Any] = methods(Shop, shop_pb2)
    assert shop["get"].method.is_async
    assert shop["watch"].method.is_async
    assert shop["watch"].method.kind is Kind.SERVER_STREAM
