"""Plugins of any isolation as hook implementations of a `pluggy.PluginManager` that a host has already.

pluggy keeps the functions that it is given, so it is given forwarders: each calls the object that the loader holds, and
goes wherever that leads by then. A switch, a restart and a fallback reach pluggy without its knowing. What follows:

- A method is a hook when the manager has a specification of its name, or of the `specname` that it is marked with.
- A forwarder takes what pluggy passes by name: the parameters that the interface and the specification share. Others
  have the interface's defaults.
- Order and options are the host's to say, because a process cannot show how its code is decorated: by the arguments of
  `register`, or by a `HookimplMarker` on the interface's method.
- A wrapper runs around others' calls, in the host; a plugin cannot be one. It is an implementation like any other to
  those that wrap it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from hybridload.contract import Kind
from hybridload.control_characters import escape_controls
from hybridload.errors import ConfigError, ContractError, NoUsableIsolation, PluginCrashed
from hybridload.handle import service_of

if TYPE_CHECKING:
    from hybridload.contract import Method
    from hybridload.loader import Loader

__all__ = ["HookPlugin", "register"]

log = logging.getLogger(__name__)

OnCrash = Literal["raise", "skip", "fallback"]
_POLICIES = ("raise", "skip", "fallback")
_CRASHES = (PluginCrashed, NoUsableIsolation)


class HookPlugin:
    """What pluggy knows a loaded plugin by: its hooks, as plain functions.

    :param name: the plugin's.
    :param hooks: hook name -> forwarder.
    """

    def __init__(self, name: str, hooks: dict[str, Callable[..., Any]]) -> None:
        self.__dict__.update(hooks)
        self._name = name

    def __repr__(self) -> str:
        return f"<hybridload plugin {self._name!r}>"


def register(
    loader: Loader,
    plugin_manager: pluggy.PluginManager,
    names: Iterable[str] | None = None,
    *,
    on_crash: OnCrash = "raise",
    tryfirst: bool = False,
    trylast: bool = False,
) -> dict[str, HookPlugin]:
    """Register loaded plugins with pluggy, each under its own name; all of them or, when one is refused, none.

    They are ordinary plugins to pluggy: ``plugin_manager.unregister(name=...)`` takes one out again. The loader stays
    the host's to close; a hook that is called after that raises `PluginClosed`.

    :param plugin_manager: with its hook specifications added already.
    :param names: which plugins; those that are not loaded yet are. By default all that are loaded and have a hook.
    :param on_crash: what a hook call does whose plugin crashed or can run nowhere: ``"raise"`` the error; ``"skip"``
        the plugin with a warning, as if it had returned `None`; or ``"fallback"``: switch to the isolations behind the
        one in use in its chain and make the call again there, which may be its second time, and raise when there is
        none.
    :param tryfirst: call these before those that are not so marked, instead of what the interface's methods say.
    :param trylast: call these after those that are not so marked.
    :returns: the registered plugins by name.
    :raises ConfigError: an argument is wrong, or a plugin that was named has no hook.
    :raises ContractError: a method is marked as a wrapper, or the plugin is a hand-written one.
    :raises pluggy.PluginValidationError: a method and its specification do not agree.
    :raises ValueError: pluggy has a plugin of that name.
    :raises PluginError: as of `Loader.load`.
    """
    if on_crash not in _POLICIES:
        raise ConfigError(f"on_crash is {on_crash!r}: give one of {', '.join(map(repr, _POLICIES))}.")
    order = {"tryfirst": tryfirst, "trylast": trylast} if tryfirst or trylast else {}
    registered: dict[str, HookPlugin] = {}
    try:
        for name in _loaded(loader, names):
            hooks = _hooks(loader, plugin_manager, name, on_crash, order)
            if not hooks and names is not None:
                raise ConfigError(
                    f"Plugin {name!r} has no method that is a hook of {plugin_manager.project_name!r}: add the hook "
                    "specifications to the manager first.",
                    plugin=name,
                )
            if hooks and plugin_manager.register(plugin := HookPlugin(name, hooks), name) is not None:
                registered[name] = plugin
    except BaseException:
        for name in registered:
            plugin_manager.unregister(name=name)
        raise
    return registered


def _loaded(loader: Loader, names: Iterable[str] | None) -> list[str]:
    if names is None:
        return list(loader.loaded())
    wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    for name in wanted:
        if name not in loader.loaded():
            loader.load(name)
    return wanted


def _hooks(
    loader: Loader, manager: pluggy.PluginManager, name: str, on_crash: OnCrash, order: dict[str, bool]
) -> dict[str, Callable[..., Any]]:
    hooks: dict[str, Callable[..., Any]] = {}
    falling = threading.Lock()
    for handle in loader.loaded()[name]:
        for method in service_of(handle).methods:
            options = dict(getattr(method.function, f"{manager.project_name}_impl", None) or {})
            hook = getattr(manager.hook, options.get("specname") or method.name, None)
            if hook is None or hook.spec is None:
                continue
            if options.get("wrapper") or options.get("hookwrapper"):
                raise ContractError(
                    f"Plugin {name!r}: {method.name}() at {method.location} is marked as a hook wrapper, which has to "
                    "run in the host: register that one with pluggy yourself.",
                    plugin=name,
                )
            if method.name in hooks:
                raise ConfigError(
                    f"Plugin {name!r} is loaded under two kinds that both have the hook {method.name}().", plugin=name
                )
            call = _call(_Target(loader, name, handle, method.name, falling), method, on_crash)
            forwarder = _forwarder(call, method, hook.spec.argnames)
            marker = pluggy.HookimplMarker(manager.project_name)
            hooks[method.name] = marker(**{**options, **order})(forwarder)
    return hooks


def _forwarder(call: Callable[[dict[str, Any]], Any], method: Method, offered: tuple[str, ...]) -> Callable[..., Any]:
    """A plain function with the parameters that pluggy is to pass, whose names it reads from the function's code."""
    names = [
        name
        for name, parameter in method.signature.parameters.items()
        if name in offered or parameter.default is Parameter.empty
    ]
    # Made as the standard library makes a named tuple's constructor; every name is an identifier of the interface.
    given = ", ".join(f"{name!r}: {name}" for name in names)
    function: Callable[..., Any] = eval(f"lambda {', '.join(names)}: _call({{{given}}})", {"_call": call})
    function.__name__ = function.__qualname__ = method.name
    function.__module__ = __name__
    function.__doc__ = method.function.__doc__
    return function


