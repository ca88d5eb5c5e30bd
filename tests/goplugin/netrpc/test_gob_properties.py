"""Random Go types and values, both ways through real Go.

The types are made up here and built in Go by reflection from a description, so one program serves all of them. A
failure tells its seed; with it in HYBRIDLOAD_SEED the same cases come again.
"""

from __future__ import annotations

import math
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hybridload.goplugin.netrpc.gob import (
    NEED_DATA,
    Array,
    Bool,
    Bytes,
    Complex,
    Decoder,
    Encoder,
    Field,
    Float,
    GobValue,
    GoType,
    Int,
    Interface,
    Map,
    Pointer,
    Registry,
    Slice,
    String,
    Struct,
    Time,
    Uint,
)

CASES = 2000
SEED = os.environ.get("HYBRIDLOAD_SEED") or random.Random().getrandbits(32)
WORDS = ["", "a", "héllo", "世界", "\udcff\udc80", "x" * 200, "a\0b"]


@dataclass(frozen=True)
class Kind:
    """A Go type three times over, and values of it.

    :param gob: as this library describes it.
    :param described: as the Go program is told of it.
    :param spelling: as Go writes it, which is its registered name.
    :param make: a random value, as sent from Python and as the Go program is told of it.
    :param arrives: what is received for a value, as an element and as a field.
    """

    gob: GoType
    described: dict[str, Any]
    spelling: str
    make: Callable[[], tuple[Any, Any]]
    arrives: Callable[[Any, bool], Any] = lambda value, in_field: value


