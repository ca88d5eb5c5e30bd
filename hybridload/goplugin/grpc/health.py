"""The health service of a plugin, which is a host's ping.

The names ``"plugin"`` (go-plugin's) and ``""`` (the server as a whole, by gRPC's health checking protocol) are known;
a check of any other is NOT_FOUND, and a watch of it says SERVICE_UNKNOWN.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from hybridload.goplugin.grpc import messages
from hybridload.goplugin.grpc.handlers import CONTROL, PLUMBING, Engine, ServiceHandler, method_handler

_KNOWN = frozenset({messages.HEALTH_SERVICE, ""})
_SERVICE_UNKNOWN = 3


def health_service(engine: Engine, ending: threading.Event) -> ServiceHandler:
    """``grpc.health.v1.Health``.

    :param ending: set when the plugin ends; a check says NOT_SERVING then.
    """

    def check(request: Any, context: Any) -> Any:
        if request.service not in _KNOWN:
            raise engine.abort(context, "NOT_FOUND", f"unknown service {request.service!r}")
        return messages.HealthCheckResponse(status=messages.NOT_SERVING if ending.is_set() else messages.SERVING)

    def watch(request: Any, context: Any) -> Iterator[Any]:
        if request.service not in _KNOWN:
            yield messages.HealthCheckResponse(status=_SERVICE_UNKNOWN)
        elif not ending.is_set():
            yield messages.HealthCheckResponse(status=messages.SERVING)
        changed = threading.Event()
        if not context.add_callback(changed.set):
            return
        # Nothing but the caller's leaving changes before the end, and at the end the server cancels the call.
        changed.wait()

    return ServiceHandler(
        "grpc.health.v1.Health",
        {
            name: method_handler(
                behavior,
                lane=PLUMBING if streams else CONTROL,
                response_streaming=streams,
                request_deserializer=messages.HealthCheckRequest.FromString,
                response_serializer=messages.HealthCheckResponse.SerializeToString,
            )
            for name, behavior, streams in (("Check", check, False), ("Watch", watch, True))
        },
    )
