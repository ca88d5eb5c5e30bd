"""The plugin's half of the broker's stream: the host opens it once, and messages go both ways."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from hybridload.goplugin.grpc import messages
from hybridload.goplugin.grpc.broker import GRPCBroker
from hybridload.goplugin.grpc.handlers import PLUMBING, ServiceHandler, method_handler
from hybridload.goplugin.threads import Thread

log = logging.getLogger(__name__)


def broker_service(broker: GRPCBroker) -> ServiceHandler:
    """The handler of plugin.GRPCBroker.

    What comes is taken on a thread of its own, which ends with the stream. A host that comes later (reattached) opens
    a stream of its own, which takes over.
    """

    def start_stream(requests: Iterator[Any], context: Any) -> Iterator[Any]:
        def take() -> None:
            try:
                broker.receive(requests)
            except Exception as error:
                log.debug("the broker's stream ended: %s", error)
            finally:
                outgoing.close()

        outgoing = broker.outgoing()
        taker = Thread(target=take, name="hybridload broker stream", daemon=True)
        taker.start()
        try:
            yield from outgoing
        finally:
            outgoing.close()
            context.cancel()
            taker.join()

    return ServiceHandler(
        "plugin.GRPCBroker",
        {
            "StartStream": method_handler(
                start_stream,
                lane=PLUMBING,
                request_streaming=True,
                response_streaming=True,
                request_deserializer=messages.ConnInfo.FromString,
                response_serializer=messages.ConnInfo.SerializeToString,
            )
        },
    )
