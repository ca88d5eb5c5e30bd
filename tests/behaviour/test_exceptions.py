"""Exceptions of every sort: as themselves where both sides know them, with their story in any case."""

from __future__ import annotations

from typing import Any

import pytest
from behaviour_sdk import OutOfStock

from hybridload.errors import RemoteError

from .conftest import Row

CODES = {
    "value": "INVALID_ARGUMENT",
    "key": "NOT_FOUND",
    "unsupported": "UNIMPLEMENTED",
    "permission": "PERMISSION_DENIED",
    "timeout": "DEADLINE_EXCEEDED",
    "own": "UNKNOWN",
    "noted": "UNKNOWN",
}


def raised(everything: Any, how: str) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        everything.fail(how)
    return caught.value


@pytest.mark.parametrize(
    ("how", "kind", "arguments"),
    [
        ("value", ValueError, ("bad value", 42)),
        ("key", KeyError, ("missing",)),
        ("unsupported", NotImplementedError, ("not yet",)),
        ("permission", PermissionError, (13, "Permission denied")),
        ("timeout", TimeoutError, ("too slow",)),
        ("own", OutOfStock, ("apples", 3)),
        ("noted", RuntimeError, ("with notes",)),
    ],
)
def test_an_exception_that_both_sides_know_is_raised_as_itself(
    everything: Any, row: Row, how: str, kind: type[Exception], arguments: tuple[Any, ...]
) -> None:
    error = raised(everything, how)
    if row.differs("go-errors"):
        assert type(error) is RemoteError
        assert error.code == ("UNKNOWN" if row.differs("text-errors") else CODES[how])
        assert error.type_name == ""
    else:
        assert type(error) is kind
        assert error.args == arguments


def test_attributes_and_notes_come_along(everything: Any, row: Row) -> None:
    if row.differs("go-errors"):
        assert str(raised(everything, "noted")) == "noted"
        return
    assert raised(everything, "own").left == 0  # type: ignore[attr-defined]
    assert raised(everything, "permission").filename == "/secret"  # type: ignore[attr-defined]
    assert raised(everything, "noted").__notes__[:2] == ["first note", "second note"]


def test_where_it_was_raised_can_be_read(everything: Any, row: Row) -> None:
    error = raised(everything, "value")
    if row.differs("go-errors"):
        assert isinstance(error, RemoteError)
        assert error.remote_traceback == ""
    elif row.differs("own-frames"):
        assert error.__cause__ is None
        assert error.__traceback__ is not None
        frame = error.__traceback__
        while frame.tb_next is not None:
            frame = frame.tb_next
        assert frame.tb_frame.f_code.co_filename.endswith("behaviour_plugin/__init__.py")
    else:
        end = error.__cause__
        assert isinstance(end, RemoteError)
        assert 'behaviour_plugin/__init__.py", line' in end.remote_traceback
        assert end.type_name == "ValueError"
        assert end.code == "INVALID_ARGUMENT"


def test_the_chain_of_causes_comes_along(everything: Any, row: Row) -> None:
    error = raised(everything, "chained")
    if row.differs("go-errors"):
        assert error.__cause__ is None
        return
    assert isinstance(error, OutOfStock)
    assert isinstance(error.__cause__, KeyError)
    end = error.__cause__.__cause__
    assert end is None if row.differs("own-frames") else isinstance(end, RemoteError)


def test_a_group_comes_with_its_members(everything: Any, row: Row) -> None:
    error = raised(everything, "group")
    if row.differs("go-errors"):
        assert str(error) == "group"
        return
    assert isinstance(error, ExceptionGroup)
    assert [type(member) for member in error.exceptions] == [ValueError, OutOfStock]


def test_an_exception_that_only_the_plugin_knows(everything: Any, row: Row) -> None:
    error = raised(everything, "foreign")
    if row.differs("foreign-exceptions"):
        assert type(error).__name__ == "Foreign"
    else:
        assert isinstance(error, RemoteError)
        assert error.type_name == ("" if row.differs("go-errors") else "behaviour_plugin.Foreign")


def test_a_plugin_that_wants_to_exit_fails_the_call_alone(everything: Any, row: Row) -> None:
    error = raised(everything, "exit")
    assert isinstance(error, SystemExit if row.differs("exits") else RemoteError)
    assert everything.echo_text("still there") == "still there"


def test_stop_iteration_of_a_plain_method_is_no_end_of_anything(everything: Any, row: Row) -> None:
    error = raised(everything, "stop")
    assert isinstance(error, RemoteError if row.differs("go-errors") else StopIteration)


def test_an_exception_with_a_constructor_of_its_own(everything: Any, row: Row) -> None:
    error = raised(everything, "unicode")
    if row.differs("go-errors"):
        assert isinstance(error, RemoteError)
        return
    assert isinstance(error, UnicodeDecodeError)
    assert (error.encoding, error.start, error.end) == ("utf-8", 0, 1)


def test_a_long_message_arrives_as_an_error_and_not_as_a_broken_call(everything: Any, row: Row) -> None:
    error = raised(everything, "long")
    if row.differs("go-errors"):
        assert str(error) == "x" * 3000
        return
    assert type(error) is ValueError
    assert str(error).startswith("x" * 300)
    assert (len(str(error)) == 100_000) is row.differs("long-messages")
