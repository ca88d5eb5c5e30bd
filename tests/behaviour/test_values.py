"""Arguments and results of every type."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from behaviour_sdk import Calls, Colour, Everything, Line, Parcel

from hybridload.errors import RemoteError

from .conftest import Row

TOKYO = timezone(timedelta(hours=9), "JST")
NOON = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)


def parcel(**changes: Any) -> Parcel:
    values: dict[str, Any] = {
        "number": 7,
        "label": "fragile ✓",
        "colour": Colour.BLUE,
        "lines": [Line("tea", 3.25, ["green", ""]), Line("", 0.0)],
        "by_name": {"tea": Line("tea", 3.25), "": Line("nothing", -1.0)},
        "sent": NOON,
        "lasts": timedelta(days=1, microseconds=1),
        "photo": bytes(range(256)),
        "fragile": True,
        "inner": None,
        "note": None,
    }
    return Parcel(**{**values, **changes})


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("text", "plain"),
        ("text", ""),
        ("text", "ünï©ødé 🎈\0\n"),
        ("text", "x" * 3_000_000),
        ("number", 0),
        ("number", 2**63 - 1),
        ("number", -(2**63)),
        ("ratio", 0.1),
        ("ratio", -0.0),
        ("ratio", math.inf),
        ("flag", True),
        ("flag", False),
        ("data", b""),
        ("data", bytes(range(256))),
        ("data", b"\0" * 3_000_000),
        ("words", []),
        ("words", ["", "a", "ü"]),
        ("words", ["w"] * 10_000),
        ("scores", {}),
        ("scores", {"": 0.0, "a": 1.5}),
        ("colour", Colour.RED),
        ("colour", Colour.BLUE),
        ("moment", NOON),
        ("moment", datetime(1969, 12, 31, tzinfo=UTC)),
        ("moment", datetime.max.replace(tzinfo=UTC)),
        ("span", timedelta(0)),
        ("span", timedelta(days=-1, microseconds=1)),
        ("maybe", None),
        ("maybe", ""),
        ("maybe", "here"),
        ("parcel", parcel()),
        ("parcel", parcel(inner=parcel(inner=parcel(note="deep")), note="note")),
        ("parcel", parcel(number=0, label="", lines=[], by_name={}, photo=b"", fragile=False, colour=Colour.RED)),
    ],
    ids=lambda value: repr(value)[:30] if not isinstance(value, str) else value[:10],
)
def test_a_value_comes_back_as_it_was(everything: Any, method: str, value: object) -> None:
    returned = getattr(everything, f"echo_{method}")(value)
    assert returned == value
    assert type(returned) is type(value)
    assert math.copysign(1, returned) == math.copysign(1, value) if isinstance(value, float) else True


def test_an_optional_field_tells_empty_from_absent(everything: Any, row: Row) -> None:
    returned = everything.echo_parcel(parcel(note="", inner=parcel()))
    assert returned.inner == parcel()
    assert returned.note == (None if row.differs("empty-optionals") else "")


def test_not_a_number_comes_back_as_such(everything: Any) -> None:
    assert math.isnan(everything.echo_ratio(math.nan))


def test_a_moment_keeps_its_meaning_in_any_zone(everything: Any, row: Row) -> None:
    moment = datetime(2024, 1, 1, 8, tzinfo=TOKYO)
    returned = everything.echo_moment(moment)
    assert returned == moment
    if row.differs("offsets"):
        assert (returned.utcoffset(), returned.tzname()) == (timedelta(hours=9), "UTC+09:00")
    else:
        assert returned.tzinfo is (TOKYO if row.differs("zones") else UTC)


def test_defaults_are_the_interfaces(everything: Any) -> None:
    assert everything.describe("tea") == "- tea 3"


def test_arguments_may_be_given_by_position_or_by_name(everything: Any) -> None:
    assert everything.describe("tea", 5) == "- tea 5"
    assert everything.describe(count=5, name="tea") == "- tea 5"
    assert everything.describe("tea", loud=True, title="") == " TEA 3"
    assert everything.describe("tea", 0, title="T") == "T tea 0"


@pytest.mark.parametrize("arguments", [(), ("tea", 1, True)], ids=["too few", "too many"])
def test_what_the_signature_refuses_is_a_type_error(everything: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="argument"):
        everything.describe(*arguments)


def test_an_unknown_keyword_is_a_type_error(everything: Any) -> None:
    with pytest.raises(TypeError, match="shout"):
        everything.describe("tea", shout=True)


def test_nothing_is_none(everything: Any) -> None:
    assert everything.nothing() is None


def test_an_argument_is_not_changed_by_the_plugin(everything: Any, row: Row) -> None:
    words = ["one"]
    assert everything.grow(words) == 2
    assert words == (["one", "more"] if row.differs("shared-values") else ["one"])


def test_a_result_is_the_hosts_own(everything: Any, row: Row) -> None:
    sent = parcel()
    assert (everything.echo_parcel(sent) is sent) is row.differs("shared-values")


@pytest.mark.parametrize(
    ("method", "value", "error"),
    [
        ("number", 2**63, OverflowError),
        ("number", "7", TypeError),
        ("text", None, TypeError),
        ("text", b"bytes", TypeError),
        ("words", "not a list", TypeError),
        ("words", ("a", "tuple"), TypeError),
        ("words", ["a", None], TypeError),
        ("moment", datetime(2024, 1, 1), ValueError),
        ("colour", "red", TypeError),
    ],
    ids=str,
)
def test_a_value_that_is_not_what_the_hint_says_is_refused(
    everything: Any, row: Row, method: str, value: object, error: type[Exception]
) -> None:
    call = getattr(everything, f"echo_{method}")
    if row.differs("unchecked-values"):
        assert call(value) == value
    else:
        with pytest.raises(error, match=rf"echo_{method}\(\) argument 'value"):
            call(value)


def test_the_object_is_an_instance_of_the_interface(everything: Any, row: Row) -> None:
    assert (Calls if row.differs("no-streams") else Everything) in type(everything).__mro__


def test_what_is_larger_than_max_message_fails_its_call_alone(everything: Any, row: Row) -> None:
    data = bytes(4_000_000)  # the row's limit is 3.5 MB, and what a Go plugin takes by itself 4 MiB
    if row.differs("any-size"):
        assert everything.echo_data(data) == data
        return
    with pytest.raises(RemoteError, match="larger than max") as caught:
        everything.echo_data(data)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert everything.echo_data(b"less") == b"less"
