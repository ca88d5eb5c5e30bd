"""What an entry point may be, and how it becomes the object that does the work.

Tried in this order, in the host and in a plugin's own process alike:

1. a class is constructed with the plugin's `options`;
2. anything that already has every method of the interface is taken as it is (an instance, a module); it has no use for
   options, so giving it some is an error;
3. any other callable is a factory and is called with `options`.

An `External` is not an implementation; the sources have taken it out before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hybridload.contract.functions import takes
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
    built = build_object(found, [service], options, plugin=plugin)
    try:
        check_implementation(built, service, plugin=plugin)
    except ContractError:
        close_implementation(built, plugin)
        raise
    return built


def build_object(found: object, services: Sequence[Service], options: Mapping[str, Any], *, plugin: str) -> object:
    """The same where any of several services may be the one that it implements, which is not checked.

    :param services: at least one, the most important first.
    :raises ConfigError: when the options do not fit what was found.
    :raises ContractError: when nothing can be made of what was found.
    :raises PluginError: when the class or factory itself fails; its exception is the cause.
    """
    if isinstance(found, type):
        return _call(found, options, plugin)
    if any(not _missing(found, service) for service in services):
        if options:
            raise ConfigError(
                f"Plugin {plugin!r} is {_described(found)}, which is used as it is, so its options "
                f"({', '.join(options)}) would have no effect: remove them, or name a class or factory.",
                plugin=plugin,
            )
        return found
    if callable(found):
        return _call(found, options, plugin)
    raise ContractError(
        f"Plugin {plugin!r} is {_described(found)}: it lacks {', '.join(_missing(found, services[0]))} of "
        f"{services[0].interface.__name__} and is neither a class nor a factory. Point the entry point to one of "
        "these.",
        plugin=plugin,
    )


def check_implementation(built: object, service: Service, *, plugin: str) -> None:
    """Check that an object has every method of a service, as its interface declares it.

    :param plugin: the plugin's name, for the error.
    :raises ContractError: naming everything that is missing or differs.
    """
    try:
        service.check_implementation(built)
    except ContractError as error:
        raise ContractError(f"Plugin {plugin!r}: {error}", plugin=plugin) from error


def close_implementation(built: object, plugin: str) -> None:
    """Call the object's `close()`, if it has one that can be called without arguments.

    :raises PluginError: when it fails; its exception is the cause.
    """
    close = getattr(built, "close", None)
    if close is None or not callable(close) or isinstance(built, ModuleType):
        return
    try:
        close()
    except Exception as error:
        raise PluginError(
            f"Plugin {plugin!r}: close() raised {type(error).__name__}: {error}", plugin=plugin
        ) from error


def _missing(found: object, service: Service) -> list[str]:
    return [method.name for method in service.methods if not callable(getattr(found, method.name, None))]


def _call(factory: Any, options: Mapping[str, Any], plugin: str) -> object:
    if not takes(factory, 0, options):
        _check_options(factory, options, plugin)
    try:
        built: object = factory(**options)
    except Exception as error:
        raise PluginError(
            f"Plugin {plugin!r}: {_described(factory)} raised {type(error).__name__}: {error}", plugin=plugin
        ) from error
    return built


def _check_options(factory: Any, options: Mapping[str, Any], plugin: str) -> None:
    import inspect

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


def _described(found: object) -> str:
    import inspect

    if isinstance(found, ModuleType):
        return f"the module {found.__name__}"
    if isinstance(found, type):
        return f"the class {found.__module__}.{found.__qualname__}"
    if inspect.isroutine(found):
        return f"the function {found.__module__}.{found.__qualname__}"
    return f"an object of {type(found).__module__}.{type(found).__qualname__}"