class Kinds:
    """Makes random kinds; the registry learns those that travel inside interfaces."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.registry = Registry()
        self._inside: dict[str, Kind] = {}

    def any(self, depth: int) -> Kind:
        makers = [self.scalar]
        if depth:
            makers += [self.scalar, lambda: self.slice(depth), lambda: self.array(self.any(depth - 1))]
            makers += [lambda: self.map(depth), lambda: self.struct(depth, self.field), lambda: self.interface(depth)]
        return self.rng.choice(makers)()

    def scalar(self) -> Kind:
        return self.rng.choice(
            [self.bool, self.int, self.uint, self.float, self.complex, self.string, self.bytes, self.time]
        )()

    def key(self, depth: int) -> Kind:
        makers: list[Callable[[], Kind]] = [self.bool, self.int, self.uint, self.float, self.string]
        if depth:
            makers += [lambda: self.array(self.key(depth - 1), tuple), lambda: self.struct(depth, self.key_field, True)]
        return self.rng.choice(makers)()

    def bool(self) -> Kind:
        return basic(Bool(), "bool", lambda: (value := self.rng.random() < 0.5, value))

    def int(self) -> Kind:
        name, bits = self.rng.choice([("int", 64), *((f"int{bits}", bits) for bits in (8, 16, 32, 64))])

        def make() -> tuple[Any, Any]:
            value = self.near(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            return value, str(value)

        return basic(Int(bits), name, make)

    def uint(self) -> Kind:
        name, bits = self.rng.choice([("uint", 64), *((f"uint{bits}", bits) for bits in (16, 32, 64))])

        def make() -> tuple[Any, Any]:
            value = self.near(0, 2**bits - 1)
            return value, str(value)

        return basic(Uint(bits), name, make)

    def near(self, low: int, high: int) -> int:
        """A number at one of the ends, around zero or a power of two, or anywhere."""
        edge = self.rng.choice([low, high, 0, 64, 128, 256, 1 << 32])
        number = edge + self.rng.randint(-2, 2) if self.rng.random() < 0.8 else self.rng.randint(low, high)
        return min(max(number, low), high)

    def number(self, bits: int) -> float:
        numbers = [0.0, -0.0, 1.0, -17.0, math.pi, math.inf, -math.inf, 1e-40, self.rng.uniform(-1e9, 1e9)]
        number = self.rng.choice(numbers)
        return float(struct.unpack("<f", struct.pack("<f", number))[0]) if bits == 32 else number

    def float(self) -> Kind:
        bits = self.rng.choice([32, 64])

        def make() -> tuple[Any, Any]:
            value = self.number(bits)
            return value, digits(value)

        return basic(Float(bits), f"float{bits}", make, zero_in_field(0.0))

    def complex(self) -> Kind:
        bits = self.rng.choice([64, 128])

        def make() -> tuple[Any, Any]:
            value = complex(self.number(bits // 2), self.number(bits // 2))
            return value, [digits(value.real), digits(value.imag)]

        return basic(Complex(bits), f"complex{bits}", make, zero_in_field(0j))

    def string(self) -> Kind:
        def make() -> tuple[Any, Any]:
            value = self.rng.choice(WORDS)
            return value, value.encode("utf-8", "surrogateescape").hex()

        return basic(String(), "string", make)

    def bytes(self) -> Kind:
        def make() -> tuple[Any, Any]:
            value = self.rng.randbytes(self.rng.choice([0, 1, 3, 300]))
            return value, value.hex()

        return basic(Bytes(), "bytes", make, spelling="[]uint8")

    def time(self) -> Kind:
        def make() -> tuple[Any, Any]:
            east = self.rng.choice([0, 3600, -5 * 3600, 19800, 3661, 1])
            epoch = datetime(1970, 1, 1, tzinfo=UTC)
            seconds = self.rng.randint(-60_000_000_000, 250_000_000_000)
            since = timedelta(seconds=seconds, microseconds=self.near(0, 999999))
            value = (epoch + since).astimezone(timezone(timedelta(seconds=east)))
            return value, {"Seconds": seconds, "Nanoseconds": since.microseconds * 1000, "Offset": east}

        return basic(Time(), "time", make, spelling="time.Time")

    def slice(self, depth: int) -> Kind:
        return self.list_of(self.any(depth - 1), None, list)

    def array(self, elem: Kind, container: type = list) -> Kind:
        return self.list_of(elem, self.rng.choice([0, 1, 3]), container)

    def list_of(self, elem: Kind, length: int | None, container: type) -> Kind:
        def make() -> tuple[Any, Any]:
            pairs = [elem.make() for _ in range(self.rng.choice([0, 1, 2, 5]) if length is None else length)]
            return container(value for value, _ in pairs), [told for _, told in pairs]

        return Kind(
            Slice(elem.gob) if length is None else Array(length, elem.gob),
            {"Kind": "slice" if length is None else "array", "Len": length or 0, "Elem": elem.described},
            f"[{'' if length is None else length}]{elem.spelling}",
            make,
            lambda value, in_field: container(elem.arrives(item, False) for item in value),
        )

    def map(self, depth: int) -> Kind:
        key, elem = self.key(depth - 1), self.any(depth - 1)

        def make() -> tuple[Any, Any]:
            entries: dict[Any, Any] = {}
            for _ in range(self.rng.choice([0, 1, 3])):
                value, told = key.make()
                entries.setdefault(key.arrives(value, False), (told, elem.make()))
            sent = {value: item for value, (_, (item, _)) in entries.items()}
            return sent, [[told, item] for told, (_, item) in entries.values()]

        return Kind(
            Map(key.gob, elem.gob),
            {"Kind": "map", "Key": key.described, "Elem": elem.described},
            f"map[{key.spelling}]{elem.spelling}",
            make,
            lambda value, in_field: {name: elem.arrives(item, False) for name, item in value.items()},
        )

    def struct(self, depth: int, field: Callable[[int], Kind], as_key: bool = False) -> Kind:
        names = [f"F{number}" for number in range(self.rng.choice([0, 1, 2, 4]))]
        kinds = [field(depth - 1) for _ in names]
        container = (lambda items: tuple(items.items())) if as_key else dict

        def make() -> tuple[Any, Any]:
            pairs = [kind.make() for kind in kinds]
            return container(dict(zip(names, (value for value, _ in pairs), strict=True))), [told for _, told in pairs]

        fields = [{"Name": name, "Type": kind.described} for name, kind in zip(names, kinds, strict=True)]
        inner = "; ".join(f"{name} {kind.spelling}" for name, kind in zip(names, kinds, strict=True))
        return Kind(
            Struct("", [Field(name, kind.gob) for name, kind in zip(names, kinds, strict=True)]),
            {"Kind": "struct", "Fields": fields},
            f"struct {{ {inner} }}" if names else "struct {}",
            make,
            lambda value, in_field: container(
                {name: kind.arrives(dict(value)[name], True) for name, kind in zip(names, kinds, strict=True)}
            ),
        )

    def field(self, depth: int) -> Kind:
        return self.pointer(depth) if self.rng.random() < 0.3 else self.any(depth)

    def key_field(self, depth: int) -> Kind:
        return self.key(depth)

    def pointer(self, depth: int) -> Kind:
        target = self.any(depth)
        if isinstance(target.gob, Interface):
            return target

        def arrives(value: Any, in_field: bool) -> Any:
            left_out = not value and not isinstance(target.gob, Array | Struct | Map)
            return None if value is None or left_out else target.arrives(value, True)

        return Kind(
            Pointer(target.gob),
            {"Kind": "ptr", "Elem": target.described},
            f"*{target.spelling}",
            lambda: (None, None) if self.rng.random() < 0.3 else target.make(),
            arrives,
        )

    def interface(self, depth: int) -> Kind:
        def make() -> tuple[Any, Any]:
            if self.rng.random() < 0.2:
                return None, None
            kind = self.any(depth - 1)
            if isinstance(kind.gob, Interface):
                return kind.make()
            kind = self._inside.setdefault(kind.spelling, kind)
            self.registry.register(kind.spelling, kind.gob)
            value, told = kind.make()
            return GobValue(kind.spelling, value), {"Type": kind.described, "Value": told}

        def arrives(value: Any, in_field: bool) -> Any:
            if value is None:
                return None
            return GobValue(value.name, self._inside[value.name].arrives(value.value, False))

        return Kind(Interface(), {"Kind": "iface"}, "interface {}", make, arrives)


def basic(
    gob: GoType,
    name: str,
    make: Callable[[], tuple[Any, Any]],
    arrives: Callable[[Any, bool], Any] = lambda value, in_field: value,
    spelling: str = "",
) -> Kind:
    return Kind(gob, {"Kind": name}, spelling or name, make, arrives)


def zero_in_field(zero: Any) -> Callable[[Any, bool], Any]:
    """Minus zero is left out of a struct like any zero."""
    return lambda value, in_field: zero if in_field and not value else value


def digits(number: float) -> str:
    return str(struct.pack(">d", number).hex())


def test_random_values_survive_both_ways_through_go(go: Any, alike: Callable[[Any, Any], bool]) -> None:
    for number in range(CASES):
        rng = random.Random(f"{SEED} {number}")
        kinds = Kinds(rng)
        chosen = [kinds.any(4) for _ in range(rng.choice([1, 1, 3]))]
        values = [kind.make() for kind in chosen]
        told = [{"Type": kind.described, "Value": value} for kind, (_, value) in zip(chosen, values, strict=True)]
        which = f"HYBRIDLOAD_SEED={SEED}, case {number}: {[kind.spelling for kind in chosen]}"

        encoder = Encoder(kinds.registry)
        sent = b"".join(encoder.encode(value, kind.gob) for kind, (value, _) in zip(chosen, values, strict=True))
        assert go.ask(op="equal", values=told, hex=sent.hex()) == {"equal": True}, which

        answer = go.ask(op="encode", values=told)
        assert "hex" in answer, (which, answer)
        received = decoded_in_pieces(bytes.fromhex(answer["hex"]), chosen, kinds.registry, rng)
        expected = [kind.arrives(value, False) for kind, (value, _) in zip(chosen, values, strict=True)]
        assert alike(received, expected), (which, received, expected)


def decoded_in_pieces(stream: bytes, kinds: list[Kind], registry: Registry, rng: random.Random) -> list[Any]:
    """The values of a stream that is cut at random places."""
    decoder = Decoder(registry, keep_names=True)
    received: list[Any] = []
    while len(received) < len(kinds):
        value = decoder.next_value(kinds[len(received)].gob)
        if value is not NEED_DATA:
            received.append(value)
            continue
        assert stream
        size = rng.choice([1, 7, len(stream)])
        decoder.feed(stream[:size])
        stream = stream[size:]
    assert not stream
    assert decoder.at_boundary
    return received
