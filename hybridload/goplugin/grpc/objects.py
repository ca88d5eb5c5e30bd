"""Interface-typed values of a contract: the object stays where it is, and the other side calls it back.

An exported object is served under a broker id of this side, for as long as the other side keeps a connection to it, or
until it is clear that nobody connects. An adopted one is a handle whose methods travel over a dialled channel, which is
closed when nobody holds the handle or a method of it any more. So a callback may be kept beyond the call that brought
it, and nothing has to be told when it is over.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hybridload.goplugin.event_loop import EventLoop
from hybridload.goplugin.grpc.broker import GRPCBroker
from hybridload.goplugin.grpc.contract_client import CallContext, contract_methods
from hybridload.goplugin.grpc.contract_server import contract_service
from hybridload.goplugin.in_flight import Lent
from hybridload.handle import handle_class, new_handle

if TYPE_CHECKING:
    from hybridload.contract import Contract
    from hybridload.goplugin.grpc.engine import Server

UNCLAIMED = 30.0
"""Seconds after which an exported object that nobody connected to is given up; go-plugin forgets an offer after 5."""


class BrokerObjects:
    """Carries objects over a broker; see `contract.Objects`.

    :param loop: runs the asynchronous methods of exported objects; the caller closes it.
    :param calls: makes what the stubs of one adopted object need to know, by contract.
    :param lends: whether this is the host's side, whose objects are called within the plugin's calls.
    """

    def __init__(
        self,
        broker: GRPCBroker,
        loop: EventLoop,
        calls: Callable[[Contract[Any]], CallContext],
        *,
        lends: bool = False,
    ) -> None:
        self._lends = lends
        self._broker = broker
        self._loop = loop
        self._calls = calls

    def export(self, implementation: object, contract: Contract[Any]) -> int:
        """Serve an object to the other side.

        :returns: the id under which it can be dialled.
        :raises ContractError: the object does not implement the interface.
        :raises BrokerError: the other side is gone.
        """
        service = contract.complete()
        service.check_implementation(implementation)
        served_object = Lent(implementation) if self._lends else implementation
        service_id = self._broker.next_id()

        def register(server: Server) -> None:
            handler = contract_service(service, served_object, engine=server, loop=self._loop, objects=self)
            server.add_generic_rpc_handlers((handler,))

        served = self._broker.accept_and_serve(service_id, register, on_idle=lambda: self._broker.dispose(served))
        self._broker.dispose_unclaimed(served, UNCLAIMED)
        return service_id

    def adopt(self, service_id: int, contract: Contract[Any]) -> object:
        """An object whose methods call what the other side serves.

        :raises BrokerError: nobody accepts the id.
        """
        service = contract.complete()
        channel = self._broker.dial(service_id)
        calls = self._calls(contract)
        # Every method and every open stream of the object holds this, so one that was taken from the handle lives on.
        # Never close in a finalizer: it may run on any thread, also on one that the channel would join.
        weakref.finalize(calls, self._broker.dispose, channel).atexit = False
        methods = contract_methods(service, channel, calls, self)
        return new_handle(handle_class(service), methods, lambda: f"id {service_id}")
