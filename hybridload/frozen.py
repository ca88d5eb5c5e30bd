"""Frozen values that take little to define.

What `frozen` makes of a class is what ``dataclasses.dataclass(frozen=True, slots=True)`` makes of it, but nothing is
compiled for it, and `dataclasses` is not imported: with what it needs itself that is a tenth of the start of a plugin's
process, and the source of six methods for each of nearly fifty classes was more. All classes share the methods below.

To others the values are dataclasses: `dataclasses.fields`, `replace`, `asdict`, `inspect.signature` and `match` work on
them, and a class can derive from one as a ``dataclass(frozen=True)``. What these ask for comes from the class's twin,
which dataclasses make when somebody asks; so do the words in which Python refuses wrong arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from reprlib import recursive_repr
from typing import Any, NoReturn, TypeVar, dataclass_transform, overload

_T = TypeVar("_T")
_MISSING: Any = object()


class _Field:
    __slots__ = ("compare", "default", "factory", "keyword_only", "name", "repr")

    def __init__(
        self, default: Any, factory: Callable[[], Any] | None, shown: bool, compare: bool, keyword_only: bool
    ) -> None:
        self.name = ""
        self.default = default
        self.factory = factory
        self.repr = shown
        self.compare = compare
        self.keyword_only = keyword_only


@overload
def field(*, default: _T, repr: bool = ..., compare: bool = ..., kw_only: bool = ...) -> _T: ...
@overload
def field(*, default_factory: Callable[[], _T], repr: bool = ..., compare: bool = ..., kw_only: bool = ...) -> _T: ...
@overload
def field(*, repr: bool = ..., compare: bool = ..., kw_only: bool = ...) -> Any: ...
def field(
    *,
    default: Any = _MISSING,
    default_factory: Callable[[], Any] | None = None,
    repr: bool = True,
    compare: bool = True,
    kw_only: bool = False,
) -> Any:
    """Say more of a field than its default, as `dataclasses.field` does.

    :param default_factory: makes the default, for each value anew.
    :param repr: whether it is shown.
    :param compare: whether values that differ in it alone differ.
    :param kw_only: whether it is given by name alone.
    """
    return _Field(default, default_factory, repr, compare, kw_only)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[_T]) -> type[_T]:
    """Make a class one of frozen values, as ``dataclass(frozen=True, slots=True)`` does.

    :param cls: derives from no class with fields.
    """
    own = vars(cls)
    fields = tuple(_field(name, own) for name, hint in cls.__annotations__.items() if not _is_of_the_class(hint))
    slots = tuple(each.name for each in fields)
    namespace = {name: value for name, value in own.items() if name not in ("__dict__", "__weakref__", *slots)}
    namespace |= {name: method for name, method in _METHODS.items() if own.get(name) is None}
    namespace["__qualname__"] = cls.__qualname__
    namespace["__slots__"] = slots
    namespace["__frozen__"] = fields
    namespace.setdefault("__match_args__", tuple(each.name for each in fields if not each.keyword_only))
    kind: Any = type(cls)
    made = kind(cls.__name__, cls.__bases__, namespace)
    if "__init__" not in own:
        made.__init__ = _initializer(made, fields)
    return made  # type: ignore[no-any-return]


def _field(name: str, own: Mapping[str, Any]) -> _Field:
    given = own.get(name, _MISSING)
    made = given if type(given) is _Field else _Field(given, None, True, True, False)
    made.name = name
    return made


def _is_of_the_class(hint: Any) -> bool:
    return str(hint).startswith(("ClassVar", "typing.ClassVar"))


def _initializer(cls: type, fields: tuple[_Field, ...]) -> Callable[..., None]:
    slots = [
        (each.name, vars(cls)[each.name].__set__, each.default, each.factory)
        for each in sorted(fields, key=lambda each: each.keyword_only)
    ]
    setters = [put for _, put, _, _ in slots]
    positional = sum(not each.keyword_only for each in fields)
    finished = hasattr(cls, "__post_init__")

    def __init__(self: Any, /, *args: Any, **kwargs: Any) -> None:
        given = len(args)
        if given > positional:
            _refuse(cls, args, kwargs)
        for put, value in zip(setters, args):  # noqa: B905 - there may be less
            put(self, value)
        named = 0
        for name, put, default, factory in slots[given:]:
            if name in kwargs:
                named += 1
                put(self, kwargs[name])
            elif factory is not None:
                put(self, factory())
            elif default is not _MISSING:
                put(self, default)
            else:
                _refuse(cls, args, kwargs)
        if named != len(kwargs):
            _refuse(cls, args, kwargs)
        if finished:
            self.__post_init__()

    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    return __init__


def _refuse(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
    _twin(cls)(*args, **kwargs)
    raise AssertionError(f"{cls.__qualname__} refuses arguments that it can take")  # pragma: no cover


def _twin(cls: Any) -> Any:
    """The class as dataclasses make it, of the fields alone."""
    import dataclasses

    described: list[tuple[str, Any, Any]] = []
    for each in cls.__frozen__:
        default = {} if each.default is _MISSING else {"default": each.default}
        factory = {} if each.factory is None else {"default_factory": each.factory}
        made = dataclasses.field(**default, **factory, repr=each.repr, compare=each.compare, kw_only=each.keyword_only)
        described.append((each.name, cls.__annotations__[each.name], made))
    namespace = {"__qualname__": cls.__qualname__}
    return dataclasses.make_dataclass(cls.__name__, described, namespace=namespace, frozen=True, slots=True)


def _made(cls: type) -> Any:
    """The class that `frozen` made: this one, or the one that it derives from."""
    return next(base for base in cls.__mro__ if "__frozen__" in vars(base))


class _OfTwin:
    """What dataclasses look for in a dataclass; put into the class when they first do."""

    __slots__ = ("name",)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, value: object, owner: type) -> Any:
        cls = _made(owner)
        found = getattr(_twin(cls), self.name)
        setattr(cls, self.name, found)
        return found


class _Signature:
    """What `inspect` looks for; a class that derives from it and has an `__init__` of its own has another."""

    __slots__ = ()

    def __get__(self, value: object, owner: Any) -> Any:
        if value is not None or owner.__init__ is not _made(owner).__init__:
            raise AttributeError("__signature__")
        import inspect

        return inspect.signature(_twin(_made(owner)))


def names(value: Any) -> tuple[str, ...]:
    """The names of the fields, in their order.

    :param value: a value, or its class.
    """
    return tuple(each.name for each in value.__frozen__)


def replace(value: _T, /, **changes: Any) -> _T:
    """The same value but for some fields, as `dataclasses.replace` makes it.

    :param changes: the other fields, by name.
    """
    fields: tuple[_Field, ...] = value.__frozen__  # type: ignore[attr-defined]
    return type(value)(**{each.name: getattr(value, each.name) for each in fields} | changes)


@recursive_repr()
def _repr(self: Any) -> str:
    shown = (f"{each.name}={getattr(self, each.name)!r}" for each in self.__frozen__ if each.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _compared(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, each.name) for each in self.__frozen__ if each.compare])


def _eq(self: Any, other: object) -> Any:
    return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _set(self: Any, name: str, value: object) -> None:
    _refuse_change(self, "assign to", name)
    object.__setattr__(self, name, value)


def _delete(self: Any, name: str) -> None:
    _refuse_change(self, "delete", name)
    object.__delattr__(self, name)


def _refuse_change(self: Any, what: str, name: str) -> None:
    """What derives from it without more, and so is no frozen class itself, may have other attributes."""
    if "__frozen__" in vars(type(self)) or any(name == each.name for each in self.__frozen__):
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot {what} field {name!r}")


def _set_state(self: Any, state: Any) -> None:
    """:param state: attributes by name; or those, where there are any, and the slots by name."""
    for part in state if isinstance(state, tuple) else (state,):
        for name, value in (part or {}).items():
            object.__setattr__(self, name, value)


_METHODS: dict[str, Any] = {
    "__repr__": _repr,
    "__eq__": _eq,
    "__hash__": _hash,
    "__setattr__": _set,
    "__delattr__": _delete,
    "__setstate__": _set_state,
    "__replace__": replace,
    "__dataclass_fields__": _OfTwin(),
    "__dataclass_params__": _OfTwin(),
    "__signature__": _Signature(),
}
