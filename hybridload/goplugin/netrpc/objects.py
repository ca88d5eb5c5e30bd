"""Interface-typed values of a contract over net/rpc: the object stays where it is, and the other side calls it back.

An exported object is served under a broker id of this side, on the one connection that the other side opens for it. An
adopted one is a handle whose methods travel over a dialled connection, which is closed when nobody holds the handle any
more. So a callback may be kept beyond the call that brought it, and nothing has to be told when it is over.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hybridload.goplugin.event_loop import EventLoop
from hybridload.goplugin.in_flight import Lent
from hybridload.goplugin.netrpc import adopted
from hybridload.goplugin.netrpc.broker import MuxBroker
from hybridload.goplugin.netrpc.contract_client import CallContext, contract_methods
from hybridload.goplugin.netrpc.contract_server import contract_service
from hybridload.goplugin.netrpc.conventions import Conventions
from hybridload.goplugin.netrpc.failures import encode_failure
from hybridload.handle import handle_class, new_handle, rebind

if TYPE_CHECKING:
    from hybridload.contract import Contract


class MuxObjects:
    """Carries objects over a mux broker; see `contract.Objects`.

    :param loop: runs the asynchronous methods of exported objects; the caller closes it.
    :param context: what the stubs of an adopted object need to know, by contract.
    :param detailed: whether the other side is a hybridload.
    :param lends: whether this is the host's side, whose objects are called within the plugin's calls.
    """

    def __init__(
        self,
        broker: MuxBroker,
        loop: EventLoop,
        context: Callable[[Contract[Any]], CallContext],
        detailed: Callable[[], bool],
        *,
        lends: bool = False,
    ) -> None:
        self._lends = lends
        self._broker = broker
        self._loop = loop
        self._context = context
        self._detailed = detailed
        self._conventions: dict[Contract[Any], Conventions] = {}

    def conventions(self, contract: Contract[Any]) -> Conventions:
        """How a contract's methods travel on this connection.

        :raises ContractError: naming every method that cannot.
        """
        found = self._conventions.get(contract)
        if found is None:
            found = self._conventions[contract] = Conventions(contract.complete(), self)
        return found

    def serve(self, service_id: int, implementation: object, contract: Contract[Any]) -> None:
        """Serve an object to whoever opens an id of this side.

        :raises ContractError: the interface cannot travel over net/rpc.
        :raises BrokerError: the other side is gone.
        """
        conventions = self.conventions(contract)
        self._broker.accept_and_serve(
            service_id,
            contract_service(conventions, implementation, self._loop),
            conventions.registry,
            failure=lambda error: encode_failure(error, contract, self._detailed()),
        )

    def export(self, implementation: object, contract: Contract[Any]) -> int:
        """Serve an object to the other side.

        :returns: the id under which it can be dialled.
        :raises ContractError: the object does not implement the interface.
        :raises BrokerError: the other side is gone.
        """
        contract.complete().check_implementation(implementation)
        service_id = self._broker.next_id()
        self.serve(service_id, Lent(implementation) if self._lends else implementation, contract)
        return service_id

    def adopt(self, service_id: int, contract: Contract[Any]) -> object:
        """An object whose methods call what the other side serves. It has them when it is dialled: see `adopted`."""
        handle = new_handle(handle_class(contract.complete()), {}, lambda: f"id {service_id}")
        adopted.leave(lambda: rebind(handle, self.methods(service_id, contract)))
        return handle

    def methods(self, service_id: int, contract: Contract[Any]) -> Any:
        """The bare callables behind `adopt`, by method name. The connection ends when nobody holds them any more."""
        conventions = self.conventions(contract)
        client = self._broker.client(service_id, conventions.registry)
        lease = _Lease()
        # Never close in a finalizer: it may run on any thread, also on one that holds a lock of the session.
        weakref.finalize(lease, self._broker.dispose, client).atexit = False
        made = contract_methods(contract.complete(), client, conventions, self._context(contract))
        for stub in made.values():
            stub.__hybridload_lease__ = lease  # type: ignore[attr-defined]
        return made


class _Lease:
    """Is gone when the last of a connection's stubs is."""

    __slots__ = ("__weakref__",)
