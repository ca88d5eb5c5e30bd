"""A plugin and its host in one process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hybridload.goplugin.client import Client
from hybridload.goplugin.plugins import PluginSet
from hybridload.goplugin.reattach import ReattachConfig
from hybridload.goplugin.serve import Implementations, serve
from hybridload.goplugin.serving import ServeTest
from hybridload.handshake import Handshake

_HANDSHAKE = Handshake("HYBRIDLOAD_TESTING", "in-this-process")


@contextmanager
def in_this_process(
    plugins: PluginSet,
    implementations: Implementations | None = None,
    *,
    handshake: Handshake = _HANDSHAKE,
    version: int | None = None,
    sync_stdio: bool = False,
    serve_options: dict[str, Any] | None = None,
    **client_options: Any,
) -> Iterator[Client]:
    """Serve implementations on a thread, and give a started client of them, over a real socket.

    ::

        with in_this_process({"greeter": Greeter}, {"greeter": Hello()}) as client:
            assert client.dispense("greeter").greet() == "Hello!"

    :param plugins: as of `serve`.
    :param implementations: as of `serve`.
    :param handshake: matters for its protocol version alone: there is no cookie to check.
    :param version: which version of the set to serve; the lowest by default.
    :param sync_stdio: let the client's `sync_stdout` and `sync_stderr` have what is printed. `sys.stdout` and
        `sys.stderr` are replaced meanwhile, and what is printed still goes where it went before.
    :param serve_options: further arguments of `serve`, e.g. ``{"engine": "grpcio"}``.
    :param client_options: further arguments of `Client`, e.g. ``call_timeout=1.0``.
    :raises ConfigError, ContractError: plugin set and implementations do not match.
    """
    told: queue.SimpleQueue[ReattachConfig | BaseException] = queue.SimpleQueue()
    test = ServeTest(on_reattach=told.put, sync_stdio=sync_stdio, version=version)

    def run() -> None:
        try:
            serve(plugins, implementations, handshake=handshake, test=test, **(serve_options or {}))
        except BaseException as error:
            told.put(error)

    thread = threading.Thread(target=run, name="hybridload in this process")
    thread.start()
    try:
        config = told.get()
        if isinstance(config, BaseException):
            raise config
        client_options.setdefault("name", "in this process")
        with Client.reattach(config, plugins=plugins, handshake=handshake, **client_options) as client:
            yield client
    finally:
        test.cancel.set()
        thread.join()
