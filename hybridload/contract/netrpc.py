"""How a contract's methods travel over net/rpc: what an author declares who has a Go program to agree with.

net/rpc has no description of a service. A method has one argument and one reply, of whatever Go types its author chose.
What go-plugin's tutorials do is the default, so a contract that follows them declares nothing:

- a method is `Plugin.<Method>`, the Python name in capitals (``get_item`` is ``Plugin.GetItem``);
- no parameter travels as an empty interface (Go's ``new(interface{})``), one parameter as itself, more of them as a
  ``map[string]interface{}`` by their names;
- types are those that the hints stand for (see `goplugin.netrpc.gob.hints`); other widths and names are said there,
  with ``Annotated[int, gob.Uint(8)]`` and ``Annotated[str, gob.Name("ID")]``;
- a reply is of the result's type, and an empty interface when there is no result.

Descriptions of Go types are `hybridload.goplugin.netrpc.gob`'s; nothing here looks at them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from hybridload.frozen import field, frozen

Arguments: TypeAlias = Literal["auto", "value", "map", "struct"]
"""How parameters become the one argument.

``"value"``: the only parameter as itself. ``"map"``: a ``map[string]interface{}`` by the names of the parameters.
``"struct"``: a struct with a field for each, named like a dataclass's. ``"auto"``: by their number. No parameter is an
empty interface with each of them but ``"map"`` and ``"struct"``, where it is an empty one.
"""


@frozen
class NetRPCMethod:
    """One method, where it differs from the rest of the contract.

    :param name: in Go, without ``Plugin.``; by default the Python name in capitals.
    :param arguments: as in `NetRPC`.
    :param argument: description or hint of the whole argument's Go type, which wins over what the parameter's hint
        stands for; with one parameter or none. Without a parameter, the type's zero value is sent.
    :param reply: description or hint of the reply's Go type, which wins over what the result's hint stands for.
        Without a result, the type's zero value is sent.
    """

    name: str | None = None
    arguments: Arguments | None = None
    argument: Any = None
    reply: Any = None


@frozen
class NetRPC:
    """How all methods of a contract travel over net/rpc.

    :param arguments: how parameters become the one argument; see `Arguments`.
    :param methods: by the method's Python name, what is different there.
    :param registered: names that the Go program registered for types inside interfaces (`gob.Register`), such as
        ``{"main.Item": Item, "map[string]interface {}": dict}``: hint (a dataclass) or description.
    """

    arguments: Arguments = "auto"
    methods: Mapping[str, NetRPCMethod] = field(default_factory=lambda: MappingProxyType({}))
    registered: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
