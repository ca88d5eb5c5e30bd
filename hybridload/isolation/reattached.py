"""The plugin runs already: a developer serves it, under a debugger, and `HYBRIDLOAD_REATTACH` says where.

Whatever the settings say, it is used and none is started; one that is gone is an error and no reason to fall back to
another, which would only be debugged in vain. In test mode (as `serve(debug=...)` and Terraform's Go plugins have it)
closing lets go of it, and it runs on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridload.errors import ConfigError, HandshakeError, PluginNotFound
from hybridload.goplugin.client import Client
from hybridload.goplugin.reattach import ReattachConfig
from hybridload.goplugin.reattach_variable import REATTACH_VARIABLE
from hybridload.isolation.external import ProcessPlugin

if TYPE_CHECKING:
    from hybridload.isolation import Request

_WHAT_TO_DO = (
    f"{REATTACH_VARIABLE} names it; set the variable to what the plugin prints when it is served anew, "
    "or unset it to use the plugin as configured."
)


def open_reattached(request: Request, config: ReattachConfig) -> ProcessPlugin:
    """Take up a plugin that runs already.

    :raises ConfigError: it does not run any more.
    :raises HandshakeError: it runs and does not answer.
    """
    client = Client.reattach(
        config,
        plugins=request.plugins,
        handshake=request.handshake,
        name=request.name,
        call_timeout=request.resolution.settings.call_timeout,
        max_message=request.resolution.settings.max_message,
    )
    try:
        client.start()
    except PluginNotFound as error:
        raise ConfigError(f"{error} {_WHAT_TO_DO}", plugin=request.name) from error
    except HandshakeError as error:
        raise type(error)(f"{error} {_WHAT_TO_DO}", plugin=request.name, stderr=error.stderr) from error
    return ProcessPlugin(client)
