"""What a plugin writes on standard error, read as log records.

The rules, read off go-plugin v1.8.0 (client.go, log_entry.go):

- A JSON object with `@message` is an hclog record: `@level`, `@timestamp`, `@module`, and any other key is a field.
- A text line that begins with `[TRACE]`, `[DEBUG]`, `[INFO]`, `[WARN]` or `[ERROR]` has that level.
- A line that begins with `panic: ` or `fatal error: ` turns the untagged lines after it into errors: they are the
  traceback of a Go program that is about to end.
- Any other line is debug.

A line that is longer than the limit comes in pieces, in order, each with the level of the first: nothing is lost and
memory stays bounded.

A plugin's words are data. They choose neither which attributes of a record are overwritten nor how many loggers there
are, for a logger is never freed. A message may reach a terminal, so its control characters are escaped; fields stay as
they are.

Pure but for `PluginLog`, which hands entries to `logging`: bytes in, entries out.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, ClassVar

import msgspec

from hybridload.control_characters import escape_controls
from hybridload.goplugin.last_words import PANICS

TRACE = 5
"""hclog's trace, which `logging` has no name for."""

MAX_LINE = 4 * 1024 * 1024
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
_RECORD_ATTRIBUTES = frozenset(dir(logging.makeLogRecord({}))) | {
    "asctime",
    "message",
    "plugin",
    "plugin_module",
    "taskName",
}
_LOGGERS = 400
_LONGEST_MODULE = 200
_DEEPEST_MODULE = 20
_DEEPEST_FIELD = 32
_FIELDS_SHOWN = 10
_LONGEST_SHOWN = 400


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

    def line(self) -> str:
        """The record as hclog prints it, ``message: key=value``: the reason is often in a field alone."""
        if not self.fields:
            return self.message
        shown = (f"{key[:_LONGEST_SHOWN]}={_shown(value)}" for key, value in islice(self.fields.items(), _FIELDS_SHOWN))
        return f"{self.message}: {' '.join(shown)}"


def _shown(value: object) -> str:
    """A field's value; of one with several lines, as a traceback, the last one, which says what it was."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    lines = text.rstrip().splitlines() or [""]
    last = lines[-1][:_LONGEST_SHOWN]
    return f'"{last}"' if isinstance(value, str) and " " in last else last


class LineSplitter:
    """Bytes in, lines out (without their line feed); a line longer than `limit` bytes comes in pieces.

    A piece ends between two characters where the line is UTF-8.
    """

    __slots__ = ("_limit", "_rest")

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Take more bytes; give each line or piece, and whether it ends a line."""
        lines = data.split(b"\n")
        pieces: list[tuple[bytes, bool]] = []
        if len(lines) > 1:
            self._rest += lines[0]
            self._cut(pieces)
            pieces.append((bytes(self._rest), True))
            self._rest.clear()
            for line in lines[1:-1]:
                if len(line) > self._limit:
                    self._rest += line
                    self._cut(pieces)
                    line = bytes(self._rest)
                    self._rest.clear()
                pieces.append((line, True))
        self._rest += lines[-1]
        self._cut(pieces)
        return pieces

    def finish(self) -> list[tuple[bytes, bool]]:
        """What is left when no more bytes come."""
        rest = bytes(self._rest)
        self._rest.clear()
        return [(rest, True)] if rest else []

    def _cut(self, pieces: list[tuple[bytes, bool]]) -> None:
        while len(self._rest) > self._limit:
            end = self._limit
            # At most three bytes follow the first one of a character.
            while end > self._limit - 3 and end > 1 and self._rest[end] & 0xC0 == 0x80:
                end -= 1
            pieces.append((bytes(self._rest[:end]), False))
            del self._rest[:end]


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
        if text.startswith(PANICS):
            self._panicking = True
        return LogEntry(logging.ERROR if self._panicking else logging.DEBUG, text)


_decode = msgspec.json.Decoder(dict[str, Any]).decode


