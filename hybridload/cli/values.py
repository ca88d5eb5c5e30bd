"""JSON on the command line <-> the values of a method's hints.

JSON has no bytes, times or enums: bytes are base64, datetimes are ISO 8601 with a time zone, timedeltas are seconds or
ISO 8601 durations, enum members are their values (or their names, where the value is nothing that JSON has). Nor has it
NaN and infinity: they are "NaN", "Infinity" and "-Infinity", as in protobuf's JSON. What an interface's hint says is
read off the contract's shapes, so exactly what can travel can be written.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import enum
import json
import math
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec

from hybridload.contract import Method, Parameter
from hybridload.contract.hints import (
    Anything,
    Enumeration,
    Maybe,
    MessageClass,
    Plain,
    Record,
    Reference,
    Repeated,
    Shape,
    Table,
    describe_shape,
)
from hybridload.errors import ConfigError
from hybridload.handle import service_of


def find_method(handle: Any, method: str, *, plugin: str) -> Method:
    """A method of a loaded plugin, by its name.

    :raises ConfigError: the plugin has no such method.
    """
    service = service_of(handle)
    found = {each.name: each for each in service.methods}.get(method)
    if found is None:
        raise ConfigError(
            f"Plugin {plugin!r}: {service.interface.__name__} has no method {method!r}; it has "
            f"{', '.join(each.name for each in service.methods)}.",
            plugin=plugin,
        )
    return found


def read_arguments(method: Method, text: str | None, *, plugin: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments for a method.

    :param text: a JSON list of positional arguments, an object of named ones, or `None` for none.
    :raises ConfigError: the text is not JSON, or a value is not of the parameter's type.
    """
    advice = 'give a list such as \'["Ada", 3]\', or an object such as \'{"name": "Ada"}\''
    given = [] if text is None else read_json(text, "The arguments are not JSON", advice)
    positional = given if isinstance(given, list) else [] if isinstance(given, dict) else [given]
    named = given if isinstance(given, dict) else {}
    try:
        bound = method.signature.bind(*positional, **named)
    except TypeError as error:
        raise ConfigError(f"Plugin {plugin!r}: {method.name}{method.signature}: {error}.", plugin=plugin) from error
    parameters = {parameter.name: parameter for parameter in method.parameters}
    try:
        for name, value in bound.arguments.items():
            bound.arguments[name] = _argument(parameters[name], value, method)
    except _Unfit as error:
        raise ConfigError(f"Plugin {plugin!r}: {method.name}(): {error}.", plugin=plugin) from error
    return bound.args, bound.kwargs


def to_json(value: Any) -> str:
    """A value as one line of JSON; what JSON has no form for is shown by its `repr`."""
    return msgspec.json.encode(_without_nan(msgspec.to_builtins(value, str_keys=True, enc_hook=_foreign))).decode()


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else _NOT_FINITE[str(value)]
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return {key: _without_nan(item) for key, item in value.items()} if isinstance(value, dict) else value


def given_text(text: str) -> str:
    """An argument that may be ``-``: then what standard input has.

    :raises ConfigError: that is no text.
    """
    if text != "-":
        return text
    if sys.stdin is None:
        raise ConfigError("There is no standard input to read: it is closed.")
    try:
        return sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Standard input cannot be read as text: {error}.") from error


