"""What a plugin writes on standard error, read as log records.

The rules, read off go-plugin v1.8.0 (client.go, log_entry.go):

- A JSON object with `@message` is an hclog record: `@level`, `@timestamp`, `@module`, and any other key is a field.
- A text line that begins with `[TRACE]`, `[DEBUG]`, `[INFO]`, `[WARN]` or `[ERROR]` has that level.
- A line that begins with `panic: ` or `fatal error: ` turns the untagged lines after it into errors: they are the
  traceback of a Go program that is about to end.
- Any other line is debug.

A line that is longer than the limit comes in pieces, in order, each with the level of the first: nothing is lost and
memory stays bounded. Pure: bytes in, entries out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

TRACE = 5
"""hclog's trace, which `logging` has no name for."""

MAX_LINE = 1024 * 1024
"""Bytes of one line that are kept together."""

_LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
_TAGS = {
    "[TRACE]": TRACE,
    "[DEBUG]": logging.DEBUG,
    "[INFO]": logging.INFO,
    "[WARN]": logging.WARNING,
    "[ERROR]": logging.ERROR,
}
_RECORD_ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "plugin"}


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One log record of a plugin.

    :param level: a level of `logging`, or `TRACE`.
    :param module: the hclog logger's name; empty when the line had none.
    :param created: seconds since the epoch; `None` when the line had no time.
    :param fields: every key of an hclog record that is not one of its own.
    """

    level: int
    message: str
    module: str = ""
    created: float | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


class LineSplitter:
    """Bytes in, lines out (without their line feed); a line longer than `limit` bytes comes in pieces."""

    __slots__ = ("_limit", "_rest")

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Take more bytes; give each line or piece, and whether it ends a line."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        pieces: list[tuple[bytes, bool]] = []
        for line in lines:
            while len(line) > self._limit:
                pieces.append((line[: self._limit], False))
                line = line[self._limit :]
            pieces.append((line, True))
        while len(self._rest) > self._limit:
            pieces.append((self._rest[: self._limit], False))
            self._rest = self._rest[self._limit :]
        return pieces

    def finish(self) -> list[tuple[bytes, bool]]:
        """What is left when no more bytes come."""
        rest, self._rest = self._rest, b""
        return [(rest, True)] if rest else []


class LogReader:
    """Reads a plugin's standard error into log entries."""

    __slots__ = ("_continued", "_lines", "_panicking")

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._lines = LineSplitter(limit)
        self._panicking = False
        self._continued: LogEntry | None = None

    def feed(self, data: bytes) -> list[LogEntry]:
        """Take more bytes; give the entries that they complete."""
        return [self._read(line, ends) for line, ends in self._lines.feed(data)]

    def finish(self) -> list[LogEntry]:
        """The entry of a last line that no line feed ended."""
        return [self._read(line, ends) for line, ends in self._lines.finish()]

    def _read(self, raw: bytes, ends: bool) -> LogEntry:
        text = raw.decode("utf-8", "replace").rstrip("\r")
        if self._continued is not None:
            entry = LogEntry(self._continued.level, text, self._continued.module)
        else:
            entry = self._parse(text)
        self._continued = None if ends else entry
        return entry

    def _parse(self, text: str) -> LogEntry:
        if text.startswith("{"):
            entry = parse_hclog(text)
            if entry is not None:
                return entry
        if text.startswith("["):
            tag, closed, _ = text.partition("]")
            level = _TAGS.get(tag + closed)
            if level is not None:
                return LogEntry(level, text)
        if text.startswith(("panic: ", "fatal error: ")):
            self._panicking = True
        return LogEntry(logging.ERROR if self._panicking else logging.DEBUG, text)


def parse_hclog(text: str) -> LogEntry | None:
    """An hclog JSON line as an entry, or `None` when it is none."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("@message"), str):
        return None
    level = record.pop("@level", None)
    module = record.pop("@module", None)
    message = record.pop("@message")
    return LogEntry(
        level=_LEVELS.get(level.lower(), logging.INFO) if isinstance(level, str) else logging.INFO,
        message=message,
        module=module if isinstance(module, str) else "",
        created=_seconds(record.pop("@timestamp", None)),
        fields=record,
    )


def _seconds(timestamp: object) -> float | None:
    if not isinstance(timestamp, str):
        return None
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except (ValueError, OverflowError):
        return None


def emit(entry: LogEntry, logger: logging.Logger, plugin: str, modules: logging.Logger | None = None) -> None:
    """Hand an entry to `logging`, as the record that the plugin's own logger would have made.

    Fields become attributes of the record, as `extra` does; one that would overwrite an attribute of the record gets
    an underscore behind it.

    :param logger: gets entries without a module.
    :param plugin: the plugin's name, which the record carries as `record.plugin`.
    :param modules: an entry that names a module goes to that child of it; `logger` by default.
    """
    target = (modules or logger).getChild(entry.module) if entry.module else logger
    if not target.isEnabledFor(entry.level):
        return
    record = target.makeRecord(target.name, entry.level, "(plugin)", 0, entry.message, (), None)
    if entry.level == TRACE:
        record.levelname = "TRACE"
    if entry.created is not None:
        record.created = entry.created
        record.msecs = (entry.created - int(entry.created)) * 1000
    record.plugin = plugin
    for key, value in entry.fields.items():
        setattr(record, key + "_" if key in _RECORD_ATTRIBUTES else key, value)
    target.handle(record)
