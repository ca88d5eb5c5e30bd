"""What can go wrong between Python values and gob.

`GobCorrupt` ends a stream, `GobMismatch` costs one value, and a plain `GobError` is about what this side wanted to send
or described wrongly. `Misfit` never leaves the package: it collects the way to the offending part while it rises.
"""

from __future__ import annotations

from hybridload.errors import PluginError


class GobError(PluginError):
    """A Python value cannot travel as gob, or a type description makes no sense. Nothing was sent."""


class GobCorrupt(GobError):
    """The received bytes are no gob stream, or ask for more than the limits allow. The stream cannot be read on."""


class GobMismatch(GobError):
    """A value arrived, but it is not what the receiver asked for. It was skipped; the stream goes on after it."""


class GobTooLarge(GobMismatch):
    """A value arrived that is larger than the receiver takes. It is passed over as it comes, and none of it is kept.

    :param size: of its message, in bytes.
    :param limit: what the receiver takes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"Received message larger than max ({size} vs. {limit})")
        self.size = size
        self.limit = limit


class Misfit(Exception):
    """A value or a type does not fit; `within` adds the way to it from the outside."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path: list[str] = []

    def within(self, place: str) -> Misfit:
        self.path.insert(0, place)
        return self

    def __str__(self) -> str:
        return f"{' > '.join(self.path)}: {self.problem}" if self.path else self.problem
