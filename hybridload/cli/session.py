"""What the commands share: their options, where the configuration is, and what a failing one needs to know."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hybridload import platforms
from hybridload.config import Settings, load_settings
from hybridload.control_characters import escape_controls
from hybridload.errors import ConfigError
from hybridload.loader import Loader
from hybridload.references import resolve_reference

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="plugins.toml, or a pyproject.toml with a table tool.hybridload. Default: the one in this folder.",
    ),
]
GroupOption = Annotated[str | None, typer.Option("--group", "-g", help="Entry point group of installed plugins.")]
PluginsOption = Annotated[str | None, typer.Option("--plugins", help="The plugin set, as MODULE:NAME.")]
HandshakeOption = Annotated[str | None, typer.Option("--handshake", help="The handshake, as MODULE:NAME.")]
KindOption = Annotated[str | None, typer.Option("--kind", help="The kind it has, when the plugin set has several.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks, and log everything on standard error.")]


@dataclass(slots=True)
class Session:
    """One invocation.

    :param command: its name, once it is known.
    """

    debug: bool = False
    command: str = ""

    def begin(self, debug: bool, *, logs: bool = True) -> None:
        """Take up what every command is given.

        :param logs: whether log records go to standard error in words.
        """
        self.debug = debug
        if logs:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
            logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler])
        # As `python -m` does: a plugin set that lies beside the config is found. What is installed comes first.
        here = platforms.working_folder()
        if here is not None and here not in sys.path:
            sys.path.append(here)


class _Formatter(logging.Formatter):
    """Log records for a terminal, whoever's words are in them."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record))


class CallFailed(Exception):
    """The plugin's method raised; the cause is what."""


def default_config() -> Path | None:
    """The config of the working directory, if it has one."""
    for name in ("plugins.toml", "pyproject.toml"):
        path = Path(name)
        if path.is_file() and (name == "plugins.toml" or "[tool.hybridload" in path.read_text("utf-8", "replace")):
            return path
    return None


def read_settings(config: Path | None) -> Settings:
    """The configuration that a command was given, or the working directory's, or none."""
    return load_settings(config or default_config(), environ=os.environ)


def open_loader(config: Path | None, group: str | None, plugins: str | None, handshake: str | None) -> Loader:
    """A loader from the options of a command.

    :raises ConfigError: as `Loader`; also when neither options nor config say what plugins there are.
    """
    settings = read_settings(config)
    given(plugins, settings.host.plugins, "plugins")
    given(handshake, settings.host.handshake, "handshake")
    return Loader(
        None if plugins is None else resolve_reference(plugins, "--plugins"),
        handshake=None if handshake is None else resolve_reference(handshake, "--handshake"),
        group=group,
        config=config or default_config(),
    )


def interface_of(kind: str | None, plugins: str | None, handshake: str | None, settings: Settings) -> Any:
    """The interface of a kind, to be passed to `Loader.load`; `None` without a kind.

    :raises ConfigError: the plugin set has no such kind, or not as a contract.
    """
    if kind is None:
        return None
    from hybridload.contract import Contract
    from hybridload.goplugin.plugins import read_plugin_set

    shake = resolve_reference(given(handshake, settings.host.handshake, "handshake"), "the handshake")
    found = resolve_reference(given(plugins, settings.host.plugins, "plugins"), "the plugin set")
    versions = read_plugin_set(found, shake)
    for version in sorted(versions, reverse=True):
        offered = versions[version].get(kind)
        if isinstance(offered, Contract):
            return offered.interface
    kinds = sorted({each for offered in versions.values() for each in offered})
    raise ConfigError(f"--kind {kind}: the plugin set has no contract of that kind; it has {', '.join(kinds)}.")


def given(option: str | None, configured: str | None, what: str) -> str:
    """The option, or what the config says in its place.

    :raises ConfigError: neither is there.
    """
    reference = option or configured
    if reference is None:
        raise ConfigError(
            f'Give --{what} MODULE:NAME, or set {what} = "MODULE:NAME" in the config\'s [host] table (the config is '
            "plugins.toml of this folder, or what --config names)."
        )
    return reference
