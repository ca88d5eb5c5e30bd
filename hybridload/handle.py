"""The object that a host holds for a plugin.

It subclasses the interface, so `isinstance` holds for Protocols and ABCs, and has one slot per method. What is in the
slot decides where the call runs: the real object's bound method in-process (so that no Python frame is added), a
function that sends the call elsewhere otherwise. A switch puts other callables into the slots; whoever holds the
object notices nothing. A method saved beforehand (`f = greeter.greet`) keeps pointing where it pointed when that was
in-process.

Concrete methods of an ABC are not in a slot: they run on the host's side and reach the plugin through the slots.

A hand-written plugin has no interface to take slots from, and its half makes a new object for each process. What the
host holds stands in for it: whatever is asked of it is asked of the one that was made last.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hybridload.errors import ContractError

if TYPE_CHECKING:
    from hybridload.contract import Method, Service

Methods = Mapping[str, Callable[..., Any]]
"""Method name -> what is called in its place."""


def handle_class(service: Service) -> type:
    """The class of a service's handles: a subclass of the interface with one slot per method."""

    def describe(self: Any) -> str:
        return f"<{service.interface.__name__} {self.__hybridload__()}>"

    slots = [*(method.name for method in service.methods), "__hybridload__"]
    # An interface without __slots__ brings __weakref__ along.
    if not any("__weakref__" in base.__dict__ for base in service.interface.__mro__):
        slots.append("__weakref__")
    body: dict[str, Any] = {
        "__slots__": tuple(slots),
        "__doc__": service.interface.__doc__,
        "__module__": service.interface.__module__,
        "__repr__": describe,
        "__hybridload_service__": service,
    }
    name = f"{service.interface.__name__}Handle"
    return types.new_class(name, (service.interface,), {}, lambda namespace: namespace.update(body))


def service_of(handle: Any) -> Service:
    """The completed contract that a handle follows.

    :raises ContractError: the object is not a handle; a hand-written plugin's object is none.
    """
    service: Service | None = getattr(type(handle), "__hybridload_service__", None)
    if service is None:
        raise ContractError(f"{handle!r} comes from a hand-written plugin, which has no contract to read.")
    return service


def new_handle(kind: type, methods: Methods, describe: Callable[[], str]) -> Any:
    """A handle of a class that `handle_class` made.

    :param describe: what its `repr` says behind the interface's name.
    """
    handle: Any = object.__new__(kind)
    object.__setattr__(handle, "__hybridload__", describe)
    rebind(handle, methods)
    return handle


def named_after(method: Method, service: Service, stand_in: Any) -> Callable[..., Any]:
    """A callable with the name, the documentation and the signature of the method that it stands for."""
    functools.update_wrapper(stand_in, getattr(service.interface, method.name))
    del stand_in.__wrapped__
    stand_in.__signature__ = method.signature
    return stand_in  # type: ignore[no-any-return]


def rebind(handle: Any, methods: Methods) -> None:
    """Put `methods` into the slots of a handle. Each slot changes at once; a call in flight stays where it started."""
    for name, method in methods.items():
        object.__setattr__(handle, name, method)


def stand_in(kind: type, current: Callable[[], Any], describe: Callable[[], str]) -> Any:
    """An object that asks another one, for as long as it lives; `isinstance` holds for the other's class.

    Comparison and hash are its own, because it stays the same when the other one is replaced.

    :param kind: the class of the other one: it says which special methods there are, a call or ``with`` among them.
    :param current: gives the other one, each time that something is asked.
    :param describe: what its `repr` says behind the name of that class.
    """
    special = [name for name in dir(kind) if name.startswith("__") and callable(getattr(kind, name))]
    body: dict[str, Any] = {
        "__slots__": ("__weakref__",),
        "__class__": property(lambda self: kind),
        "__repr__": lambda self: f"<{kind.__name__} {describe()}>",
        "__getattr__": lambda self, name: getattr(current(), name),
        "__setattr__": lambda self, name, value: setattr(current(), name, value),
        "__delattr__": lambda self, name: delattr(current(), name),
        **{name: _asking(name, current) for name in special if name not in _ITS_OWN},
    }
    return type(f"{kind.__name__}StandIn", (), body)()


def _asking(name: str, current: Callable[[], Any]) -> Callable[..., Any]:
    def ask(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(current(), name)(*args, **kwargs)

    return ask


_ITS_OWN = frozenset((*dir(object), "__getattr__", "__del__"))
