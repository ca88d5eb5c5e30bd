"""What a host tells the process that serves one of its entry points: the plugin, its options, its contracts.

It travels in the child's environment, as JSON cut into pieces: not among the arguments, which every user of the machine
can read and options may be secrets; and not over a descriptor, which not every system hands on. The child takes it out
of its environment at once. It may have a megabyte or two, which is what systems have room for.

The contracts travel as a reference to the host's plugin set where that can be imported by name; else each as its parts:
the interface and the exception classes as ``module:qualname``, the service by its name, or by its descriptors when they
are not derived from the hints. All of them travel, since one object may implement several kinds, in several versions.

Light to import: host and child both do.
"""

from __future__ import annotations

import binascii
import json
import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any, Protocol

from hybridload import platforms
from hybridload.contract import Contract, NetRPC, NetRPCMethod
from hybridload.errors import ConfigError
from hybridload.frozen import field, frozen
from hybridload.handshake import Handshake
from hybridload.limits import MAX_MESSAGE
from hybridload.references import resolve_reference

if TYPE_CHECKING:
    from hybridload.goplugin.plugins import VersionedPlugins

_VARIABLE = "HYBRIDLOAD_LAUNCH"
_PATH_VARIABLE = "HYBRIDLOAD_LAUNCH_PATH"
# Characters. Linux takes 128 KiB for one variable, Windows 32 Ki characters.
_PIECE = 30_000

# Appended behind the interpreter's own path, so that what is installed there wins; `-P` keeps the working directory
# out.
_EXTEND = (
    f"sys.path += [p for p in os.environ.pop({_PATH_VARIABLE!r}, '').split(os.pathsep) if p and p not in sys.path]"
)
# What is imported for the start stays until the end, and no collection need look at it, now or later: that would be a
# twelfth of the start. From the author's first line on, all is as usual.
_BOOTSTRAP = (
    f"import gc; gc.disable(); import os, sys; {_EXTEND}; from hybridload.goplugin.launch import main; "
    "gc.freeze(); gc.enable(); main()"
)
_FORK_SERVER = (
    f"import os, sys; own = tuple(sys.path); {_EXTEND}; "
    "from hybridload.goplugin.prefork.server import main; main(own, int(sys.argv[1]))"
)


class ServedKinds(Protocol):
    """What a launched process tells its host about itself; it is a kind like those of the plugin."""

    def refused(self) -> dict[str, str]:
        """The kinds that the entry point's object does not implement, each with the reason."""


KINDS = "hybridload.kinds"
"""The kind under which a launched process serves `ServedKinds`, in every version."""


def kinds_contract() -> Contract[ServedKinds]:
    """The contract of `KINDS`."""
    return Contract(ServedKinds, service="hybridload.ServedKinds")


@frozen
class ContractReference:
    """A contract in its parts, as a child process can import them.

    :param interface: ``module:qualname``.
    :param service: the service's full name; `None` for the default.
    :param descriptor_set: a serialized `FileDescriptorSet`; `None` when the messages are derived from the hints.
    :param errors: each as ``module:qualname``.
    :param netrpc: how it travels over net/rpc, as `_netrpc_parts` has it; `None` for the defaults.
    """

    interface: str
    service: str | None = None
    descriptor_set: bytes | None = None
    errors: tuple[str, ...] = ()
    netrpc: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, contract: Contract[Any], *, plugin: str) -> ContractReference:
        """A contract in its parts.

        :param plugin: the plugin's name, for errors.
        :raises ConfigError: when a class of it cannot be imported by another process.
        """
        given = contract.given
        named = contract.service is None or isinstance(contract.service, str)
        return cls(
            interface=_class_reference(contract.interface, "interface", plugin),
            service=contract.service if named else contract.complete().full_name,  # type: ignore[arg-type]
            descriptor_set=contract.complete().wire().file_descriptor_set() if given else None,
            errors=tuple(_class_reference(error, "exception class", plugin) for error in contract.errors),
            netrpc=None if contract.netrpc is None else _netrpc_parts(contract.netrpc, plugin),
        )

    def resolve(self) -> Contract[Any]:
        """The contract, in the process that imports it.

        :raises ConfigError: when something cannot be imported or is not what it should be.
        """
        return Contract(
            resolve_reference(self.interface, "the interface"),
            self.service,
            descriptor_set=self.descriptor_set,
            errors=[resolve_reference(error, "an exception class of the contract") for error in self.errors],
            netrpc=None if self.netrpc is None else _netrpc_of(self.netrpc),
        )

    def to_dict(self) -> dict[str, Any]:
        """The reference as JSON can hold it."""
        descriptors = None if self.descriptor_set is None else binascii.b2a_base64(self.descriptor_set).decode()
        return {
            "interface": self.interface,
            "service": self.service,
            "descriptor_set": descriptors,
            "errors": list(self.errors),
            "netrpc": self.netrpc,
        }

    @classmethod
    def from_dict(cls, read: Mapping[str, Any]) -> ContractReference:
        """The reference that `to_dict` wrote."""
        descriptors = read["descriptor_set"]
        return cls(
            read["interface"],
            read["service"],
            None if descriptors is None else binascii.a2b_base64(descriptors),
            tuple(read["errors"]),
            read["netrpc"],
        )


