"""A contract: an interface and how it travels, before any protocol has its say.

`Contract` is what users write, at import time, and it checks nothing then. `Contract.complete()` resolves the hints and
turns the interface into a `Service` of `Method`s, or says in one `ContractError` everything that cannot travel. Only
`Service.wire()` loads protobuf; with hints alone, `complete()` does without it.

Rules:

- Parameters have the numbers 1…n in order, or what `Annotated[T, Field(n)]` pins; the result is number 1.
- An iterator as the result makes a server stream, an iterator among the parameters a client stream, both make both.
- A method is asynchronous when it is an `async def`, or when its streams are async iterators. Its streams and itself
  are either all asynchronous or none.
- A default is the interface's, and must be a value that could be sent.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from hybridload.contract import hints
from hybridload.contract import interface as reading
from hybridload.contract.functions import (
    KEYWORD_ONLY,
    NO_DEFAULT,
    POSITIONAL_ONLY,
    VAR_KEYWORD,
    VAR_POSITIONAL,
    Declared,
    called,
    parameters_of,
)
from hybridload.contract.hints import HintReader, Misfit, Shape, has_anything, has_reference
from hybridload.contract.netrpc import NetRPC
from hybridload.errors import ContractError
from hybridload.frozen import field, frozen, replace

if TYPE_CHECKING:
    import inspect

    from google.protobuf.descriptor import ServiceDescriptor

    from hybridload.contract.descriptors import Given
    from hybridload.contract.wire import Wire

T = TypeVar("T")


class Kind(enum.Enum):
    """Which side of a method streams."""

    UNARY = "unary"
    SERVER_STREAM = "server stream"
    CLIENT_STREAM = "client stream"
    BIDI = "bidirectional stream"

    @property
    def streams_arguments(self) -> bool:
        return self in (Kind.CLIENT_STREAM, Kind.BIDI)

    @property
    def streams_result(self) -> bool:
        return self in (Kind.SERVER_STREAM, Kind.BIDI)


class Objects(Protocol):
    """Carries objects that are called back: what a broker does for interface-typed parameters and results."""

    def export(self, implementation: object, contract: Contract[Any]) -> int:
        """Serve an object to the other side and return the id under which it can be reached, 1 or greater."""
        ...

    def adopt(self, service_id: int, contract: Contract[Any]) -> object:
        """Return an object whose methods call what the other side serves under the id."""
        ...


@frozen
class Parameter:
    """One parameter of a method.

    :param hint: as annotated, resolved, without `Annotated`.
    :param shape: what the hint says; of a stream, what it says of one item.
    :param number: the field's number in the derived request message.
    :param default: the interface's, or `NO_DEFAULT`.
    :param stream: whether it is the iterator of a client stream.
    :param annotation: as annotated, resolved, for protocols that look for marks of their own in `Annotated`.
    """

    name: str
    hint: Any
    shape: Shape
    number: int
    default: Any
    keyword_only: bool
    positional_only: bool
    stream: bool = False
    annotation: Any = None


@frozen
class Method:
    """One method of an interface that travels.

    :param wire_name: its name in the service, e.g. ``"Greet"``.
    :param path: e.g. ``"/proto.GreeterService/Greet"``.
    :param returns: the resolved hint of what a call returns, without `Annotated`.
    :param result: the hint of the result, or of one item of a stream; `None` for no result.
    :param result_shape: what that hint says; `None` for no result.
    :param result_number: the field's number in the derived response message.
    :param function: the interface's own function, with whatever marks decorators left on it.
    :param result_annotation: as `Parameter.annotation`.
    """

    name: str
    wire_name: str
    path: str
    kind: Kind
    is_async: bool
    parameters: tuple[Parameter, ...]
    returns: Any
    result: Any
    result_shape: Shape | None
    result_number: int
    function: Callable[..., Any] = field(repr=False)
    result_annotation: Any = None

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def signature(self) -> inspect.Signature:
        """Without `self`, with resolved hints and the interface's defaults."""
        import inspect

        declared = list(inspect.signature(self.function).parameters.values())[1:]
        hinted = [each.replace(annotation=known.hint) for each, known in zip(declared, self.parameters, strict=True)]
        return inspect.Signature(hinted, return_annotation=self.returns)

    @property
    def declaration(self) -> str:
        """As its author would write it, without `self`: e.g. ``get(key: str, default: str = '') -> str``."""
        shown: list[str] = []
        last = None
        for each in self.parameters:
            if last is not None and last.positional_only and not each.positional_only:
                shown.append("/")
            if each.keyword_only and (last is None or not last.keyword_only):
                shown.append("*")
            default = "" if each.default is NO_DEFAULT else f" = {each.default!r}"
            shown.append(f"{each.name}: {hints.describe(each.hint)}{default}")
            last = each
        if last is not None and last.positional_only:
            shown.append("/")
        return f"{self.name}({', '.join(shown)}) -> {hints.describe(self.returns)}"

    @property
    def location(self) -> str:
        """Where the method is defined, as ``file:line``."""
        return reading.location(self.function)

    @property
    def stream_parameter(self) -> Parameter | None:
        """The iterator of a client stream, if there is one."""
        return next((parameter for parameter in self.parameters if parameter.stream), None)


