"""How a method's exception travels over net/rpc, where an error is a text and nothing else.

A Go program gets what the exception says, and nothing more. Between two hybridloads the text goes on, after a mark,
with what gRPC would put into the status details, so that the exception is raised again as itself. Each side learns by
`HELLO` whether the other one is a hybridload: the host calls it when it connects, and a Go plugin answers that it has
no such service. A text with the mark is never taken for more than text when it comes from anybody else.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from hybridload.contract.exceptions import Status, decode_exception, encode_exception, message_of
from hybridload.errors import ContractError, RemoteError
from hybridload.goplugin.message_limits import REFUSED, explained, too_large
from hybridload.goplugin.netrpc.gob import GobTooLarge

if TYPE_CHECKING:
    from hybridload.contract import Contract
    from hybridload.goplugin.netrpc.rpc import Reply

SERVICE, METHOD = "Hybridload", "Hello"
HELLO = f"{SERVICE}.{METHOD}"
"""Takes and answers the version of what this file does: 1."""
VERSION = 1

_MARK = "\0hybridload "


def encode_failure(error: BaseException, contract: Contract[Any] | None, detailed: bool) -> str:
    """The text for what a method raised.

    :param contract: of the interface whose method it was; `None` for a hand-written plugin.
    :param detailed: whether the other side is a hybridload.
    """
    if not detailed or contract is None:
        return message_of(error)
    status = encode_exception(error, contract)
    details = base64.b64encode(status.details or b"").decode()
    return f"{status.message}{_MARK}{status.code} {details}"


def failure_of(reply: Reply, method: str, contract: Contract[Any], plugin: str, detailed: bool) -> Exception:
    """The exception for an answer that is no result.

    :param method: with its service, e.g. ``"Plugin.Greet"``.
    """
    calls = "plugin" if plugin == "host" else "host"
    if isinstance(reply.mismatch, GobTooLarge):
        return _refused(too_large("CLIENT", reply.mismatch.size, reply.mismatch.limit), calls, plugin)
    if reply.mismatch is not None:
        return ContractError(
            f"Plugin {plugin!r} answered {method} with another type than {contract!r} says. {reply.mismatch} "
            "Correct the hint, or describe the reply's Go type with Contract(..., netrpc=NetRPC(...)).",
            plugin=plugin,
        )
    assert reply.error is not None
    if reply.error.startswith(REFUSED) and _MARK not in reply.error:  # else a method's exception that says so
        return _refused(reply.error, calls, plugin)
    return decode_failure(reply.error, contract, plugin, detailed)


def _refused(text: str, calls: str, plugin: str) -> RemoteError:
    return RemoteError(explained(text, calls=calls) or text, plugin=plugin, code="RESOURCE_EXHAUSTED")


def decode_failure(text: str, contract: Contract[Any], plugin: str, detailed: bool) -> Exception:
    """The exception for a text.

    :param plugin: the other side's name.
    :param detailed: whether it is a hybridload.
    """
    message, mark, rest = text.rpartition(_MARK)
    if not (detailed and mark):
        return decode_exception(Status("UNKNOWN", text), contract, plugin)
    code, _, encoded = rest.partition(" ")
    try:
        details = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return decode_exception(Status("UNKNOWN", message), contract, plugin)
    return decode_exception(Status(code, message, details or None), contract, plugin)
