"""`hybridload list`: every plugin, where it comes from, and what is wrong with it.

Nothing is imported or started, so what an entry point raises when it is imported is not seen; `--check` loads each
plugin in every isolation of its chain, one after the other, and shows what came of it.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from hybridload import platforms
from hybridload.cli.output import Results, one_line
from hybridload.cli.session import (
    ConfigOption,
    DebugOption,
    GroupOption,
    HandshakeOption,
    JsonOption,
    PluginsOption,
    Session,
    open_loader,
    read_settings,
)
from hybridload.cli.values import to_json
from hybridload.control_characters import escape_controls
from hybridload.errors import PluginError
from hybridload.loader import Loader
from hybridload.sources import Sources


@dataclass(frozen=True, slots=True)
class Check:
    """What came of loading a plugin.

    :param isolation: ``"import"`` when only that was tried, because there is no plugin set to load it for.
    :param error: in words; `None` when it worked.
    """

    isolation: str
    error: str | None = None
    protocol: str | None = None
    version: int | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.isolation}: FAILED: {one_line(self.error)}"
        details = [self.protocol or "", "" if self.version is None else f"version {self.version}"]
        return f"{self.isolation}: ok ({', '.join(each for each in details if each)})".removesuffix(" ()")


@dataclass(frozen=True, slots=True)
class Row:
    """One plugin of `list`; the fields are those of `--json`.

    :param isolation: the fallback chain in force.
    :param isolation_from: what sets it; `None` when nothing does.
    :param sources: the places that it comes from, in words: the program, then the Python object.
    :param conflicts: places that have the name too and are not used, each with the one that comes before it.
    :param checks: one for each isolation, with `--check`.
    """

    name: str
    isolation: tuple[str, ...]
    isolation_from: str | None
    sources: tuple[str, ...]
    enabled: bool
    conflicts: tuple[str, ...]
    notes: tuple[str, ...]
    checks: tuple[Check, ...] = ()

    @property
    def failed(self) -> bool:
        return any(check.error is not None for check in self.checks)


def list_plugins(
    context: typer.Context,
    config: ConfigOption = None,
    group: GroupOption = None,
    plugins: PluginsOption = None,
    handshake: HandshakeOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Load each plugin in every isolation of its chain and show what came of it.")
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show every plugin, where it comes from, how isolated it would run, and what is wrong with it.

    Nothing is imported or started without --check. With it, the exit code is 1 when a plugin failed.
    """
    session: Session = context.obj
    session.begin(debug)
    with Results() as results:
        settings = read_settings(config)
        sources = Sources(settings, group=group)
        checks: dict[str, tuple[Check, ...]] = {}
        if check and (plugins or settings.host.plugins):
            with open_loader(config, group, plugins, handshake) as loader:
                checks = {name: _loaded(loader, name) for name in loader.names()}
        elif check:
            checks = {name: _imported(sources, name) for name in sources.names() if settings.for_plugin(name).enabled}
        rows = [_row(sources, name, checks.get(name, ())) for name in sources.names()]
        problems = sources.problems()
        if json:
            results.line(to_json({"plugins": rows, "problems": problems}))
        elif rows:
            results.table(_table(rows, settings.path))
        else:
            results.line("No plugins. Give --group, a --config with plugins, or run this where a plugins.toml is.")
    for problem in () if json else problems:
        sys.stderr.write(f"hybridload: {one_line(problem)}\n")
    if any(row.failed for row in rows):
        raise typer.Exit(1)


def _row(sources: Sources, name: str, checks: tuple[Check, ...]) -> Row:
    found = sources.describe(name)
    settings = found.settings
    notes = [] if settings.enabled else ["disabled"]
    if settings.isolation_from is not None and settings.isolation_from.startswith("environment"):
        notes.append(f"isolation by {settings.isolation_from}")
    if found.python is None and found.program is None:
        notes.append(f"nothing to load: {sources.why_nothing(found)} Give a command, or install the package.")
    elif sources.is_half(found):
        notes.append(f"nothing to fall back to: {sources.why_nothing(found)}")
    return Row(
        name=name,
        isolation=found.chain if found.origin else (),
        isolation_from=settings.isolation_from,
        sources=tuple(each.origin for each in (found.program, found.python) if each is not None),
        enabled=settings.enabled,
        conflicts=found.conflicts,
        notes=tuple(notes),
        checks=checks,
    )


def _table(rows: list[Row], config: Path | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NAME", "ISOLATION", "FROM", "NOTES"):
        table.add_column(column, overflow="fold")
    for row in rows:
        notes = [*row.notes, *row.conflicts, *(str(check) for check in row.checks)]
        cells = (row.name, " > ".join(row.isolation), "\n".join(row.sources), "\n".join(notes))
        table.add_row(*(Text(escape_controls(_brief(cell, config))) for cell in cells))
    return table


def _brief(text: str, config: Path | None) -> str:
    """Paths below the working directory without it, and those in the config's folder from there."""
    for folder in (platforms.working_folder(), None if config is None else str(config.parent)):
        if folder is not None:
            text = text.replace(folder.rstrip("/") + os.sep, "")
    return text


def _loaded(loader: Loader, name: str) -> tuple[Check, ...]:
    """Load a plugin in each isolation that it has a source for, one after the other."""
    checks: list[Check] = []
    try:
        resolution = loader.sources.resolve(name)
        chain = [isolation for isolation in resolution.decide() if resolution.serves(isolation)]
    except PluginError as error:
        return (Check("load", str(error)),)
    if not chain:
        return (Check("load", f"It has no source for {', '.join(resolution.chain)}."),)
    for isolation in chain:
        try:
            loader.load(name, isolation=isolation)
        except SystemExit as error:  # of its constructor, in-process
            checks.append(Check(isolation, f"It raised SystemExit: {error}. In-process that ends the host."))
        except Exception as error:
            checks.append(Check(isolation, str(error)))
        else:
            status = loader.status(name)
            checks.append(Check(isolation, None, status.protocol, status.version))
    return tuple(checks)


def _imported(sources: Sources, name: str) -> tuple[Check, ...]:
    """Import what a plugin's entry point names, which is all that can be tried without a plugin set."""
    try:
        resolution = sources.resolve(name)
    except PluginError as error:
        return (Check("import", str(error)),)
    if resolution.python is None or resolution.python.entry_point is None:
        return ()
    found = sources.peek(resolution)
    return (Check("import", str(found) if isinstance(found, PluginError) else None),)
