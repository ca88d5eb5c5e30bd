"""What each key of a configuration may hold.

One table for each kind of TOML table: key -> the type that msgspec converts its value to, what an error says that it
expected, and what is made of the value then. A new key is a line here and a field of the settings.

The module is imported only when there is a file to read, because it needs msgspec.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from hybridload.config.chain import closest, to_chain
from hybridload.config.settings import dotted
from hybridload.deadlines import YEAR
from hybridload.errors import ConfigError
from hybridload.external import absolute_program, is_bare_name
from hybridload.frozen import frozen
from hybridload.limits import MAX_MESSAGE_EXPECTED, read_limits, read_max_message

Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\0]*\Z")]
Name = Annotated[str, msgspec.Meta(pattern=r"\A[^\0]*[^\0\s][^\0]*\Z")]
VariableName = Annotated[str, msgspec.Meta(pattern=r"\A[^\0=]+\Z")]
_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_REFERENCE = rf"{_DOTTED}:{_DOTTED}"
Reference = Annotated[str, msgspec.Meta(pattern=rf"\A{_REFERENCE}\Z")]
EntryPoint = Annotated[str, msgspec.Meta(pattern=rf"\A({_REFERENCE}|[^\0:\s=\[]([^\0:=]*[^\0:\s=])?)\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{64}\Z")]
Pattern = Annotated[str, msgspec.Meta(pattern=r"\A[^\0/\\*?\[\]]*\*[^\0/\\*?\[\]]*\Z")]
# As `deadlines.check_seconds` has it.
Seconds = Annotated[float, msgspec.Meta(gt=0, le=YEAR)]
SecondsOrNever = Annotated[float, msgspec.Meta(ge=0, le=YEAR)]
_SECONDS = "a number of seconds greater than 0, a year at most"


def _list_of(kind: Any, at_least: int = 1) -> Any:
    return Annotated[list[kind], msgspec.Meta(min_length=at_least)]


@frozen
class Key:
    """What one key may hold.

    :param kind: what msgspec converts the value to. No unions: msgspec 0.22 mixes up the constraints of their members
        and crashes.
    :param expected: what an error says that it should have been.
    :param made: makes the setting of the converted value, given the folder of the file; raises `ValueError` with a
        sentence when the value is wrong in a way that the type cannot say.
    :param secret: its values are not shown in errors.
    :param one_or_list: a lone value stands for a list of one.
    """

    kind: Any
    expected: str
    made: Callable[[Any, Path], Any] = lambda value, folder: value
    secret: bool = False
    one_or_list: bool = False


def _words(value: list[str], folder: Path) -> tuple[str, ...]:
    if not value[0].strip():
        raise ValueError("the program's name is empty; expected a path or a name to look up on PATH.")
    return (absolute_program(value[0], folder), *value[1:])


def _distinct(value: list[str], folder: Path) -> tuple[str, ...]:
    for index, item in enumerate(value):
        if item in value[:index]:
            raise ValueError(f"{item!r} is listed twice; remove one.")
    return tuple(value)


def _folder(value: str, folder: Path) -> Path:
    return Path(absolute_program(f"./{value}" if is_bare_name(value) else value, folder))


def _folders(value: list[str], folder: Path) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(_folder(name, folder) for name in value))


def _options(value: dict[str, Any], folder: Path) -> dict[str, Any]:
    # A program gets them as JSON: what works under one isolation has to work under all.
    def check(item: object, path: str) -> None:
        if isinstance(item, dict):
            for key, inner in item.items():
                check(inner, f"{path}.{dotted(key)}" if path else dotted(key))
        elif isinstance(item, list):
            for index, inner in enumerate(item):
                check(inner, f"{path}[{index}]")
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{path} is {item}, which JSON cannot hold; leave it out or give a string.")
        elif not isinstance(item, str | int | float):
            raise ValueError(f"{path} is {_kind_of(item)}, which JSON cannot hold; give it as a string.")

    check(value, "")
    return value


HOST: dict[str, Key] = {
    "plugins": Key(Reference, 'where the plugin set is, as "module:NAME"'),
    "handshake": Key(Reference, 'where the handshake config is, as "module:NAME"'),
    "group": Key(Name, "the name of an entry-point group"),
    "path": Key(_list_of(Name), "a list of folders", _folders, one_or_list=True),
    "pattern": Key(Pattern, 'a file name with exactly one *, as "greeter-*"'),
    "watch": Key(bool, "true or false"),
}

DEFAULTS: dict[str, Key] = {
    "isolation": Key(Any, "a fallback chain", lambda value, _: to_chain(value)),
    "kind": Key(Name, "the name of a kind in the plugin set"),
    "python": Key(Name, "the path of a Python interpreter", lambda value, folder: absolute_program(value, folder)),
    "prefork": Key(bool, "true or false"),
    "env": Key(dict[VariableName, Text], "a table of strings, by variable", secret=True),
    "env_allow": Key(_list_of(VariableName, 0), "a list of names of variables", lambda value, _: tuple(value)),
    "cwd": Key(Name, "the path of a folder", _folder),
    "start_timeout": Key(Seconds, _SECONDS),
    "call_timeout": Key(Seconds, _SECONDS),
    "auto_mtls": Key(bool, "true or false"),
    "multiplex": Key(bool, "true or false"),
    "protocols": Key(_list_of(Literal["grpc", "netrpc"]), 'a list with "grpc", "netrpc" or both', _distinct),
    "max_restarts": Key(Annotated[int, msgspec.Meta(ge=0, le=1_000_000)], "a number of restarts, 0 for none"),
    "restart_window": Key(Seconds, _SECONDS),
    "backoff": Key(Seconds, _SECONDS),
    "backoff_max": Key(Seconds, _SECONDS),
    "retry_after": Key(Seconds, _SECONDS),
    "health_interval": Key(SecondsOrNever, "a number of seconds, 0 for no health checks, a year at most"),
    "health_timeout": Key(Seconds, _SECONDS),
    "max_concurrency": Key(Annotated[int, msgspec.Meta(ge=1, le=1_000_000)], "a number of calls, at least 1"),
    "when_busy": Key(Literal["wait", "error"], '"wait" or "error"'),
    "after_fork": Key(Literal["closed", "restart"], '"closed" or "restart"'),
    "watch": Key(bool, "true or false"),
    "limits": Key(dict[str, Any], "a table of limits", lambda value, _: read_limits(value)),
    "max_message": Key(Any, MAX_MESSAGE_EXPECTED, lambda value, _: read_max_message(value)),
    "strict": Key(bool, "true or false"),
    "fallback_on_checksum": Key(bool, "true or false"),
    "enabled": Key(bool, "true or false"),
}

PLUGIN: dict[str, Key] = {
    **DEFAULTS,
    "command": Key(_list_of(Text), "a program, or a list of a program and its arguments", _words, one_or_list=True),
    "sha256": Key(Sha256, "64 hexadecimal digits, as `sha256sum FILE` prints them", lambda value, _: value.lower()),
    "entry_point": Key(EntryPoint, 'the name of an entry point, or "module:attribute"'),
    "options": Key(dict[Text, Any], "a table of keyword arguments", _options, secret=True),
}


def read_table(table: object, keys: Mapping[str, Key], where: str, folder: Path) -> dict[str, Any]:
    """Check a table and convert its values.

    :param where: the file and the table's own key, at the front of errors.
    :param folder: what relative paths start at.
    :raises ConfigError: naming the key, what was expected and what was found.
    """
    entries = as_table(table, where)
    read: dict[str, Any] = {}
    for name, value in entries.items():
        if name not in keys:
            raise unknown_key(name, keys, where)
        read[name] = _read_value(value, name, keys[name], where, folder)
    return read


def as_table(value: object, where: str) -> dict[str, Any]:
    """A value that has to be a table.

    :raises ConfigError: when it is not.
    """
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a table, found {_found(value)}.")
    return value


def unknown_key(name: str, known: Mapping[str, object], where: str) -> ConfigError:
    """The error for a key that does not exist: the one that was probably meant, or all that there are."""
    hint = closest(name, known) or f" The keys here are {', '.join(known)}."
    return ConfigError(f"{where}: {dotted(name)} is not a key of this table.{hint}")


def _read_value(value: Any, name: str, key: Key, where: str, folder: Path) -> Any:
    where = f"{where}.{name}"
    lone = key.one_or_list and not isinstance(value, list)
    if lone:
        value = [value]
    if not _fits(value, key.kind):
        inside, found = ("", value[0]) if lone else _fault(value, key.kind)
        shown = _kind_of(found) if key.secret else _found(found)
        raise ConfigError(f"{where}{inside}: expected {key.expected}, found {shown}.")
    try:
        return key.made(msgspec.convert(value, key.kind), folder)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _fits(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _fault(value: object, kind: Any) -> tuple[str, object]:
    """The part of a list or table that is wrong by itself, as a path below it; or else the whole."""
    if isinstance(value, dict) and _fits({}, kind):
        for key, item in value.items():
            if not _fits({key: item}, kind):
                return f".{dotted(key)}", item
    if isinstance(value, list):
        for index, item in enumerate(value):
            if not _fits([item], kind):
                return f"[{index}]", item
    return "", value


def _found(value: object) -> str:
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({_kind_of(value)})"


def _kind_of(value: object) -> str:
    names = {
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a float",
        list: "an array",
        dict: "a table",
    }
    return names.get(type(value), "a date or time")
