"""How each method of a contract travels over net/rpc: its name, its one argument, its reply.

The rules are those of `contract.netrpc`; Go types follow from the shapes that the contract read its hints into, with
whatever descriptions `Annotated` holds. In addition:

- `None`, as the only argument or as the reply, is a nil interface: gob has no nil pointer outside of a struct.
- Inside a ``map[string]interface{}`` a value needs its type's registered name. Types made of Go's basic ones have one
  by themselves; a dataclass has the one under which it was registered, else ``main.<Class>``, as in a Go program of
  one package.
- An object that is called back travels as the id under which the broker reaches it, a `uint32`.
"""

from __future__ import annotations

import datetime
import enum
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hybridload.contract.functions import NO_DEFAULT
from hybridload.contract.hints import (
    Anything,
    Enumeration,
    Maybe,
    MessageClass,
    Plain,
    Record,
    Reference,
    Repeated,
    Shape,
    Table,
    strip,
)
from hybridload.contract.netrpc import NetRPC, NetRPCMethod
from hybridload.errors import ContractError
from hybridload.goplugin.netrpc.gob import (
    ANYTHING,
    Adapted,
    Array,
    Bool,
    Bytes,
    Complex,
    Deferred,
    Field,
    Float,
    GobError,
    GobValue,
    GoType,
    Int,
    Interface,
    Map,
    Pointer,
    Registered,
    Registry,
    Slice,
    String,
    Struct,
    Time,
    Uint,
)
from hybridload.goplugin.netrpc.gob.hints import enum_type, go_name, scalar_type
from hybridload.goplugin.netrpc.gob.names import spelling
from hybridload.goplugin.netrpc.gob.readers import zero_maker
from hybridload.goplugin.netrpc.gob.types import describe
from hybridload.goplugin.netrpc.server import Refused

if TYPE_CHECKING:
    from hybridload.contract import Contract, Method, Objects, Parameter, Service

