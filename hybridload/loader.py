"""A host's plugins by name: resolved, loaded, switched, watched, closed.

Which isolation serves a name, and what is done when it crashes, is each plugin's own business (`plugin`); how one runs
is the drivers', where names come from is the sources'. What is left for here is the table of plugins, what they share,
and the configuration that they are made from.

Threads: the loader's lock guards changes of the table, which is replaced and never altered, so looking takes no lock;
it is not held while a plugin starts, so different plugins start side by side. One thread waits for what is due; it
starts with the first plugin that runs in a process of its own, or that is to be watched.

Signal handlers, finalizers, listeners and plugins' callbacks may use the loader. What would have to wait for the very
thing that they interrupt or are part of is refused, but for `close`, which goes on on a thread of its own then.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from hybridload import door, events
from hybridload import plugin as plugin_module
from hybridload.complain import complain
from hybridload.config import Settings, isolation_chain, load_settings
from hybridload.contract import Contract, Kind, is_idempotent
from hybridload.errors import ConfigError, ContractError, PluginClosed, PluginError, PluginNotFound, start_failed
from hybridload.events import PluginEvent
from hybridload.exits import aside, at_exit, ending
from hybridload.forks import after_fork
from hybridload.goplugin.in_flight import lent
from hybridload.goplugin.plugins import PluginSet, VersionedPlugins, read_plugin_set
from hybridload.handshake import Handshake
from hybridload.plugin import Host, LoadedPlugin, PluginStatus
from hybridload.references import resolve_reference
from hybridload.sources import Resolution, Sources
from hybridload.watch import INTERVAL, WatchedFile

if TYPE_CHECKING:
    from stevedore.extension import ExtensionManager

__all__ = ["Loader", "PluginStatus"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_SIDE_BY_SIDE = 8
"""How many plugins are started or closed at once."""


class Loader:
    """Loads plugins by name, each in the isolation that its setting says.

    :param plugins: kind -> contract, interface or hand-written plugin, or one such mapping per version. May come from
        the config's ``[host]`` table instead.
    :param handshake: shared with every plugin that runs in its own process. May come from the config instead.
    :param group: entry point group in which installed packages offer plugins.
    :param config: path of a ``plugins.toml``, or of a ``pyproject.toml`` with a ``[tool.hybridload]`` table.
    :param strict: have in-process calls travel through the contract: arguments, results and exceptions are copies, and
        what could not be sent to a process is refused. For tests of a host that may isolate its plugins one day. What
        the config says of each plugin by default.
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
        strict: bool | None = None,
    ) -> None:
        self._settings: Settings = load_settings(config, environ=os.environ)
        reference = self._settings.host.plugins if plugins is None else None
        if plugins is None:
            plugins = _from_config("plugins", reference)
        if handshake is None:
            handshake = _from_config("handshake", self._settings.host.handshake)
        if not isinstance(handshake, Handshake):
            raise ConfigError(f"handshake is {handshake!r}: give a Handshake(cookie_key, cookie_value).")
        self._plugins: VersionedPlugins = read_plugin_set(plugins, handshake)
        _check_idempotent(self._plugins)
        self._group = group
        self._sources = Sources(self._settings, group=group)
        self._host = Host(self._plugins, reference, handshake, self._settings.host.watch, strict)
        self._lock = threading.RLock()  # a finalizer may come through here amid anything
        self._loaded: Mapping[str, LoadedPlugin] = {}
        self._closed = False
        self._config_file: WatchedFile | None = None
        self._refusal: str | None = None
        if self._settings.host.watch and self._settings.path is not None:
            self._config_file = WatchedFile(self._settings.path)
            self._look_later()
        after_fork(self, Loader._forked)
        at_exit(self, Loader._exit)

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
        if plugin.resolution.attached is not None:
            chain = None  # It runs already; where it would run otherwise is of no account.
        kind = self._kind(plugin.resolution, interface)
        try:
            return plugin.load(kind, chain, self)
        finally:
            if plugin.watches:
                self._look_later()

    def load_all(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """The objects of several plugins, by name; those that have to start do so side by side.

        :param names: every one of `names` by default.
        :raises ExceptionGroup: some could not be loaded: the error of each, as of `load`. The others are loaded all the
            same, and `load` gives them.
        """
        wanted = list(dict.fromkeys(self.names() if names is None else names))
        loaded: dict[str, Any] = {}
        failed: dict[str, Exception] = {}

        def load(name: str) -> None:
            try:
                loaded[name] = self.load(name)
            except Exception as error:
                failed[name] = error

        _side_by_side("load_all", [functools.partial(load, name) for name in wanted])
        errors = [failed[name] for name in wanted if name in failed]
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {len(wanted)} plugins could not be loaded", errors)
        return {name: loaded[name] for name in wanted}

    def switch(self, name: str, isolation: str | Sequence[str]) -> None:
        """Move a plugin to another isolation while it is in use. The object in hand goes on working.

        The new one is started first: when that fails, the error is raised and the plugin stays where it is. Calls in
        flight finish where they started. State is not carried across.

        :param isolation: one isolation or a fallback chain.
        :raises PluginError: as `load`; also when the name is not loaded yet.
        """
        chain = isolation_chain(isolation, f"Plugin {name!r}, isolation")
        plugin = self._in_use(name)
        if plugin.resolution.attached is not None:
            raise ConfigError(
                f"Plugin {name!r} is {plugin.resolution.origin}, and stays there: unset that to switch it.", plugin=name
            )
        plugin.switch(chain)

    def reload(self, name: str) -> None:
        """Have a new process, or a new object, take the plugin's place in the isolation that it is in.

        For a binary that was replaced or code that was edited; in-process, modules that were imported stay as they are.
        The new one is started first, as with `switch`, and the plugin stays as it is when that fails.

        :raises PluginError: as `load`; also when the name is not loaded yet.
        """
        self._in_use(name).reload()

    def on_event(self, callback: Callable[[PluginEvent], object]) -> Callable[[], None]:
        """Have `callback` called with everything that happens to the plugins from now on.

        One event at a time, in order, on the thread that brought it about: it should not take long. It may use the
        loader. Each event is a log record of ``hybridload.events`` as well.

        What it raises is logged; only what is no `Exception`, as `SystemExit`, reaches the caller of `load` and the
        like, which have done their work by then.

        :returns: what ends it.
        :raises ConfigError: `callback` cannot be called, or is an ``async def`` function, which nobody would await.
        """
        if not callable(callback):
            raise ConfigError(f"on_event takes a function of one event, and was given {callback!r}.")
        if inspect.iscoroutinefunction(callback):
            raise ConfigError(
                f"on_event was given {callback!r}, which is an async def, and nobody would await it. Give a plain "
                "function; one may start a task, with asyncio.run_coroutine_threadsafe."
            )
        return self._host.events.subscribe(callback)

    def loaded(self) -> dict[str, tuple[Any, ...]]:
        """The objects in hand of each plugin that is loaded, one per kind; in the order of loading."""
        return {name: tuple(plugin.handles(self)) for name, plugin in self._loaded.items() if plugin.kinds()}

    def status(self, name: str) -> PluginStatus:
        """What became of a plugin.

        :raises PluginNotFound: no source has that name.
        """
        plugin = self._loaded.get(name)
        if plugin is not None:
            return plugin.status()
        resolution = self._sources.describe(name)
        error = self._sources.error(name)
        return PluginStatus(
            name, chain=resolution.chain, origin=resolution.origin, last_error=None if error is None else str(error)
        )

    def _isolation(self, name: str) -> str | None:
        """Where a plugin runs, or ran last: what its status says, for whoever asks at every call."""
        plugin = self._loaded.get(name)
        return None if plugin is None else plugin.isolation

    def extension_manager(self) -> ExtensionManager[Any]:
        """The loaded plugins as a stevedore `ExtensionManager`, whatever their isolation, for code written for it."""
        from stevedore.extension import ExtensionManager

        loaded = list(self._loaded.values())
        extensions = [self._sources.extension(p.resolution, handle) for p in loaded for handle in p.handles(self)]
        return ExtensionManager.make_test_instance(extensions, namespace=self._sources.group or "hybridload")

    def close(self) -> None:
        """End every plugin and wait until they are gone. Objects in hand raise `PluginClosed`. Safe to call twice.

        Calls in flight get up to 30 seconds to end. Where it would wait for itself, it does not wait at all: in a
        plugin's callback, or in a signal handler or a finalizer that interrupts a call or another method of this. What
        starts is called off there, and closing goes on on a thread of its own.

        :raises ExceptionGroup: plugins whose own `close` failed; all of them are closed nevertheless.
        """
        if ending() and self._closed:
            return  # threads that hold a lock may have stopped for good
        with self._lock:
            self._closed = True
        for plugin in self._loaded.values():
            plugin.call_off()
        self._host.loop.stop()
        if self._is_amid_what_closing_waits_for():
            _start_thread("close", self._close_aside)
        else:
            self._close()

    def _is_amid_what_closing_waits_for(self) -> bool:
        """Whether this thread is within a call, or a start or an end of a plugin: user code has interrupted it, or is
        part of it. A listener is not, for nothing is held while events are told."""
        ours = {id(each) for plugin in self._loaded.values() for each in (plugin, plugin.door)}
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_globals is vars(events):
                return False
            if frame.f_globals is vars(door) or frame.f_globals is vars(plugin_module):
                names = frame.f_locals
                if id(names.get("self")) in ours or id(names.get("door")) in ours:
                    return True
            frame = frame.f_back
        return lent.get()

    def _close(self) -> None:
        errors: dict[str, BaseException] = {}

        def close(name: str, plugin: LoadedPlugin) -> None:
            try:
                plugin.close()
            except BaseException as error:
                errors[name] = error

        with ExitStack() as stack:  # whatever fails, nothing is left
            stack.callback(self._host.lifeline.close)
            stack.callback(self._host.fork_server.close)
            stack.callback(self._host.events.deliver)
            stack.callback(self._host.loop.close)
            _side_by_side("close", [functools.partial(close, *each) for each in self._loaded.items()])
        for error in errors.values():
            if not isinstance(error, Exception):
                raise error
        if errors:
            raise ExceptionGroup(
                f"plugins failed to close: {', '.join(map(repr, errors))}",
                [each for each in errors.values() if isinstance(each, Exception)],
            )

    def _close_aside(self) -> None:
        try:
            self._close()
        except BaseException as error:
            complain(log, "plugins failed to close", error=error)

    def __del__(self) -> None:
        # Nobody has an object of it any more: each holds the loader.
        if getattr(self, "_closed", True) or ending():
            return
        # One that has failed over has no process, and a thread that is about to start one again.
        if not self._host.loop.started and not any(plugin.runs_elsewhere for plugin in self._loaded.values()):
            return
        names = ", ".join(map(repr, self._loaded)) or "none"
        words = f"A Loader was dropped without close(): its plugins end now ({names}). Use a with statement."
        warnings.warn(words, ResourceWarning, stacklevel=2, source=self)
        aside(self.close, "hybridload close")

    def _exit(self) -> None:
        """At the interpreter's end, which ends what it has."""
        self._closed = True
        self._host.loop.stop()
        for plugin in list(self._loaded.values()):
            plugin.exit()

    # -- the same for event loops

    @overload
    async def aload(
        self, name: str, interface: Callable[..., T], *, isolation: str | Sequence[str] | None = None
    ) -> T: ...

    @overload
    async def aload(
        self, name: str, interface: None = None, *, isolation: str | Sequence[str] | None = None
    ) -> Any: ...

    async def aload(
        self,
        name: str,
        interface: Callable[..., Any] | None = None,
        *,
        isolation: str | Sequence[str] | None = None,
    ) -> Any:
        """As `load`, while the event loop goes on: the start has a thread of its own, and calls have none.

        An in-process plugin is built on that thread. When this is cancelled the start goes on, and a later load gives
        what it made; closing calls it off.
        """
        return await _aside(f"{name} load", functools.partial(self.load, name, interface, isolation=isolation))

    async def aload_all(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """As `load_all`, while the event loop goes on."""
        return await _aside("load_all", functools.partial(self.load_all, names))

    async def aswitch(self, name: str, isolation: str | Sequence[str]) -> None:
        """As `switch`, while the event loop goes on: so calls in flight on it can end where they started."""
        await _aside(f"{name} switch", functools.partial(self.switch, name, isolation))

    async def areload(self, name: str) -> None:
        """As `reload`, while the event loop goes on."""
        await _aside(f"{name} reload", functools.partial(self.reload, name))

    async def aclose(self) -> None:
        """As `close`, while the event loop goes on. Safe to call twice; when this is cancelled, closing goes on."""
        if self._is_amid_what_closing_waits_for():
            self.close()  # which waits for nothing then
        else:
            await _aside("close", self.close)

    async def __aenter__(self) -> Loader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _in_use(self, name: str) -> LoadedPlugin:
        plugin = self._loaded.get(name)
        if plugin is None or not plugin.kinds():
            raise ConfigError(f"Plugin {name!r} is not loaded: load it first, or load(..., isolation=).", plugin=name)
        return plugin

    def _plugin(self, name: str) -> LoadedPlugin:
        known = self._loaded.get(name)
        if known is None and not self._closed:
            made = self._new_plugin(name)
            with self._lock:
                known = self._loaded.get(name) or made
                self._loaded = {**self._loaded, name: known}
        if self._closed or known is None:  # looked at after it was noted: who closes does so first
            raise PluginClosed(f"Plugin {name!r} cannot be loaded: the loader is closed.", plugin=name)
        return known

    def _new_plugin(self, name: str) -> LoadedPlugin:
        sources = self._sources
        try:
            return LoadedPlugin(self._host, sources.resolve(name), sources)
        except PluginError:
            raise
        except Exception as error:  # what names come from cannot be read
            raise start_failed(error, name) from error

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
            f"load() (on the command line --kind), or set kind in the config's [plugins.{name}].",
            plugin=name,
        )

    # -- watching

    def _look_later(self) -> None:
        self._host.loop.at("watch", time.monotonic() + INTERVAL, functools.partial(_look, weakref.ref(self)))

    def _look(self) -> None:
        """Look at the files that are watched, and apply what changed."""
        self._look_later()
        if self._config_file is not None and self._config_file.changed():
            self._reconfigure()
        for plugin in self._loaded.values():
            plugin.look()

    def _reconfigure(self) -> None:
        """Apply the configuration that the file has now: to those plugins alone that it changes."""
        assert self._settings.path is not None
        before = self._settings
        try:
            settings = load_settings(before.path, environ=os.environ)
            before.check_successor(settings)
            sources = Sources(settings, group=self._group)
        except PluginError as error:
            assert self._config_file is not None
            self._config_file.look_again()  # whatever it could not be read for may be over
            if str(error) != self._refusal:
                self._refusal = str(error)
                self._tell(None, "kept", f"the changed configuration is refused, the one before stays: {error}", error)
            return
        self._refusal = None
        with self._lock:
            self._settings, self._sources = settings, sources
            loaded = self._loaded
        fixed = [
            key for key in ("plugins", "handshake", "group") if getattr(before.host, key) != getattr(settings.host, key)
        ]
        for key in fixed:
            self._tell(None, "kept", f"{settings.key('host', key)} takes effect when the host is started again")
        for name, plugin in loaded.items():
            self._apply(name, plugin, sources, before.takes_away(name, settings))

    def _apply(self, name: str, plugin: LoadedPlugin, sources: Sources, taken_away: bool) -> None:
        try:
            if plugin.apply(sources.resolve(name), sources):
                self._tell(name, "configured", "the changed configuration is in force")
        except PluginNotFound as error:
            if not taken_away:  # it is being installed or built anew
                self._tell(name, "kept", f"it is not found at the moment, and goes on as it is: {error}", error)
                return
            with self._lock:
                self._loaded = {each: loaded for each, loaded in self._loaded.items() if each != name}
            plugin.close("is no longer in the configuration, or disabled there: load it again once it is back")
            self._tell(name, "closed", f"the changed configuration has it no more: {error}", error)
        except PluginError as error:
            if not self._closed:
                self._tell(name, "kept", f"what the changed configuration says of it is refused: {error}", error)

    def _tell(self, plugin: str | None, what: str, message: str, error: Exception | None = None) -> None:
        self._host.events.add(PluginEvent(plugin, what, message, error=error))
        self._host.tell()

    def _forked(self) -> None:
        """In a forked child: locks that other threads held are nobody's, and the parent's plugins are the parent's."""
        self._lock = threading.RLock()
        self._host.taken.clear()
        self._host.loop.forked()
        self._host.events.forked()
        for plugin in self._loaded.values():
            plugin.forked()


def _look(known: weakref.ref[Loader]) -> None:
    """What the loop does for a loader that it does not keep alive."""
    loader = known()
    if loader is not None:
        loader._look()


async def _aside(what: str, work: Callable[[], T]) -> T:
    """Do what takes its time on a thread of its own, which ends with it; nothing else can keep it from starting.

    Whoever waits for it may be cancelled; the work goes on.
    """
    import asyncio
    from concurrent.futures import Future
    from contextvars import copy_context

    done: Future[T] = Future()
    done.set_running_or_notify_cancel()
    context = copy_context()

    def run() -> None:
        try:
            result = context.run(work)
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)

    _start_thread(what, run)
    return await asyncio.wrap_future(done)


