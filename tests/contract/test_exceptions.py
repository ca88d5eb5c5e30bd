"""Exceptions as data: what is raised again as itself, what becomes a RemoteError, and how large it may get."""

from __future__ import annotations

import errno
import traceback
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridload.contract import Contract, Status, decode_exception, encode_exception
from hybridload.contract.exceptions import LIMIT
from hybridload.errors import CallTimeout, PluginClosed, RemoteError


class Quota(Exception):
    """Its constructor takes other arguments than it has in `args`."""

    made = 0

    def __init__(self, who: str, *, limit: int) -> None:
        super().__init__(f"{who} is over {limit}")
        self.limit = limit
        type(self).made += 1


class Store(Protocol):
    class Missing(LookupError):
        pass

    def get(self, key: str) -> str: ...


STORE = Contract(Store)


class Elsewhere(Protocol):
    def get(self, key: str) -> str: ...


Elsewhere.__module__ = "collections"  # a module that binds none of these exceptions
ELSEWHERE = Contract(Elsewhere)


def caught(raising: Callable[[], Any]) -> BaseException:
    try:
        raising()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def raised(error: BaseException) -> BaseException:
    def raising() -> None:
        raise error

    return caught(raising)


def travel(error: BaseException, contract: Contract[Any] = STORE, **options: Any) -> Exception:
    return decode_exception(encode_exception(raised(error), contract), contract, "shop", **options)


def chain(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        ValueError(),
        KeyError("k"),
        IndexError("out", 3, None, 1.5, b"\0", True, -(2**200)),
        RuntimeError(("a", ("b", 1))),
        ZeroDivisionError("x"),
        UnicodeDecodeError("utf-8", b"ab\xff", 2, 3, "invalid start byte"),
        UnicodeEncodeError("ascii", "ab\udc80", 2, 3, "ordinal not in range"),
        UnicodeTranslateError("äbc", 0, 1, "no"),
        SyntaxError("bad", ("f.py", 1, 2, "text\n", 1, 3)),
        AssertionError("no"),
        UserWarning("careful"),
        StopIteration(3),
    ],
    ids=repr,
)
def test_builtins_are_raised_as_themselves(error: Exception) -> None:
    received = travel(error)
    assert type(received) is type(error)
    assert received.args == error.args
    assert str(received) == str(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, "gone", "a.txt"),
        PermissionError(errno.EACCES, "no", "a", None, "b"),
        OSError(errno.ECONNRESET, "reset"),
        OSError("just words"),
        BlockingIOError(errno.EAGAIN, "later"),
    ],
    ids=repr,
)
def test_os_errors_keep_their_parts(error: OSError) -> None:
    received = travel(error)
    assert isinstance(received, OSError)
    assert type(received) is type(error)
    assert (received.errno, received.strerror, received.filename, received.filename2) == (
        error.errno,
        error.strerror,
        error.filename,
        error.filename2,
    )
    assert (received.args, str(received)) == (error.args, str(error))


def test_attributes_and_notes_come_along() -> None:
    error: Any = ValueError("bad")
    error.retry_after = 3
    error.handle = object()
    error.add_note("seen at dawn")
    received: Any = travel(error)
    assert received.retry_after == 3
    assert not hasattr(received, "handle")
    assert received.__notes__ == ["seen at dawn"]
    missing: Any = travel(ModuleNotFoundError("no", name="acme", path="/x"))
    assert (missing.name, missing.path) == ("acme", "/x")


def test_an_argument_that_is_no_scalar_arrives_as_its_repr() -> None:
    assert travel(ValueError({"a": 1}, [2])).args == ("{'a': 1}", "[2]")


def test_classes_of_the_interfaces_module_are_known_and_their_constructor_is_not_called() -> None:
    error = Quota("me", limit=3)
    made = Quota.made
    received = travel(error)
    assert type(received) is Quota
    assert (str(received), received.limit, Quota.made) == ("me is over 3", 3, made)


def test_classes_nested_in_the_interface_are_known() -> None:
    assert type(travel(Store.Missing("k"))) is Store.Missing


