"""The plugin as a program that any go-plugin host can start; over net/rpc with BEHAVIOUR_PROTOCOL=netrpc."""

import os

from behaviour_sdk import CALLS_ALONE, HANDSHAKE, PLUGINS

from behaviour_plugin import Everything
from hybridload import serve

protocol = os.environ.get("BEHAVIOUR_PROTOCOL", "grpc")
serve(
    CALLS_ALONE if protocol == "netrpc" else PLUGINS,
    {"everything": Everything()},
    handshake=HANDSHAKE,
    protocols=protocol,
)