def parse_hclog(text: str) -> LogEntry | None:
    """An hclog JSON line as an entry, or `None` when it is none."""
    try:
        record = _decode(text)
    except (ValueError, RecursionError):
        return None
    message = record.pop("@message", None)
    if not isinstance(message, str) or not _is_shallow(record, _DEEPEST_FIELD):
        return None
    level = record.pop("@level", None)
    module = record.pop("@module", None)
    return LogEntry(
        level=_LEVELS.get(level.lower(), logging.INFO) if isinstance(level, str) else logging.INFO,
        message=message,
        module=module if isinstance(module, str) else "",
        created=_seconds(record.pop("@timestamp", None)),
        fields=record,
    )


def _is_shallow(value: object, levels: int) -> bool:
    """Whether a value is nested so little that handlers, which format, copy and pickle records, can recurse into it."""
    if not isinstance(value, dict | list):
        return True
    return levels > 0 and all(
        _is_shallow(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value)
    )


def _seconds(timestamp: object) -> float | None:
    if not isinstance(timestamp, str):
        return None
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


class PluginLog:
    """Hands entries to `logging`, as the records that the plugin's own logger would have made.

    Fields become attributes of the record, as `extra` does; one that has the name of something a record has already,
    or that Python may look for, gets an underscore behind it. Every record also has `plugin` and `plugin_module`.

    :param logger: gets entries without a module.
    :param plugin: the plugin's name.
    :param modules: an entry that names a module goes to that child of it; `logger` by default. When a plugin names
        hundreds of modules in all its lives, or a name is absurd, what is too much goes to `logger`.
    """

    # Loggers are the process's, and so is the count of those that a plugin of a name had made, whoever ran it.
    _made: ClassVar[dict[str, set[str]]] = {}
    _making: ClassVar = threading.Lock()

    def __init__(self, logger: logging.Logger, plugin: str, modules: logging.Logger | None = None) -> None:
        self._logger = logger
        self._plugin = plugin
        self._parent = modules or logger
        self._children: dict[str, logging.Logger] = {"": logger}
        self._failed = False

    def emit(self, entry: LogEntry) -> None:
        """Hand on one entry."""
        target = self._children.get(entry.module) or self._child(entry.module)
        if not target.isEnabledFor(entry.level):
            return
        message = escape_controls(entry.message)
        record = target.makeRecord(target.name, entry.level, "(plugin)", 0, message, (), None)
        if entry.level == TRACE:
            record.levelname = "TRACE"
        if entry.created is not None:
            record.created = entry.created
            record.msecs = (entry.created - int(entry.created)) * 1000
        # The dictionary and not setattr: an attribute's name is kept for ever by some Pythons.
        attributes = record.__dict__
        attributes["plugin"] = self._plugin
        attributes["plugin_module"] = entry.module
        for key, value in entry.fields.items():
            attributes[key + "_" if key in _RECORD_ATTRIBUTES or key.startswith("__") else key] = value
        try:
            target.handle(record)
        except Exception:
            self._tell_of_a_failing_handler()

    def _tell_of_a_failing_handler(self) -> None:
        """Say once, where `logging` says such things, that a handler or filter raises; the plugin goes on."""
        if not self._failed and logging.raiseExceptions and sys.stderr is not None:
            self._failed = True
            traceback.print_exc(file=sys.stderr)

    def _child(self, module: str) -> logging.Logger:
        if (
            len(module) > _LONGEST_MODULE
            or module.count(".") > _DEEPEST_MODULE
            or not all(module.split("."))
            or not module.isprintable()
            or not self._may_make(module)
        ):
            return self._logger
        child = self._children[module] = self._parent.getChild(module)
        return child

    def _may_make(self, module: str) -> bool:
        """Count the loggers that this name would add, one for each of its parts; whether they are not too many."""
        known = self._parent.manager.loggerDict
        above = "" if self._parent is self._parent.root else f"{self._parent.name}."
        parts = module.split(".")
        added = {name for end in range(len(parts)) if (name := above + ".".join(parts[: end + 1])) not in known}
        if not added:
            return True
        with self._making:
            made = self._made.setdefault(self._plugin, set())
            if len(made | added) > _LOGGERS:
                return False
            made |= added
        return True