class Contract(Generic[T]):
    """An interface and how it travels.

    :param interface: a Protocol or an ABC.
    :param service: the service's full name, e.g. ``"proto.GreeterService"``; or a compiled `ServiceDescriptor`. The
        default is ``proto.<Interface>Service``. With a name alone, the messages are derived from the type hints.
    :param descriptor_set: a serialized `FileDescriptorSet` in which the service is looked up by its name.
    :param proto: path of a .proto file in which the service is looked up by its name. A relative path is looked for in
        the working directory, then beside the interface's module. Needs grpcio-tools.
    :param errors: exception classes that cross as themselves, besides builtins and those bound in the interface's
        module.
    :param netrpc: how the methods travel over net/rpc, where the plugin's author chose otherwise than its defaults.
    """

    __slots__ = ("_lock", "_names", "_service", "descriptor_set", "errors", "interface", "netrpc", "proto", "service")

    def __init__(
        self,
        interface: Callable[..., T],
        service: str | ServiceDescriptor | None = None,
        *,
        descriptor_set: bytes | None = None,
        proto: str | os.PathLike[str] | None = None,
        errors: Sequence[type[Exception]] = (),
        netrpc: NetRPC | None = None,
    ) -> None:
        self.interface: type[T] = interface  # type: ignore[assignment]
        self.service = service
        self.descriptor_set = descriptor_set
        self.proto = proto
        self.errors = tuple(errors)
        self.netrpc = netrpc
        self._lock = threading.Lock()
        self._service: Service | None = None
        local = isinstance(interface, type) and "<locals>" in interface.__qualname__
        self._names: Mapping[str, Any] = reading.names_around(self.interface) if local else {}

    def __repr__(self) -> str:
        return f"Contract({getattr(self.interface, '__qualname__', self.interface)})"

    def complete(self) -> Service:
        """Resolve the interface's hints and check that every method can travel. The result is kept.

        :raises ContractError: naming every method that cannot, with file and line.
        """
        if self._service is None:
            completed = _Completion().run(self)
            return self._service or completed
        return self._service

    @property
    def given(self) -> bool:
        """Whether the service is given by descriptors, and not derived from hints."""
        return (
            self.descriptor_set is not None or self.proto is not None or not isinstance(self.service, (str, type(None)))
        )


