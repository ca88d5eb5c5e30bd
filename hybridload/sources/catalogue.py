"""All sources together: which names there are, where each can come from, and which place serves which isolation.

Rules:

- Precedence, for each of the two things that a plugin can be: a Python object comes from `[plugins.<name>]
  entry_point`, else from the installed entry point of that name; a program comes from `[plugins.<name>] command`, else
  from the first folder that has it, else from an entry point that turns out to name an `External`. Among installed
  distributions the first on `sys.path` wins.
- What loses is never hidden: it is in `Resolution.shadowed`, and a warning tells of it when the name is first resolved
  for loading.
- Listing and describing import nothing. An entry point is imported when an isolation needs what it names, each by
  itself; what went wrong is kept for its name, and is tried anew at the next load.
- The metadata and the folders are read once, when a name is first asked for.

Every method may be called from any thread. The lock guards the tables; nothing is imported while it is held.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hybridload.config.chain import Chain, Isolation, closest
from hybridload.config.settings import PluginSettings, Settings
from hybridload.errors import ConfigError, PluginError, PluginNotFound
from hybridload.external import External
from hybridload.frozen import field, frozen
from hybridload.goplugin.reattach_variable import REATTACH_VARIABLE
from hybridload.sources import folders, installed
from hybridload.sources.candidate import Candidate
from hybridload.sources.entry_point import EntryPoint

if TYPE_CHECKING:
    from stevedore.extension import Extension

    from hybridload.goplugin.reattach import ReattachConfig

log = logging.getLogger(__name__)


@frozen
class Resolution:
    """Where a plugin comes from, isolation by isolation.

    :param settings: what the configuration and the environment set for it.
    :param python: the place that in-process and subprocess isolation use; `None` when there is none.
    :param program: the place that external isolation uses; `None` when there is none, or none is known before the
        entry point has been imported.
    :param shadowed: places that have the name too and are not used.
    :param attached: the process that serves it already, when `HYBRIDLOAD_REATTACH` names it: then that is used, as the
        external isolation, whatever else there is.
    """

    name: str
    settings: PluginSettings
    python: Candidate | None
    program: Candidate | None
    shadowed: tuple[Candidate, ...]
    _sources: Sources = field(repr=False, compare=False)
    attached: ReattachConfig | None = field(default=None, repr=False)

    @property
    def chain(self) -> Chain:
        """The isolations to try, as far as one can tell without importing anything: `decide` is exact."""
        if self.attached is not None:
            return ("external",)
        if self.settings.isolation is not None:
            return self.settings.isolation
        if isinstance(self._known(), External):
            return ("external",)
        python: Chain = ("subprocess",) if self._only_elsewhere() else ("in-process",)
        if self.program is None:
            return python
        return ("external",) if self.python is None else ("external", *python)

    def decide(self) -> Chain:
        """The isolations to try. Without a setting, an entry point is imported to see whether it names an `External`.

        An entry point that cannot be imported counts as a Python object; loading it raises the reason.
        """
        if self.settings.isolation is None and self.program is None and self.attached is None:
            self._sources.peek(self)
        return self.chain

    @property
    def origin(self) -> str:
        """Where the plugin comes from, in words: each place that is used."""
        if self.attached is not None:
            return f"process {self.attached.pid}, which runs already (environment variable {REATTACH_VARIABLE})"
        return "; ".join(candidate.origin for candidate in (self.program, self.python) if candidate is not None)

    @property
    def conflicts(self) -> tuple[str, ...]:
        """What is not used, and in favour of what, in words."""
        losers = [*self.shadowed]
        if self.python is not None and self.program is not None and isinstance(self._known(), External):
            losers.append(self.python)
        return tuple(
            f"{loser.origin} is not used, because {self._winner(loser).origin} comes first" for loser in losers
        )

    def serves(self, isolation: Isolation, chain: Chain | None = None) -> bool:
        """Whether the plugin has a source for an isolation. May import the entry point, where only that can tell.

        :param chain: the chain in force, when it is not the plugin's own. An entry point that cannot be imported
            counts as a source for the first isolation of the chain that would use it, so that loading it raises the
            reason, once.
        """
        if self.attached is not None:
            return isolation == "external"
        if isolation == "external" and self.program is not None:
            return True
        if self.python is None or (self._only_elsewhere() and isolation != "subprocess"):
            return False
        if isolation == "subprocess":
            return not isinstance(self._known(), External)
        found = self._sources.peek(self)
        if isinstance(found, PluginError):
            others: set[Isolation] = {"in-process", "subprocess"}
            return isolation == "in-process" or not others & set(chain or self.chain)
        return isinstance(found, External) == (isolation == "external")

    @property
    def external(self) -> External | None:
        """The program with the plugin's settings applied. May import the entry point, where only that can tell.

        :raises PluginError: when the entry point cannot be imported.
        """
        found = self.program.external if self.program is not None else None
        if found is None and self.python is not None and not self._only_elsewhere():
            loaded = self._sources.load_object(self)
            found = loaded if isinstance(loaded, External) else None
        if found is None:
            return None
        settings = self.settings
        return found.overridden(sha256=settings.sha256, env=settings.env, cwd=settings.cwd)

    def _known(self) -> object:
        return self._sources.known(self.name)

    def _only_elsewhere(self) -> bool:
        return self.python is not None and self.python.entry_point is None

    def _winner(self, loser: Candidate) -> Candidate:
        winner = self.python if loser.is_python and loser is not self.python else self.program
        assert winner is not None
        return winner


class Sources:
    """Every name that a host can load, and where it comes from.

    :param group: the group of entry points; the configuration's when `None`.
    :param environ: where `HYBRIDLOAD_REATTACH` may be; this process's environment by default.
    :raises ConfigError: an argument, or that variable, is not what it should be.
    """

    def __init__(
        self, settings: Settings, group: str | None = None, *, environ: Mapping[str, str] | None = None
    ) -> None:
        if group is not None and (not isinstance(group, str) or not group.strip()):
            raise ConfigError(f"group={group!r}: give the name of an entry-point group, e.g. 'myapp.plugins'.")
        self.settings = settings
        self.group = group or settings.host.group
        self._attached = _attached(os.environ if environ is None else environ)
        self._lock = threading.RLock()
        self._loaded: dict[str, object] = {}
        self._errors: dict[str, PluginError] = {}
        self._unraised: dict[str, PluginError] = {}
        self._warned: set[str] = set()

    def names(self) -> list[str]:
        """Every name, sorted; also those that are disabled, or that the configuration has and no source knows."""
        with self._lock:
            known = {entry.name for entry in self._entry_points[0]}
            known.update(name for name, _, _ in self._found.programs)
        return sorted(known | set(self.settings.plugins) | set(self._attached))

    def candidates(self, name: str) -> tuple[Candidate, ...]:
        """Every place that a name can come from, the strongest first. Nothing is imported."""
        settings = self.settings.for_plugin(name)
        found = []
        if settings.command is not None:
            found.append(self._from_command(name, settings.command))
        if settings.entry_point is not None:
            found.extend(self._from_setting(name, settings.entry_point, settings))
        with self._lock:
            entry_points, programs = self._entry_points[0], self._found.programs
        if settings.entry_point != name:
            found.extend(_from_entry_point(name, entry) for entry in entry_points if entry.name == name)
        if not any(candidate.is_python for candidate in found):
            found.extend(self._from_elsewhere(name, settings))
        pattern = self.settings.host.pattern
        found.extend(
            Candidate(name, "folder", f"{path} (folder {folder}, {pattern})", external=External(path))
            for known, folder, path in programs
            if known == name
        )
        return tuple(found)

    def describe(self, name: str) -> Resolution:
        """Where a plugin comes from, to be shown. Nothing is imported, and being disabled is no error.

        :raises PluginNotFound: when nothing has the name.
        """
        candidates = self.candidates(name)
        attached = self._attached.get(name)
        if not candidates and name not in self.settings.plugins and attached is None:
            raise self._not_found(name)
        python = next((candidate for candidate in candidates if candidate.is_python), None)
        program = next((candidate for candidate in candidates if not candidate.is_python), None)
        shadowed = tuple(candidate for candidate in candidates if candidate is not python and candidate is not program)
        return Resolution(name, self.settings.for_plugin(name), python, program, shadowed, self, attached)

    def resolve(self, name: str) -> Resolution:
        """Where a plugin comes from, to be loaded. Conflicts are warned of, once for each name.

        :raises PluginNotFound: when nothing has the name, or it is disabled.
        :raises ConfigError: when the variable that sets its isolation could mean another plugin too.
        """
        resolution = self.describe(name)
        if not resolution.settings.enabled:
            raise PluginNotFound(
                f"Plugin {name!r} is disabled: {self.settings.key('plugins', name, 'enabled')}, or defaults.enabled, "
                "is false. Set it to true to load the plugin.",
                plugin=name,
            )
        if resolution.python is None and resolution.program is None and resolution.attached is None:
            raise self._dangling(resolution)
        self.settings.check_variable(name, self.names())
        with self._lock:
            first = name not in self._warned
            self._warned.add(name)
        if first:
            _warn(name, resolution.conflicts)
            if self.is_half(resolution):
                log.warning("plugin %s: nothing to fall back to: %s", name, self.why_nothing(resolution))
        return resolution

    def is_half(self, resolution: Resolution) -> bool:
        """Whether the configuration gives a program an entry point to fall back to, and there is none."""
        return resolution.python is None and resolution.program is not None and bool(resolution.settings.entry_point)

    def problems(self) -> tuple[str, ...]:
        """What could not be searched or read, in words. None of it stops another plugin."""
        with self._lock:
            return (*self._entry_points[1], *self._found.problems)

    def error(self, name: str) -> PluginError | None:
        """Why the entry point of a name could not be imported; `None` when it could, or nobody tried."""
        with self._lock:
            return self._errors.get(name)

    def known(self, name: str) -> object:
        """What the entry point of a name names; `None` when it has not been imported."""
        with self._lock:
            return self._loaded.get(name)

    def peek(self, resolution: Resolution) -> object:
        """What the entry point names, or the error; `load_object` raises that one then, instead of trying again."""
        try:
            return self.load_object(resolution)
        except PluginError as error:
            with self._lock:
                self._unraised[resolution.name] = error
            return error

    def load_object(self, resolution: Resolution) -> object:
        """Import what the entry point of a plugin names, once. May be an `External`.

        :raises PluginError: when it cannot be imported; kept for `error`.
        :raises ConfigError: when the configuration says something of it that cannot be.
        """
        name, candidate = resolution.name, resolution.python
        with self._lock:
            if name in self._loaded:
                return self._loaded[name]
            unraised = self._unraised.pop(name, None)
        if unraised is not None:
            raise unraised
        if candidate is None or candidate.entry_point is None:
            raise PluginNotFound(
                f"Plugin {name!r} has no entry point in this interpreter: it comes from {resolution.origin}. "
                "Choose another isolation, or install it here.",
                plugin=name,
            )
        try:
            found = installed.import_entry_point(candidate, candidate.entry_point)
            self._check_sha256(resolution, found)
        except PluginError as error:
            with self._lock:
                self._errors[name] = error
            raise
        before = resolution.conflicts
        with self._lock:
            self._errors.pop(name, None)
            found = self._loaded.setdefault(name, found)
        # That an entry point names a program, which another one comes before, shows only now.
        _warn(name, resolution.conflicts[len(before) :])
        return found

    def extension(self, resolution: Resolution, obj: object) -> Extension[Any]:
        """A loaded plugin as stevedore knows it. Its `plugin` is what the entry point names, or `None` when that was
        not imported here.

        :param obj: the object that the host holds.
        """
        import importlib_metadata
        from stevedore.extension import Extension

        python = resolution.python
        plugin: Any = self.known(resolution.name)
        if python is not None and python.entry_point is not None:
            entry_point: Any = installed.in_full(python.entry_point)
        else:
            # stevedore's code reads the entry point's name and value; this one says what the plugin is.
            value = f"{External.__module__}:{External.__qualname__}"
            entry_point = importlib_metadata.EntryPoint(resolution.name, value, self.group or "hybridload")
            plugin = resolution.program.external if resolution.program is not None else None
        return Extension(resolution.name, entry_point, plugin, obj)

    @cached_property
    def _entry_points(self) -> tuple[tuple[EntryPoint, ...], tuple[str, ...]]:
        return ((), ()) if self.group is None else installed.read_entry_points(self.group)

    @cached_property
    def _found(self) -> folders.Found:
        return folders.search(self.settings.host.path, self.settings.host.pattern)

    def _from_command(self, name: str, command: tuple[str, ...]) -> Candidate:
        origin = f"{self.settings.key('plugins', name, 'command')} = {' '.join(command)}"
        return Candidate(name, "config", origin, external=External(command))

    def _from_setting(self, name: str, target: str, settings: PluginSettings) -> list[Candidate]:
        key = self.settings.key("plugins", name, "entry_point")
        if ":" in target:
            return [
                Candidate(name, "config", f"{key} = {target}", entry_point=EntryPoint(name, target, self.group or ""))
            ]
        with self._lock:
            entry_points = [entry for entry in self._entry_points[0] if entry.name == target]
        return [
            Candidate(name, "config", f"{key} = {target}: {installed.describe(entry)}", entry_point=entry)
            for entry in entry_points
        ]

    def _from_elsewhere(self, name: str, settings: PluginSettings) -> list[Candidate]:
        asked = settings.entry_point is not None or settings.command is None
        if self.group is None or settings.python is None or name not in self.settings.plugins or not asked:
            return []
        target = settings.entry_point or name
        return [
            Candidate(
                name, "config", f"entry point {target} of {self.group} as {settings.python} has it", lookup=target
            )
        ]

    def _check_sha256(self, resolution: Resolution, found: object) -> None:
        if resolution.settings.sha256 is None or resolution.program is not None or isinstance(found, External):
            return
        name = resolution.name
        raise ConfigError(
            f"{self.settings.key('plugins', name, 'sha256')}: a checksum holds for a program, and the plugin is "
            f"{resolution.origin}, a Python object. Remove it, or give a command.",
            plugin=name,
        )

    def why_nothing(self, resolution: Resolution) -> str:
        """Why a plugin that only the configuration names has no source, as a sentence."""
        wanted = resolution.settings.entry_point or resolution.name
        if self.group is None:
            return "no group is given to look up entry points in; set group (Loader's argument, or [host] group)."
        with self._lock:
            known = sorted({entry.name for entry in self._entry_points[0]})
        unusable = self._unusable(resolution.name)
        stop = "" if unusable.endswith((".", "?")) else "."
        return (
            f"no installed package has an entry point {wanted!r} in group {self.group}.{closest(wanted, known)}"
            f"{unusable}{stop if unusable else ''}"
        )

    def _dangling(self, resolution: Resolution) -> PluginError:
        name = resolution.name
        also = "" if resolution.settings.entry_point is not None else ", and the table has no command"
        return PluginNotFound(
            f"Plugin {name!r}: {self.settings.key('plugins', name)} has nothing to load{also}: "
            f"{self.why_nothing(resolution)} Give a command, or install the package that provides the entry point.",
            plugin=name,
        )

    def _not_found(self, name: str) -> PluginNotFound:
        names = self.names()
        known = f" Known names: {', '.join(names)}." if names else " No name is known."
        return PluginNotFound(
            f"There is no plugin {name!r}.{closest(name, names)}{self._unusable(name)}{known} {self._searched()}",
            plugin=name,
        )

    def _unusable(self, name: str) -> str:
        with self._lock:
            reason = self._found.unusable.get(name)
        return "" if reason is None else f" There is a file for it, but {reason}"

    def _searched(self) -> str:
        places = []
        if self.group is not None:
            places.append(f"entry points of group {self.group}")
        if self.settings.path is not None:
            places.append(str(self.settings.path))
        host = self.settings.host
        places.extend(f"folder {folder} ({host.pattern})" for folder in host.path)
        if not places:
            return "Nothing was searched: give a group of entry points or a configuration file."
        problems = self.problems()
        return f"Searched: {'; '.join(places)}." + (f" Problems: {' '.join(problems)}" if problems else "")


def _attached(environ: Mapping[str, str]) -> Mapping[str, ReattachConfig]:
    if not environ.get(REATTACH_VARIABLE):
        return {}
    from hybridload.goplugin.reattach import read_reattach_variable

    return read_reattach_variable(environ)


def _from_entry_point(name: str, entry_point: EntryPoint) -> Candidate:
    return Candidate(name, "entry-point", installed.describe(entry_point), entry_point=entry_point)


def _warn(name: str, conflicts: tuple[str, ...]) -> None:
    for conflict in conflicts:
        log.warning("plugin %s: %s", name, conflict)