Convert = Callable[[Any], Any]
Arguments = tuple[Sequence[Any], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Travelling:
    """One method on one connection.

    :param name: in Go, without the service.
    :param argument_type: what the one argument is sent as, unless it is `None`.
    :param none_type: what `None` is sent as: a nil interface where it may be given at all.
    :param pack: the values of the parameters, in their order -> the argument.
    :param receive_type: what an argument is received as; `None` passes it over.
    :param unpack: the argument -> what to call the method with.
    :param reply_type: what the reply is sent as, unless it is `None`.
    :param reply_nilable: whether `None` may be the result of a method that has one.
    :param reply_expected: what a reply is received as; `None` passes it over.
    :param nothing: the reply of a method without a result.
    """

    method: Method
    name: str
    argument_type: GoType
    none_type: GoType
    pack: Callable[[Sequence[Any]], Any]
    receive_type: GoType | None
    unpack: Callable[[Any], Arguments]
    reply_type: GoType
    reply_nilable: bool
    reply_expected: GoType | None
    nothing: Any


class Conventions:
    """A contract's methods on one connection.

    :param objects: carries what is called back.
    :raises ContractError: naming every method that cannot travel over net/rpc.
    """

    def __init__(self, service: Service, objects: Objects | None = None) -> None:
        contract = service.contract
        if contract.netrpc is not None and not isinstance(contract.netrpc, NetRPC):
            raise ContractError(f"{contract!r}: netrpc is {contract.netrpc!r}: give a NetRPC.")
        self._declared = contract.netrpc or NetRPC()
        self._objects = objects
        self._structs: dict[type, Struct] = {}
        self.registry = Registry()
        self.methods: tuple[Travelling, ...] = ()
        problems = _unknown_methods(self._declared, service)
        travelling: list[Travelling] = []
        try:
            self._names = self._register()
        except GobError as error:
            problems.append(str(error))
            self._names = {}
        for method in service.methods:
            try:
                travelling.append(self._travelling(method))
            except (Untravelling, GobError) as error:
                problems.append(f"{method.name}() at {method.location}: {error}")
        if problems:
            listed = "".join(f"\n  {problem}" for problem in problems)
            raise ContractError(f"The interface {service.interface.__qualname__} cannot travel over net/rpc:{listed}")
        self.methods = tuple(travelling)

    def _register(self) -> dict[type, str]:
        names = {}
        for name, kind in self._declared.registered.items():
            self.registry.register(name, kind)
            if isinstance(kind, type):
                names[kind] = name
        return names

    # Methods

    def _travelling(self, method: Method) -> Travelling:
        if method.kind.streams_arguments or method.kind.streams_result:
            raise Untravelling("it streams, and over net/rpc a call has one answer; serve it over gRPC, or use a list")
        declared = self._declared.methods.get(method.name, NetRPCMethod())
        argument_type, pack, receive_type, unpack = self._argument(method, declared)
        reply_type, reply_expected, nothing = self._reply(method, declared)
        return Travelling(
            method,
            declared.name or method.wire_name,
            argument_type,
            ANYTHING if _may_be_nil(argument_type) else argument_type,
            pack,
            receive_type,
            unpack,
            reply_type,
            reply_expected is not None and _may_be_nil(reply_expected),
            reply_expected,
            nothing,
        )

    def _argument(self, method: Method, declared: NetRPCMethod) -> Any:
        parameters = method.parameters
        how = declared.arguments or self._declared.arguments
        if how == "auto":
            how = "value" if len(parameters) <= 1 else "map"
        if how == "map":
            return self._in_map(parameters)
        if how == "struct":
            return self._in_struct(method, parameters)
        if how != "value":
            raise Untravelling(f"arguments is {how!r}: give 'auto', 'value', 'map' or 'struct'")
        if len(parameters) > 1:
            raise Untravelling(f"it has {len(parameters)} parameters: arguments must be 'map' or 'struct'")
        if not parameters:
            go_type = Interface() if declared.argument is None else self.registry.go_type(declared.argument)
            zero = _zero(go_type)
            return go_type, lambda values: zero(), None, lambda argument: ((), {})
        (only,) = parameters
        go_type = self._parameter_type(only) if declared.argument is None else self.registry.go_type(declared.argument)

        def unpack(argument: Any) -> Arguments:
            return _called_with(parameters, (argument,))

        return go_type, _only, go_type, unpack

    def _in_map(self, parameters: Sequence[Parameter]) -> Any:
        go_type = Map(String(), Interface())
        types = [self._parameter_type(parameter) for parameter in parameters]
        names = [parameter.name for parameter in parameters]
        packs = [self._into_interface(each) for each in types]
        takes = [_from_interface(each) for each in types]

        def pack(values: Sequence[Any]) -> dict[str, Any]:
            return {name: put(value) for name, put, value in zip(names, packs, values, strict=True)}

        def unpack(argument: dict[str, Any]) -> Arguments:
            found = (_taken(parameter, take, argument) for parameter, take in zip(parameters, takes, strict=True))
            return _called_with(parameters, found)

        return go_type, pack, go_type, unpack

    def _in_struct(self, method: Method, parameters: Sequence[Parameter]) -> Any:
        fields = [
            Field(go_name(each.name, each.annotation), self._parameter_type(each), each.name) for each in parameters
        ]
        names = [field.name for field in fields]

        def pack(values: Sequence[Any]) -> dict[str, Any]:
            return dict(zip(names, values, strict=True))

        def unpack(argument: dict[str, Any]) -> Arguments:
            return _called_with(parameters, (argument[each.name] for each in parameters))

        title = f"{method.wire_name}Args"
        return Struct(title, fields), pack, Struct(title, fields, dict), unpack

    def _reply(self, method: Method, declared: NetRPCMethod) -> Any:
        given = None if declared.reply is None else self.registry.go_type(declared.reply)
        if method.result_shape is None:
            go_type = given or Interface()
            return go_type, None, _zero(go_type)()
        go_type = given or self._type(method.result_shape, method.result_annotation)
        return _pointed(go_type), go_type, None

    # Types

    def _parameter_type(self, parameter: Parameter) -> GoType:
        return self._type(parameter.shape, parameter.annotation)

    def _type(self, shape: Shape, annotation: Any) -> GoType:
        bare, extras = strip(annotation)
        for extra in extras:
            if isinstance(extra, GoType):
                return extra
        inner = [each for each in typing.get_args(bare) if each is not type(None)]
        match shape:
            case Plain(python=python):
                found = scalar_type(python)
                assert found is not None
                return found
            case Enumeration(python=python):
                return _members_alone(python)
            case Repeated(item=item, accepts=accepts, builds=builds):
                # Gob itself would take a tuple for a list.
                slice_type = Slice(self._type(item, _at(inner, 0)))
                return Adapted(slice_type, _same if builds is list else builds, partial(_listed, accepts))
            case Table(key=key, value=value):
                return Map(self._type(key, _at(inner, 0)), self._type(value, _at(inner, 1)))
            case Maybe(item=item):
                target = self._type(item, _at(inner, 0))
                return target if isinstance(target, Interface) else Pointer(target)
            case Reference(contract=contract):
                return self._reference(contract)
            case Record():
                return self._struct(shape)
            case Anything():
                return Interface()
            case MessageClass(python=python):
                raise Untravelling(f"{python.__qualname__} is a protobuf message, and net/rpc carries Go values")

    def _struct(self, record: Record) -> Struct:
        if record.python not in self._structs:
            self._structs[record.python] = Struct(
                record.python.__name__,
                lambda: [
                    Field(go_name(each.name, each.annotation), self._type(each.shape, each.annotation), each.name)
                    for each in record.fields
                ],
                record.python,
            )
        return self._structs[record.python]

    def _reference(self, contract: Contract[Any]) -> GoType:
        objects = self._objects
        if objects is None:
            raise Untravelling(f"{contract.interface.__qualname__} is called back, and there is no broker here")
        adopt, export = objects.adopt, objects.export
        return Adapted(Uint(32), lambda number: adopt(number, contract), lambda each: export(each, contract))

    # Values of interfaces

    def _into_interface(self, go_type: GoType) -> Convert:
        """Gives a value of that type the name that it needs inside an interface."""
        bare = _pointed(go_type)
        if isinstance(bare, Interface):
            return _same
        if isinstance(bare, Registered):
            name, bare = bare.name, bare.type
        else:
            name = self._name(bare)
        if not _may_be_nil(go_type):
            return lambda value: GobValue(name, value, bare)
        return lambda value: None if value is None else GobValue(name, value, bare)

    def _name(self, go_type: GoType) -> str:
        found = spelling(go_type)
        if found is not None:
            return found
        match go_type:
            case Struct():
                factory = go_type.factory
                known = self._names.get(factory) if isinstance(factory, type) else None
                return known or f"main.{go_type.name}"
            case Slice(elem):
                return f"[]{self._name(elem)}"
            case Array(length, elem):
                return f"[{length}]{self._name(elem)}"
            case Map(key, elem):
                return f"map[{self._name(key)}]{self._name(elem)}"
            case Adapted() | Deferred():
                return self._name(go_type.type)
            case Pointer(target):
                return f"*{self._name(target)}"
        raise Untravelling(
            f"a {describe(go_type)} has no name inside an interface; give it one with "
            "Annotated[..., gob.Registered(name, type)]"
        )


class Untravelling(Exception):
    """A method cannot travel over net/rpc; the rest of a sentence about it."""


def untravelling(contract: Contract[Any]) -> str | None:
    """Why a contract cannot travel over net/rpc; `None` when it can."""
    try:
        Conventions(contract.complete(), _NoObjects())
    except ContractError as error:
        return str(error)
    return None


class _NoObjects:
    """Stands for a broker where only the types matter."""

    def export(self, implementation: object, contract: Contract[Any]) -> int:
        raise NotImplementedError

    def adopt(self, service_id: int, contract: Contract[Any]) -> object:
        raise NotImplementedError


def _unknown_methods(declared: NetRPC, service: Service) -> list[str]:
    known = {method.name for method in service.methods}
    return [
        f"NetRPC.methods has {name!r}, which is no method of it ({', '.join(sorted(known))})"
        for name in declared.methods
        if name not in known
    ]


def _at(hints: Sequence[Any], index: int) -> Any:
    return hints[index] if index < len(hints) else None


def _listed(accepts: Any, value: Any) -> Any:
    if not isinstance(value, accepts):
        raise TypeError(f"it is no {accepts.__qualname__}")
    return value if isinstance(value, list) else list(value)


def _only(values: Sequence[Any]) -> Any:
    return values[0]


def _same(value: Any) -> Any:
    return value


def _pointed(go_type: GoType) -> GoType:
    return go_type.target if isinstance(go_type, Pointer) else go_type


def _may_be_nil(go_type: GoType) -> bool:
    return isinstance(go_type, Pointer | Interface | Registered)


def _members_alone(python: type[enum.Enum]) -> GoType:
    """The Go type of an enumeration. Its members' values are no members, here as little as in Python."""
    values = enum_type(python)
    assert isinstance(values, Adapted)

    def dump(member: Any) -> Any:
        if not isinstance(member, python):
            raise TypeError(f"it is no {python.__qualname__}")
        return member.value

    return Adapted(values.type, values.load, dump)


def _zero(go_type: GoType) -> Callable[[], Any]:
    make: Callable[[], Any] = zero_maker(go_type)
    return make


def _called_with(parameters: Sequence[Parameter], values: Any) -> Arguments:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for parameter, value in zip(parameters, values, strict=True):
        if parameter.keyword_only:
            kwargs[parameter.name] = value
        else:
            args.append(value)
    return args, kwargs


def _taken(parameter: Parameter, take: Convert, argument: dict[str, Any]) -> Any:
    if parameter.name in argument:
        try:
            return take(argument[parameter.name])
        except Unlike as error:
            raise Refused(f"argument {parameter.name!r}: {error}") from None
    if parameter.default is not NO_DEFAULT:
        return parameter.default
    raise Refused(f"argument {parameter.name!r} is missing")


class Unlike(Exception):
    """A value out of an interface is not of the type that is asked for."""


def _from_interface(go_type: GoType) -> Convert:
    """Makes of plain Python what the type would have been received as."""
    match go_type:
        case Interface():
            return _same
        case Registered(_, inner):
            return _from_interface(inner)
        case Pointer(target):
            take = _from_interface(target)
            return lambda value: None if value is None else take(value)
        case Adapted(inner, load, _):
            take = _from_interface(inner)
            return lambda value: load(take(value))
        case Slice(Uint(8)):
            return partial(_checked, go_type, (bytes,))
        case Slice(elem) | Array(_, elem):
            take_item = _from_interface(elem)
            return lambda value: [take_item(each) for each in _checked(go_type, (list,), value)]
        case Map(key, elem):
            take_key, take_item = _from_interface(key), _from_interface(elem)
            return lambda value: {
                take_key(own): take_item(each) for own, each in _checked(go_type, (dict,), value).items()
            }
        case Struct():
            return partial(_struct_from, go_type)
        case Deferred():
            return lambda value: _from_interface(go_type.type)(value)
    return partial(_checked, go_type, _PYTHON[type(go_type)])


_PYTHON: dict[Any, tuple[type, ...]] = {
    Bool: (bool,),
    Int: (int,),
    Uint: (int,),
    Float: (float,),
    Complex: (complex,),
    String: (str,),
    Bytes: (bytes,),
    Time: (datetime.datetime,),
}


def _checked(go_type: GoType, kinds: tuple[type, ...], value: Any) -> Any:
    if isinstance(value, GobValue):
        value = value.value
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise Unlike(f"expected {describe(go_type)}, received {type(value).__name__}")
    return value


def _struct_from(go_type: Struct, value: Any) -> Any:
    if isinstance(value, GobValue):
        value = value.value
    factory = go_type.factory or dict
    if isinstance(factory, type) and factory is not dict and isinstance(value, factory):
        return value
    given = _checked(go_type, (dict,), value)
    return factory(
        **{
            field.key: _from_interface(field.type)(given[field.name])
            if field.name in given
            else zero_maker(field.type)()
            for field in go_type.fields
        }
    )
