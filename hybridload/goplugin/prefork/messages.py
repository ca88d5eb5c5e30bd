"""What a host and its fork server say to each other over a pair of unix sockets: one request, one reply, and so on.

A message is four bytes of length and JSON. Descriptors travel with the length.

- ``{"fork": {...}}`` (see `Fork`), with the descriptors of standard input (when there is one), output and error and of
  the working directory; the reply is ``{"pid": ...}``, or ``{"error": errno}``.
- ``{"reap": pid}``, once that process has ended; the reply is ``{"status": ...}``, minus the signal for one that was
  killed, or nothing for a process that is no child.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from hybridload.frozen import frozen, names

_LENGTH = 4
_DESCRIPTORS = 8


@frozen
class Fork:
    """A process to be forked.

    :param name: the plugin's, for lists of processes.
    :param arguments: what `sys.argv` has after its first item.
    :param environment: all of it; the `LaunchSpec` is in it.
    :param limits: each as ``resource:soft:hard``.
    :param has_input: whether there is a standard input.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    limits: Sequence[str]
    has_input: bool

    def to_dict(self) -> dict[str, Any]:
        """The request as JSON can hold it."""
        return {name: getattr(self, name) for name in names(self)}


def send(connection: socket.socket, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send a message.

    :raises OSError: the other side is gone.
    """
    data = json.dumps(message).encode()
    length = len(data).to_bytes(_LENGTH, "big")
    sent = socket.send_fds(connection, [length], descriptors) if descriptors else connection.send(length)
    connection.sendall(length[sent:] + data)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Wait for a message with its descriptors, which are the caller's to close; `None` when the other side is gone.

    :raises OSError: the connection broke, or nothing came within the socket's time-out.
    """
    length, descriptors, _, _ = socket.recv_fds(connection, _LENGTH, _DESCRIPTORS)
    try:
        while 0 < len(length) < _LENGTH:
            length += _some(connection, _LENGTH - len(length))
        if not length:
            return None
        size, data = int.from_bytes(length, "big"), bytearray()
        while len(data) < size:
            data += _some(connection, size - len(data))
        message: dict[str, Any] = json.loads(bytes(data))
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return message, descriptors


def _some(connection: socket.socket, most: int) -> bytes:
    data = connection.recv(min(most, 1 << 20))
    if not data:
        raise ConnectionResetError("the other side ended in the middle of a message")
    return data
