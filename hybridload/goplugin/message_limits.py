"""The words for a message that is larger than its receiver takes, and whose limit is to be raised.

gRPC's core says ``CLIENT:`` where the caller refused an answer and ``SERVER:`` where a call was refused, and so do we,
in both protocols. Go says neither, and is the called side here.
"""

from __future__ import annotations

_LARGER = "larger than max"
_WORDS = "Received message larger than max_message"
REFUSED = f"SERVER: {_WORDS}"
"""What the text begins with where a call was refused."""
_RAISE = ". Raise the "
_OR_LESS = "; or send less at once, in a stream."
_HOST = "host's limit: max_message, in its configuration or of its Client"
_PLUGIN = (
    "plugin's limit: max_message of a Python plugin's serve (of the host's configuration for one in a subprocess), "
    "grpc.MaxRecvMsgSize in a Go plugin"
)


def too_large(receiver: str, size: int | str, limit: int) -> str:
    """What a receiver says of a message.

    :param receiver: ``"CLIENT"`` or ``"SERVER"``: who called, or who was called.
    :param size: in bytes.
    :param limit: in bytes.
    """
    return f"{receiver}: {_WORDS} ({size} vs. {limit})"


def explained(message: str, *, calls: str) -> str | None:
    """A text with what to raise; `None` when it is about something else.

    :param calls: who called: ``"host"`` or ``"plugin"``.
    """
    if _LARGER not in message or _RAISE in message:  # or it was told already, by whoever handed it on
        return None
    whose = [_HOST, _PLUGIN] if calls == "host" else [_PLUGIN, _HOST]
    if "CLIENT:" in message:
        raise_it = whose[0]
    elif "Decompressed" in message:  # grpc's core does not say who
        raise_it = f"{whose[0]}; or the {whose[1]}"
    elif calls == "host" and "SERVER:" in message:  # the host is one, too, to a Go plugin that calls it back
        raise_it = f"{whose[1]} (or the {whose[0]}, where the plugin hands on the error of a callback)"
    else:
        raise_it = whose[1]
    return f"{message}{_RAISE}{raise_it}{_OR_LESS}"
