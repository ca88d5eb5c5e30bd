"""A plugin's standard error, read as log records."""

import copy
import json
import logging
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridload.goplugin.logs import TRACE, LineSplitter, LogEntry, LogReader, PluginLog


def read(*chunks: bytes, limit: int = 1024 * 1024) -> list[LogEntry]:
    reader = LogReader(limit)
    return [entry for chunk in chunks for entry in reader.feed(chunk)] + reader.finish()


def test_an_hclog_record_keeps_its_level_module_time_and_fields() -> None:
    line = (
        b'{"@level":"warn","@message":"hot","@module":"a.b","@timestamp":"2026-11-23T10:00:00.250000Z",'
        b'"n":1,"t":{"x":2}}\n'
    )
    [entry] = read(line)
    assert entry == LogEntry(logging.WARNING, "hot", "a.b", 1795428000.25, {"n": 1, "t": {"x": 2}})


@pytest.mark.parametrize(
    ("tag", "level"),
    [("TRACE", TRACE), ("DEBUG", 10), ("INFO", 20), ("WARN", 30), ("ERROR", 40)],
)
def test_a_tag_gives_a_text_line_its_level(tag: str, level: int) -> None:
    assert read(f"[{tag}] text\n".encode()) == [LogEntry(level, f"[{tag}] text")]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "init error"),
        ({"error": "no room"}, 'init error: error="no room"'),
        (
            {"error": "EOF", "code": 3, "ok": False, "at": {"a": [1]}},
            'init error: error=EOF code=3 ok=false at={"a":[1]}',
        ),
        ({"exception": "Traceback:\n  File x\nValueError: bad\n"}, 'init error: exception="ValueError: bad"'),
        ({"empty": "", "none": None}, "init error: empty= none=null"),
        ({str(n): "x" * 1000 for n in range(100)}, "init error: " + " ".join(f"{n}={'x' * 400}" for n in range(10))),
    ],
)
def test_the_line_of_a_record_has_its_fields(fields: dict[str, object], line: str) -> None:
    [entry] = read(json.dumps({"@message": "init error", "@level": "error", **fields}).encode())
    assert entry.line() == line


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


@given(st.text(st.sampled_from("aé€😀"), min_size=1), st.integers(4, 9))
def test_a_line_over_the_limit_is_cut_between_characters(text: str, limit: int) -> None:
    pieces = [entry.message for entry in read(text.encode(), b"\n", limit=limit)]
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= limit for piece in pieces)


@given(st.lists(st.binary(max_size=30)), st.integers(4, 9))
def test_the_memory_for_a_line_is_bounded_whatever_comes(chunks: list[bytes], limit: int) -> None:
    splitter = LineSplitter(limit)
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)] + splitter.finish()
    assert all(len(piece) <= limit for piece, _ in pieces)
    whole = b"".join(piece + b"\n" * ends for piece, ends in pieces)
    assert whole.removesuffix(b"\n") == b"".join(chunks).removesuffix(b"\n")


@pytest.mark.parametrize(
    "line",
    [
        b"{" * 100_000,
        b'{"@message": "x", "n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"@message": "\\ud800"}',
        b'{"@message": "x", "n": NaN}',
        b'{"@message": null}',
        b'{"@message": "x"} trailing',
        b'{"@message": "\xff"}',
        b'["@message"]',
    ],
)
def test_what_is_almost_an_hclog_record_is_still_a_line_that_can_be_printed(line: bytes) -> None:
    [entry] = read(line + b"\n")
    entry.message.encode()


@pytest.mark.parametrize(
    "timestamp", ["", "now", "0001-01-01T00:00:00", "9999-12-31T23:59:59-23:59", "2026-13-01T00:00:00Z", "1e9999"]
)
def test_a_timestamp_that_is_none_is_left_out(timestamp: str) -> None:
    [entry] = read(json.dumps({"@message": "m", "@timestamp": timestamp}).encode())
    assert entry.message == "m"
    assert logging.Formatter("%(asctime)s").format(record_of(entry))


