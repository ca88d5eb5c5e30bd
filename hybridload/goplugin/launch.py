"""Programs of our own that serve an entry point: for subprocess isolation, and for `hybridload serve GROUP:NAME`.

Both take descriptor 1 and start to watch the host before they import anything of the user's: nothing that is printed
at import spoils the handshake line, and a host that dies meanwhile leaves nothing behind. What is logged at import
reaches the host as any other record. When something of the user's
cannot be imported or built, the traceback is on standard error and the exit status is 1, before there is a line; the
host shows both.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hybridload.errors import ConfigError, ContractError, PluginError
from hybridload.goplugin.launch_spec import KINDS, LaunchSpec, PluginSetReference, kinds_contract
from hybridload.goplugin.serve import HostSide, check_cookie, serve_by_hand, serve_to
from hybridload.goplugin.serve_logs import InstalledLogging
from hybridload.goplugin.serving import PROTOCOLS, Served, ServeOptions
from hybridload.implementation import build_object, check_implementation, close_implementation
from hybridload.limits import MAX_MESSAGE
from hybridload.references import resolve_reference

if TYPE_CHECKING:
    from hybridload.contract import Contract


def main() -> None:
    """Serve what a hybridload host says in the environment; see `LaunchSpec`."""
    spec = LaunchSpec.from_environment(os.environ)
    check_cookie(spec.handshake)
    _ignore_interrupts()
    with HostSide(outlive_host=spec.outlive_host) as host, _logged():
        try:
            found = _entry_point(spec)
            contracts = spec.plugins.resolve(spec.handshake)
        except ConfigError as error:
            # The host could name them: it is this interpreter that lacks something, and another isolation may not.
            raise PluginError(str(error), plugin=spec.plugin) from error
        served = implemented(found, contracts, spec.options, kind=spec.kind, plugin=spec.plugin)
        serve_to(
            host, served, logging=False, options=ServeOptions(protocols=spec.protocols, max_message=spec.max_message)
        )


def serve_entry_point(
    group: str,
    name: str,
    *,
    plugins: str,
    handshake: str,
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
    outlive_host: bool = False,
    protocols: Sequence[str] = PROTOCOLS,
    max_message: int = MAX_MESSAGE,
    by_hand: bool = False,
) -> None:
    """Serve an entry point to the go-plugin host that started this program. Returns when the host ends it.

    It is served under every kind of the plugin set whose interface it implements, in every version.

    :param plugins: ``module:NAME`` of the plugin set.
    :param handshake: ``module:NAME`` of the `Handshake`.
    :param kind: a kind that the entry point has to implement; any by default.
    :param options: keyword arguments of the class or factory.
    :param outlive_host: as in `serve`.
    :param protocols: as in `serve`.
    :param max_message: as in `serve`, in bytes.
    :param by_hand: serve until Ctrl-C to whichever host takes it up, under the entry point's name; see `serve` on
        ``debug``.
    :raises SystemExit: with status 1, when no go-plugin host has started this program.
    :raises ConfigError: something that is named does not exist or is not what it should be.
    :raises ContractError: the entry point does not implement it in any version.
    """
    serving = ServeOptions(protocols=tuple(protocols), max_message=max_message)
    if by_hand:
        contracts = PluginSetReference(plugins).resolve(resolve_reference(handshake, "the handshake"))
        found = _installed(group, name, name)
        served = implemented(found, contracts, options or {}, kind=kind, plugin=name)
        serve_by_hand(name, served, options=serving)
        return
    with HostSide(outlive_host=outlive_host) as host:
        shake = resolve_reference(handshake, "the handshake")
        check_cookie(shake)
        _ignore_interrupts()
        with _logged():
            contracts = PluginSetReference(plugins).resolve(shake)
            found = _installed(group, name, name)
            served = implemented(found, contracts, options or {}, kind=kind, plugin=name)
            serve_to(host, served, logging=False, options=serving)


def implemented(
    found: object,
    contracts: Mapping[int, Mapping[str, Contract[Any]]],
    options: Mapping[str, Any],
    *,
    kind: str | None,
    plugin: str,
) -> dict[int, dict[str, Served]]:
    """Build what an entry point names, and find out what it implements: version -> kind -> what serves it.

    Beside the plugin's kinds, each version has `KINDS`, which tells the host what is not served, and why.

    :param contracts: version -> kind -> contract.
    :param options: keyword arguments of the class or factory.
    :param kind: one that it has to implement in some version; any will do when `None`.
    :param plugin: the plugin's name, for errors.
    :raises ConfigError: no version has the kind, or the options do not fit.
    :raises ContractError: it implements nothing of that.
    :raises PluginError: the class or factory failed.
    """
    newest_first = sorted(contracts, reverse=True)
    wanted = [
        contract for version in newest_first for each, contract in contracts[version].items() if kind in (None, each)
    ]
    if not wanted:
        known = ", ".join(sorted({each for kinds in contracts.values() for each in kinds})) or "none"
        what = "no contract" if kind is None else f"no contract of kind {kind!r}"
        raise ConfigError(
            f"Plugin {plugin!r}: the plugin set has {what}; it has contracts of these kinds: {known}.", plugin=plugin
        )
    built = build_object(found, [contract.complete() for contract in wanted], options, plugin=plugin)
    served: dict[int, dict[str, Served]] = {}
    refusal: ContractError | None = None
    for version in newest_first:
        kinds: dict[str, Served] = {}
        refused: dict[str, str] = {}
        for each, contract in contracts[version].items():
            try:
                check_implementation(built, contract.complete(), plugin=plugin)
            except ContractError as error:
                refused[each] = str(error)
                if refusal is None and kind in (None, each):
                    refusal = error
            else:
                kinds[each] = Served(contract, built)
        if kinds and kind in (None, *kinds):
            served[version] = {**kinds, KINDS: Served(kinds_contract(), _Refused(refused))}
    if not served:
        close_implementation(built, plugin)
        assert refusal is not None
        raise refusal
    return served


class _Refused:
    """Implements `ServedKinds`."""

    def __init__(self, reasons: dict[str, str]) -> None:
        self._reasons = reasons

    def refused(self) -> dict[str, str]:
        return self._reasons


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


@contextmanager
def _logged() -> Iterator[None]:
    """From here on, log records go to the host."""
    installed = InstalledLogging()
    try:
        yield
    finally:
        installed.restore()


def _ignore_interrupts() -> None:
    """From here on, and not only once it serves: a terminal's interrupt is for the host to act on."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda number, frame: None)


if __name__ == "__main__":
    main()
