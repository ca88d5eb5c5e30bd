"""One place that a plugin's name can come from."""

from __future__ import annotations

from typing import Literal

from hybridload.external import External
from hybridload.frozen import frozen
from hybridload.sources.entry_point import EntryPoint

Source = Literal["config", "entry-point", "folder"]


@frozen
class Candidate:
    """A place that a name can come from: a program, or a Python object that an entry point names.

    :param name: the plugin's name.
    :param origin: the place in words, e.g. ``"entry point hello = hello_plugin:Hello (hello-plugin 1.0)"``.
    :param external: the program; `None` for a Python object.
    :param entry_point: where the Python object is; its distribution is `None` when the configuration itself gives
        ``module:attribute``. May turn out to name an `External` when it is loaded.
    :param lookup: the name of an entry point that only the plugin's own interpreter (`python`) can look up in the
        host's group, because it is not installed here; `None` otherwise.
    """

    name: str
    source: Source
    origin: str
    external: External | None = None
    entry_point: EntryPoint | None = None
    lookup: str | None = None

    @property
    def is_python(self) -> bool:
        """Whether it stands for a Python object, as far as one can tell without loading it."""
        return self.external is None

    def __str__(self) -> str:
        return self.origin
