"""The type-hint language: what a parameter, a result or a dataclass field may be, as a small tree of shapes.

Rules:

- A hint is read once, into one of the shapes below; everything further down (descriptors, values, net/rpc) asks the
  shape and never the hint again.
- What cannot travel is refused here, with a sentence that says what to write instead. Nothing is guessed.
- No protobuf: a host whose plugins all run in-process checks its interfaces without it.
- A field that the sender left out is its type's zero value, or `None` where the hint is ``T | None``. That holds for
  dataclass fields too, whatever their default: proto3 cannot tell "left out" from zero.
"""

from __future__ import annotations

import collections.abc
import datetime
import enum
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hybridload.frozen import frozen

if TYPE_CHECKING:
    from hybridload.contract.service import Contract

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


class Misfit(Exception):
    """Something that cannot travel, said as the end of a sentence. Becomes one line of a `ContractError`."""


@frozen
class Field:
    """Pins the number of a parameter or dataclass field: ``Annotated[int, Field(7)]``.

    :param number: the protobuf field number, 1 to 536870911 without 19000 to 19999.
    """

    number: int


@frozen
class Plain:
    """str, int, float, bool, bytes, datetime or timedelta."""

    python: type


@frozen
class Enumeration:
    """A Python enum.

    Members whose values are all ints travel as these numbers; any other enum by ordinal, the first member being 0.
    """

    python: type[enum.Enum]

    @property
    def by_number(self) -> bool:
        """True when the members' own values are the numbers on the wire."""
        return all(
            isinstance(member.value, int)
            and not isinstance(member.value, bool)
            and INT32_MIN <= member.value <= INT32_MAX
            for member in self.python
        )


@frozen
class Repeated:
    """A list, tuple or set of one item type.

    :param accepts: what a value must be an instance of.
    :param builds: what a received value is made with.
    """

    item: Shape
    accepts: type
    builds: Callable[[list[Any]], Any]


@frozen
class Table:
    """A dict; keys are str, int or bool."""

    key: Plain
    value: Shape
    accepts: type


@frozen
class Maybe:
    """``T | None``."""

    item: Shape


@frozen
class Reference:
    """Another interface: the object stays where it is and is called back."""

    contract: Contract[Any]


@frozen
class MessageClass:
    """A generated protobuf message class, used as it is."""

    python: type


@frozen
class Anything:
    """``object`` or `Any`: a value that says itself what it is. Only net/rpc carries such."""

    python: type = object


@frozen
class RecordField:
    """:param annotation: the resolved hint with its `Annotated`, for protocols that look for marks of their own."""

    name: str
    shape: Shape
    number: int
    keyword_only: bool
    annotation: Any = None


class Record:
    """A dataclass. Its fields are filled in after it is made, because a dataclass may contain itself."""

    __slots__ = ("fields", "python")

    def __init__(self, python: type) -> None:
        self.python = python
        self.fields: tuple[RecordField, ...] = ()


Shape = Plain | Enumeration | Repeated | Table | Maybe | Reference | MessageClass | Anything | Record

_PLAIN = (str, int, float, bool, bytes, datetime.datetime, datetime.timedelta)
_REPEATED: dict[Any, tuple[type, Callable[[list[Any]], Any]]] = {
    list: (list, list),
    tuple: (tuple, tuple),
    set: (set, set),
    frozenset: (frozenset, frozenset),
    collections.abc.Sequence: (collections.abc.Sequence, list),
    collections.abc.Collection: (collections.abc.Collection, list),
    collections.abc.MutableSequence: (collections.abc.MutableSequence, list),
    collections.abc.Set: (collections.abc.Set, frozenset),
}
_TABLES: dict[Any, type] = {
    dict: dict,
    collections.abc.Mapping: collections.abc.Mapping,
    collections.abc.MutableMapping: collections.abc.MutableMapping,
}
_STREAMS = {
    collections.abc.Iterator: False,
    collections.abc.Iterable: False,
    collections.abc.Generator: False,
    collections.abc.AsyncIterator: True,
    collections.abc.AsyncIterable: True,
    collections.abc.AsyncGenerator: True,
}
_AWAITABLES = (collections.abc.Awaitable, collections.abc.Coroutine)
_SAY_WHAT = "say what it is; only typed values travel (but over net/rpc: Contract(..., netrpc=NetRPC()) allows it)"
_ADVICE: dict[Any, str] = {
    object: _SAY_WHAT,
    Any: _SAY_WHAT,
    type(None): "only a result can be None alone; write `T | None`",
    list: "say what is in it, e.g. list[str]",
    tuple: "say what is in it, e.g. tuple[str, ...]",
    set: "say what is in it, e.g. set[str]",
    frozenset: "say what is in it, e.g. frozenset[str]",
    dict: "say what is in it, e.g. dict[str, int]",
    complex: "use a dataclass with two floats",
    bytearray: "use bytes",
    memoryview: "use bytes",
    datetime.date: "use datetime (with a time zone) or str",
    datetime.time: "use datetime (with a time zone) or str",
}


