"""`module:NAME` references, as the config and the command line have them."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from hybridload.errors import ConfigError


def resolve_reference(reference: str, where: str) -> Any:
    """Import what a ``module:NAME`` reference points to. `NAME` may have dots.

    :param where: where the reference was found, for errors, e.g. ``"[host] plugins"``.
    :raises ConfigError: it is not of that form, the module cannot be imported, or it has no such name.
    """
    module_name, colon, path = reference.partition(":")
    if not (module_name and colon and path):
        raise ConfigError(f'{where} is {reference!r}: give "module:NAME", such as "greeter_sdk:PLUGINS".')
    try:
        found: Any = import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"{where} is {reference!r}, and importing {module_name} failed with {type(error).__name__}: {error}. "
            f"Install it into {sys.prefix}, or put its folder on PYTHONPATH."
        ) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ConfigError(f"{where} is {reference!r}, and {module_name} has no {path}.") from error
    return found
