"""A call's arguments, put in the order of the parameters as Python would."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hybridload.contract.functions import NO_DEFAULT

if TYPE_CHECKING:
    from hybridload.contract.service import Method


def binder(method: Method) -> Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any, ...] | list[Any]]:
    """A function that puts a call's arguments in the order of the parameters, as a call in Python would.

    `inspect.Signature.bind` does the same in ten times the time; it is used to word the errors.
    """
    parameters = method.parameters
    positional = sum(not parameter.keyword_only for parameter in parameters)
    total = len(parameters)
    defaults = [parameter.default for parameter in parameters]
    index_of = {parameter.name: index for index, parameter in enumerate(parameters) if not parameter.positional_only}

    def refuse(args: tuple[Any, ...], kwargs: dict[str, Any]) -> TypeError:
        try:
            method.signature.bind(*args, **kwargs)
        except TypeError as error:
            return TypeError(f"{method.name}() {error}")
        return TypeError(f"{method.name}() got arguments that it does not take")  # pragma: no cover

    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | list[Any]:
        count = len(args)
        if count == total and not kwargs and total == positional:
            return args
        if count > positional:
            raise refuse(args, kwargs)
        values = [*args, *defaults[count:]]
        for name, value in kwargs.items():
            index = index_of.get(name, -1)
            if index < count:
                raise refuse(args, kwargs)
            values[index] = value
        for value in values[count:]:
            if value is NO_DEFAULT:
                raise refuse(args, kwargs)
        return values

    return bind
