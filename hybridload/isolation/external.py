"""The plugin is a go-plugin binary in any language, in its own process."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

from hybridload.errors import RemoteError
from hybridload.goplugin.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hybridload.external import External
    from hybridload.goplugin.runner import Runner
    from hybridload.handle import Methods
    from hybridload.isolation import Request


OPTIONS_VARIABLE = "HYBRIDLOAD_OPTIONS"
"""Has the plugin's options for a program, as a JSON object."""


class ExternalBinary:
    """Starts the command that the config, a folder or an `External` names."""

    def open(self, request: Request) -> ProcessPlugin:
        if (attached := request.resolution.attached) is not None:
            from hybridload.isolation.reattached import open_reattached

            return open_reattached(request, attached)
        external = request.resolution.external
        assert external is not None
        options = request.resolution.settings.options
        env = {OPTIONS_VARIABLE: json.dumps(dict(options))} if options else {}
        return ProcessPlugin(start_client(request, external, env=env))


def start_client(
    request: Request,
    external: External,
    *,
    module_logger: logging.Logger | None = None,
    env: Mapping[str, str],
    runner: Runner | None = None,
) -> Client:
    """Start a plugin's process with the plugin's settings.

    :param module_logger: its records that name a module go to that child of it; by default to a child of the logger
        that is named after the plugin.
    :param env: added to the environment that the program has by its settings.
    :param runner: starts it; as a program of its own by default.
    """
    settings = request.resolution.settings
    inherit: bool | Sequence[str] = True if settings.env_allow is None else settings.env_allow
    given: dict[str, Any] = {
        "start_timeout": settings.start_timeout,
        "auto_mtls": settings.auto_mtls,
        "multiplex": settings.multiplex,
        "allowed_protocols": settings.protocols,
        "max_message": settings.max_message,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if OPTIONS_VARIABLE in os.environ:  # This host is such a plugin itself: its own options are not for others.
        env = {OPTIONS_VARIABLE: "{}", **env}
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
        limits=settings.limits,
        runner=runner,
        **given,
    )
    request.opening.begin(client.kill)
    client.start()
    return client


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

    def ping(self, timeout: float) -> None:
        try:
            self._client.ping(timeout)
        except RemoteError as error:
            # It has no health service, but it answers.
            if error.code not in ("UNIMPLEMENTED", "NOT_FOUND"):
                raise

    def when_gone(self, callback: Callable[[], None]) -> None:
        self._client.when_gone(callback)

    def condemn(self, why: str) -> None:
        self._client.condemn(why)

    def close(self) -> None:
        self._client.kill()
