"""What a plugin's process may use at the most, and how large a message either side takes.

The kernel sees to the former (setrlimit(2)), from the process's first instruction on; whoever receives a message sees
to the latter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hybridload.errors import ConfigError
from hybridload.frozen import frozen, names, replace

_UNITS = {
    **{"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40},
}
_SIZE = r"(\d{1,15}) ?([A-Za-z]*)"
_MOST = 2**62
_EXPECTED = {
    "memory": 'a size greater than 0, in bytes or as "512MB" or "1GiB"',
    "cpu_seconds": "a whole number of seconds greater than 0",
    "open_files": "a number greater than 0",
    "processes": "a number greater than 0",
}


MAX_MESSAGE: Final = 256 * 2**20
"""Bytes of the largest message that is taken where nobody says otherwise."""
UNLIMITED: Final = 2**62
"""Bytes that no message has."""
RECEIVE_OPTION: Final = "grpc.max_receive_message_length"
MAX_MESSAGE_EXPECTED: Final = 'a size greater than 0 and at most 2**62, in bytes or as "64MB" or "1GiB", or "unlimited"'


@frozen
class Limits:
    """Limits of one process; `None` for what the host itself may use. A lower one that the host is under stays.

    :param memory: bytes of private memory that it may map: heap and stacks of threads, and not what programs only
        reserve, as Go's do (RLIMIT_DATA, Linux 4.7). An allocation beyond it fails: a MemoryError in Python.
    :param cpu_seconds: of processor time in all its life. SIGXCPU ends it then; one that ignores that is killed a
        second later.
    :param open_files: descriptors at once.
    :param processes: processes and threads that its *user* may have when it starts another, whoever started those. The
        kernel does not hold root to it.
    """

    memory: int | None = None
    cpu_seconds: int | None = None
    open_files: int | None = None
    processes: int | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in names(self))

    def over(self, other: Limits) -> Limits:
        """These, and those of `other` that these leave open."""
        given = {name: getattr(self, name) for name in names(self)}
        return replace(other, **{name: value for name, value in given.items() if value is not None})


def read_limits(table: Mapping[str, Any]) -> Limits:
    """Limits as a configuration has them.

    :param table: sizes are numbers of bytes, or strings with a unit: kB, MB, GB (thousands), KiB, MiB, GiB (1024s).
    :raises ValueError: with a sentence that names what is wrong and what was expected.
    """
    given: dict[str, int] = {}
    for name, value in table.items():
        if name not in _EXPECTED:
            raise ValueError(f"{name!r} is not a limit; expected some of {', '.join(_EXPECTED)}.")
        number = _size(value) if name == "memory" else value
        if type(number) is not int or not 0 < number <= _MOST:
            raise ValueError(f"{name} is {value!r}; expected {_EXPECTED[name]}.")
        given[name] = number
    return Limits(**given)


def read_max_message(value: object) -> int:
    """The largest message to take, in bytes, from what a configuration or an argument says.

    :param value: a number of bytes, a string with a unit as `read_limits` has it, or ``"unlimited"``.
    :raises ValueError: with a sentence that says what was expected.
    """
    number = UNLIMITED if value == "unlimited" else _size(value)
    if type(number) is not int or not 0 < number <= _MOST:
        raise ValueError(f"max_message is {value!r}; expected {MAX_MESSAGE_EXPECTED}.")
    return number


def given_max_message(
    value: int | str | None, options: Sequence[tuple[str, Any]], options_name: str
) -> tuple[int, tuple[tuple[str, Any], ...]]:
    """The largest message that one side takes, in bytes, and grpc's other arguments.

    :param value: the argument ``max_message``; `None` where it was not given.
    :param options: grpc's arguments as they were given, which may hold the limit in its place.
    :param options_name: how that argument is called.
    :raises ConfigError: it is no size, or both say one.
    """
    given = dict(options).get(RECEIVE_OPTION)
    if given is None:
        try:
            limit = MAX_MESSAGE if value is None else read_max_message(value)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    elif value is not None:
        raise ConfigError(f"max_message and {RECEIVE_OPTION} of {options_name} say the same: give one of them.")
    elif type(given) is not int:
        raise ConfigError(f"{RECEIVE_OPTION} of {options_name} is {given!r}; expected bytes, or -1 for no limit.")
    else:
        limit = UNLIMITED if given < 0 else given
    return limit, tuple(option for option in options if option[0] != RECEIVE_OPTION)


def receive_option(limit: int) -> tuple[str, int]:
    """A limit in bytes as grpc's argument."""
    return RECEIVE_OPTION, -1 if limit >= UNLIMITED else limit


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(_SIZE, value.strip(), re.ASCII)
    unit = found and _UNITS.get(found[2].upper())
    return int(found[1]) * unit if found and unit else None
