"""From a file to settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridload.config.chain import isolation_variable, read_variables
from hybridload.config.settings import HostSettings, PluginSettings, Settings, dotted, is_plugin_name
from hybridload.errors import ConfigError
from hybridload.files import read_file

_PYPROJECT = "pyproject.toml"
_TABLES = ("host", "defaults", "plugins")


def load_settings(config: str | os.PathLike[str] | None, *, environ: Mapping[str, str]) -> Settings:
    """Read a configuration and what the environment overrides in it.

    :param config: a TOML file; in one named ``pyproject.toml`` the table `tool.hybridload` counts. `None`: no file.
    :param environ: the environment variables.
    :raises ConfigError: naming the file and the key, or the variable, and what was expected.
    """
    overrides = read_variables(environ)
    if config is None:
        return Settings(overrides=overrides)
    if not isinstance(config, str | os.PathLike):
        raise ConfigError(f"config={config!r}: give the path of a TOML file.")
    try:
        path = Path(os.path.abspath(os.path.expanduser(os.fspath(config))))
    except FileNotFoundError as error:
        raise ConfigError(
            f"config={os.fspath(config)!r} is relative to the current folder, which has been removed. Give an absolute "
            "path."
        ) from error
    document = _parse(_read(path), path)
    if path.name != _PYPROJECT:
        return _settings(document, path, "", overrides)
    tool = document.get("tool", {})
    if not isinstance(tool, dict) or "hybridload" not in tool:
        raise ConfigError(f"{path}: there is no table [tool.hybridload]. Add it, or give the path of a plugins.toml.")
    return _settings(tool["hybridload"], path, "tool.hybridload.", overrides)


def _read(path: Path) -> str:
    try:
        content = read_file(path)
    except FileNotFoundError as error:
        raise ConfigError(f"There is no configuration file {path}. Create it, or correct the path.") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a directory. Give the path of the file in it, e.g. plugins.toml.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"The configuration file {str(path)!r} cannot be read: {reason}.") from error
    try:
        return content.decode("utf-8-sig")  # Editors on Windows like to put a byte-order mark in front.
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8, and TOML has to be. "
            "Save the file as UTF-8."
        ) from error


def _parse(text: str, path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except ValueError as error:  # A TOMLDecodeError, or the one of `int` for a number of thousands of digits.
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is not usable: its values are nested too deeply.") from error


def _settings(document: object, path: Path, prefix: str, overrides: Mapping[str, Any]) -> Settings:
    from hybridload.config.schema import DEFAULTS, HOST, PLUGIN, as_table, read_table, unknown_key

    where, folder = f"{path}: {prefix}", path.parent
    root = f"{path}: [{prefix.rstrip('.')}]" if prefix else str(path)
    tables = as_table(document, root)
    for name in tables:
        if name not in _TABLES:
            raise unknown_key(name, dict.fromkeys(_TABLES), root)
    host = read_table(tables.get("host", {}), HOST, f"{where}host", folder)
    if "pattern" in host and "path" not in host:
        raise ConfigError(f"{where}host.pattern: it has no effect without host.path, the folders to search. Add them.")
    defaults = read_table(tables.get("defaults", {}), DEFAULTS, f"{where}defaults", folder)
    plugins: dict[str, PluginSettings] = {}
    for name, table in as_table(tables.get("plugins", {}), f"{where}plugins").items():
        key = f"{where}{dotted('plugins', name)}"
        if not is_plugin_name(name):
            raise ConfigError(
                f"{key}: {name!r} is not a name of a plugin: expected printable text without outer blanks."
            )
        twin = next((other for other in plugins if isolation_variable(other) == isolation_variable(name)), None)
        if twin is not None:
            raise ConfigError(
                f"{key}: the isolation of {name!r} and that of {twin!r} would both be set by the environment variable "
                f"{isolation_variable(name)}. Rename one; entry_point can keep the old name."
            )
        own = read_table(table, PLUGIN, key, folder)
        plugins[name] = _merged(defaults, own, f"{where}defaults.isolation", f"{key}.isolation")
    return Settings(
        path=path,
        prefix=prefix,
        host=HostSettings(**host),
        defaults=_merged(defaults, {}, f"{where}defaults.isolation", ""),
        plugins=plugins,
        overrides=overrides,
        has_host="host" in tables,
    )


def _merged(
    defaults: Mapping[str, Any], own: Mapping[str, Any], default_isolation: str, own_isolation: str
) -> PluginSettings:
    merged = {**defaults, **own}
    if "env" in defaults and "env" in own:
        merged["env"] = {**defaults["env"], **own["env"]}
    if "limits" in defaults and "limits" in own:
        merged["limits"] = own["limits"].over(defaults["limits"])
    if "isolation" in merged:
        merged["isolation_from"] = own_isolation if "isolation" in own else default_isolation
    return PluginSettings(**merged)
