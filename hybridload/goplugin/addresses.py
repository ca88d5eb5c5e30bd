"""Which addresses one side connects to because the other one named them: unix sockets, and tcp on loopback.

A handshake line, or an offer of the broker's, may name any address. A host that connected to it would be sent to
wherever a plugin likes, with its own rights and from its own place in the network. A plugin on another machine is one
that its host knows of: by a runner, or because it is reattached.

Pure, and no name is looked up: what a resolver says of a name is not this side's to know.
"""

from __future__ import annotations

import os

from hybridload.goplugin.streams.base import StreamError

# That sockaddr_un has room for on Linux. Where there is less, the system says so.
_LONGEST_PATH = 107
_HERE = {"localhost": "127.0.0.1", "": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}
_ELSEWHERE = (
    "only unix sockets and tcp on loopback are connected to. "
    "A host reaches a plugin on another machine with a runner, or by reattaching to it"
)


class AddressRefused(StreamError):
    """The other side named an address that is not connected to."""


def local_address(network: str, address: str) -> str:
    """An address that the other side named, as it is connected to.

    :param network: ``"unix"`` or ``"tcp"``.
    :returns: the path as it is; ``localhost``, and every interface, as the loopback address that they stand for.
    :raises AddressRefused: it is not on this machine, or none at all.
    """
    if network == "unix":
        refusal = _unix_refusal(address)
    elif network == "tcp":
        host, _, port = address.rpartition(":")
        # The others are what listens on every interface says of itself; Go dials this machine for them, too.
        here = _HERE.get(host.lower())
        if here is not None:
            host, address = here, f"{here}:{port}"
        refusal = _tcp_refusal(host, port)
    else:
        refusal = _ELSEWHERE
    if refusal is not None:
        raise AddressRefused(f"names the address {network} {address[:200]!r}, which is refused: {refusal}")
    return address


def is_at(known: tuple[str, str], network: str, address: str) -> bool:
    """Whether an address is a known one, or on the same machine as that, over tcp."""
    if network != known[0]:
        return False
    return address == known[1] or (network == "tcp" and address.rpartition(":")[0] == known[1].rpartition(":")[0])


def _unix_refusal(path: str) -> str | None:
    if path.startswith(("\0", "@")):
        return "an abstract socket has no permissions, and anybody may have made it; a socket's path is expected"
    if "\0" in path or not path:
        return "no path is empty or has a NUL byte in it"
    if len(os.fsencode(path)) > _LONGEST_PATH:
        return f"a socket's path has at most {_LONGEST_PATH} bytes"
    return None


def _tcp_refusal(host: str, port: str) -> str | None:
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
        return "it does not end in a port"
    return None if _is_loopback(host) else _ELSEWHERE


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return getattr(address, "scope_id", None) is None and (mapped or address).is_loopback
