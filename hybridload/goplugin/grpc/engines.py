"""Which engine carries gRPC, by name. Imported when it is chosen: a process that uses one does not import the other."""

from __future__ import annotations

import os

from hybridload.errors import ConfigError
from hybridload.goplugin.grpc.engine import Engine

VARIABLE = "HYBRIDLOAD_ENGINE"
DEFAULT = "direct"
ENGINES = ("direct", "grpcio")


def engine_named(name: str | None) -> Engine:
    """The engine of a name.

    :param name: ``"direct"`` or ``"grpcio"``; `None` for what `HYBRIDLOAD_ENGINE` says, or the default.
    :raises ConfigError: there is no such engine.
    """
    chosen = name or os.environ.get(VARIABLE) or DEFAULT
    if chosen == "direct":
        from hybridload.goplugin.grpc.direct_engine import DirectEngine

        return DirectEngine()
    if chosen == "grpcio":
        from hybridload.goplugin.grpc.grpcio_engine import GrpcioEngine

        return GrpcioEngine()
    said = f"engine={name!r}" if name else f"{VARIABLE}={chosen!r}"
    raise ConfigError(f"{said}: give one of {', '.join(ENGINES)}.")
