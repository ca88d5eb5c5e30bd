"""What an entry point may be, and how it becomes the object that does the work.

Tried in this order, in the host and in a plugin's own process alike:

1. a class is constructed with the plugin's `options`;
2. anything that already has every method of the interface is taken as it is (an instance, a module); it has no use for
   options, so giving it some is an error;
3. any other callable is a factory and is called with `options`.

An `External` is not an implementation; the sources have taken it out before.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hybridload.errors import ConfigError, ContractError, PluginError

if TYPE_CHECKING:
    from hybridload.contract import Service


def build_implementation(found: object, service: Service, options: Mapping[str, Any], *, plugin: str) -> object:
    """Make the object that implements `service` out of what an entry point names.

    :param found: what the entry point names.
    :param options: keyword arguments of the class or factory.
    :param plugin: the plugin's name, for errors.
    :raises ConfigError: when the options do not fit what was found.
    :raises ContractError: when the object does not implement the interface, or nothing can be made of what was found.
    :raises PluginError: when the class or factory itself fails; its exception is the cause.
    """
    methods = [method.name for method in service.methods]
    if isinstance(found, type):
        built = _call(found, options, plugin)
    elif all(callable(getattr(found, name, None)) for name in methods):
        if options:
            raise ConfigError(
                f"Plugin {plugin!r} is {_described(found)}, which is used as it is, so its options "
                f"({', '.join(options)}) would have no effect: remove them, or name a class or factory.",
                plugin=plugin,
            )
        built = found
    elif callable(found):
        built = _call(found, options, plugin)
    else:
        missing = [name for name in methods if not callable(getattr(found, name, None))]
        raise ContractError(
            f"Plugin {plugin!r} is {_described(found)}: it lacks {', '.join(missing)} of {service.interface.__name__} "
            "and is neither a class nor a factory. Point the entry point to one of these.",
            plugin=plugin,
        )
    try:
        service.check_implementation(built)
    except ContractError as error:
        close_implementation(built, plugin)
        raise ContractError(f"Plugin {plugin!r}: {error}", plugin=plugin) from error
    return built


def close_implementation(built: object, plugin: str) -> None:
    """Call the object's `close()`, if it has one that can be called without arguments.

    :raises PluginError: when it fails; its exception is the cause.
    """
    close = getattr(built, "close", None)
    if close is None or not callable(close) or inspect.ismodule(built):
        return
    try:
        close()
    except Exception as error:
        raise PluginError(
            f"Plugin {plugin!r}: close() raised {type(error).__name__}: {error}", plugin=plugin
        ) from error


def _call(factory: Any, options: Mapping[str, Any], plugin: str) -> object:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ConfigError(
            f"Plugin {plugin!r}: {_described(factory)} cannot be called with the options "
            f"{dict(options)!r}: {error}. Give the options that it takes: {inspect.signature(factory)}.",
            plugin=plugin,
        ) from error
    except ValueError:
        pass  # A callable written in C may have no signature to compare with.
    try:
        built: object = factory(**options)
    except Exception as error:
        raise PluginError(
            f"Plugin {plugin!r}: {_described(factory)} raised {type(error).__name__}: {error}", plugin=plugin
        ) from error
    return built


def _described(found: object) -> str:
    if inspect.ismodule(found):
        return f"the module {found.__name__}"
    if isinstance(found, type):
        return f"the class {found.__module__}.{found.__qualname__}"
    if inspect.isroutine(found):
        return f"the function {found.__module__}.{found.__qualname__}"
    return f"an object of {type(found).__module__}.{type(found).__qualname__}"
