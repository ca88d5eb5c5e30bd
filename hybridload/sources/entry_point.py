"""One entry point, as little as loading it takes: importlib.metadata's own costs more to import than all plugins."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple


class EntryPoint(NamedTuple):
    """An entry point of an installed distribution, or one that the configuration writes out.

    :param value: ``module:attribute`` or ``module``, as it was written.
    :param distribution: what offers it, in words, e.g. ``"hello-plugin 1.0"``; empty for the configuration's own.
    """

    name: str
    value: str
    group: str
    distribution: str = ""

    @property
    def module(self) -> str:
        return self._target().partition(":")[0].strip()

    def _target(self) -> str:
        """The value without extras, which nobody uses any more."""
        return self.value.partition("[")[0]

    def load(self) -> object:
        """Import what it names. Whatever importing raises is raised, and AttributeError where there is no such name."""
        found: object = import_module(self.module)
        for part in filter(None, self._target().partition(":")[2].strip().split(".")):
            found = getattr(found, part)
        return found
