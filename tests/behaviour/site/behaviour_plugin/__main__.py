"""The plugin as a program that any go-plugin host can start."""

from behaviour_sdk import HANDSHAKE, PLUGINS

from behaviour_plugin import Everything
from hybridload import serve

serve(PLUGINS, {"everything": Everything()}, handshake=HANDSHAKE)