def record_of(entry: LogEntry, *, name: str = "hybridload.plugin.test") -> logging.LogRecord:
    """The record that the entry becomes."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    logger.setLevel(TRACE)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        PluginLog(logger, "test").emit(entry)
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    [record] = records
    return record


@pytest.mark.parametrize(
    "key",
    [
        *("getMessage", "__class__", "__dict__", "msg", "args", "exc_info", "levelno", "created", "message", "plugin"),
        *("__deepcopy__", "__getnewargs_ex__", "__getstate__", "__reduce__", "__setstate__", "__copy__"),
    ],
)
def test_no_field_takes_the_place_of_what_a_record_has(key: str) -> None:
    record = record_of(LogEntry(logging.INFO, "said", fields={key: {"a": 1}}))
    assert getattr(record, key + "_") == {"a": 1}
    assert logging.Formatter("%(levelname)s %(message)s").format(record) == "INFO said"
    for again in (copy.copy(record), copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
        assert again.__dict__ == record.__dict__


@pytest.mark.parametrize(
    ("value", "is_record"),
    [("[" * 30 + "]" * 30, True), ("[" * 40 + "]" * 40, False), ('{"a":' * 500 + "1" + "}" * 500, False)],
)
def test_fields_that_handlers_could_not_recurse_into_are_no_fields(value: str, is_record: bool) -> None:
    [entry] = read(f'{{"@message":"m","deep":{value}}}'.encode())
    assert (entry.message == "m") is is_record
    copy.deepcopy(record_of(entry))


@pytest.mark.parametrize("written", ["\x1b[2J", "\x07", "\r", "\x9b2J", "\u202e", "\x7f"])
def test_a_message_has_no_control_characters(written: str) -> None:
    [entry] = read(json.dumps({"@message": f"a{written}b\tc\nd", "field": written, "@module": f"m{written}"}).encode())
    record = record_of(entry)
    assert (
        record.getMessage()
        == f"a{''.join(f'{chr(92)}u{ord(c):04x}' if not c.isprintable() else c for c in written)}b\tc\nd"
    )
    assert record.field == written  # type: ignore[attr-defined]
    assert record.name == "hybridload.plugin.test"


def test_a_plugin_can_make_only_so_many_loggers() -> None:
    logger = logging.getLogger("hybridload.plugin.hostile")
    for life in range(5):
        log = PluginLog(logger, "hostile")
        for number in range(400):
            log.emit(LogEntry(logging.DEBUG, "m", f"module{life}{number}.with.parts"))
    for module in ("x" * 10_000, ".".join("y" * 1000), "..", "a..b", "."):
        log.emit(LogEntry(logging.DEBUG, "m", module))
    made = [name for name in logging.root.manager.loggerDict if name.startswith("hybridload.plugin.hostile.")]
    assert 100 < len(made) < 500


def test_a_record_says_which_module_it_is_of_even_when_that_has_no_logger() -> None:
    record = record_of(LogEntry(logging.INFO, "m", "a..b"))
    assert record.name == "hybridload.plugin.test"
    assert record.plugin_module == "a..b"  # type: ignore[attr-defined]


def test_an_entry_becomes_the_record_that_its_own_logger_would_have_made(caplog: pytest.LogCaptureFixture) -> None:
    [entry] = read(
        json.dumps({"@message": "100% sure", "@level": "info", "@module": "m", "user": "ada", "name": "x"}).encode()
    )
    with caplog.at_level(logging.DEBUG):
        PluginLog(logging.getLogger("hybridload.plugin.greeter"), "greeter").emit(entry)
    [record] = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == ("hybridload.plugin.greeter.m", 20, "100% sure")
    assert (record.user, record.plugin, record.name_) == ("ada", "greeter", "x")  # type: ignore[attr-defined]
