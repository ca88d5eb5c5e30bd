"""Python's `logging` as hclog JSON on standard error, where a go-plugin host reads log lines.

What a Go host asks of a line, read off go-plugin v1.8.0 (log_entry.go, client.go): the values of the `@` keys are
strings and `@timestamp` has exactly six decimals, or the host panics or takes the line for text; a line that does not
fit into its buffer (64 KiB by default) is logged as text in pieces. So here

- a message too long for one line is sent as several records, each with the field `part` ("1/3"), and nothing is lost;
- the text of a field is cut in its middle at `FIELD_LIMIT`, and says so;
- one write(2) carries one line, so that lines of other threads do not get mixed into it.

A record's `extra` values are fields. What JSON has no form for is sent as its `str`, and what UTF-8 has no form for is
written out (``\\udc80``); a key that begins with ``@`` gets an underscore instead. An exception is the field
`exception`, `stack_info` the field `stack`. Levels that hclog lacks are sent as the next lower one that it has
(`CRITICAL` as error), with the number in the field `python_level`.

Logging never fails a user's call: a record that cannot be formatted is logged with its unformatted message, and a
standard error that is gone is ignored.
"""

from __future__ import annotations

import json
import logging
import math
import os
import select
import sys
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

LINE_LIMIT = 60_000
"""Bytes of one line; a Go host's buffer holds 65,536 by default."""
MESSAGE_LIMIT = 24_000
"""Bytes of message in one record, as JSON has them."""
FIELD_LIMIT = 8_000
"""Characters of text in one field; an exception may have twice as many."""

_STDERR = 2
_FIELDS_LIMIT = 24_000
_INT_LIMIT = 10**300
_DEPTH = 4
_ITEMS = 100
_OWN_ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warn"), (logging.INFO, "info"), (logging.DEBUG, "debug"))
_TRACE = "trace"
_EXACT = frozenset({logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG})
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class HclogHandler(logging.Handler):
    """Writes records as hclog JSON lines.

    :param level: records below it are left out.
    :param descriptor: where the lines go; the raw standard error by default, whatever `sys.stderr` is.
    """

    def __init__(self, level: int | str = logging.NOTSET, *, descriptor: int = _STDERR) -> None:
        super().__init__(level)
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = _lines(record)
        except Exception as error:
            lines = [_last_resort(record, error)]
        for line in lines:
            _write(self._descriptor, line)

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing: by default it prints, which would end up here again when `sys.stderr` is logged."""


def hclog_level(levelno: int) -> str:
    """hclog's name for a level of `logging`: the highest that is not above it, ``"trace"`` below DEBUG."""
    return next((name for least, name in _LEVELS if levelno >= least), _TRACE)


class InstalledLogging:
    """Records go to the host, whatever the program does to `logging` meanwhile, until `restore`.

    - The root logger has an `HclogHandler`. A configuration of the program's own that takes it out (`dictConfig`,
      ``basicConfig(force=True)``) has it back with the first handler that it adds; when it adds none, it is `logging`'s
      last resort.
    - Handlers that write to standard error would say the same again as text without a level. On the root logger they
      are left out; on another one, which may not hand on its records, an `HclogHandler` stands in for each.
    - A root logger without handlers and with the level that it has from the start has never been set up: its level is
      lowered to DEBUG then, because a host decides by itself what it shows. One that was set up keeps its level.
    """

    def __init__(self) -> None:
        self._root = logging.getLogger()
        self._level = self._root.level
        self._handler = HclogHandler()
        self._replaced: dict[tuple[logging.Logger, logging.Handler], HclogHandler | None] = {}
        self._last_resort = logging.lastResort
        self._add, self._remove = logging.Logger.addHandler, logging.Logger.removeHandler
        if not self._root.handlers and self._level == logging.WARNING:
            self._root.setLevel(logging.DEBUG)
        for logger in (self._root, *self._root.manager.loggerDict.values()):
            if isinstance(logger, logging.Logger):
                for handler in [each for each in logger.handlers if _writes_to_stderr(each)]:
                    self._remove(logger, handler)
                    self._replace(logger, handler)
        self._add(self._root, self._handler)
        logging.lastResort = self._handler
        # Functions, for what is bound would get no logger.
        logging.Logger.addHandler = lambda logger, hdlr: self._added(logger, hdlr)  # type: ignore[method-assign,assignment]
        logging.Logger.removeHandler = lambda logger, hdlr: self._removed(logger, hdlr)  # type: ignore[method-assign,assignment]
        self._active = True

    def restore(self) -> None:
        """Put back what was there, and what was left out since. Safe to call twice."""
        if not self._active:
            return
        self._active = False
        logging.Logger.addHandler = self._add  # type: ignore[method-assign]
        logging.Logger.removeHandler = self._remove  # type: ignore[method-assign]
        logging.lastResort = self._last_resort
        self._remove(self._root, self._handler)
        for (logger, handler), stand_in in self._replaced.items():
            if stand_in is not None:
                self._remove(logger, stand_in)
            self._add(logger, handler)
        self._root.setLevel(self._level)

    def _added(self, logger: logging.Logger, handler: logging.Handler) -> None:
        if _writes_to_stderr(handler):
            self._replace(logger, handler)
        else:
            self._add(logger, handler)
        if logger is self._root:
            self._add(logger, self._handler)

    def _removed(self, logger: logging.Logger, handler: logging.Handler) -> None:
        there = self._replaced.pop((logger, handler), handler)
        if there is not None:
            self._remove(logger, there)

    def _replace(self, logger: logging.Logger, handler: logging.Handler) -> None:
        stand_in = None
        if logger is not self._root:
            stand_in = HclogHandler(handler.level)
            stand_in.filters = handler.filters
            self._add(logger, stand_in)
        self._replaced[logger, handler] = stand_in