class Service:
    """A contract whose interface was read and can travel.

    :param full_name: e.g. ``"proto.GreeterService"``.
    """

    __slots__ = ("_lock", "_wire", "contract", "full_name", "methods")

    def __init__(self, contract: Contract[Any], full_name: str, methods: tuple[Method, ...]) -> None:
        self.contract = contract
        self.full_name = full_name
        self.methods = methods
        self._wire: Wire | None = None
        self._lock = threading.Lock()

    @property
    def interface(self) -> type:
        return self.contract.interface

    @property
    def calls_back(self) -> bool:
        """Whether a value of some method can hold an object that is called back."""
        return any(
            has_reference(method.result_shape) or any(has_reference(parameter.shape) for parameter in method.parameters)
            for method in self.methods
        )

    def netrpc_alone(self) -> str | None:
        """Why the contract can travel over nothing but net/rpc; `None` when it can."""
        held = [
            f"\n  {method.name}() at {method.location}: object travels over net/rpc alone; say what it is"
            for method in self.methods
            if has_anything(method.result_shape) or any(has_anything(each.shape) for each in method.parameters)
        ]
        return f"The interface {self.interface.__qualname__} cannot travel over gRPC:{''.join(held)}" if held else None

    def wire(self) -> Wire:
        """The contract as protobuf descriptors and the encoders made for them. Built once; loads protobuf.

        :raises ContractError: when the hints do not fit into descriptors (names that protobuf cannot have, types that
            only net/rpc carries).
        """
        if self._wire is None:
            refused = self.netrpc_alone()
            if refused is not None:
                raise ContractError(refused)
            from hybridload.contract.derive import derived_wire

            built = derived_wire(self)
            with self._lock:
                if self._wire is None:
                    self._wire = built
        return self._wire

    def check_implementation(self, implementation: object) -> None:
        """Check that an object has every method, as the interface declares it.

        :param implementation: an instance, a module, or anything else with attributes.
        :raises ContractError: naming everything that is missing or differs.
        """
        from hybridload.contract.implementation import check

        check(self, implementation)


def as_contract(value: Any) -> Contract[Any]:
    """A contract as it is, a bare Protocol or ABC wrapped in one with all defaults.

    :raises ContractError: for anything else.
    """
    if isinstance(value, Contract):
        return value
    if isinstance(value, type):
        return Contract(value)
    raise ContractError(f"{value!r} is no interface: give a Protocol, an ABC or a Contract.")


class _Completion:
    """One round of completing a contract and those of the interfaces it mentions, which may mention it in turn."""

    def __init__(self) -> None:
        self.contracts: dict[type, Contract[Any]] = {}
        self.services: dict[Contract[Any], Service] = {}

    def run(self, contract: Contract[Any]) -> Service:
        self.contracts[contract.interface] = contract
        waiting: list[tuple[Contract[Any], Contract[Any] | None]] = [(contract, None)]
        while waiting:
            current, mentioned_by = waiting.pop()
            if current._service is not None or current in self.services:
                continue
            try:
                draft = _Draft(current, self.contracts)
                self.services[current] = draft.service()
            except ContractError as error:
                if mentioned_by is None:
                    raise
                raise ContractError(f"{error}\n  ({mentioned_by!r} mentions that interface)") from error
            waiting += [(other, current) for other in draft.mentioned]
        for completed, service in self.services.items():
            with completed._lock:
                if completed._service is None:
                    completed._service = service
                completed._names = {}  # they keep a frame's values alive
        return self.services[contract]


