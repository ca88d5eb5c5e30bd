"""Programs of our own that serve an entry point: for subprocess isolation, and for `hybridload serve GROUP:NAME`.

Both take descriptor 1 and start to watch the host before they import anything of the user's: nothing that is printed
at import spoils the handshake line, and a host that dies meanwhile leaves nothing behind. When something of the user's
cannot be imported or built, the traceback is on standard error and the exit status is 1, before there is a line; the
host shows both.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hybridload.errors import ConfigError, ContractError
from hybridload.goplugin.launch_spec import LaunchSpec
from hybridload.goplugin.serve import HostSide, check_cookie, serve_to
from hybridload.goplugin.serving import Served
from hybridload.implementation import build_implementation
from hybridload.references import resolve_reference

if TYPE_CHECKING:
    from hybridload.contract import Contract


def main() -> None:
    """Serve what a hybridload host says in the environment; see `LaunchSpec`."""
    spec = LaunchSpec.from_environment(os.environ)
    check_cookie(spec.handshake)
    _ignore_interrupts()
    with HostSide(outlive_host=spec.outlive_host) as host:
        found = _entry_point(spec)
        contract = spec.contract.resolve(spec.kind, spec.version, spec.handshake)
        built = build_implementation(found, contract.complete(), spec.options, plugin=spec.plugin)
        serve_to(host, {spec.version: {spec.kind: Served(contract, built)}})


def serve_entry_point(
    group: str,
    name: str,
    *,
    plugins: str,
    handshake: str,
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
    outlive_host: bool = False,
) -> None:
    """Serve an entry point to the go-plugin host that started this program. Returns when the host ends it.

    It is served in the highest version of the plugin set whose interface it implements, and in every other that it
    implements as well.

    :param plugins: ``module:NAME`` of the plugin set.
    :param handshake: ``module:NAME`` of the `Handshake`.
    :param kind: the kind that the entry point implements; the only one of the set by default.
    :param options: keyword arguments of the class or factory.
    :param outlive_host: as in `serve`.
    :raises SystemExit: with status 1, when no go-plugin host has started this program.
    :raises ConfigError: something that is named does not exist or is not what it should be.
    :raises ContractError: the entry point implements no version of the interface.
    """
    from hybridload.goplugin.plugins import read_plugin_set

    with HostSide(outlive_host=outlive_host) as host:
        shake = resolve_reference(handshake, "the handshake")
        check_cookie(shake)
        _ignore_interrupts()
        versions = read_plugin_set(resolve_reference(plugins, "the plugin set"), shake)
        contracts = {version: _contract(kinds, kind, version) for version, kinds in versions.items()}
        served = _served(_installed(group, name, name), contracts, options or {}, name)
        serve_to(host, served)


def _entry_point(spec: LaunchSpec) -> object:
    if spec.entry_point is not None:
        return resolve_reference(spec.entry_point, f"The entry point of plugin {spec.plugin!r}")
    assert spec.group is not None
    return _installed(spec.group, spec.lookup or spec.plugin, spec.plugin)


def _installed(group: str, name: str, plugin: str) -> object:
    """What the entry point of an installed distribution names; the first on the path, as everywhere."""
    from hybridload.external import External
    from hybridload.sources.installed import read_entry_points

    entry_points, problems = read_entry_points(group)
    found = next((entry for entry in entry_points if entry.name == name), None)
    if found is None:
        known = ", ".join(sorted({entry.name for entry in entry_points})) or "none"
        raise ConfigError(
            f"Plugin {plugin!r}: no distribution that {sys.executable} can import has an entry point {name!r} in the "
            f"group {group} (there: {known}). Install it for that interpreter. {' '.join(problems)}".rstrip(),
            plugin=plugin,
        )
    loaded: object = found.load()
    if isinstance(loaded, External):
        raise ConfigError(
            f"Plugin {plugin!r} is a program ({loaded.command[0]}): start that one itself.", plugin=plugin
        )
    return loaded


def _contract(kinds: Mapping[str, Any], kind: str | None, version: int) -> tuple[str, Contract[Any]]:
    from hybridload.contract import Contract

    if kind is None:
        if len(kinds) != 1:
            raise ConfigError(
                f"Version {version} of the plugin set has more than one kind ({', '.join(kinds)}): say which one the "
                "entry point implements."
            )
        kind = next(iter(kinds))
    contract = kinds.get(kind)
    if not isinstance(contract, Contract):
        raise ConfigError(
            f"The kind {kind!r} of version {version} "
            + (
                "is missing."
                if contract is None
                else "is a hand-written plugin, which an entry point cannot implement."
            )
        )
    return kind, contract


def _served(
    found: object, contracts: Mapping[int, tuple[str, Contract[Any]]], options: Mapping[str, Any], plugin: str
) -> dict[int, dict[str, Served]]:
    newest = max(contracts)
    kind, contract = contracts[newest]
    built = build_implementation(found, contract.complete(), options, plugin=plugin)
    served = {newest: {kind: Served(contract, built)}}
    for version, (kind, contract) in contracts.items():
        if version != newest and _implements(built, contract):
            served[version] = {kind: Served(contract, built)}
    return served


def _implements(built: object, contract: Contract[Any]) -> bool:
    try:
        contract.complete().check_implementation(built)
    except ContractError:
        return False
    return True


def _ignore_interrupts() -> None:
    """From here on, and not only once it serves: a terminal's interrupt is for the host to act on."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda number, frame: None)


if __name__ == "__main__":
    main()
