"""The commands and what they share: where the plugins are, how output looks, how errors end.

Output is for people unless `--json` is given; then each command prints JSON alone on standard output (one line per
item for a stream). Errors are one line on standard error; `--debug` adds the traceback.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybridload.cli.values import read_arguments, read_options, to_json
from hybridload.config import isolation_chain, load_settings
from hybridload.errors import ConfigError, ContractError, PluginNotFound
from hybridload.loader import Loader
from hybridload.references import resolve_reference
from hybridload.sources import Sources

app = typer.Typer(
    help="Load, list, call and serve plugins, whatever their isolation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="plugins.toml, or a pyproject.toml with [tool.hybridload]. Default: the one in this folder.",
    ),
]
GroupOption = Annotated[str | None, typer.Option("--group", "-g", help="Entry point group of installed plugins.")]
PluginsOption = Annotated[str | None, typer.Option("--plugins", help="The plugin set, as MODULE:NAME.")]
HandshakeOption = Annotated[str | None, typer.Option("--handshake", help="The handshake, as MODULE:NAME.")]
IsolationOption = Annotated[
    str | None,
    typer.Option(
        "--isolation", "-i", help="in-process, subprocess, external, or several with commas: a fallback chain."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks, and log everything on standard error.")]


@dataclass(slots=True)
class _Session:
    """What one invocation was asked for and a failing one needs to know."""

    debug: bool = False


def run(arguments: list[str] | None = None) -> int:
    """Run one command line.

    :param arguments: without the program's name; those of the process by default.
    :returns: the exit code.
    """
    session = _Session()
    try:
        result = app(args=arguments, standalone_mode=False, obj=session)
        return result if isinstance(result, int) else 0
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort:
        return 1
    except Exception as error:
        return _report(error, session)


def _report(error: Exception, session: _Session) -> int:
    if session.debug:
        traceback.print_exception(error)
    show = getattr(error, "show", None)
    if show is not None and hasattr(error, "exit_code"):  # one of click's, about the command line itself
        show()
        return int(error.exit_code)
    name = "" if isinstance(error, ConfigError | PluginNotFound) else f"{type(error).__name__}: "
    sys.stderr.write(f"hybridload: {name}{error}\n")
    return 2 if isinstance(error, ConfigError | ContractError | PluginNotFound) else 1


def _begin(context: typer.Context, debug: bool) -> None:
    session: _Session = context.obj
    session.debug = debug
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # As `python -m` does: a plugin set that lies beside the config is found.
    if "" not in sys.path:
        sys.path.insert(0, "")


def _default_config() -> Path | None:
    """The config of the working directory, if it has one."""
    for name in ("plugins.toml", "pyproject.toml"):
        path = Path(name)
        if path.is_file() and (name == "plugins.toml" or "[tool.hybridload" in path.read_text("utf-8", "replace")):
            return path
    return None


def _open_loader(config: Path | None, group: str | None, plugins: str | None, handshake: str | None) -> Loader:
    return Loader(
        None if plugins is None else resolve_reference(plugins, "--plugins"),
        handshake=None if handshake is None else resolve_reference(handshake, "--handshake"),
        group=group,
        config=config or _default_config(),
    )


@app.command("list")
def list_plugins(
    context: typer.Context,
    config: ConfigOption = None,
    group: GroupOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show every plugin, where it comes from, how isolated it would run, and what is wrong with it.

    Nothing is imported or started.
    """
    _begin(context, debug)
    path = config or _default_config()
    settings = load_settings(path, environ=os.environ)
    sources = Sources(settings, group=group)
    rows = [_row(sources, name) for name in sources.names()]
    problems = sources.problems()
    if json:
        sys.stdout.write(to_json({"plugins": rows, "problems": problems}) + "\n")
        return
    # A pipe has no width: what reads it wants each row whole.
    console = Console(width=None if sys.stdout.isatty() else 10_000)
    if not rows:
        console.print("No plugins. Give --group, a --config with plugins, or run this where a plugins.toml is.")
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("NAME", "ISOLATION", "FROM", "NOTES"):
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(
                *(Text(text) for text in (row.name, " > ".join(row.isolation), row.origin, "\n".join(row.notes)))
            )
        console.print(table)
    for problem in problems:
        sys.stderr.write(f"hybridload: {problem}\n")


