"""A host's plugins by name: resolved, loaded, switched, closed.

A name has a fallback chain of isolations. Loading goes through it until one works and puts that one's methods into the
slots of the object that the caller holds; switching does the same with another chain while the object is in use. Which
isolation serves a name is all that this module decides; how each one runs is the drivers' business, where names come
from is the sources'.

Threads: each plugin has a lock, held while it starts, switches or closes, so different plugins start side by side and
two loads of one name give one object. The loader's own lock guards only the table of plugins and is never held while a
plugin starts. Calls take neither.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from hybridload.config import Chain, Settings, isolation_chain, load_settings
from hybridload.contract import Contract
from hybridload.drain import Gate, gated
from hybridload.errors import (
    Attempt,
    ChecksumMismatch,
    ConfigError,
    ContractError,
    NoUsableIsolation,
    PluginClosed,
    PluginError,
)
from hybridload.goplugin.lifeline import Lifeline
from hybridload.goplugin.plugins import PluginSet, VersionedPlugins, read_plugin_set
from hybridload.handle import Methods, handle_class, new_handle, rebind
from hybridload.handshake import Handshake
from hybridload.isolation import Request, Running, driver
from hybridload.references import resolve_reference
from hybridload.sources import Resolution, Sources

if TYPE_CHECKING:
    from stevedore.extension import ExtensionManager

log = logging.getLogger(__name__)

T = TypeVar("T")

_DRAIN_TIMEOUT = 30.0
"""Seconds that calls in flight may take to end where they started, when a plugin is switched or closed."""


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """What became of a plugin.

    :param state: ``"unloaded"``, ``"running"``, ``"crashed"``, ``"failed"`` or ``"closed"``.
    :param isolation: where it runs, or ran last; `None` when it never did.
    :param kinds: the kinds that were loaded.
    :param chain: the isolations to try, in order.
    :param pid: of the process it runs in, the host's own for in-process.
    :param protocol: ``"grpc"`` or ``"netrpc"``; `None` in-process.
    :param version: of the plugin set in use.
    :param restarts: how often a new process took the place of one that ended by itself.
    :param degraded: whether it runs in another isolation than the first one that could have served it.
    :param last_error: the last error, in words.
    :param attempts: the isolations that were tried and failed at the last start.
    :param origin: where the name comes from.
    """

    name: str
    state: str = "unloaded"
    isolation: str | None = None
    kinds: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    pid: int | None = None
    protocol: str | None = None
    version: int | None = None
    restarts: int = 0
    degraded: bool = False
    last_error: str | None = None
    attempts: tuple[Attempt, ...] = ()
    origin: str = ""


class Loader:
    """Loads plugins by name, each in the isolation that its setting says.

    :param plugins: kind -> contract, interface or hand-written plugin, or one such mapping per version. May come from
        the config's ``[host]`` table instead.
    :param handshake: shared with every plugin that runs in its own process. May come from the config instead.
    :param group: entry point group in which installed packages offer plugins.
    :param config: path of a ``plugins.toml``, or of a ``pyproject.toml`` with a ``[tool.hybridload]`` table.
    :raises ConfigError: the configuration or an argument is wrong.
    :raises ContractError: an interface of the set cannot travel.
    """

    def __init__(
        self,
        plugins: PluginSet | None = None,
        *,
        handshake: Handshake | None = None,
        group: str | None = None,
        config: str | os.PathLike[str] | None = None,
    ) -> None:
        self._settings: Settings = load_settings(config, environ=os.environ)
        self._reference: str | None = None
        if plugins is None:
            self._reference = self._settings.host.plugins
            plugins = _from_config("plugins", self._reference)
        if handshake is None:
            handshake = _from_config("handshake", self._settings.host.handshake)
        if not isinstance(handshake, Handshake):
            raise ConfigError(f"handshake is {handshake!r}: give a Handshake(cookie_key, cookie_value).")
        self._handshake = handshake
        self._plugins: VersionedPlugins = read_plugin_set(plugins, handshake)
        self._sources = Sources(self._settings, group=group)
        self._lock = threading.Lock()
        self._loaded: dict[str, _Plugin] = {}
        self._closed = False
        self._lifeline = Lifeline()

    @property
    def sources(self) -> Sources:
        """Where this loader's names come from, for listing them."""
        return self._sources

    def names(self) -> list[str]:
        """Every name that can be loaded, sorted. Nothing is imported or started."""
        return [name for name in self._sources.names() if self._settings.for_plugin(name).enabled]

    @overload
    def load(self, name: str, interface: Callable[..., T], *, isolation: str | Sequence[str] | None = None) -> T: ...

    @overload
    def load(self, name: str, interface: None = None, *, isolation: str | Sequence[str] | None = None) -> Any: ...

    def load(
        self,
        name: str,
        interface: Callable[..., Any] | None = None,
        *,
        isolation: str | Sequence[str] | None = None,
    ) -> Any:
        """The object for a plugin; the same one each time.

        :param name: one of `names`.
        :param interface: which interface of the plugin set it has; needed when the set has several and the config does
            not name one.
        :param isolation: one isolation or a fallback chain, instead of the configured one. On a loaded name this is a
            switch.
        :raises PluginNotFound: no source has that name.
        :raises NoUsableIsolation: every isolation of the chain failed; the error lists each attempt.
        :raises ChecksumMismatch: a binary is not the one whose digest was given, and the config does not allow a
            fallback for that.
        :raises ConfigError, ContractError: the settings, or the object that was found, are wrong.
        :raises PluginClosed: the loader is closed.
        """
        chain = None if isolation is None else isolation_chain(isolation, f"Plugin {name!r}, isolation")
        plugin = self._plugin(name)
        kind = self._kind(plugin.resolution, interface)
        return plugin.load(kind, chain)

    def switch(self, name: str, isolation: str | Sequence[str]) -> None:
        """Move a plugin to another isolation while it is in use. The object in hand goes on working.

        The new one is started first: when that fails, the error is raised and the plugin stays where it is. Calls in
        flight finish where they started. State is not carried across.

        :param isolation: one isolation or a fallback chain.
        :raises PluginError: as `load`; also when the name is not loaded yet.
        """
        chain = isolation_chain(isolation, f"Plugin {name!r}, isolation")
        with self._lock:
            plugin = self._loaded.get(name)
        if plugin is None or not plugin.kinds():
            raise ConfigError(f"Plugin {name!r} is not loaded: load it first, or load(..., isolation=).", plugin=name)
        plugin.switch(chain)

    def status(self, name: str) -> PluginStatus:
        """What became of a plugin.

        :raises PluginNotFound: no source has that name.
        """
        with self._lock:
            plugin = self._loaded.get(name)
        if plugin is not None:
            return plugin.status()
        resolution = self._sources.describe(name)
        error = self._sources.error(name)
        return PluginStatus(
            name, chain=resolution.chain, origin=resolution.origin, last_error=None if error is None else str(error)
        )

    def extension_manager(self) -> ExtensionManager[Any]:
        """The loaded plugins as a stevedore `ExtensionManager`, whatever their isolation, for code written for it."""
        from stevedore.extension import ExtensionManager

        with self._lock:
            loaded = list(self._loaded.values())
        extensions = [self._sources.extension(p.resolution, handle) for p in loaded for handle in p.handles()]
        return ExtensionManager.make_test_instance(extensions, namespace=self._sources.group or "hybridload")

    def close(self) -> None:
        """End every plugin and wait until they are gone. Objects in hand raise `PluginClosed`. Safe to call twice.

        :raises ExceptionGroup: plugins whose own `close` failed; all of them are closed nevertheless.
        """
        with self._lock:
            self._closed = True
            loaded = list(self._loaded.values())
        errors: list[Exception] = []
        for plugin in loaded:
            try:
                plugin.close()
            except Exception as error:
                errors.append(error)
        self._lifeline.close()
        if errors:
            raise ExceptionGroup("plugins failed to close", errors)

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _plugin(self, name: str) -> _Plugin:
        with self._lock:
            if self._closed:
                raise PluginClosed(f"Plugin {name!r} cannot be loaded: the loader is closed.", plugin=name)
            if name in self._loaded:
                return self._loaded[name]
        resolution = self._sources.resolve(name)
        with self._lock:
            if self._closed:
                raise PluginClosed(f"Plugin {name!r} cannot be loaded: the loader is closed.", plugin=name)
            return self._loaded.setdefault(name, _Plugin(self, resolution))

    def _kind(self, resolution: Resolution, interface: Callable[..., Any] | None) -> str:
        name, kinds = resolution.name, self._plugins[max(self._plugins)]
        if interface is not None:
            for version in sorted(self._plugins, reverse=True):
                for kind, offered in self._plugins[version].items():
                    if isinstance(offered, Contract) and offered.interface is interface:
                        return kind
            raise ConfigError(
                f"Plugin {name!r}: the interface {getattr(interface, '__name__', interface)!r} is not in the plugin "
                f"set, which has {', '.join(sorted(kinds))}.",
                plugin=name,
            )
        if resolution.settings.kind is not None:
            if all(resolution.settings.kind not in offered for offered in self._plugins.values()):
                raise ConfigError(
                    f"Plugin {name!r}: its kind {resolution.settings.kind!r} is not in the plugin set, which has "
                    f"{', '.join(sorted(kinds))}.",
                    plugin=name,
                )
            return resolution.settings.kind
        if len(kinds) == 1:
            return next(iter(kinds))
        raise ConfigError(
            f"Plugin {name!r}: the plugin set has several kinds ({', '.join(sorted(kinds))}): pass the interface to "
            f"load(), or set kind in the config's [plugins.{name}].",
            plugin=name,
        )

    def _request(self, resolution: Resolution, kind: str) -> Request:
        return Request(
            name=resolution.name,
            kind=kind,
            plugins=self._plugins,
            plugin_reference=self._reference,
            handshake=self._handshake,
            resolution=resolution,
            sources=self._sources,
            lifeline=self._lifeline,
        )