def test_unknown_classes_become_remote_errors() -> None:
    received = travel(Quota("me", limit=3), ELSEWHERE)
    assert type(received) is RemoteError
    assert received.type_name == f"{__name__}.Quota"
    assert str(received) == f"{__name__}.Quota: me is over 3"
    assert received.remote_traceback.startswith("Traceback (most recent call last):\n")
    assert received.remote_traceback.endswith("Quota: me is over 3\n")
    assert (received.plugin, received.code) == ("shop", "UNKNOWN")
    assert received.remote_traceback.strip() in "".join(traceback.format_exception(received))


def test_listed_classes_are_known() -> None:
    contract = Contract(Elsewhere, errors=[Quota])
    assert type(travel(Quota("me", limit=3), contract)) is Quota
    name = Quota.__module__
    Quota.__module__ = "__main__"  # as when the plugin's module is the program
    try:
        status = encode_exception(Quota("me", limit=3), contract)
    finally:
        Quota.__module__ = name
    assert type(decode_exception(status, contract, None)) is Quota


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_what_ends_programs_is_never_rebuilt(error: BaseException) -> None:
    received = travel(error)
    assert type(received) is RemoteError
    assert received.type_name == type(error).__name__


def test_our_own_errors_speak_of_another_plugin() -> None:
    assert type(travel(PluginClosed("gone"))) is RemoteError
    assert type(travel(CallTimeout("late"))) is RemoteError


@pytest.mark.parametrize(
    "name", ["eval", "object", "__import__", "os.system", "Exception.__init__", "", "BaseException"]
)
def test_a_name_that_is_no_exception_is_only_text(name: str) -> None:
    kind = type(name, (Exception,), {"__module__": "builtins", "__qualname__": name})
    assert type(travel(kind("x"))) is RemoteError


def test_the_cause_chain_is_rebuilt_and_ends_in_the_remote_error() -> None:
    def raising() -> None:
        try:
            try:
                _ = {}["k"]  # type: ignore[var-annotated]
            except KeyError as error:
                raise Quota("me", limit=3) from error
        except Quota as error:
            raise ValueError("bad") from error

    error = caught(raising)
    received = decode_exception(encode_exception(error, STORE), STORE, "shop")
    kinds = [type(each) for each in chain(received)]
    assert kinds == [ValueError, Quota, KeyError, RemoteError]
    end = chain(received)[-1]
    assert isinstance(end, RemoteError)
    assert end.remote_traceback == "".join(traceback.format_exception(error))
    unknown = decode_exception(encode_exception(error, ELSEWHERE), ELSEWHERE, "shop")
    assert [type(each) for each in chain(unknown)] == [ValueError, RemoteError, KeyError, RemoteError]


def test_the_context_comes_along() -> None:
    def raising() -> None:
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            raise ValueError("bad")  # noqa: B904

    received = decode_exception(encode_exception(caught(raising), STORE), STORE, None)
    assert type(received.__context__) is ZeroDivisionError
    assert type(received.__cause__) is RemoteError


def test_groups_are_rebuilt_with_their_members() -> None:
    group = ExceptionGroup("many", [ValueError("a"), ExceptionGroup("inner", [Quota("me", limit=1)])])
    received = travel(group)
    assert type(received) is ExceptionGroup
    assert received.message == "many"
    assert [type(member) for member in received.exceptions] == [ValueError, ExceptionGroup]
    assert type(received.exceptions[1].exceptions[0]) is Quota
    mixed = travel(BaseExceptionGroup("mixed", [ValueError("a"), KeyboardInterrupt()]))
    assert type(mixed) is RemoteError


def test_stop_iteration_does_not_end_a_stream_quietly() -> None:
    assert type(travel(StopIteration(3))) is StopIteration
    received = travel(StopIteration(3), stream=True)
    assert type(received) is RuntimeError
    assert [type(each) for each in chain(received)] == [RuntimeError, StopIteration, RemoteError]
    assert type(travel(StopAsyncIteration(), stream=True)) is RuntimeError


