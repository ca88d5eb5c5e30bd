"""Go's `time.Time` as it encodes itself: version, seconds since the year 1, nanoseconds, minutes east of UTC.

Version 2 has one byte more, the seconds of an offset that is no whole number of minutes. An offset of -1 stands for
UTC.
"""

from __future__ import annotations

import datetime
import struct
from typing import Final

from hybridload.goplugin.netrpc.gob.errors import Misfit
from hybridload.goplugin.netrpc.gob.types import ZERO_TIME

_LAYOUT: Final = struct.Struct(">Bqih")
_UTC: Final = -1


def load_time(data: bytes) -> datetime.datetime | None:
    """The time, or `None` when these bytes are none, or one outside of the years that Python knows (1 to 9999)."""
    if len(data) < _LAYOUT.size or data[0] not in (1, 2) or len(data) != _LAYOUT.size + data[0] - 1:
        return None
    version, seconds, nanoseconds, minutes = _LAYOUT.unpack_from(data)
    if not 0 <= nanoseconds < 10**9:
        return None
    offset = minutes * 60 + (struct.unpack_from("b", data, _LAYOUT.size)[0] if version == 2 else 0)
    try:
        zone = datetime.UTC if minutes == _UTC else datetime.timezone(datetime.timedelta(seconds=offset))
        moment = ZERO_TIME + datetime.timedelta(seconds=seconds, microseconds=nanoseconds // 1000)
        return moment.astimezone(zone)
    except (OverflowError, ValueError):
        return None


def dump_time(moment: datetime.datetime) -> bytes:
    """:raises Misfit: for a naive time, and for an offset that Go cannot write."""
    offset = moment.utcoffset()
    if offset is None:
        raise Misfit("a naive datetime; give it a time zone, e.g. tzinfo=datetime.UTC")
    east = offset // datetime.timedelta(seconds=1)
    if offset.microseconds or -120 < east <= -60:
        raise Misfit(f"an offset of {offset} from UTC, which Go cannot write; convert the datetime to UTC")
    # Go divides towards zero, and the seconds that are left over have the offset's sign.
    minutes, rest = (east // 60, east % 60) if east >= 0 else (-(-east // 60), -(-east % 60))
    elapsed = moment.replace(tzinfo=datetime.UTC) - ZERO_TIME - offset
    seconds, fraction = divmod(elapsed, datetime.timedelta(seconds=1))
    packed = _LAYOUT.pack(2 if rest else 1, seconds, fraction.microseconds * 1000, minutes if east else _UTC)
    return packed + struct.pack("b", rest) if rest else packed
