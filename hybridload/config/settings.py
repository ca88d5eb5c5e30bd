"""What a configuration says, typed and complete: the values that the rest of the library reads.

What overrides what, the strongest first:

1. the argument of `Loader.load`;
2. `HYBRIDLOAD_ISOLATION_<NAME>`, then `HYBRIDLOAD_ISOLATION`;
3. `[plugins.<name>]`;
4. `[defaults]`.

A value that nobody set is `None` (or empty, for mappings), and the part of the library that uses it has the default.
Paths are absolute already: relative ones start at the file's folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hybridload.config.chain import ISOLATION_VARIABLE, Chain, isolation_variable
from hybridload.errors import ConfigError
from hybridload.frozen import field, frozen, replace
from hybridload.limits import Limits


@frozen
class HostSettings:
    """The table `[host]`: what is the same for every plugin of a host."""

    plugins: str | None = None
    """Where the plugin set is, as `module:NAME`."""
    handshake: str | None = None
    """Where the handshake config is, as `module:NAME`."""
    group: str | None = None
    """The group of the entry points."""
    path: tuple[Path, ...] = ()
    """Folders that are searched for programs."""
    pattern: str = "*"
    """The file name of a program in such a folder; the plugin's name is what the `*` matched."""
    watch: bool = False
    """Whether a change of the file is applied, and a change of a plugin's program reloads it."""


@frozen
class PluginSettings:
    """A table `[plugins.<name>]` on top of `[defaults]`. Every field but the last is a key of the file."""

    isolation: Chain | None = None
    command: tuple[str, ...] | None = None
    """A program and its arguments; the program is an absolute path or a bare name."""
    sha256: str | None = None
    kind: str | None = None
    entry_point: str | None = None
    """The name of an entry point of the host's group, or `module:attribute`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class or factory, or what a program gets as JSON; nothing that JSON cannot hold."""
    python: str | None = None
    """The interpreter of subprocess isolation; an absolute path or a bare name."""
    prefork: bool = False
    """Whether subprocess isolation forks the plugin from a warm process."""
    env: Mapping[str, str] = field(default_factory=dict)
    env_allow: tuple[str, ...] | None = None
    """The variables that the process inherits; `None`: all."""
    cwd: Path | None = None
    start_timeout: float | None = None
    """Seconds from the start of the process to its handshake line."""
    call_timeout: float | None = None
    """Seconds for one call."""
    auto_mtls: bool | None = None
    """Whether the connection to the process is secured by certificates made for it."""
    multiplex: bool | None = None
    """Whether all connections to the process share one socket."""
    protocols: tuple[str, ...] | None = None
    max_restarts: int | None = None
    """Restarts within `restart_window`, before the next isolation takes over."""
    restart_window: float | None = None
    """Seconds."""
    backoff: float | None = None
    """Seconds before the second restart within the window; each further one waits twice as long."""
    backoff_max: float | None = None
    """Seconds that a restart waits at the most."""
    retry_after: float | None = None
    """Seconds until a better isolation than the one in use is probed."""
    health_interval: float | None = None
    """Seconds between two health checks; 0 for none."""
    health_timeout: float | None = None
    """Seconds that the answer to one may take."""
    max_concurrency: int | None = None
    """Calls in flight at once."""
    when_busy: str | None = None
    """`"wait"` or `"error"`: what a call does that would be one too many."""
    after_fork: str | None = None
    """`"closed"` or `"restart"`: what a forked child of the host has in its hands."""
    watch: bool | None = None
    """Whether a change of its program reloads it."""
    limits: Limits = field(default_factory=Limits)
    """What its process may use at the most; an object in the host's own is under the host's."""
    max_message: int | None = None
    """Bytes of the largest message that the host takes from its process, and a subprocess from the host."""
    strict: bool = False
    """Whether in-process calls travel through the contract, as calls to a process do."""
    fallback_on_checksum: bool = False
    enabled: bool = True
    isolation_from: str | None = None
    """What the isolation was set by: a variable, or a file and a key."""


@frozen
class Settings:
    """A configuration as a whole. Without a file it is empty, and only the environment has a say.

    :param path: the file; `None` when there is none.
    :param prefix: what stands before the keys of the file, for messages: ``"tool.hybridload."`` in a pyproject.toml.
    :param plugins: what the file says of each plugin that it names, on top of `defaults`.
    :param overrides: what the environment says, by variable.
    :param has_host: whether the file has a table `[host]`.
    """

    path: Path | None = None
    prefix: str = ""
    host: HostSettings = HostSettings()
    defaults: PluginSettings = PluginSettings()
    plugins: Mapping[str, PluginSettings] = field(default_factory=dict)
    overrides: Mapping[str, Chain] = field(default_factory=dict)
    has_host: bool = False

    def for_plugin(self, name: str) -> PluginSettings:
        """All that is set for a plugin, whether the file names it or not."""
        settings = self.plugins.get(name, self.defaults)
        for variable in (isolation_variable(name), ISOLATION_VARIABLE):
            if variable in self.overrides:
                return replace(
                    settings,
                    isolation=self.overrides[variable],
                    isolation_from=f"environment variable {variable}",
                )
        return settings

    def key(self, *parts: str) -> str:
        """How messages name a key: the file and the dotted path, as one would write it in TOML."""
        return f"{self.path}: {self.prefix}{dotted(*parts)}"

    def check_successor(self, after: Settings) -> None:
        """Refuse what a file that is being written has for a moment, or one whose disk is full: nothing, or not all.

        :param after: what the same file says now.
        :raises ConfigError: it has lost its table `[host]`.
        """
        if self.has_host and not after.has_host:
            raise ConfigError(
                f"{after.key('host')}: the file has no such table any more, and had one: is it being written? A table "
                "may be empty, but has to be there."
            )

    def takes_away(self, name: str, after: Settings) -> bool:
        """Whether a change of the file is why a plugin is not found any more, and not something that is missing for a
        moment where the file says that it is.

        :param after: what the same file says now.
        """
        searched = [(each.group, each.path, each.pattern) for each in (self.host, after.host)]
        named = [name in each.plugins for each in (self, after)]
        return named == [True, False] or searched[0] != searched[1] or not after.for_plugin(name).enabled

    def check_variable(self, name: str, names: Iterable[str]) -> None:
        """Refuse a variable that could mean another plugin as well.

        :param names: every name that the host knows.
        :raises ConfigError: naming both.
        """
        variable = isolation_variable(name)
        if variable not in self.overrides:
            return
        others = sorted(other for other in names if other != name and isolation_variable(other) == variable)
        if others:
            raise ConfigError(
                f"Environment variable {variable} could mean plugin {name!r} or plugin {others[0]!r}. "
                "Unset it and set the isolation in the configuration.",
                plugin=name,
            )


def dotted(*parts: str) -> str:
    """Keys as a dotted path; a key that TOML wants quoted is quoted."""
    return ".".join(part if _is_bare_key(part) else '"' + part.replace('"', '\\"') + '"' for part in parts)


def _is_bare_key(key: str) -> bool:
    return bool(key) and all(c.isascii() and (c.isalnum() or c in "-_") for c in key)


def is_plugin_name(name: str) -> bool:
    """Whether a name can be shown and typed: printable, not empty, no blanks around it."""
    return name.isprintable() and bool(name) and name == name.strip()