def test_an_exception_survives_a_hop_that_does_not_know_it() -> None:
    hop = travel(Quota("me", limit=3), ELSEWHERE)
    received = travel(hop)
    assert type(received) is Quota
    assert str(received) == "me is over 3"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), "INVALID_ARGUMENT"),
        (TypeError("x"), "INVALID_ARGUMENT"),
        (KeyError("x"), "NOT_FOUND"),
        (FileNotFoundError(2, "x"), "NOT_FOUND"),
        (FileExistsError(17, "x"), "ALREADY_EXISTS"),
        (PermissionError(13, "x"), "PERMISSION_DENIED"),
        (NotImplementedError("x"), "UNIMPLEMENTED"),
        (TimeoutError("x"), "DEADLINE_EXCEEDED"),
        (IndexError("x"), "OUT_OF_RANGE"),
        (OverflowError("x"), "OUT_OF_RANGE"),
        (MemoryError(), "RESOURCE_EXHAUSTED"),
        (RuntimeError("x"), "UNKNOWN"),
        (RemoteError("x", code="ABORTED"), "ABORTED"),
    ],
    ids=repr,
)
def test_hosts_in_other_languages_get_a_code_and_a_message(error: Exception, code: str) -> None:
    status = encode_exception(error, STORE)
    assert status.code == code
    assert status.message == (str(error) or type(error).__name__)


def test_a_go_error_is_a_remote_error_with_its_code() -> None:
    received = decode_exception(Status("NOT_FOUND", "no such key"), STORE, "gopher")
    assert type(received) is RemoteError
    assert (str(received), received.code, received.plugin) == ("no such key", "NOT_FOUND", "gopher")
    assert (received.type_name, received.remote_traceback) == ("", "")
    hop = travel(received)
    assert type(hop) is RemoteError
    assert (str(hop), hop.code) == ("no such key", "NOT_FOUND")


@given(st.binary())
def test_any_details_are_read_or_ignored(details: bytes) -> None:
    received = decode_exception(Status("UNKNOWN", "x", details), STORE, None)
    assert isinstance(received, Exception)


def sent_size(status: Status) -> int:
    unescaped = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")  # as gRPC has it
    return len(quote(status.message, safe=unescaped)) + len(b64encode(status.details or b""))


def deep(levels: int) -> None:
    try:
        if levels:
            deep(levels - 1)
        raise ValueError("deep " * 50)
    except Exception as error:
        raise RuntimeError(f"level {levels} " * 20) from error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("é" * 100_000),
        ValueError(*range(10_000)),
        ValueError(*["x" * 1000] * 100),
        ValueError("\ud800" * 10_000),
        UnicodeDecodeError("utf-8", b"\xff" * 100_000, 50_000, 50_001, "bad"),
        ExceptionGroup("g" * 5000, [ValueError("y" * 3000)] * 100),
        caught(lambda: deep(30)),
        type("N" * 5000, (Exception,), {})("x"),
    ],
    ids=["text", "many", "texts", "surrogates", "unicode", "group", "deep", "name"],
)
def test_the_whole_stays_under_six_kilobytes(error: Exception) -> None:
    error.add_note("n" * 20_000)
    for number in range(100):
        setattr(error, f"attribute{number}", "v" * 500)
    status = encode_exception(raised(error), STORE)
    assert sent_size(status) < LIMIT
    assert status.details is not None
    received = decode_exception(status, STORE, None)
    assert isinstance(received, Exception)


def test_a_long_traceback_loses_its_middle() -> None:
    end = chain(decode_exception(encode_exception(caught(lambda: deep(30)), STORE), STORE, None))[-1]
    assert isinstance(end, RemoteError)
    assert "[…]" in end.remote_traceback
    assert end.remote_traceback.startswith("Traceback (most recent call last):")
    assert "RuntimeError: level 30" in end.remote_traceback[-400:]


def test_an_exception_whose_own_methods_fail_still_travels() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

        def __repr__(self) -> str:
            raise ValueError("no repr")

    received = travel(Broken(object()))
    assert type(received) is RemoteError
    assert "<str() of this Broken raised ValueError>" in str(received)


def test_a_loop_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert isinstance(travel(first), ValueError)
