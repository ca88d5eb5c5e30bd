"""Interface-typed values of a contract: the object stays where it is, and the other side calls it back.

An exported object is served under a broker id of this side, for as long as the other side keeps a connection to it. An
adopted one is a handle whose methods travel over a dialled channel, which is closed when nobody holds the handle any
more. So a callback may be kept beyond the call that brought it, and nothing has to be told when it is over.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hybridload.goplugin.event_loop import EventLoop
from hybridload.goplugin.grpc.broker import BrokeredServer, GRPCBroker
from hybridload.goplugin.grpc.contract_client import CallContext, contract_methods
from hybridload.goplugin.grpc.contract_server import contract_service
from hybridload.handle import handle_class, new_handle

if TYPE_CHECKING:
    from hybridload.contract import Contract
    from hybridload.goplugin.grpc.engine import Server

# Seconds after which an exported object that nobody connected to is given up. The other side forgets an offer after 5.
_UNCLAIMED = 30.0


class BrokerObjects:
    """Carries objects over a broker; see `contract.Objects`.

    :param loop: runs the asynchronous methods of exported objects; the caller closes it.
    :param calls: what the stubs of an adopted object need to know, by contract.
    """

    def __init__(self, broker: GRPCBroker, loop: EventLoop, calls: Callable[[Contract[Any]], CallContext]) -> None:
        self._broker = broker
        self._loop = loop
        self._calls = calls
        self._lock = threading.Lock()
        self._unclaimed: dict[int, tuple[float, BrokeredServer]] = {}

    def export(self, implementation: object, contract: Contract[Any]) -> int:
        """Serve an object to the other side.

        :returns: the id under which it can be dialled.
        :raises ContractError: the object does not implement the interface.
        :raises BrokerError: the other side is gone.
        """
        service = contract.complete()
        service.check_implementation(implementation)
        service_id = self._broker.next_id()

        def register(server: Server) -> None:
            handler = contract_service(service, implementation, engine=server, loop=self._loop, objects=self)
            server.add_generic_rpc_handlers((handler,))

        def idle() -> None:
            with self._lock:
                self._unclaimed.pop(service_id, None)
            self._broker.dispose(served)

        self._sweep()
        served = self._broker.accept_and_serve(service_id, register, on_idle=idle)
        with self._lock:
            self._unclaimed[service_id] = (time.monotonic(), served)
        return service_id

    def adopt(self, service_id: int, contract: Contract[Any]) -> object:
        """An object whose methods call what the other side serves.

        :raises BrokerError: nobody accepts the id.
        """
        service = contract.complete()
        channel = self._broker.dial(service_id)
        methods = contract_methods(service, channel, self._calls(contract), self)
        handle = new_handle(handle_class(service), methods, lambda: f"id {service_id}")
        # Never close in a finalizer: it may run on any thread, also on one that the channel would join.
        weakref.finalize(handle, self._broker.dispose, channel).atexit = False
        return handle

    def _sweep(self) -> None:
        deadline = time.monotonic() - _UNCLAIMED
        with self._lock:
            stale = [key for key, (since, served) in self._unclaimed.items() if since < deadline]
            given_up = [self._unclaimed.pop(key)[1] for key in stale]
        for served in given_up:
            if not served.claimed:
                self._broker.dispose(served)