class _Draft:
    """Reads one interface; collects what is wrong with it instead of stopping at the first."""

    def __init__(self, contract: Contract[Any], contracts: dict[type, Contract[Any]]) -> None:
        interface = contract.interface
        if not isinstance(interface, type):
            raise ContractError(f"{interface!r} is no interface: Contract takes a Protocol or an ABC.")
        for error in contract.errors:
            if not (isinstance(error, type) and issubclass(error, Exception)):
                raise ContractError(f"{contract!r}: errors lists {error!r}; give subclasses of Exception.")
        self.contract = contract
        self.contracts = contracts
        self.mentioned: list[Contract[Any]] = []
        self.problems: list[str] = []
        self.names = {**contract._names, **reading.names_around(interface), interface.__name__: interface}
        anything = contract.netrpc is not None and not contract.given
        self.reader = HintReader(self.names, self._contract_of, messages=contract.given, anything=anything)
        self.given: Given | None = None
        if contract.given:
            from hybridload.contract.descriptors import given_service

            self.given = given_service(contract)
            self.full_name = self.given.descriptor.full_name
        else:
            self.full_name = _full_name(contract)

    def service(self) -> Service:
        methods = [method for member in reading.members(self.contract.interface) if (method := self._method(member))]
        self._check_wire_names(methods)
        service = Service(self.contract, self.full_name, tuple(methods))
        if self.given is not None:
            from hybridload.contract.wire import given_wire

            service._wire, mismatches = given_wire(service, self.given)
            self.problems += mismatches
        if not methods and not self.problems:
            self.problems.append(
                f"it has no methods at {reading.class_location(self.contract.interface)}: "
                "make it a Protocol with methods, or an ABC with abstract ones"
            )
        if self.problems:
            listed = "".join(f"\n  {problem}" for problem in self.problems)
            raise ContractError(f"The interface {self.contract.interface.__qualname__} cannot travel:{listed}")
        return service

    def _contract_of(self, interface: type) -> Contract[Any]:
        contract = self.contracts.get(interface)
        if contract is None:
            service: Any = None
            if self.given is not None:
                service = self.given.service_for(interface.__name__)
            if service is None:
                package = self.full_name.rpartition(".")[0]
                service = f"{package}.{interface.__name__}Service".lstrip(".")
            contract = Contract(interface, service, errors=self.contract.errors, netrpc=_inherited(self.contract))
            contract._names = {**self.names, **contract._names}
            self.contracts[interface] = contract
        self.mentioned.append(contract)
        return contract

    def _method(self, member: reading.Member) -> Method | None:
        if member.function is None:
            self.problems.append(f"{member.name} at {member.location}: {member.problem}")
            return None
        complaints: list[str] = []
        method = None
        try:
            method = self._read(member, member.function, complaints)
        except Misfit as error:
            complaints.append(str(error))
        if complaints:
            where = reading.location(member.function)
            self.problems += [f"{member.name}() at {where}: {complaint}" for complaint in complaints]
            return None
        return method

    def _read(self, member: reading.Member, function: Any, complaints: list[str]) -> Method:
        nested = {name: value for name, value in vars(member.owner).items() if isinstance(value, type)}
        resolved = self.reader.hints_of(function, nested)
        result, is_async, streams_result = self._result(function, resolved, complaints)
        result_shape: Shape | None = None
        result_number = 1
        try:
            bare, extras = hints.strip(result)
            result_number = hints.pinned_number(extras) or 1
            result_shape = None if bare in (None, type(None)) else self.reader.read(result)
            if result_shape is None and streams_result:
                raise Misfit("a stream of None carries nothing; yield a value")
        except Misfit as error:
            complaints.append(f"the result: {error}")
        parameters = self._parameters(function, resolved, is_async, complaints)
        hints.check_numbers("the parameters", [(parameter.name, parameter.number) for parameter in parameters])
        wire_name = camel_case(member.name)
        if self.given is not None:
            wire_name = self.given.method_name(member.name)
        returns = hints.strip(resolved.get("return"))[0]
        return Method(
            name=member.name,
            wire_name=wire_name,
            path=f"/{self.full_name}/{wire_name}",
            kind=_kind(any(parameter.stream for parameter in parameters), streams_result),
            is_async=is_async,
            parameters=tuple(parameters),
            returns=None if returns is type(None) else returns,
            result=None if result_shape is None else bare,
            result_shape=result_shape,
            result_number=result_number,
            function=function,
            result_annotation=result,
        )

    def _result(self, function: Any, resolved: dict[str, Any], complaints: list[str]) -> tuple[Any, bool, bool]:
        """The result's hint or its item's, whether the method is asynchronous, and whether the result is a stream."""
        coroutine = called(function).coroutine
        if "return" not in resolved:
            complaints.append("the result has no type hint; write `-> None` when there is none")
            return None, coroutine, False
        hint, extras = hints.strip(resolved["return"])
        awaited = hints.awaited(hint)
        if awaited is not None:
            hint, coroutine = awaited, True
        stream = hints.stream_item(hint)
        if stream is None:
            return (resolved["return"] if extras and awaited is None else hint), coroutine, False
        item, asynchronous = stream
        if coroutine and asynchronous:
            complaints.append(
                f"an `async def` that returns {hints.describe(hint)} must be awaited first; "
                f"declare it as `def {function.__name__}(...) -> {hints.describe(hint)}`"
            )
        elif coroutine:
            complaints.append(f"an asynchronous method streams with AsyncIterator, not with {hints.describe(hint)}")
        return item, coroutine or asynchronous, True

    def _parameters(
        self, function: Any, resolved: dict[str, Any], is_async: bool, complaints: list[str]
    ) -> list[Parameter]:
        found: list[Parameter] = []
        for position, declared in enumerate(parameters_of(function)[1:], 1):
            try:
                found.append(self._parameter(position, declared, resolved, is_async))
            except Misfit as error:
                complaints.append(f"parameter {declared.name!r}: {error}")
        streams = [parameter.name for parameter in found if parameter.stream]
        if len(streams) > 1:
            complaints.append(f"only one parameter can be a stream, not {' and '.join(streams)}")
        return found

    def _parameter(self, position: int, declared: Declared, resolved: dict[str, Any], is_async: bool) -> Parameter:
        if declared.kind in (VAR_POSITIONAL, VAR_KEYWORD):
            stars, instead = ("*", "list") if declared.kind == VAR_POSITIONAL else ("**", "dict")
            raise Misfit(f"{stars}{declared.name} cannot travel; use one parameter that is a {instead}")
        if declared.name not in resolved:
            raise Misfit(f"it has no type hint; write `{declared.name}: str`, say")
        hints.check_name(declared.name)
        hint, extras = hints.strip(resolved[declared.name])
        stream = hints.stream_item(hint)
        if stream is not None and stream[1] is not is_async:
            raise Misfit(
                f"{hints.describe(hint)} in {'an asynchronous' if is_async else 'a synchronous'} method; "
                f"use {'AsyncIterator' if is_async else 'Iterator'}"
            )
        shape = self.reader.read(resolved[declared.name] if stream is None else stream[0])
        if declared.default is not NO_DEFAULT:
            if stream is not None:
                raise Misfit("a stream has no default")
            wrong = hints.misfit(shape, declared.default, "the default")
            if wrong:
                raise Misfit(wrong)
        return Parameter(
            name=declared.name,
            hint=hint,
            shape=shape,
            number=hints.pinned_number(extras) or position,
            default=declared.default,
            keyword_only=declared.kind == KEYWORD_ONLY,
            positional_only=declared.kind == POSITIONAL_ONLY,
            stream=stream is not None,
            annotation=resolved[declared.name],
        )

    def _check_wire_names(self, methods: list[Method]) -> None:
        by_name: dict[str, Method] = {}
        for method in methods:
            other = by_name.setdefault(method.wire_name, method)
            if other is not method:
                self.problems.append(
                    f"{method.name}() at {method.location}: it is {method.wire_name} in the service, "
                    f"and so is {other.name}(); rename one"
                )


def _inherited(contract: Contract[Any]) -> NetRPC | None:
    """What an interface that is mentioned takes over from the one that mentions it: all that is not about methods."""
    return None if contract.netrpc is None else replace(contract.netrpc, methods={})


def camel_case(name: str) -> str:
    """The name of a Python method in a service: ``get_item`` is ``GetItem``.

    :raises Misfit: for a name that is not ASCII.
    """
    hints.check_name(name)
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _full_name(contract: Contract[Any]) -> str:
    name = contract.service if contract.service is not None else f"proto.{contract.interface.__name__}Service"
    if not isinstance(name, str) or not (name.isascii() and all(map(str.isidentifier, name.split(".")))):
        raise ContractError(f'{contract!r}: service {name!r} is no full name; give e.g. "proto.GreeterService".')
    return name


def _kind(streams_arguments: bool, streams_result: bool) -> Kind:
    if streams_arguments:
        return Kind.BIDI if streams_result else Kind.CLIENT_STREAM
    return Kind.SERVER_STREAM if streams_result else Kind.UNARY