@dataclass(slots=True)
class _Place:
    """Where a plugin runs now, and the gate that its calls pass."""

    isolation: str
    running: Running
    attempts: tuple[Attempt, ...]
    gate: Gate = field(default_factory=Gate)


class _Plugin:
    """One name: where it runs, and the objects that callers hold for it, one per kind."""

    def __init__(self, loader: Loader, resolution: Resolution) -> None:
        self.resolution = resolution
        self._loader = loader
        self._name = resolution.name
        self._lock = threading.Lock()
        self._chain: Chain = resolution.chain
        self._place: _Place | None = None
        self._handles: dict[str, Any] = {}
        self._restarts = 0
        self._attempts: tuple[Attempt, ...] = ()
        self._last_error: Exception | None = None
        self._closed = False

    def kinds(self) -> tuple[str, ...]:
        return tuple(self._handles)

    def handles(self) -> list[Any]:
        return list(self._handles.values())

    def load(self, kind: str, chain: Chain | None) -> Any:
        with self._lock:
            self._refuse_closed()
            if self._place is not None and self._place.running.gone() is not None:
                self._last_error = self._place.running.gone()
                self._move(chain or self._chain, kind)
                self._restarts += 1
            elif self._place is None or (chain is not None and chain != self._chain):
                self._move(chain or self.resolution.decide(), kind)
            if kind not in self._handles:
                self._handles[kind] = self._new_handle(kind)
            return self._handles[kind]

    def switch(self, chain: Chain) -> None:
        with self._lock:
            self._refuse_closed()
            if chain != self._chain or self._place is None or self._place.running.gone() is not None:
                self._move(chain, next(iter(self._handles)))

    def status(self) -> PluginStatus:
        place, error = self._place, self._last_error
        gone = None if place is None else place.running.gone()
        state = "failed" if error is not None and place is None else "unloaded"
        if place is not None:
            state = "running" if gone is None else "crashed"
        running = None if place is None else place.running
        return PluginStatus(
            name=self._name,
            state="closed" if self._closed else state,
            isolation=None if place is None else place.isolation,
            kinds=self.kinds(),
            chain=self._chain,
            pid=None if running is None else running.pid,
            protocol=None if running is None else running.protocol,
            version=None if running is None else running.version,
            restarts=self._restarts,
            degraded=bool(place is not None and place.attempts),
            last_error=None if (gone or error) is None else str(gone or error),
            attempts=self._attempts,
            origin=self.resolution.origin,
        )

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            place, self._place = self._place, None
            for kind, handle in self._handles.items():
                rebind(handle, self._closed_methods(kind))
            if place is not None:
                self._leave(place)

    # -- moving; called with the lock held

    def _move(self, chain: Chain, kind: str) -> None:
        """Open the first isolation of `chain` that works, put it into the slots, and leave the old one."""
        place = self._open(chain, kind)
        old = self._place
        try:
            slots = {each: self._slots(place, each) for each in self._handles}
        except BaseException:
            place.running.close()
            raise
        self._place, self._chain, self._attempts = place, chain, place.attempts
        for each, handle in self._handles.items():
            rebind(handle, slots[each])
        if old is not None:
            self._leave(old)

    def _open(self, chain: Chain, kind: str) -> _Place:
        attempts: list[Attempt] = []
        request = self._loader._request(self.resolution, kind)
        for isolation in chain:
            if not self.resolution.serves(isolation, chain):
                continue
            try:
                running = driver(isolation).open(request)
                try:
                    running.methods(kind)
                except BaseException:
                    running.close()
                    raise
            except (ConfigError, ContractError) as error:
                # The host's or the plugin's author has to mend these; another isolation would hide them.
                self._last_error = error
                raise
            except PluginError as error:
                attempts.append(Attempt(isolation, error))
                self._last_error = error
                if isinstance(error, ChecksumMismatch) and not self.resolution.settings.fallback_on_checksum:
                    self._attempts = tuple(attempts)
                    raise
                continue
            if attempts:
                log.warning(
                    "plugin %s: running %s, because %s",
                    self._name,
                    isolation,
                    "; ".join(f"{attempt.isolation} failed ({attempt.error})" for attempt in attempts),
                )
            return _Place(isolation, running, tuple(attempts))
        self._attempts = tuple(attempts)
        refusal = NoUsableIsolation(self._nothing_left(chain, attempts), plugin=self._name, attempts=attempts)
        self._last_error = refusal
        raise refusal from (attempts[-1].error if attempts else None)

    def _nothing_left(self, chain: Chain, attempts: Sequence[Attempt]) -> str:
        if not attempts:
            return (
                f"Plugin {self._name!r} has no source for {', '.join(chain)}: it comes from {self.resolution.origin}. "
                "Choose another isolation, or give it " + ("a command." if "external" in chain else "an entry point.")
            )
        tried = "\n".join(f"  {attempt}" for attempt in attempts)
        return f"Plugin {self._name!r} can run in none of the isolations that were tried:\n{tried}"

    def _leave(self, place: _Place) -> None:
        if not place.running.direct and not place.gate.close(_DRAIN_TIMEOUT):
            log.warning(
                "plugin %s: calls were still in flight %g s after it was left (%s); they end now",
                self._name,
                _DRAIN_TIMEOUT,
                place.isolation,
            )
        place.running.close()

    # -- slots

    def _new_handle(self, kind: str) -> Any:
        assert self._place is not None
        contract = self._contract(kind)
        if contract is None:
            return self._place.running.methods(kind)
        service = contract.complete()
        return new_handle(handle_class(service), self._slots(self._place, kind), self._describe)

    def _contract(self, kind: str) -> Contract[Any] | None:
        """The contract that the host's object follows: that of the highest version which has the kind."""
        for version in sorted(self._loader._plugins, reverse=True):
            offered = self._loader._plugins[version].get(kind)
            if offered is not None:
                return offered if isinstance(offered, Contract) else None
        return None

    def _slots(self, place: _Place, kind: str) -> Methods:
        methods = place.running.methods(kind)
        contract = self._contract(kind)
        if contract is None:
            return methods
        names = [method.name for method in contract.complete().methods]
        slots = {name: methods.get(name) or self._absent(name, place) for name in names}
        if place.running.direct:
            return slots
        handles = self._handles
        return gated(slots, place.gate, lambda name: getattr(handles[kind], name))

    def _absent(self, method: str, place: _Place) -> Callable[..., Any]:
        message = (
            f"Plugin {self._name!r} runs version {place.running.version} of its interface, which has no {method}(): "
            "check status(...).version before you call it."
        )

        def absent(*_: Any, **__: Any) -> Any:
            raise ContractError(message, plugin=self._name)

        return absent

    def _closed_methods(self, kind: str) -> Methods:
        contract = self._contract(kind)
        names = [] if contract is None else [method.name for method in contract.complete().methods]
        message = f"Plugin {self._name!r} was closed with its loader: load it from a new one."

        def closed(*_: Any, **__: Any) -> Any:
            raise PluginClosed(message, plugin=self._name)

        return dict.fromkeys(names, closed)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise PluginClosed(f"Plugin {self._name!r} was closed with its loader.", plugin=self._name)

    def _describe(self) -> str:
        place = self._place
        if place is None:
            return f"{self._name!r} (closed)"
        return f"{self._name!r} ({place.isolation}, pid {place.running.pid})"


def _from_config(key: str, reference: str | None) -> Any:
    if reference is None:
        raise ConfigError(
            f'Loader needs {key}: pass {key}= or set {key} = "module:NAME" in the config\'s [host] table.'
        )
    return resolve_reference(reference, f"[host] {key}")
