"""The stdio service of a plugin: what it prints, streamed to the host.

Called once per host. Several streams at once share the chunks between them, as in go-plugin; one that comes after the
last has ended (a host that reattached) gets what was printed meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hybridload.goplugin.grpc import messages
from hybridload.goplugin.grpc.handlers import PLUMBING, ServiceHandler, method_handler
from hybridload.goplugin.served_output import OutputBuffer


def stdio_service(output: OutputBuffer) -> ServiceHandler:
    """``plugin.GRPCStdio``, which drains `output`."""

    def stream_stdio(request: Any, context: Any) -> Iterator[Any]:
        reader = output.reader()
        try:
            if not context.add_callback(reader.cancel):
                return
            for chunk in reader:
                channel, data = chunk
                try:
                    yield messages.StdioData(channel=channel, data=data)
                except GeneratorExit:
                    # The host went away before it was sent.
                    reader.put_back(chunk)
                    raise
        finally:
            reader.close()

    return ServiceHandler(
        "plugin.GRPCStdio",
        {
            "StreamStdio": method_handler(
                stream_stdio,
                lane=PLUMBING,
                response_streaming=True,
                request_deserializer=messages.Empty.FromString,
                response_serializer=messages.StdioData.SerializeToString,
            )
        },
    )
