"""JSON on the command line <-> the values of a method's hints.

JSON has no bytes, times or enums: bytes are base64, times are ISO 8601, enums are their values (msgspec's rules).
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from hybridload.errors import ConfigError
from hybridload.handle import service_of


def read_arguments(
    handle: Any, method: str, text: str | None, *, plugin: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments for a method of a loaded plugin.

    :param text: a JSON list of positional arguments, an object of named ones, or `None` for none.
    :raises ConfigError: there is no such method, the text is not JSON, or a value is not of the parameter's type.
    """
    service = service_of(handle)
    found = {each.name: each for each in service.methods}.get(method)
    if found is None:
        raise ConfigError(
            f"{service.interface.__name__} has no method {method!r}; it has "
            f"{', '.join(each.name for each in service.methods)}.",
            plugin=plugin,
        )
    try:
        given = [] if text is None else json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"The arguments {text!r} are not JSON ({error}): give a list such as '[\"Ada\", 3]', or an object such as "
            '\'{"name": "Ada"}\'.',
            plugin=plugin,
        ) from error
    positional = given if isinstance(given, list) else [] if isinstance(given, dict) else [given]
    named = given if isinstance(given, dict) else {}
    try:
        found.signature.bind(*positional, **named)
    except TypeError as error:
        raise ConfigError(f"{method}{found.signature}: {error}.", plugin=plugin) from error
    hints = [parameter.hint for parameter in found.parameters]
    by_name = {parameter.name: parameter.hint for parameter in found.parameters}
    args = tuple(_convert(value, hint, method) for value, hint in zip(positional, hints, strict=False))
    return args, {key: _convert(value, by_name[key], method) for key, value in named.items()}


def _convert(value: Any, hint: Any, method: str) -> Any:
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{method}: {value!r} does not fit: {error}.") from error
    except TypeError:
        return value  # A hint that msgspec does not know: the contract's own check will speak.


def to_json(value: Any) -> str:
    """A value as one line of JSON; what JSON and msgspec have no form for is shown by its `repr`."""
    return msgspec.json.encode(value, enc_hook=repr).decode()


def read_options(text: str) -> dict[str, Any]:
    """A plugin's options, as the command line gives them.

    :raises ConfigError: the text is not a JSON object.
    """
    try:
        options = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"The options {text!r} are not JSON: {error}.") from error
    if not isinstance(options, dict):
        raise ConfigError(
            f'The options {text!r} are no JSON object: give named ones, such as \'{{"greeting": "Hi"}}\'.'
        )
    return options