def describe(hint: Any) -> str:
    """A hint as its author would write it.

    :param hint: anything that may stand in an annotation.
    """
    if hint is type(None):
        return "None"
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__qualname__
    return str(hint).replace("typing.", "").replace("collections.abc.", "")


def describe_shape(shape: Shape) -> str:
    """A shape as the hint that it was read from.

    :param shape: any shape.
    """
    match shape:
        case Repeated(item=item, accepts=accepts):
            end = ", ..." if accepts is tuple else ""
            return f"{accepts.__name__}[{describe_shape(item)}{end}]"
        case Table(key=key, value=value, accepts=accepts):
            return f"{accepts.__name__}[{describe_shape(key)}, {describe_shape(value)}]"
        case Maybe(item=item):
            return f"{describe_shape(item)} | None"
        case Reference(contract=contract):
            return contract.interface.__qualname__
        case _:
            return shape.python.__qualname__


def is_interface(hint: Any) -> bool:
    """Whether a hint is a Protocol or an abstract class, so that objects of it are called back.

    :param hint: anything that may stand in an annotation.
    """
    return isinstance(hint, type) and bool(
        getattr(hint, "_is_protocol", False) or getattr(hint, "__abstractmethods__", None)
    )


def strip(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Take `Annotated`, `NewType` and type aliases off a hint.

    :returns: the hint beneath and what `Annotated` carried.
    """
    extras: tuple[Any, ...] = ()
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            extras += hint.__metadata__
            hint = hint.__origin__
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        else:
            return hint, extras


def pinned_number(extras: tuple[Any, ...]) -> int | None:
    """The number that a `Field` in `Annotated` pins, if there is one.

    :raises Misfit: when it is no field number that protobuf allows.
    """
    for extra in extras:
        if isinstance(extra, Field):
            number = extra.number
            if type(number) is not int or not 1 <= number < 2**29 or 19000 <= number <= 19999:
                raise Misfit(f"Field({number!r}) is no field number: 1 to 536870911, without 19000 to 19999")
            return number
    return None


def check_numbers(owner: str, numbered: list[tuple[str, int]]) -> None:
    """Refuse two fields of one message under one number, or under names that protobuf takes for one.

    :param owner: whose fields they are, for the message.
    :param numbered: name and number of each.
    :raises Misfit: naming both.
    """
    seen: dict[int, str] = {}
    in_json: dict[str, str] = {}
    for name, number in numbered:
        other = in_json.setdefault(re.sub(r"_+(.)", lambda found: found[1].upper(), name), name)
        if other != name:
            raise Misfit(f"{owner}: {other!r} and {name!r} are one name in protobuf's JSON, so it has not both")
        if number in seen:
            raise Misfit(
                f"{owner}: {seen[number]!r} and {name!r} both have field number {number}; "
                "what is not pinned has its position's number, so pin another"
            )
        seen[number] = name


def check_name(name: str) -> None:
    """Refuse a name that protobuf cannot have.

    :raises Misfit: when it is not ASCII.
    """
    if not name.isascii():
        raise Misfit(f"the name {name!r} is not ASCII, and protobuf has no other names")


def stream_item(hint: Any) -> tuple[Any, bool] | None:
    """Read a hint as a stream.

    :returns: the item's hint and whether the stream is asynchronous, or `None` when the hint is no stream.
    :raises Misfit: when it is one but does not say of what.
    """
    origin = typing.get_origin(hint) or hint
    if not isinstance(origin, collections.abc.Hashable) or origin not in _STREAMS:
        return None
    arguments = typing.get_args(hint)
    if not arguments:
        raise Misfit(f"{describe(hint)} cannot travel: say of what, e.g. {origin.__name__}[str]")
    if any(argument is not type(None) and argument is not Any for argument in arguments[1:]):
        raise Misfit(f"{describe(hint)} cannot travel: a stream only yields; use {origin.__name__}[T, None, None]")
    return arguments[0], _STREAMS[origin]


def awaited(hint: Any) -> Any | None:
    """The result's hint of an ``Awaitable[T]`` or ``Coroutine[Any, Any, T]``, or `None` when the hint is neither."""
    if typing.get_origin(hint) in _AWAITABLES:
        return typing.get_args(hint)[-1]
    return None


class HintReader:
    """Reads hints into shapes; one for each contract, so that a dataclass has one shape in it.

    :param names: names beyond their module's that hints may use (those of the function that defines the interface).
    :param contract_of: gives the contract of another interface.
    :param messages: whether generated protobuf classes are accepted.
    :param anything: whether `object` and `Any` are.
    """

    def __init__(
        self,
        names: Mapping[str, Any],
        contract_of: Callable[[type], Contract[Any]],
        *,
        messages: bool,
        anything: bool = False,
    ) -> None:
        self._names = dict(names)
        self._contract_of = contract_of
        self._messages = messages
        self._anything = anything
        self._records: dict[type, Record] = {}

    def hints_of(self, owner: Any, more_names: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The resolved annotations of a function or dataclass.

        :raises Misfit: for a name that cannot be found.
        """
        try:
            return typing.get_type_hints(owner, localns={**self._names, **(more_names or {})}, include_extras=True)
        except NameError as error:
            raise Misfit(
                f"the hint's name {error.name!r} cannot be found; a name imported under `if TYPE_CHECKING:` must be "
                "imported for real, because contracts are made from hints at run time"
            ) from error
        except Exception as error:
            raise Misfit(f"the hints cannot be read: {type(error).__name__}: {error}") from error

    def read(self, hint: Any) -> Shape:
        """Read a hint that stands for one value.

        :param hint: resolved, `Annotated` included.
        :raises Misfit: when it cannot travel.
        """
        bare, extras = strip(hint)
        for extra in extras:
            if is_contract(extra):
                return Reference(extra)
        if self._anything and (bare is object or bare is Any):
            return Anything()
        if bare in _PLAIN if isinstance(bare, type) else False:
            return Plain(bare)
        arguments = typing.get_args(bare)
        if arguments:
            return self._generic(bare, typing.get_origin(bare), arguments)
        if isinstance(bare, type):
            return self._class(bare)
        raise Misfit(_refusal(bare))

    def _generic(self, hint: Any, origin: Any, arguments: tuple[Any, ...]) -> Shape:
        if origin is typing.Union or origin is types.UnionType:
            return self._union(hint, arguments)
        if origin in _REPEATED:
            return self._repeated(hint, origin, arguments)
        if origin in _TABLES:
            key = self.read(arguments[0])
            if not isinstance(key, Plain) or key.python not in (str, int, bool):
                raise Misfit(f"{describe(hint)} cannot travel: keys are str, int or bool (protobuf's rule for maps)")
            return Table(key, self.read(arguments[1]), _TABLES[origin])
        if stream_item(hint):
            raise Misfit(
                f"{describe(hint)} cannot travel here: a stream is a whole parameter or a whole result; "
                f"use list[{describe(arguments[0])}]"
            )
        if _is_dataclass(origin):
            raise Misfit(f"{describe(hint)} cannot travel: a generic dataclass; write one for each type")
        raise Misfit(_refusal(hint))

    def _union(self, hint: Any, arguments: tuple[Any, ...]) -> Shape:
        rest = [argument for argument in arguments if argument is not type(None)]
        if len(rest) != 1 or len(rest) == len(arguments):
            raise Misfit(
                f"{describe(hint)} cannot travel: one type, or one type and None; "
                "for alternatives use a dataclass with a field `T | None` for each"
            )
        item = self.read(rest[0])
        return item if isinstance(item, Maybe) else Maybe(item)

    def _repeated(self, hint: Any, origin: Any, arguments: tuple[Any, ...]) -> Shape:
        if origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):
            raise Misfit(f"{describe(hint)} cannot travel: use tuple[T, ...], or a dataclass for a fixed shape")
        item = self.read(arguments[0])
        accepts, builds = _REPEATED[origin]
        if builds in (set, frozenset) and not isinstance(item, (Plain, Enumeration)):
            raise Misfit(f"{describe(hint)} cannot travel: the items of a set are plain values or enum members")
        return Repeated(item, accepts, builds)

    def _class(self, cls: type) -> Shape:
        if _is_dataclass(cls):
            return self._record(cls)
        if issubclass(cls, enum.Enum):
            if not len(cls):
                raise Misfit(f"{describe(cls)} cannot travel: an enum without members")
            return Enumeration(cls)
        if _is_message_class(cls):
            if not self._messages:
                raise Misfit(
                    f"{describe(cls)} cannot travel: a generated message needs its service; "
                    "give Contract the ServiceDescriptor, a descriptor_set or a proto file"
                )
            return MessageClass(cls)
        if cls in _ADVICE or cls in _STREAMS or cls in _REPEATED or cls in _TABLES:
            raise Misfit(_refusal(cls))
        if is_interface(cls):
            return Reference(self._contract_of(cls))
        raise Misfit(_refusal(cls))

    def _record(self, cls: type) -> Record:
        known = self._records.get(cls)
        if known is not None:
            return known
        record = self._records[cls] = Record(cls)
        try:
            record.fields = tuple(self._record_fields(cls))
            if endless(record):
                raise Misfit(f"{describe(cls)} cannot travel: it always contains itself; make that field `T | None`")
        except Misfit:
            del self._records[cls]  # the next method that uses it is to be named too
            raise
        return record

    def _record_fields(self, cls: type) -> Iterator[RecordField]:
        import dataclasses  # whoever has a dataclass has imported this

        nested = {name: value for name, value in vars(cls).items() if isinstance(value, type)}
        hints = self.hints_of(cls, {cls.__name__: cls, **nested})
        for name, value in vars(cls).get("__dataclass_fields__", {}).items():
            if type(value.type) is dataclasses.InitVar or str(value.type).startswith(
                ("InitVar", "dataclasses.InitVar")
            ):
                raise Misfit(f"{describe(cls)}.{name} cannot travel: an InitVar is not kept, so it cannot be sent")
        numbered: list[tuple[str, int]] = []
        found: list[RecordField] = []
        for position, item in enumerate((item for item in dataclasses.fields(cls) if item.init), 1):
            hint = hints[item.name]
            try:
                check_name(item.name)
                number = pinned_number(strip(hint)[1]) or position
                found.append(RecordField(item.name, self.read(hint), number, bool(item.kw_only), hint))
            except Misfit as error:
                raise Misfit(f"{describe(cls)}.{item.name}: {error}") from error
            numbered.append((item.name, number))
        check_numbers(describe(cls), numbered)
        return iter(found)


def is_contract(value: object) -> bool:
    """Whether a value is a `Contract`, without importing it here."""
    from hybridload.contract.service import Contract

    return isinstance(value, Contract)


def endless(record: Record) -> bool:
    """Whether a dataclass contains itself on every path, so that no finite value of it exists."""
    return _reaches(record, record, set())


def _reaches(start: Record, target: Record, seen: set[type]) -> bool:
    for item in start.fields:
        if isinstance(item.shape, Record):
            if item.shape is target:
                return True
            if item.shape.python not in seen:
                seen.add(item.shape.python)
                if _reaches(item.shape, target, seen):
                    return True
    return False


def _refusal(hint: Any) -> str:
    advice = None
    if isinstance(hint, collections.abc.Hashable):
        advice = _ADVICE.get(hint)
    if advice is None and isinstance(hint, typing.TypeVar):
        advice = "a type variable says nothing; write the type"
    if advice is None and isinstance(hint, type) and hint in _STREAMS:
        advice = f"say of what, e.g. {hint.__name__}[str]"
    if advice is None and isinstance(hint, type):
        advice = "make it a dataclass, an Enum, or an interface (a Protocol or an ABC)"
    return f"{describe(hint)} cannot travel: {advice or 'no such values can be sent'}"


def _is_dataclass(cls: Any) -> bool:
    """As `dataclasses.is_dataclass`, which takes milliseconds to import."""
    return isinstance(cls, type) and hasattr(cls, "__dataclass_fields__")


def _is_message_class(cls: type) -> bool:
    module = sys.modules.get("google.protobuf.message")  # whoever has a message class has imported this
    return module is not None and issubclass(cls, module.Message)


def misfit(shape: Shape, value: Any, where: str) -> Exception | None:
    """Whether a value can travel as a shape, without encoding it: for the defaults of parameters, and for arguments
    that were refused.

    :param where: how to call the value, e.g. ``"the default"``.
    :returns: a `TypeError`, `ValueError` or `OverflowError` that says what is wrong; `None` when nothing is.
    """
    match shape:
        case Maybe(item=item):
            return None if value is None else misfit(item, value, where)
        case Reference():
            return TypeError(
                f"{where} is an object to call back; only None can be a default, with `| None` in the hint"
            )
        case Plain(python=python):
            return _plain_misfit(python, value, where)
        case Repeated(accepts=accepts) | Table(accepts=accepts):
            fits = isinstance(value, accepts) and not isinstance(value, (str, bytes))
        case _:
            fits = isinstance(value, shape.python)
    if not fits:
        return _wrong(where, shape, value)
    return next((found for part in _parts(shape, value, where) if (found := misfit(*part))), None)


def _parts(shape: Shape, value: Any, where: str) -> Iterator[tuple[Shape, Any, str]]:
    match shape:
        case Repeated(item=item):
            yield from ((item, part, f"{where}[{index}]") for index, part in enumerate(value))
        case Table(key=key, value=inner):
            for own_key, part in value.items():
                yield key, own_key, f"{where} key"
                yield inner, part, f"{where}[{own_key!r}]"
        case Record(fields=fields):
            yield from ((item.shape, getattr(value, item.name), f"{where}.{item.name}") for item in fields)


def _plain_misfit(python: type, value: Any, where: str) -> Exception | None:
    accepted: Any = (int, float) if python is float else python
    if not isinstance(value, accepted):
        return _wrong(where, Plain(python), value)
    if python is int and not INT64_MIN <= value <= INT64_MAX:
        return OverflowError(f"{where} does not fit into 64 bits")
    if python is datetime.datetime and value.utcoffset() is None:
        return ValueError(f"{where} is a datetime without a time zone")
    return None


def _wrong(where: str, shape: Shape, value: Any) -> TypeError:
    if value is None:
        return TypeError(f"{where} is None; write `{describe_shape(shape)} | None`")
    return TypeError(f"{where} is {describe(type(value))}, not {describe_shape(shape)}")


def has_reference(shape: Shape | None) -> bool:
    """Whether an object that is called back can be anywhere in a value of a shape.

    :param shape: any shape; `None` for no value.
    """
    return _holds(shape, Reference)


def has_anything(shape: Shape | None) -> bool:
    """Whether a value of a shape can hold what only net/rpc carries.

    :param shape: any shape; `None` for no value.
    """
    return _holds(shape, Anything)


def _holds(shape: Shape | None, wanted: type) -> bool:
    pending, seen = [shape], set[int]()
    while pending:
        match pending.pop():
            case found if isinstance(found, wanted):
                return True
            case Repeated(item=item) | Maybe(item=item) | Table(value=item):
                pending.append(item)
            case Record() as record if id(record) not in seen:
                seen.add(id(record))
                pending.extend(each.shape for each in record.fields)
            case _:
                continue
    return False