def _writes_to_stderr(handler: logging.Handler) -> bool:
    if isinstance(handler, logging.FileHandler) or not isinstance(handler, logging.StreamHandler):
        return False
    return handler.stream in (sys.stderr, sys.__stderr__)


def _lines(record: logging.LogRecord) -> list[bytes]:
    fields = _fields(record)
    message = _message(record, fields)
    head = {"@level": hclog_level(record.levelno), "@timestamp": _timestamp(record.created)}
    if record.name != "root":
        head["@module"] = _clean(record.name)[:1000]
    line = _json({**head, "@message": message, **fields})
    if len(line) <= LINE_LIMIT:
        return [line]
    parts = list(_split(message))
    numbers = [f"{number}/{len(parts)}" for number in range(1, len(parts) + 1)]
    texts = [
        {**head, "@message": part, **({"part": number} if len(parts) > 1 else {})}
        for part, number in zip(parts, numbers, strict=True)
    ]
    # Every part has the level, but the fields are worth sending once.
    return [_json({**texts[0], **_shrunk(fields)}), *map(_json, texts[1:])]


def _message(record: logging.LogRecord, fields: dict[str, Any]) -> str:
    try:
        return _clean(record.getMessage())
    except Exception as error:
        fields["format_error"] = _text(error)
        return f"{_text(record.msg)} {_text(record.args)}"


def _split(message: str) -> Iterator[str]:
    """The message in parts of which each takes up to `MESSAGE_LIMIT` bytes as JSON."""
    while True:
        end = MESSAGE_LIMIT
        while (size := _size(message[:end])) > MESSAGE_LIMIT:
            end = end * MESSAGE_LIMIT // size
        yield message[:end]
        message = message[end:]
        if not message:
            return


def _size(value: Any) -> int:
    return len(_json(value))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if record.levelno not in _EXACT and record.levelno >= logging.DEBUG:
        fields["python_level"] = record.levelno
    for key, value in list(record.__dict__.items()):
        if key not in _OWN_ATTRIBUTES:
            name = _text(key)[:200]
            fields["_" + name[1:] if name.startswith("@") else name] = _safe(value, _DEPTH)
    if record.exc_info:
        fields["exception"] = _cut(_traceback(record), 2 * FIELD_LIMIT)
    elif record.exc_text:
        fields["exception"] = _cut(_clean(record.exc_text), 2 * FIELD_LIMIT)
    if record.stack_info:
        fields["stack"] = _cut(_clean(record.stack_info), FIELD_LIMIT)
    return fields


def _shrunk(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields, if need be with an equal share of the room for each, as text, and without those beyond `_ITEMS`."""
    if _size(fields) <= _FIELDS_LIMIT:
        return fields
    kept = dict(list(fields.items())[:_ITEMS])
    share = max(40, _FIELDS_LIMIT // (6 * len(kept)) - 40)
    shrunk = {key[:100]: value if _size(value) <= share else _cut(_text(value), share) for key, value in kept.items()}
    if len(fields) > len(kept):
        shrunk["fields_left_out"] = len(fields) - len(kept)
    return shrunk


def _traceback(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else record.exc_info
    if not isinstance(error, BaseException):
        return ""
    try:
        return _clean("".join(traceback.format_exception(error)).rstrip())
    except Exception:
        return _text(error)


def _safe(value: Any, depth: int) -> Any:
    """The value in what JSON, and Go's reading of it, can hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _cut(_clean(value), FIELD_LIMIT)
    if isinstance(value, int) and -_INT_LIMIT < value < _INT_LIMIT:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if depth and isinstance(value, Mapping):
        return {_text(key)[:200]: _safe(item, depth - 1) for key, item in list(value.items())[:_ITEMS]}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_safe(item, depth - 1) for item in list(value)[:_ITEMS]]
    return _cut(_text(value), FIELD_LIMIT)


def _text(value: Any) -> str:
    try:
        return _clean(str(value))
    except Exception:
        return f"<{type(value).__qualname__}>"


def _clean(text: str) -> str:
    """The text with what UTF-8 cannot hold, lone surrogates, written out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}[... {len(text) - 2 * half} characters left out ...]{text[-half:]}"


def _timestamp(created: float) -> str:
    try:
        moment = datetime.fromtimestamp(created, UTC)
    except (ValueError, OverflowError, OSError):
        moment = datetime.fromtimestamp(0, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _json(value: Any) -> bytes:
    """The value as a line of JSON."""
    return _ENCODER.encode(value).encode("utf-8", "backslashreplace") + b"\n"


def _last_resort(record: logging.LogRecord, error: Exception) -> bytes:
    message = f"a log record of {record.name!r} could not be formatted: {type(error).__name__}"
    return _json({"@level": "error", "@message": message[:1000], "@timestamp": _timestamp(record.created)})


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it, also to a descriptor that somebody made non-blocking."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError:
            # Nobody reads the log any more, and there is no other place to say so.
            return