class _Target:
    """One method of a loaded plugin, wherever it runs."""

    def __init__(self, loader: Loader, plugin: str, handle: Any, method: str, falling: threading.Lock) -> None:
        self._loader = loader
        self.plugin = plugin
        self._handle = handle
        self._method = method
        self._falling = falling  # one for all methods of a plugin: who comes second finds that it fell back already

    def isolation(self) -> str | None:
        """Where a call that is made now runs."""
        return self._loader._isolation(self.plugin)

    def __call__(self, arguments: dict[str, Any]) -> Any:
        return getattr(self._handle, self._method)(**arguments)

    def skipped(self, error: Exception) -> None:
        log.warning(
            "plugin %s: the hook %s goes on without it: %s", self.plugin, self._method, escape_controls(str(error))
        )

    def fall_back(self, error: Exception, isolation: str | None) -> None:
        """Have it run in the next isolation of its chain; raises `error` when there is none.

        :param isolation: where the call was made. When it runs in another one by now, another call has fallen back, or
            the loader has: no further.
        """
        with self._falling:
            status = self._loader.status(self.plugin)
            if status.isolation == isolation:
                at = status.chain.index(isolation) if isolation in status.chain else len(status.chain)
                behind = status.chain[at + 1 :]
                if not behind:
                    raise error
                self._loader.switch(self.plugin, behind)
        log.warning("plugin %s: the hook %s fell back from: %s", self.plugin, self._method, escape_controls(str(error)))


def _call(target: _Target, method: Method, on_crash: OnCrash) -> Callable[[dict[str, Any]], Any]:
    if on_crash == "raise":
        return target
    if method.is_async and method.kind in (Kind.UNARY, Kind.CLIENT_STREAM):
        return _async_call(target, on_crash)

    def call(arguments: dict[str, Any]) -> Any:
        isolation = target.isolation()
        try:
            return target(arguments)
        except _CRASHES as error:
            if on_crash == "skip":
                return target.skipped(error)
            target.fall_back(error, isolation)
        return target(arguments)

    return call


def _async_call(target: _Target, on_crash: OnCrash) -> Callable[[dict[str, Any]], Any]:
    async def call(arguments: dict[str, Any]) -> Any:
        isolation = target.isolation()
        try:
            return await target(arguments)
        except _CRASHES as error:
            if on_crash == "skip":
                return target.skipped(error)
            await asyncio.to_thread(target.fall_back, error, isolation)
        return await target(arguments)

    return call
