"""The entry points of installed distributions: listed without importing them, imported one at a time.

The order is that of `sys.path`, as importlib.metadata has it: of two distributions that offer one name, the first on
the path wins. A distribution whose metadata cannot be read costs its own entry points, nobody else's.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from hybridload.config.settings import is_plugin_name
from hybridload.errors import ConfigError, PluginError
from hybridload.sources import installed_cache
from hybridload.sources.entry_point import EntryPoint

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint as Metadata
    from importlib_metadata import IDistribution

    from hybridload.sources.candidate import Candidate

log = logging.getLogger(__name__)


def read_entry_points(group: str) -> tuple[tuple[EntryPoint, ...], tuple[str, ...]]:
    """The entry points of a group in the order of the path, and what could not be read, in words."""
    found = installed_cache.recall(group)
    problems: list[str] = []
    if found is None:
        found, problems = _read_all(group)
        if not problems:
            installed_cache.remember(group, found, _metadata_folders())
    for entry_point in found:
        if not is_plugin_name(entry_point.name):
            problems.append(f"{describe(entry_point)}: {entry_point.name!r} is not a name of a plugin; it is left out.")
    return tuple(entry for entry in found if is_plugin_name(entry.name)), tuple(problems)


def _read_all(group: str) -> tuple[tuple[EntryPoint, ...], list[str]]:
    import importlib_metadata

    try:
        found, problems = list(importlib_metadata.entry_points(group=group)), list[str]()
    except Exception:
        # One distribution is enough to make the call fail as a whole: find out which, and read the others.
        found, problems = _read_one_by_one(group)
    return tuple(_plain(entry_point) for entry_point in found), problems


def _plain(entry_point: Metadata) -> EntryPoint:
    distribution = "" if entry_point.dist is None else _described(entry_point.dist)
    return EntryPoint(entry_point.name, entry_point.value, entry_point.group, distribution)


def _metadata_folders() -> list[str]:
    import importlib_metadata

    return [str(getattr(distribution, "_path", "")) for distribution in importlib_metadata.distributions()]


def _read_one_by_one(group: str) -> tuple[list[Metadata], list[str]]:
    import importlib_metadata

    found: list[Metadata] = []
    problems: list[str] = []
    seen: set[str] = set()
    for distribution in importlib_metadata.distributions():
        try:
            # A distribution further down the path is hidden by its namesake, as its modules are.
            name = re.sub(r"[-_.]+", "-", distribution.name).lower()
            if name not in seen:
                seen.add(name)
                found.extend(distribution.entry_points.select(group=group))
        except Exception as error:
            problems.append(
                f"Distribution {_described(distribution)} has broken metadata and is left out "
                f"({type(error).__name__}: {error}). Reinstall it."
            )
    return found, problems


def in_full(entry_point: EntryPoint) -> Metadata:
    """The entry point as importlib.metadata has it, with its distribution where that is still installed."""
    import importlib_metadata

    try:
        for found in importlib_metadata.entry_points(group=entry_point.group, name=entry_point.name):
            if found.value == entry_point.value:
                full: Metadata = found
                return full
    except Exception:
        log.debug("the metadata of %s cannot be read any more", entry_point.name, exc_info=True)
    return importlib_metadata.EntryPoint(entry_point.name, entry_point.value, entry_point.group)


def describe(entry_point: EntryPoint) -> str:
    """An entry point in words, with the distribution that it comes from."""
    words = f"entry point {entry_point.name} = {entry_point.value}"
    return f"{words} ({entry_point.distribution})" if entry_point.distribution else words


def import_entry_point(candidate: Candidate, entry_point: EntryPoint) -> object:
    """What an entry point names.

    :raises ConfigError: when the configuration points to what is not there.
    :raises PluginError: when it cannot be imported; the cause is the reason.
    """
    try:
        found: object = entry_point.load()
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        if candidate.source == "config" and _names_nothing(entry_point, error):
            raise ConfigError(
                f"Plugin {candidate.name!r}: {candidate.origin} points to what is not there ({reason}). Correct it, "
                "or install what it names.",
                plugin=candidate.name,
            ) from error
        raise PluginError(
            f"Plugin {candidate.name!r}: {candidate.origin} cannot be imported ({reason}). "
            f"{_advice(entry_point, error)}",
            plugin=candidate.name,
        ) from error
    return found


def _names_nothing(entry_point: EntryPoint, error: BaseException) -> bool:
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return f"{entry_point.module}.".startswith(f"{error.name}.")
    return isinstance(error, AttributeError)


def _advice(entry_point: EntryPoint, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and not _names_nothing(entry_point, error):
        return f"Install what provides {error.name}."
    if entry_point.distribution:
        return f"Repair or reinstall {entry_point.distribution}."
    return f"Repair {entry_point.module}."


def _described(distribution: IDistribution) -> str:
    try:
        return f"{distribution.name} {distribution.version}"
    except Exception:
        return str(getattr(distribution, "_path", "of unknown name"))  # Its METADATA is broken or missing.