@dataclass(frozen=True, slots=True)
class _Row:
    """One plugin of `list`."""

    name: str
    isolation: tuple[str, ...]
    origin: str
    enabled: bool
    notes: tuple[str, ...]


def _row(sources: Sources, name: str) -> _Row:
    found = sources.describe(name)
    notes = [*found.conflicts]
    if not found.settings.enabled:
        notes.append("disabled")
    if found.settings.isolation_from is not None:
        notes.append(f"isolation by {found.settings.isolation_from}")
    if found.python is None and found.program is None:
        notes.append("nothing to load: give it a command, or install the package with its entry point")
    error = sources.error(name)
    if error is not None:
        notes.append(str(error))
    return _Row(name, found.chain if found.origin else (), found.origin, found.settings.enabled, tuple(notes))


@app.command("call")
def call_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The plugin.")],
    method: Annotated[str, typer.Argument(help="The method of its interface.")],
    arguments: Annotated[
        str | None,
        typer.Argument(metavar="[JSON-ARGS]", help="A JSON list of arguments, or an object of named ones."),
    ] = None,
    config: ConfigOption = None,
    group: GroupOption = None,
    plugins: PluginsOption = None,
    handshake: HandshakeOption = None,
    isolation: IsolationOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Load a plugin, call one of its methods, print what it returns, end it."""
    _begin(context, debug)
    chain = (
        None if isolation is None else isolation_chain([each.strip() for each in isolation.split(",")], "--isolation")
    )
    with _open_loader(config, group, plugins, handshake) as loader:
        handle = loader.load(name, isolation=chain)
        args, kwargs = read_arguments(handle, method, arguments, plugin=name)
        result = getattr(handle, method)(*args, **kwargs)
        if hasattr(result, "__await__"):
            result = _awaited(result)
        if isinstance(result, AsyncIterator):
            result = _collected(result)
        if isinstance(result, Iterator):
            for item in result:
                _print(item, json)
        else:
            _print(result, json)


def _print(value: Any, json: bool) -> None:
    if json or not isinstance(value, str):
        sys.stdout.write(to_json(value) + "\n")
    else:
        sys.stdout.write(value + "\n")
    sys.stdout.flush()


def _awaited(result: Any) -> Any:
    import asyncio

    async def wait() -> Any:
        return await result

    return asyncio.run(wait())


def _collected(items: AsyncIterator[Any]) -> Iterator[Any]:
    import asyncio

    async def collect() -> list[Any]:
        return [item async for item in items]

    return iter(asyncio.run(collect()))


@app.command("serve")
def serve_plugin(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="GROUP:NAME", help="An entry point: its group and its name.")],
    config: ConfigOption = None,
    plugins: PluginsOption = None,
    handshake: HandshakeOption = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="The kind it implements, when the set has several.")
    ] = None,
    options: Annotated[str | None, typer.Option("--options", help="Its options, as a JSON object.")] = None,
    outlive_host: Annotated[
        bool, typer.Option("--outlive-host", help="Stay when the host dies, to be reattached.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Serve an installed entry point to the go-plugin host that starts this command.

    Give this command line to a Go host as its plugin's command.
    """
    context.obj.debug = debug
    from hybridload.goplugin.launch import serve_entry_point

    group, colon, name = target.rpartition(":")
    if not (group and colon and name):
        raise ConfigError(f"{target!r} is no entry point: give GROUP:NAME, such as hybridload.greeters:hello.")
    path = config or _default_config()
    settings = load_settings(path, environ=os.environ)
    found = settings.for_plugin(name)
    serve_entry_point(
        group,
        name,
        plugins=_given(plugins, settings.host.plugins, "plugins"),
        handshake=_given(handshake, settings.host.handshake, "handshake"),
        kind=kind or found.kind,
        options=dict(found.options) if options is None else read_options(options),
        outlive_host=outlive_host,
    )


def _given(option: str | None, configured: str | None, what: str) -> str:
    reference = option or configured
    if reference is None:
        raise ConfigError(f"Give --{what} MODULE:NAME, or set {what} in the config's [host] table.")
    return reference
