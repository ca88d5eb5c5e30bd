"""Go types, described in Python, and the few Go values that Python has no word for.

A description says which Go type a value has on the wire when it is sent, and what is expected when one is received. The
rules are gob's (https://pkg.go.dev/encoding/gob):

- Widths are not on the wire: every signed integer travels alike, and so does every unsigned one. A width here is the
  range that is checked before sending and when receiving into fewer than 64 bits.
- Signed and unsigned integers, floats, strings and bytes never turn into each other on Go's side. Received here, an
  integer may be either kind, because Python has one `int`.
- Pointers are not on the wire: a nil pointer is a field that is left out. So is a zero value, and a pointer to one;
  both arrive as `None`.
- Structs are matched by the names of their fields.

Descriptions compare by value, but a `Struct` or `Deferred` only equals itself, so that it can contain itself.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from hybridload.goplugin.netrpc.gob.errors import GobError

Form: TypeAlias = Literal["gob", "binary", "text"]

ZERO_TIME: Final = datetime.datetime(1, 1, 1, tzinfo=datetime.UTC)
"""Go's zero `time.Time`, which gob leaves out of structs."""


@dataclass(frozen=True, slots=True)
class Bool:
    """Go's `bool`."""


@dataclass(frozen=True, slots=True)
class Int:
    """Go's `int`, `int8`, `int16`, `int32` and `int64`.

    :param bits: 8, 16, 32 or 64.
    :raises GobError: for another width.
    """

    bits: int = 64

    def __post_init__(self) -> None:
        _check_width("Int", self.bits, (8, 16, 32, 64))


@dataclass(frozen=True, slots=True)
class Uint:
    """Go's `uint`, `uint8` (`byte`), `uint16`, `uint32`, `uint64` and `uintptr`.

    :param bits: 8, 16, 32 or 64.
    :raises GobError: for another width.
    """

    bits: int = 64

    def __post_init__(self) -> None:
        _check_width("Uint", self.bits, (8, 16, 32, 64))


@dataclass(frozen=True, slots=True)
class Float:
    """Go's `float32` and `float64`.

    :param bits: 32 or 64.
    :raises GobError: for another width.
    """

    bits: int = 64

    def __post_init__(self) -> None:
        _check_width("Float", self.bits, (32, 64))


@dataclass(frozen=True, slots=True)
class Complex:
    """Go's `complex64` and `complex128`.

    :param bits: 64 or 128.
    :raises GobError: for another width.
    """

    bits: int = 128

    def __post_init__(self) -> None:
        _check_width("Complex", self.bits, (64, 128))


@dataclass(frozen=True, slots=True)
class String:
    """Go's `string`: `str`. Bytes that are not UTF-8 survive as surrogate escapes (PEP 383)."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """Go's `[]byte`: `bytes`. Received, an array or slice of small unsigned integers will do, such as a `[32]byte`."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Go's `[]T`: a `list`. A slice of `Uint(8)` travels as `[]byte`, as in Go."""

    elem: GoType


@dataclass(frozen=True, slots=True)
class Array:
    """Go's `[n]T`: a `list` of that length."""

    length: int
    elem: GoType

    def __post_init__(self) -> None:
        if self.length < 0:
            raise GobError(f"Array of length {self.length}: give 0 or more.")


@dataclass(frozen=True, slots=True)
class Map:
    """Go's `map[K]V`: a `dict`. Where a key is a struct or an array it becomes a tuple (of pairs, of elements)."""

    key: GoType
    elem: GoType


@dataclass(frozen=True, slots=True)
class Pointer:
    """Go's `*T`: `None` or a T."""

    target: GoType


@dataclass(frozen=True, slots=True)
class Interface:
    """Go's `interface{}`, or any other interface. Its value carries the registered name of its own type."""


@dataclass(frozen=True, slots=True)
class Registered:
    """An interface that always holds the same registered type.

    :param name: the name under which the Go program registered it, e.g. ``"main.Point"`` or ``"[]string"``.
    :param type: what is behind that name.
    """

    name: str
    type: GoType


@dataclass(frozen=True, slots=True)
class Time:
    """Go's `time.Time`: an aware `datetime`. What is finer than a microsecond is cut off on receipt."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A Go type that encodes itself (`GobEncoder`, `BinaryMarshaler` or `TextMarshaler`): its bytes as they are.

    :param name: the Go type's bare name, e.g. ``"Int"`` for `big.Int`; Go does not compare it.
    :param form: which of the three it is.
    """

    name: str
    form: Form = "gob"


