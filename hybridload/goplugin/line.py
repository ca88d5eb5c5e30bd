"""The handshake line: the first line that a plugin prints, and all that a host knows of it before it connects.

    core | app | network | address | protocol | certificate | multiplex

What holds, read off go-plugin v1.8.0 (client.go, server.go):

- core is 1. app is the negotiated application version. network is `unix` or `tcp`.
- protocol is `grpc` or `netrpc`; a line of four fields means netrpc, an empty fifth field is an error.
- certificate is the base64 (standard alphabet, no padding) of the DER of the plugin's certificate; it counts only when
  the text is longer than 50 characters. Go prints the field always, mostly empty.
- multiplex is there only when the host asked about it, and is true when the plugin can do it.
- Fewer than four fields are no handshake line. Fields after the seventh are ignored.

Pure: no sockets, no processes.
"""

from __future__ import annotations

import binascii
from typing import Literal, cast

from hybridload.errors import UnrecognizedOutput, VersionMismatch
from hybridload.frozen import frozen

CORE_VERSION = 1
MAX_LINE = 64 * 1024
"""Bytes. A first line that is longer is not a handshake line (Go's host gives up there too)."""

Network = Literal["unix", "tcp"]
Protocol = Literal["grpc", "netrpc"]

_SHORTEST_CERTIFICATE = 50
# What Go's strconv.ParseBool takes for true.
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})


@frozen
class HandshakeLine:
    """What the handshake line says.

    :param app_version: the application version that the plugin chose, 0 or greater.
    :param network: ``"unix"`` or ``"tcp"``.
    :param address: a socket's path, or ``host:port``.
    :param protocol: ``"grpc"`` or ``"netrpc"``.
    :param certificate: DER of the plugin's certificate, or `None` without TLS.
    :param multiplex: whether the plugin multiplexes brokered connections; `None` when it was not asked or is too old.
    """

    app_version: int
    network: Network
    address: str
    protocol: Protocol = "grpc"
    certificate: bytes | None = None
    multiplex: bool | None = None

    def format(self) -> str:
        """The line as a plugin prints it, without the line feed; six fields, or seven when `multiplex` is known."""
        certificate = "" if self.certificate is None else binascii.b2a_base64(self.certificate).decode().rstrip("=\n")
        fields = [str(CORE_VERSION), str(self.app_version), self.network, self.address, self.protocol, certificate]
        if self.multiplex is not None:
            fields.append("true" if self.multiplex else "false")
        return "|".join(fields)

    @classmethod
    def parse(cls, raw: bytes) -> HandshakeLine:
        """Read a plugin's first line.

        :param raw: the line, with or without its line feed.
        :raises UnrecognizedOutput: when it is not a handshake line, or a field has a value that nothing can be made of.
        :raises VersionMismatch: for a core version other than 1.
        """
        if len(raw.rstrip(b"\r\n")) > MAX_LINE:
            raise UnrecognizedOutput(f"{_seen(raw)}, and is longer than {MAX_LINE} bytes. {_ADVICE}")
        try:
            text = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UnrecognizedOutput(f"{_seen(raw)}, which is not UTF-8 text. {_ADVICE}") from error
        fields = [field.strip() for field in text.split("|")]
        if len(fields) < 4:
            raise UnrecognizedOutput(f"{_seen(raw)}. {_ADVICE}")
        core = _number(fields[0], "core protocol version", raw)
        if core != CORE_VERSION:
            raise VersionMismatch(
                f"The plugin speaks version {core} of go-plugin's core protocol and this host speaks {CORE_VERSION}: "
                "build the plugin against a current go-plugin or hybridload."
            )
        app_version = _number(fields[1], "application protocol version", raw)
        network, address = fields[2], fields[3]
        if network not in ("unix", "tcp"):
            raise UnrecognizedOutput(f"{_seen(raw)}: the network {network!r} is neither unix nor tcp. {_ADVICE}")
        if not address or "\0" in address:
            raise UnrecognizedOutput(f"{_seen(raw)}: there is no address to connect to. {_ADVICE}")
        if network == "tcp" and not _ends_in_a_port(address):
            raise UnrecognizedOutput(f"{_seen(raw)}: the address {address[:50]!r} does not end in a port. {_ADVICE}")
        protocol = fields[4] if len(fields) > 4 else "netrpc"
        if protocol not in ("grpc", "netrpc"):
            raise UnrecognizedOutput(f"{_seen(raw)}: the protocol {protocol!r} is neither grpc nor netrpc. {_ADVICE}")
        return cls(
            app_version=app_version,
            network=cast("Network", network),
            address=address,
            protocol=cast("Protocol", protocol),
            certificate=_certificate(fields[5], raw) if len(fields) > 5 else None,
            multiplex=fields[6] in _TRUE if len(fields) > 6 else None,
        )


_ADVICE = (
    "A plugin prints its handshake line before anything else: see that the command is a go-plugin plugin "
    "and that it prints nothing on standard output before it serves."
)


def _seen(raw: bytes) -> str:
    shown = raw if len(raw) <= 200 else raw[:200] + b"..."
    return f"The first line on standard output is {shown!r}"


def _number(text: str, what: str, raw: bytes) -> int:
    # isdecimal alone lets other scripts' digits pass; more digits than this no version has.
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise UnrecognizedOutput(f"{_seen(raw)}: the {what} {text[:50]!r} is not a number. {_ADVICE}")
    return int(text)


def _ends_in_a_port(address: str) -> bool:
    _, colon, port = address.rpartition(":")
    return bool(colon) and port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536


def _certificate(text: str, raw: bytes) -> bytes | None:
    if len(text) <= _SHORTEST_CERTIFICATE:
        return None
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except binascii.Error as error:
        raise UnrecognizedOutput(f"{_seen(raw)}: the certificate is not base64. {_ADVICE}") from error
