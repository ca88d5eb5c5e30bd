"""Go's gob encoding without I/O: https://pkg.go.dev/encoding/gob in both directions.

decoder.feed(data); value = decoder.next_value(from_hint(Point))
data = encoder.encode(Point(22, 33), from_hint(Point))
"""

from __future__ import annotations

from hybridload.goplugin.netrpc.gob.decoder import NEED_DATA, Decoder, NeedData
from hybridload.goplugin.netrpc.gob.encoder import Encoder
from hybridload.goplugin.netrpc.gob.errors import GobCorrupt, GobError, GobMismatch, GobTooLarge
from hybridload.goplugin.netrpc.gob.hints import from_hint
from hybridload.goplugin.netrpc.gob.names import Registry
from hybridload.goplugin.netrpc.gob.types import (
    ANYTHING,
    ZERO_TIME,
    Adapted,
    Array,
    Bool,
    Bytes,
    Complex,
    Deferred,
    Encoded,
    Field,
    Float,
    GobData,
    GobValue,
    GoType,
    Int,
    Interface,
    Map,
    Name,
    Pointer,
    Registered,
    Slice,
    String,
    Struct,
    Time,
    Uint,
)
from hybridload.goplugin.netrpc.gob.wire import Limits

__all__ = [
    "ANYTHING",
    "NEED_DATA",
    "ZERO_TIME",
    "Adapted",
    "Array",
    "Bool",
    "Bytes",
    "Complex",
    "Decoder",
    "Deferred",
    "Encoded",
    "Encoder",
    "Field",
    "Float",
    "GoType",
    "GobCorrupt",
    "GobData",
    "GobError",
    "GobMismatch",
    "GobTooLarge",
    "GobValue",
    "Int",
    "Interface",
    "Limits",
    "Map",
    "Name",
    "NeedData",
    "Pointer",
    "Registered",
    "Registry",
    "Slice",
    "String",
    "Struct",
    "Time",
    "Uint",
    "from_hint",
]