@dataclass(frozen=True, slots=True)
class Adapted:
    """A Go type that Python sees as something else, such as an enumeration as its numbers.

    :param type: what travels.
    :param load: makes the Python value from what was received.
    :param dump: makes what travels from the Python value.
    """

    type: GoType
    load: Callable[[Any], Any]
    dump: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One exported field of a struct.

    :param name: the field's name in Go.
    :param type: its Go type.
    :param attribute: the attribute and keyword that hold it in Python, by default the same name.
    """

    name: str
    type: GoType
    attribute: str = ""

    @property
    def key(self) -> str:
        return self.attribute or self.name


class Struct:
    """Go's `struct`.

    :param name: the Go type's bare name, which Go does not compare.
    :param fields: the fields in Go's order; a function of no arguments when the struct contains itself.
    :param factory: makes the Python value from keywords; by default the value is a `dict` by Go names.
    """

    __slots__ = ("_fields", "factory", "name")

    def __init__(
        self,
        name: str,
        fields: Iterable[Field] | Callable[[], Iterable[Field]] = (),
        factory: Callable[..., Any] | None = None,
    ) -> None:
        self.name = name
        self.factory = factory
        self._fields = fields

    @property
    def fields(self) -> tuple[Field, ...]:
        if not isinstance(self._fields, tuple):
            self._fields = tuple(self._fields() if callable(self._fields) else self._fields)
        return self._fields

    def __repr__(self) -> str:
        return f"Struct({self.name!r})"


class Deferred:
    """A type that is looked at when first needed, for one that contains itself and is no struct: `type Nest []Nest`.

    :param name: the type's name, for messages.
    :param resolve: gives the type.
    """

    __slots__ = ("_resolve", "name")

    def __init__(self, name: str, resolve: Callable[[], GoType]) -> None:
        self.name = name
        self._resolve = resolve

    @property
    def type(self) -> GoType:
        return self._resolve()

    def __repr__(self) -> str:
        return f"Deferred({self.name!r})"


GoType: TypeAlias = (
    Bool
    | Int
    | Uint
    | Float
    | Complex
    | String
    | Bytes
    | Slice
    | Array
    | Map
    | Pointer
    | Interface
    | Registered
    | Time
    | Encoded
    | Adapted
    | Struct
    | Deferred
)


ANYTHING: Final = Interface()
"""As a receiver: whatever comes, as plain Python."""


@dataclass(frozen=True, slots=True)
class Name:
    """The Go name of a dataclass's field that is not the Python one in capitals: ``Annotated[int, Name("ID")]``."""

    name: str


@dataclass(frozen=True, slots=True)
class GobValue:
    """A value from, or for, an interface together with the registered name of its Go type.

    :param name: e.g. ``"main.Point"`` or ``"uint8"``.
    :param value: the value itself.
    :param type: what is behind the name, for sending; by default what the registry or the name itself says.
    """

    name: str
    value: Any
    type: GoType | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class GobData:
    """The bytes of a Go value that encodes itself and is no `time.Time`.

    :param name: the Go type's bare name; Go may leave it out.
    :param data: what its method wrote.
    :param form: which method it was.
    """

    name: str
    data: bytes
    form: Form = "gob"


def _check_width(name: str, bits: int, allowed: tuple[int, ...]) -> None:
    if bits not in allowed:
        raise GobError(f"{name}({bits}): Go has {', '.join(map(str, allowed))} bits.")


def describe(go_type: GoType) -> str:
    """The type as a Go programmer would write it, for messages."""
    match go_type:
        case Bool():
            return "bool"
        case Int(bits):
            return f"int{bits}"
        case Uint(bits):
            return f"uint{bits}"
        case Float(bits):
            return f"float{bits}"
        case Complex(bits):
            return f"complex{bits}"
        case String():
            return "string"
        case Bytes():
            return "[]byte"
        case Slice(elem):
            return f"[]{describe(elem)}"
        case Array(length, elem):
            return f"[{length}]{describe(elem)}"
        case Map(key, elem):
            return f"map[{describe(key)}]{describe(elem)}"
        case Pointer(target):
            return f"*{describe(target)}"
        case Interface():
            return "interface{}"
        case Registered(name, _):
            return f"interface{{}} holding {name}"
        case Time():
            return "time.Time"
        case Encoded(name, form):
            return f"{name} (which encodes itself as {form})"
        case Adapted(inner, _, _):
            return describe(inner)
        case Struct():
            return f"struct {go_type.name}".rstrip()
        case Deferred():
            return go_type.name