def read_json(text: str, what: str, advice: str) -> Any:
    """A text of the command line, as JSON alone has it: no NaN, which Python would read.

    :param what: for messages, e.g. ``"The arguments are not JSON"``.
    :param advice: what to give.
    :raises ConfigError: it is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} ({error}): {_shortened(text)}; {advice}.") from error


def _refuse(constant: str) -> None:
    raise ValueError(f'JSON has no {constant}; write "{constant}"')


def read_options(text: str) -> dict[str, Any]:
    """A plugin's options, as the command line gives them.

    :raises ConfigError: the text is not a JSON object.
    """
    advice = 'give named ones, such as \'{"greeting": "Hi"}\''
    options = read_json(text, "The options are not JSON", advice)
    if not isinstance(options, dict):
        raise ConfigError(f"The options {_shortened(text)} are no JSON object: {advice}.")
    return options


class _Unfit(Exception):
    """A value that does not fit its hint, said as a sentence without its full stop."""


def _argument(parameter: Parameter, value: Any, method: Method) -> Any:
    if not parameter.stream:
        return _value(parameter.shape, value, parameter.name)
    if not isinstance(value, list):
        raise _Unfit(f"{parameter.name} is a stream: give the list of its items, not {_shortened(value)}")
    items = [_value(parameter.shape, item, f"{parameter.name}[{index}]") for index, item in enumerate(value)]
    return _asynchronously(items) if method.is_async else iter(items)


async def _asynchronously(items: list[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def _value(shape: Shape, value: Any, where: str) -> Any:
    """A JSON value as the value of a shape.

    :param where: what it is a value of, for messages, e.g. ``"orders[2].price"``.
    """
    match shape:
        case Plain(python=python):
            return _plain(python, value, where)
        case Maybe(item=item):
            return None if value is None else _value(item, value, where)
        case Repeated(item=item, builds=builds):
            found = _expect(list, value, where, "a list")
            return builds([_value(item, each, f"{where}[{index}]") for index, each in enumerate(found)])
        case Table(key=key, value=item):
            table = _expect(dict, value, where, "an object")
            return {_key(key, each, where): _value(item, inner, f"{where}.{each}") for each, inner in table.items()}
        case Record():
            return _record(shape, _expect(dict, value, where, "an object"), where)
        case Enumeration(python=members):
            return _member(members, value, where)
        case MessageClass(python=message):
            return _message(message, _expect(dict, value, where, "an object"), where)
        case Anything():
            return value
        case Reference():
            raise _Unfit(
                f"{where} is a {describe_shape(shape)}, an object that the plugin calls back: JSON cannot give one"
            )


def _plain(python: type, value: Any, where: str) -> Any:
    if python is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise _Unfit(f"{where} is to be a number that a float can hold, not {_shortened(value)}") from error
    if python is float and isinstance(value, str) and value in _NOT_FINITE.values():
        return float(value)
    if python in (str, int, float, bool):
        if type(value) is not python:
            raise _Unfit(f"{where} is to be {_NAMES[python]}, not {_shortened(value)}")
        return value
    if python is bytes:
        try:
            return base64.b64decode(_expect(str, value, where, "base64 text").encode(), validate=True)
        except (binascii.Error, UnicodeError) as error:
            raise _Unfit(f"{where} is bytes, so to be base64 text, not {_shortened(value)}") from error
    if python is datetime.datetime:
        return _datetime(_expect(str, value, where, "an ISO 8601 time"), where)
    return _timedelta(value, where)


def _datetime(text: str, where: str) -> datetime.datetime:
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise _Unfit(
            f'{where} is to be an ISO 8601 time, such as "2026-01-31T12:00:00Z", not {_shortened(text)}'
        ) from error
    if found.tzinfo is None:
        raise _Unfit(f"{where} needs a time zone: {text!r} has none; append Z for UTC")
    return found


def _timedelta(value: Any, where: str) -> datetime.timedelta:
    try:
        return msgspec.convert(value, datetime.timedelta, strict=not isinstance(value, int | float))
    except (msgspec.ValidationError, OverflowError) as error:
        raise _Unfit(
            f'{where} is to be seconds, or an ISO 8601 duration such as "PT1.5S", not {_shortened(value)}'
        ) from error


def _member(members: type[enum.Enum], value: Any, where: str) -> enum.Enum:
    for member in members:
        if type(member.value) is type(value) and member.value == value:
            return member
    if isinstance(value, str) and value in members.__members__:
        return members[value]
    known = ", ".join(to_json(_member_value(member)) for member in members)
    raise _Unfit(f"{where} is to be one of {known}, not {_shortened(value)}")


def _record(shape: Record, value: dict[str, Any], where: str) -> Any:
    fields = {field.name: field for field in shape.fields}
    given: dict[str, Any] = {}
    for name, inner in value.items():
        if name not in fields:
            raise _Unfit(f"{where} has no field {name!r}; {shape.python.__name__} has {', '.join(fields)}")
        given[name] = _value(fields[name].shape, inner, f"{where}.{name}")
    required = {
        each.name
        for each in dataclasses.fields(shape.python)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    }
    missing = [name for name in fields if name in required and name not in given]
    if missing:
        raise _Unfit(f"{where} lacks {', '.join(missing)} of {shape.python.__name__}")
    try:
        return shape.python(**given)
    except Exception as error:  # the class's own checks
        raise _Unfit(f"{where}: {shape.python.__name__} refuses it: {error}") from error


def _message(message: type, value: dict[str, Any], where: str) -> Any:
    from google.protobuf import json_format

    try:
        return json_format.ParseDict(value, message())
    except json_format.ParseError as error:
        raise _Unfit(f"{where} does not fit the message {message.__name__}: {error}") from error


def _key(shape: Plain, key: str, where: str) -> Any:
    if shape.python is str:
        return key
    try:
        found = json.loads(key.lower() if shape.python is bool else key)
    except (ValueError, RecursionError):
        found = None
    if type(found) is not shape.python:
        raise _Unfit(f"{where} has the key {key!r}, which is to be {_NAMES[shape.python]}")
    return found


def _expect(kind: type, value: Any, where: str, words: str) -> Any:
    if not isinstance(value, kind):
        raise _Unfit(f"{where} is to be {words}, not {_shortened(value)}")
    return value


def _member_value(member: enum.Enum) -> str | int | float:
    return member.value if isinstance(member.value, str | int | float) else member.name


def _foreign(value: Any) -> Any:
    """What msgspec does not know, as something that it does."""
    if isinstance(value, Iterator):
        return list(value)
    if hasattr(value, "DESCRIPTOR") and hasattr(value, "SerializeToString"):
        from google.protobuf import json_format

        return json_format.MessageToDict(value, preserving_proto_field_name=True)
    return repr(value)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
