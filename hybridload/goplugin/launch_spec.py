"""What a host tells the process that serves one of its entry points: the plugin, its options, its contract.

It travels in the child's environment, as JSON cut into pieces: not among the arguments, which every user of the machine
can read and options may be secrets; and not over a descriptor, which not every system hands on. The child takes it out
of its environment at once. It may have a megabyte or two, which is what systems have room for.

The contract travels as a reference into the host's plugin set where that can be imported by name; else as its parts:
the interface and the exception classes as ``module:qualname``, the service by its name, or by its descriptors when they
are not derived from the hints.

Light to import: host and child both do.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any

from hybridload.contract import Contract
from hybridload.errors import ConfigError
from hybridload.handshake import Handshake
from hybridload.references import resolve_reference

_VARIABLE = "HYBRIDLOAD_LAUNCH"
_PATH_VARIABLE = "HYBRIDLOAD_LAUNCH_PATH"
# Characters. Linux takes 128 KiB for one variable, Windows 32 Ki characters.
_PIECE = 30_000

# Appended behind the interpreter's own path, so that what is installed there wins; `-P` keeps the working directory
# out.
_BOOTSTRAP = (
    "import os, sys; "
    f"sys.path += [p for p in os.environ.pop({_PATH_VARIABLE!r}, '').split(os.pathsep) if p and p not in sys.path]; "
    "from hybridload.goplugin.launch import main; main()"
)


@dataclass(frozen=True, slots=True)
class ContractReference:
    """Where a child process finds a contract: a plugin set by name, or the parts of the contract.

    :param plugins: ``module:NAME`` of a plugin set, in which the kind is looked up; the other fields are `None` then.
    :param interface: ``module:qualname``.
    :param service: the service's full name; `None` for the default.
    :param descriptor_set: a serialized `FileDescriptorSet`; `None` when the messages are derived from the hints.
    :param errors: each as ``module:qualname``.
    """

    plugins: str | None = None
    interface: str | None = None
    service: str | None = None
    descriptor_set: bytes | None = None
    errors: tuple[str, ...] = ()

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
        )

    def resolve(self, kind: str, version: int, handshake: Handshake) -> Contract[Any]:
        """The contract, in the process that imports it.

        :raises ConfigError: when something cannot be imported or is not what it should be.
        """
        if self.plugins is not None:
            return _contract_in(self.plugins, kind, version, handshake)
        assert self.interface is not None
        return Contract(
            resolve_reference(self.interface, "the interface"),
            self.service,
            descriptor_set=self.descriptor_set,
            errors=[resolve_reference(error, "an exception class of the contract") for error in self.errors],
        )


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One entry point to be served.

    :param plugin: the plugin's name, for messages.
    :param entry_point: ``module:attribute``; `None` to look it up in the child's own interpreter.
    :param group: the group of entry points in which `lookup` is a name, when `entry_point` is `None`.
    :param options: keyword arguments of the class or factory: what JSON has, dates and times.
    :param kind: the kind under which it is served.
    :param version: the version of the application protocol under which it is served.
    :param path: the host's import path.
    :param outlive_host: as in `serve`.
    """

    plugin: str
    kind: str
    version: int
    handshake: Handshake
    contract: ContractReference
    entry_point: str | None = None
    group: str | None = None
    lookup: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    path: Sequence[str] = ()
    outlive_host: bool = False

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
        contract = self.contract
        descriptors = contract.descriptor_set
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
                "version": self.version,
                "cookie_key": self.handshake.cookie_key,
                "cookie_value": self.handshake.cookie_value,
                "protocol_version": self.handshake.protocol_version,
                "plugins": contract.plugins,
                "interface": contract.interface,
                "service": contract.service,
                "descriptor_set": None if descriptors is None else base64.b64encode(descriptors).decode(),
                "errors": list(contract.errors),
                "entry_point": self.entry_point,
                "group": self.group,
                "lookup": self.lookup,
                "options": json.loads(options),
                "path": list(self.path),
                "outlive_host": self.outlive_host,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> LaunchSpec:
        """The spec that `to_json` wrote."""
        read: dict[str, Any] = json.loads(text)
        descriptors = read["descriptor_set"]
        return cls(
            plugin=read["plugin"],
            kind=read["kind"],
            version=read["version"],
            handshake=Handshake(read["cookie_key"], read["cookie_value"], read["protocol_version"]),
            contract=ContractReference(
                plugins=read["plugins"],
                interface=read["interface"],
                service=read["service"],
                descriptor_set=None if descriptors is None else base64.b64decode(descriptors),
                errors=tuple(read["errors"]),
            ),
            entry_point=read["entry_point"],
            group=read["group"],
            lookup=read["lookup"],
            options=_untagged(read["options"]),
            path=tuple(read["path"]),
            outlive_host=read["outlive_host"],
        )


def import_path() -> tuple[str, ...]:
    """This process's import path as another process with another working directory can use it."""
    entries = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    # One that holds the separator cannot be told apart from two.
    return tuple(dict.fromkeys(entry for entry in entries if os.pathsep not in entry))


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


def _contract_in(reference: str, kind: str, version: int, handshake: Handshake) -> Contract[Any]:
    from hybridload.goplugin.plugins import read_plugin_set

    versions = read_plugin_set(resolve_reference(reference, "the plugin set"), handshake)
    found = versions.get(version, {}).get(kind)
    if not isinstance(found, Contract):
        raise ConfigError(f"The plugin set {reference} has no contract for kind {kind!r} of version {version}.")
    return found


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
