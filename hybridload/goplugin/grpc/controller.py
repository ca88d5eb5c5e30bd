"""The controller service of a plugin: how a host asks it to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hybridload.goplugin.grpc import messages
from hybridload.goplugin.grpc.handlers import CONTROL, ServiceHandler, method_handler


def controller_service(shutdown: Callable[[], None]) -> ServiceHandler:
    """``plugin.GRPCController``.

    :param shutdown: ends the plugin; returns when the host may be told so. A Go host closes the connection as soon as
        it has the answer, so whatever it should still get has to be on its way by then.
    """

    def answer(request: Any, context: Any) -> Any:
        shutdown()
        return messages.Empty()

    return ServiceHandler(
        "plugin.GRPCController",
        {
            "Shutdown": method_handler(
                answer,
                lane=CONTROL,
                request_deserializer=messages.Empty.FromString,
                response_serializer=messages.Empty.SerializeToString,
            )
        },
    )
