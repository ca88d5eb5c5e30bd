"""Isolations and fallback chains, read in one way wherever they are written: in a file, a variable or an argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

from hybridload.errors import ConfigError

Isolation = Literal["in-process", "subprocess", "external"]
"""How isolated a plugin runs."""

Chain = tuple[Isolation, ...]
"""Isolations in the order in which they are tried."""

ISOLATIONS: Chain = get_args(Isolation)

ISOLATION_VARIABLE = "HYBRIDLOAD_ISOLATION"

_BY_NAME: dict[str, Isolation] = {isolation: isolation for isolation in ISOLATIONS}
_EXPECTED = f"one of {', '.join(map(repr, ISOLATIONS))}, or a list of them in the order to try"


def isolation_chain(value: object, where: str = "isolation") -> Chain:
    """An isolation, or a list of them, as a fallback chain.

    :param where: what gives the value, at the front of errors.
    :raises ConfigError: for anything but one or more different isolations.
    """
    try:
        return to_chain(value)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def to_chain(value: object) -> Chain:
    """What `isolation_chain` does, for callers that know better where the value stands.

    :raises ValueError: with a sentence that says what is wrong.
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or isinstance(names, bytes):
        raise ValueError(f"expected {_EXPECTED}; found {value!r}.")
    if not names:
        raise ValueError(f"the list is empty; expected {_EXPECTED}.")
    chain: list[Isolation] = []
    for name in names:
        isolation = _BY_NAME.get(name) if isinstance(name, str) else None
        if isolation is None:
            hint = closest(name, ISOLATIONS) if isinstance(name, str) else ""
            raise ValueError(f"{name!r} is not an isolation.{hint} Expected {_EXPECTED}.")
        if isolation in chain:
            raise ValueError(f"{name!r} is listed twice, and the second would never be tried. Remove it.")
        chain.append(isolation)
    return tuple(chain)


def isolation_variable(name: str) -> str:
    """The environment variable that overrides one plugin's isolation."""
    return f"{ISOLATION_VARIABLE}_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in name.upper())


def read_variables(environ: Mapping[str, str]) -> dict[str, Chain]:
    """Every variable that overrides isolations, by its name. An empty one counts as not set.

    :raises ConfigError: for one that holds no chain.
    """
    return {
        variable: isolation_chain([name.strip() for name in text.split(",")], f"Environment variable {variable}")
        for variable, text in environ.items()
        if (variable == ISOLATION_VARIABLE or variable.startswith(f"{ISOLATION_VARIABLE}_")) and text.strip()
    }


def closest(word: str, known: Iterable[str]) -> str:
    """A sentence, with a space before it, that offers the known word nearest to `word`; empty when none is near."""
    import difflib

    plain = {name.lower().replace("_", "-"): name for name in known}
    near = difflib.get_close_matches(word.lower().replace("_", "-"), plain, n=1, cutoff=0.6)
    return f" Did you mean {plain[near[0]]!r}?" if near else ""