@frozen
class PluginSetReference:
    """Where a child process finds the contracts of a plugin set: the set by its name, or the contracts in their parts.

    :param name: ``module:NAME``; `contracts` is empty then.
    :param contracts: version -> kind -> contract.
    """

    name: str | None = None
    contracts: Mapping[int, Mapping[str, ContractReference]] = field(default_factory=dict)

    @classmethod
    def of(cls, plugins: VersionedPlugins, *, kind: str, plugin: str) -> PluginSetReference:
        """A plugin set in its parts. What no other process can import is left out.

        :param kind: one that must not be left out.
        :param plugin: the plugin's name, for errors.
        :raises ConfigError: when a class of that kind's contract cannot be imported by another process.
        """
        contracts: dict[int, dict[str, ContractReference]] = {}
        for version, kinds in plugins.items():
            for each, contract in kinds.items():
                if not isinstance(contract, Contract):
                    continue
                try:
                    contracts.setdefault(version, {})[each] = ContractReference.of(contract, plugin=plugin)
                except ConfigError:
                    if each == kind:
                        raise
        return cls(contracts={version: kinds for version, kinds in contracts.items() if kinds})

    def resolve(self, handshake: Handshake) -> dict[int, dict[str, Contract[Any]]]:
        """Version -> kind -> contract, in the process that imports them. Hand-written plugins are left out.

        :raises ConfigError: when something cannot be imported or is not what it should be.
        """
        if self.name is None:
            return {
                version: {kind: contract.resolve() for kind, contract in kinds.items()}
                for version, kinds in self.contracts.items()
            }
        from hybridload.goplugin.plugins import read_plugin_set

        versions = read_plugin_set(resolve_reference(self.name, "the plugin set"), handshake)
        return contracts_of(versions)


def contracts_of(versions: VersionedPlugins) -> dict[int, dict[str, Contract[Any]]]:
    """What of a plugin set an entry point can implement: all but hand-written plugins."""
    found = {
        version: {kind: each for kind, each in kinds.items() if isinstance(each, Contract)}
        for version, kinds in versions.items()
    }
    return {version: kinds for version, kinds in found.items() if kinds}


