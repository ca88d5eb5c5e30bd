"""A plugin's standard error, read as log records."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridload.goplugin.logs import TRACE, LogEntry, LogReader, emit


def read(*chunks: bytes, limit: int = 1024 * 1024) -> list[LogEntry]:
    reader = LogReader(limit)
    return [entry for chunk in chunks for entry in reader.feed(chunk)] + reader.finish()


def test_an_hclog_record_keeps_its_level_module_time_and_fields() -> None:
    line = b'{"@level":"warn","@message":"hot","@module":"a.b","@timestamp":"2026-11-23T10:00:00.250000Z","n":1,"t":{"x":2}}\n'
    [entry] = read(line)
    assert entry == LogEntry(logging.WARNING, "hot", "a.b", 1795428000.25, {"n": 1, "t": {"x": 2}})


@pytest.mark.parametrize(
    ("tag", "level"),
    [("TRACE", TRACE), ("DEBUG", 10), ("INFO", 20), ("WARN", 30), ("ERROR", 40)],
)
def test_a_tag_gives_a_text_line_its_level(tag: str, level: int) -> None:
    assert read(f"[{tag}] text\n".encode()) == [LogEntry(level, f"[{tag}] text")]


def test_any_other_line_is_debug() -> None:
    assert [entry.level for entry in read(b'plain\n{"no": "message"}\n{broken\n[OTHER] x\n{"@message": 3}\n')] == [
        10
    ] * 5


def test_what_follows_a_panic_is_an_error() -> None:
    levels = [entry.level for entry in read(b"before\npanic: no\n\ngoroutine 1\n[INFO] tagged\nmain.go:3\n")]
    assert levels == [10, 40, 40, 40, 20, 40]


def test_a_last_line_without_a_line_feed_is_not_lost() -> None:
    assert [entry.message for entry in read(b"one\ntw", b"o")] == ["one", "two"]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r")), max_size=8), st.data())
def test_nothing_is_lost_or_reordered_wherever_the_chunks_end(lines: list[str], data: st.DataObject) -> None:
    whole = "".join(line + "\n" for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    chunks = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert [entry.message for entry in read(*chunks)] == lines


def test_a_line_over_the_limit_comes_in_pieces_with_the_level_of_the_first() -> None:
    entries = read(b"[ERROR] " + b"x" * 100 + b"\nnext\n", limit=40)
    assert "".join(entry.message for entry in entries[:-1]) == "[ERROR] " + "x" * 100
    assert [entry.level for entry in entries] == [40, 40, 40, 10]


def test_an_entry_becomes_the_record_that_its_own_logger_would_have_made(caplog: pytest.LogCaptureFixture) -> None:
    [entry] = read(
        json.dumps({"@message": "100% sure", "@level": "info", "@module": "m", "user": "ada", "name": "x"}).encode()
    )
    with caplog.at_level(logging.DEBUG):
        emit(entry, logging.getLogger("hybridload.plugin.greeter"), "greeter")
    [record] = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == ("hybridload.plugin.greeter.m", 20, "100% sure")
    assert (record.user, record.plugin, record.name_) == ("ada", "greeter", "x")  # type: ignore[attr-defined]
