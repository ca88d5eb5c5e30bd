"""The plugin is a go-plugin binary in any language, in its own process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from hybridload.goplugin.client import Client

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hybridload.external import External
    from hybridload.handle import Methods
    from hybridload.isolation import Request


class ExternalBinary:
    """Starts the command that the config, a folder or an `External` names."""

    def open(self, request: Request) -> ProcessPlugin:
        external = request.resolution.external
        assert external is not None
        return open_client(request, external)


def open_client(
    request: Request,
    external: External,
    *,
    module_logger: logging.Logger | None = None,
    env: Mapping[str, str] | None = None,
) -> ProcessPlugin:
    """Start a plugin's process with the plugin's settings.

    :param module_logger: its records that name a module go to that child of it; by default to a child of the logger
        that is named after the plugin.
    :param env: added to the environment that the program has by its settings.
    """
    settings = request.resolution.settings
    inherit: bool | Sequence[str] = True if settings.env_allow is None else settings.env_allow
    given: dict[str, Any] = {
        "start_timeout": settings.start_timeout,
        "auto_mtls": settings.auto_mtls,
        "allowed_protocols": settings.protocols,
    }
    given = {key: value for key, value in given.items() if value is not None}
    client = Client(
        external,
        plugins=request.plugins,
        handshake=request.handshake,
        name=request.name,
        env=env,
        inherit_env=inherit,
        module_logger=module_logger,
        lifeline=request.lifeline,
        call_timeout=settings.call_timeout,
        **given,
    )
    client.start()
    return ProcessPlugin(client)


class ProcessPlugin:
    """A plugin in its own process, offered as a running plugin."""

    direct = False

    def __init__(self, client: Client) -> None:
        self._client = client
        self.pid = client.pid
        self.protocol: str | None = client.protocol
        self.version = client.app_version

    def methods(self, kind: str) -> Methods:
        return self._client.dispense_methods(kind)

    def gone(self) -> Exception | None:
        return self._client.gone()

    def close(self) -> None:
        self._client.kill()