@frozen
class LaunchSpec:
    """One entry point to be served.

    :param plugin: the plugin's name, for messages.
    :param entry_point: ``module:attribute``; `None` to look it up in the child's own interpreter.
    :param group: the group of entry points in which `lookup` is a name, when `entry_point` is `None`.
    :param options: keyword arguments of the class or factory: what JSON has, dates and times.
    :param kind: the kind that it has to implement; it is served under every other that it implements as well.
    :param plugins: the contracts.
    :param path: the host's import path.
    :param outlive_host: as in `serve`.
    :param protocols: as in `serve`.
    :param max_message: as in `serve`, in bytes.
    """

    plugin: str
    kind: str
    handshake: Handshake
    plugins: PluginSetReference
    entry_point: str | None = None
    group: str | None = None
    lookup: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    path: Sequence[str] = ()
    outlive_host: bool = False
    protocols: tuple[str, ...] = ("grpc", "netrpc")
    max_message: int = MAX_MESSAGE

    def command(self, python: str | None = None) -> list[str]:
        """The program that serves it, with its arguments.

        :param python: the interpreter; the host's own by default.
        """
        # The name is there for people who look at lists of processes.
        return [python or sys.executable, "-P", "-c", _BOOTSTRAP, self.plugin]

    def environment(self) -> dict[str, str]:
        """What has to be in the child's environment, besides what every plugin's host sets.

        :raises ConfigError: when an option cannot be sent.
        """
        text = self.to_json()
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        return {
            _PATH_VARIABLE: os.pathsep.join(self.path),
            _VARIABLE: str(len(pieces)),
            **{f"{_VARIABLE}_{number}": piece for number, piece in enumerate(pieces)},
        }

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> LaunchSpec:
        """Take the spec out of the environment.

        :raises ConfigError: when there is none.
        """
        try:
            count = int(environ.pop(_VARIABLE))
            return cls.from_json("".join(environ.pop(f"{_VARIABLE}_{number}") for number in range(count)))
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(
                f"This program serves a plugin for a hybridload host, which says in {_VARIABLE} what to serve; that is "
                f"missing or wrong ({type(error).__name__}: {error}). To serve an entry point to any go-plugin host, "
                "use `hybridload serve GROUP:NAME`."
            ) from error

    def to_json(self) -> str:
        """The spec as text.

        :raises ConfigError: when an option cannot be sent.
        """
        plugins = self.plugins
        try:
            options = json.dumps(dict(self.options), default=_tagged)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"Plugin {self.plugin!r}: its options cannot be sent to a process of its own: {error}. "
                "Use what a TOML file can hold.",
                plugin=self.plugin,
            ) from error
        return json.dumps(
            {
                "plugin": self.plugin,
                "kind": self.kind,
                "cookie_key": self.handshake.cookie_key,
                "cookie_value": self.handshake.cookie_value,
                "protocol_version": self.handshake.protocol_version,
                "plugins": plugins.name,
                "contracts": [
                    [version, kind, contract.to_dict()]
                    for version, kinds in plugins.contracts.items()
                    for kind, contract in kinds.items()
                ],
                "entry_point": self.entry_point,
                "group": self.group,
                "lookup": self.lookup,
                "options": json.loads(options),
                "path": list(self.path),
                "outlive_host": self.outlive_host,
                "protocols": list(self.protocols),
                "max_message": self.max_message,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> LaunchSpec:
        """The spec that `to_json` wrote."""
        read: dict[str, Any] = json.loads(text)
        contracts: dict[int, dict[str, ContractReference]] = {}
        for version, kind, contract in read["contracts"]:
            contracts.setdefault(version, {})[kind] = ContractReference.from_dict(contract)
        return cls(
            plugin=read["plugin"],
            kind=read["kind"],
            handshake=Handshake(read["cookie_key"], read["cookie_value"], read["protocol_version"]),
            plugins=PluginSetReference(read["plugins"], contracts),
            entry_point=read["entry_point"],
            group=read["group"],
            lookup=read["lookup"],
            options=_untagged(read["options"]),
            path=tuple(read["path"]),
            outlive_host=read["outlive_host"],
            protocols=tuple(read["protocols"]),
            max_message=read["max_message"],
        )


def extend_import_path(environ: MutableMapping[str, str]) -> None:
    """Do what a launched program begins with: put the host's import path, out of the environment, behind the own."""
    given = environ.pop(_PATH_VARIABLE, "").split(os.pathsep)
    sys.path += [entry for entry in given if entry and entry not in sys.path]


def fork_server_command(descriptor: int) -> list[str]:
    """The fork server's program, with its arguments; `fork_server_environment` has to be in its environment.

    :param descriptor: its end of the socket pair.
    """
    return [sys.executable, "-P", "-c", _FORK_SERVER, str(descriptor), "hybridload fork server"]


def fork_server_environment() -> dict[str, str]:
    """What has to be in its environment: it finds hybridload where a launched program does."""
    return {_PATH_VARIABLE: os.pathsep.join(import_path())}


def import_path() -> tuple[str, ...]:
    """This process's import path as another process with another working directory can use it."""
    here = platforms.working_folder() or ""  # one that was removed has nothing that could be imported
    joined = (os.path.join(here, entry) for entry in sys.path if isinstance(entry, str))
    entries = [os.path.normpath(entry) for entry in joined if os.path.isabs(entry)]
    # One that holds the separator cannot be told apart from two.
    return tuple(dict.fromkeys(entry for entry in entries if os.pathsep not in entry))


def _netrpc_parts(netrpc: NetRPC, plugin: str) -> dict[str, Any]:
    """A declaration as JSON can hold it.

    :raises ConfigError: it describes Go types, which only the process that made them has.
    """
    described = [name for name, each in netrpc.methods.items() if each.argument is not None or each.reply is not None]
    described += [name for name, kind in netrpc.registered.items() if not isinstance(kind, type)]
    if described:
        raise ConfigError(
            f"Plugin {plugin!r}: its contract describes Go types (NetRPC, {described[0]!r}), which cannot be sent to a "
            'process of its own. Give the plugin set by name, plugins = "module:NAME", so that it can be imported.',
            plugin=plugin,
        )
    return {
        "arguments": netrpc.arguments,
        "methods": {name: [each.name, each.arguments] for name, each in netrpc.methods.items()},
        "registered": {
            name: _class_reference(kind, "registered class", plugin) for name, kind in netrpc.registered.items()
        },
    }


def _netrpc_of(parts: Mapping[str, Any]) -> NetRPC:
    return NetRPC(
        parts["arguments"],
        {name: NetRPCMethod(*each) for name, each in parts["methods"].items()},
        {name: resolve_reference(kind, "a registered class") for name, kind in parts["registered"].items()},
    )


def _class_reference(found: type, what: str, plugin: str) -> str:
    where = f"{found.__module__}:{found.__qualname__}"
    if found.__module__ == "__main__" or "<locals>" in found.__qualname__:
        place = "in __main__" if found.__module__ == "__main__" else "inside a function"
        raise ConfigError(
            f"Plugin {plugin!r}: the {what} {found.__qualname__} is defined {place}, where no other process can import "
            "it from. To run the plugin in a subprocess, move it to a module of its own.",
            plugin=plugin,
        )
    return where


_TAG = "$hybridload"
_TAGGED: Mapping[str, Any] = {"datetime": datetime, "date": date, "time": time}


def _tagged(value: Any) -> dict[str, str]:
    """TOML's dates and times, which JSON lacks."""
    for name, kind in _TAGGED.items():
        if type(value) is kind:
            return {_TAG: name, "value": value.isoformat()}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} is {type(value).__qualname__}")


def _untagged(value: Any) -> Any:
    if isinstance(value, list):
        return [_untagged(item) for item in value]
    if isinstance(value, dict):
        if _TAG in value:
            return _TAGGED[value[_TAG]].fromisoformat(value["value"])
        return {key: _untagged(item) for key, item in value.items()}
    return value
