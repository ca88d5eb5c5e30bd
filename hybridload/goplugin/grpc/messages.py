"""The messages of the services that every go-plugin plugin has.

They are compiled from `proto/` (see `tools/compile_protocol.py`) and live in a pool of their own: the default pool
would refuse them as soon as another library in the process registers `plugin.GRPCBroker` or `grpc.health.v1.Health`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hybridload.contract.descriptors import private_pool
from hybridload.contract.protobuf import class_of, read_contents
from hybridload.frozen import frozen


def _read() -> bytes:
    # What importlib.resources does for a file beside a module, without what importing that takes.
    assert __spec__ is not None
    read: Callable[[str], bytes] = __spec__.loader.get_data  # type: ignore[union-attr]
    return read(os.path.join(os.path.dirname(__file__), "protocol.binpb"))


POOL = private_pool(read_contents(_read()))


def _message(full_name: str) -> Any:
    return class_of(POOL.FindMessageTypeByName(full_name))


Empty = _message("plugin.Empty")
ConnInfo = _message("plugin.ConnInfo")
StdioData = _message("plugin.StdioData")
HealthCheckRequest = _message("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse = _message("grpc.health.v1.HealthCheckResponse")

STDOUT, STDERR = 1, 2
"""`StdioData.channel`."""
SERVING, NOT_SERVING = 1, 2
"""`HealthCheckResponse.status`."""

HEALTH_SERVICE = "plugin"
"""The name under which go-plugin registers and checks the health of a plugin."""
SHUTDOWN = "/plugin.GRPCController/Shutdown"
STREAM_STDIO = "/plugin.GRPCStdio/StreamStdio"
START_STREAM = "/plugin.GRPCBroker/StartStream"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"


@frozen
class Reflection:
    """The messages of one version of server reflection, which differ in their package alone."""

    request: Any
    response: Any


def reflection(version: str) -> Reflection:
    """The messages of server reflection, ``"v1"`` or ``"v1alpha"``."""
    package = f"grpc.reflection.{version}"
    return Reflection(_message(f"{package}.ServerReflectionRequest"), _message(f"{package}.ServerReflectionResponse"))


def reflection_service(version: str) -> str:
    """The full name of the service of a version."""
    return f"grpc.reflection.{version}.ServerReflection"


def protocol_files() -> list[Any]:
    """The files of the protocol's own services, each after those that it imports."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    return list(FileDescriptorSet.FromString(_read()).file)