def _start_thread(what: str, work: Callable[[], object]) -> None:
    """Do something on a thread of its own, which ends with it and is waited for at the interpreter's end."""
    try:
        threading.Thread(target=work, name=f"hybridload {what}").start()
    except (RuntimeError, MemoryError) as error:
        raise PluginError(
            f"The host cannot start a thread to {what} ({error}): it has as many as it may have."
        ) from error


def _side_by_side(what: str, jobs: Sequence[Callable[[], object]]) -> None:
    """Do some jobs at once, one of them here: where no thread can be started they are done one after the other.

    :raises BaseException: what a job raised; those that had not begun are not done then.
    """
    left, stops = deque(jobs), list[BaseException]()

    def work() -> None:
        while True:
            try:
                job = left.popleft()
            except IndexError:
                return
            try:
                job()
            except BaseException as error:
                stops.append(error)
                left.clear()

    threads: list[threading.Thread] = []
    try:
        for _ in range(min(_SIDE_BY_SIDE, len(jobs)) - 1):
            thread = threading.Thread(target=work, name=f"hybridload {what}")
            thread.start()
            threads.append(thread)
    except (RuntimeError, MemoryError):
        pass  # those that there are do it all
    work()
    for thread in threads:
        thread.join()
    if stops:
        raise stops[0]


def _check_idempotent(plugins: VersionedPlugins) -> None:
    """Refuse the mark where nothing could be sent again.

    :raises ContractError: naming the method.
    """
    for contract in {each for kinds in plugins.values() for each in kinds.values() if isinstance(each, Contract)}:
        service = contract.complete()
        for method in service.methods:
            if method.kind is not Kind.UNARY and is_idempotent(getattr(service.interface, method.name)):
                raise ContractError(
                    f"{service.interface.__qualname__}.{method.name} is marked idempotent and has a stream, which "
                    "cannot be sent again: remove the mark."
                )


def _from_config(key: str, reference: str | None) -> Any:
    if reference is None:
        raise ConfigError(
            f'Loader needs {key}: pass {key}= or set {key} = "module:NAME" in the config\'s [host] table.'
        )
    return resolve_reference(reference, f"[host] {key}")
