"""Log records as hclog JSON."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybridload.goplugin.logs import LogReader, parse_hclog
from hybridload.goplugin.serve_logs import HclogHandler, InstalledLogging, hclog_level


class Pipe:
    """Where the handler writes, and what it wrote."""

    def __init__(self) -> None:
        self.file = os.memfd_create("log")
        self.handler = HclogHandler(descriptor=self.file)

    def raw(self) -> bytes:
        return os.pread(self.file, 64 * 1024 * 1024, 0)

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line, parse_constant=reject) for line in self.raw().splitlines()]

    def clear(self) -> None:
        os.ftruncate(self.file, 0)
        os.lseek(self.file, 0, os.SEEK_SET)


def reject(constant: str) -> None:
    raise AssertionError(f"Go does not read {constant}")


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.file)


@pytest.fixture
def logger(pipe: Pipe) -> Iterator[logging.Logger]:
    made = logging.Logger("some.module")
    made.addHandler(pipe.handler)
    yield made
    made.removeHandler(pipe.handler)


def test_a_record_has_what_hclog_has(pipe: Pipe, logger: logging.Logger) -> None:
    logger.warning("hello %s", "you", extra={"count": 3})
    (record,) = pipe.records()
    timestamp = record.pop("@timestamp")
    assert record == {"@level": "warn", "@message": "hello you", "@module": "some.module", "count": 3}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", timestamp)
    assert abs(datetime.fromisoformat(timestamp).timestamp() - datetime.now().timestamp()) < 60


@pytest.mark.parametrize(
    ("level", "name"),
    [(1, "trace"), (5, "trace"), (10, "debug"), (19, "debug"), (20, "info"), (25, "info"), (30, "warn"), (40, "error")],
)
def test_a_level_is_the_next_lower_one_that_hclog_has(level: int, name: str) -> None:
    assert hclog_level(level) == name


def test_a_level_that_hclog_lacks_is_kept_as_a_number(pipe: Pipe, logger: logging.Logger) -> None:
    logger.critical("a")
    logger.log(35, "b")
    logger.error("c")
    assert [(r["@level"], r.get("python_level")) for r in pipe.records()] == [
        ("error", 50),
        ("warn", 35),
        ("error", None),
    ]


def test_a_second_without_a_fraction_has_six_decimals_as_well(pipe: Pipe, logger: logging.Logger) -> None:
    record = logger.makeRecord("x", logging.INFO, "", 0, "x", (), None)
    record.created = 1700000000.0
    pipe.handler.emit(record)
    record.created = 1e300
    pipe.handler.emit(record)
    assert [r["@timestamp"] for r in pipe.records()] == ["2023-11-14T22:13:20.000000Z", "1970-01-01T00:00:00.000000Z"]


def test_values_that_json_lacks_are_texts(pipe: Pipe, logger: logging.Logger) -> None:
    class Bad:
        def __str__(self) -> str:
            raise ValueError

    extra = {
        "nan": math.nan,
        "inf": -math.inf,
        "huge": 10**400,
        "bytes": b"x",
        "set": {1},
        "nested": {"a": [1, (2, None)], 3: True},
        "bad": Bad(),
        "surrogate": "\udc80",
        "@level": "mine",
        "nothing": None,
    }
    logger.info("x", extra=extra)
    (record,) = pipe.records()
    assert record["@level"] == "info"
    assert record["_level"] == "mine"
    assert (record["nan"], record["inf"], record["bytes"], record["set"]) == ("nan", "-inf", "b'x'", [1])
    assert record["nested"] == {"a": [1, [2, None]], "3": True}
    assert record["huge"].startswith("1000")
    assert "Bad" in record["bad"]
    assert record["surrogate"] == "\\udc80"
    assert record["nothing"] is None


def test_a_value_that_contains_itself_ends(pipe: Pipe, logger: logging.Logger) -> None:
    loop: list[Any] = []
    loop.append(loop)
    logger.info("x", extra={"loop": loop})
    assert len(pipe.records()) == 1


def test_exceptions_and_stacks_are_fields(pipe: Pipe, logger: logging.Logger) -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        logger.exception("it failed", stack_info=True)
    (record,) = pipe.records()
    assert record["@message"] == "it failed"
    assert record["exception"].startswith("Traceback")
    assert record["exception"].endswith("ValueError: boom")
    assert record["stack"].startswith("Stack")


def test_a_record_that_cannot_be_formatted_is_logged_all_the_same(pipe: Pipe, logger: logging.Logger) -> None:
    logger.info("%d apples", "two")
    logger.info("%s %s", "one")
    records = pipe.records()
    assert records[0]["@message"] == "%d apples ('two',)"
    assert "format_error" in records[0]
    assert len(records) == 2


def test_a_message_of_several_lines_is_one_line(pipe: Pipe, logger: logging.Logger) -> None:
    logger.info("a\nb\r\n\0c")
    assert pipe.raw().count(b"\n") == 1
    assert pipe.records()[0]["@message"] == "a\nb\r\n\0c"


@pytest.mark.parametrize(
    "text", ["x", "é", "\0", "𝄞", '"', "\udc80"], ids=["ascii", "latin", "control", "astral", "quote", "surrogate"]
)
def test_a_long_message_comes_in_parts_that_are_whole_together(pipe: Pipe, logger: logging.Logger, text: str) -> None:
    message = text * 100_000
    logger.error(message, extra={"key": 1})
    records = pipe.records()
    assert "".join(record["@message"] for record in records) == message.replace("\udc80", "\\udc80")
    assert [record["part"] for record in records] == [f"{n}/{len(records)}" for n in range(1, len(records) + 1)]
    assert {record["@level"] for record in records} == {"error"}
    assert [record.get("key") for record in records] == [1] + [None] * (len(records) - 1)
    assert max(map(len, pipe.raw().splitlines())) < 65_000


def test_long_fields_are_cut_in_the_middle(pipe: Pipe, logger: logging.Logger) -> None:
    logger.info("x", extra={"long": "a" * 10_000 + "b" * 10_000})
    value = pipe.records()[0]["long"]
    assert value.startswith("aaaa")
    assert value.endswith("bbbb")
    assert "12000 characters left out" in value


def test_many_fields_fit_into_a_line(pipe: Pipe, logger: logging.Logger) -> None:
    logger.info("x", extra={f"{n}" * 100: "\0" * 10_000 for n in range(500)})
    logger.info("y", extra={f"k{n}": list(range(100)) for n in range(500)})
    assert [record["@message"] for record in pipe.records()] == ["x", "y"]
    assert max(map(len, pipe.raw().splitlines())) < 65_000


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    message=st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    name=st.text(max_size=20),
    level=st.integers(0, 100),
    extra=st.dictionaries(
        st.text(max_size=10).map(lambda key: f"k{key}"),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.binary(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        ),
        max_size=4,
    ),
)
def test_whatever_is_logged_our_host_reads_it_back(
    pipe: Pipe, message: str, name: str, level: int, extra: dict[str, Any]
) -> None:
    pipe.clear()
    record = logging.LogRecord(name, level, "", 0, message, None, None)
    record.__dict__.update(extra)
    pipe.handler.emit(record)
    assert pipe.raw().count(b"\n") == 1
    entry = parse_hclog(pipe.raw().decode())
    assert entry is not None
    assert entry.message == message
    assert entry.created == pytest.approx(record.created, abs=1e-5)
    assert [found.message for found in LogReader().feed(pipe.raw())] == [message]


def test_a_descriptor_that_is_gone_or_full_hurts_nobody() -> None:
    logger = logging.Logger("x")
    reader, writer = os.pipe()
    os.close(reader)
    logger.addHandler(HclogHandler(descriptor=writer))
    logger.error("nobody reads this")
    os.close(writer)
    logger.error("nor this")


def test_a_non_blocking_descriptor_gets_everything() -> None:
    import threading

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    logger = logging.Logger("x")
    logger.addHandler(HclogHandler(descriptor=writer))

    def write() -> None:
        for _ in range(100):
            logger.error("x" * 10_000)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reader, "rb") as file:
        assert len(file.read().splitlines()) == 100
    thread.join()


@contextmanager
def unconfigured_root() -> Iterator[logging.Logger]:
    """The root logger as a program begins with it. No fixture: pytest adds handlers of its own to each phase."""
    found = logging.getLogger()
    handlers, level = list(found.handlers), found.level
    found.handlers[:] = []
    found.setLevel(logging.WARNING)
    try:
        yield found
    finally:
        found.handlers[:] = handlers
        found.setLevel(level)


def test_an_unconfigured_root_logger_logs_everything_from_debug() -> None:
    with unconfigured_root() as root:
        installed = InstalledLogging()
        assert root.level == logging.DEBUG
        assert [type(handler) for handler in root.handlers] == [HclogHandler]
        installed.restore()
        installed.restore()
        assert root.level == logging.WARNING
        assert root.handlers == []


def configure_level(root: logging.Logger) -> list[logging.Handler]:
    root.setLevel(logging.ERROR)
    return []


def configure_text(root: logging.Logger) -> list[logging.Handler]:
    root.addHandler(logging.StreamHandler(sys.stderr))
    return []


def configure_null(root: logging.Logger) -> list[logging.Handler]:
    handler = logging.NullHandler()
    root.addHandler(handler)
    return [handler]


@pytest.mark.parametrize("configure", [configure_level, configure_text, configure_null])
def test_what_a_program_configured_is_kept_but_nothing_is_said_twice(
    configure: Callable[[logging.Logger], list[logging.Handler]],
) -> None:
    with unconfigured_root() as root:
        kept = configure(root)
        before = root.level, list(root.handlers)
        installed = InstalledLogging()
        assert root.level == before[0]
        assert root.handlers[:-1] == kept
        assert isinstance(root.handlers[-1], HclogHandler)
        installed.restore()
        assert (root.level, root.handlers) == before
