"""The certificates of AutoMTLS: each side makes one for itself and trusts exactly the other's.

The shape is the one that go-plugin gives its own (mtls.go): self-signed, its own CA, named `localhost` in subject and
subject alternative name, good for client and server, ECDSA on P-521, signed with SHA-512, thirty years from half a
minute ago. Towards a Go peer curve and names other than the alternative name are free.

The key stays in memory. Nothing here writes a file, and no `repr` shows a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import time
from typing import Any, Literal

from hybridload.errors import ConfigError
from hybridload.frozen import field, frozen

Curve = Literal["P-256", "P-384", "P-521"]

_LIFETIME_HOURS = 262_980
_BACKDATED_SECONDS = 30  # for peers in containers and machines whose clock is a little behind
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s*([A-Za-z0-9+/=\s]+?)\s*-----END CERTIFICATE-----")


@frozen
class Certificate:
    """A certificate and its private key.

    :param pem: the certificate as PEM, as ``PLUGIN_CLIENT_CERT`` carries it.
    :param der: the same as DER, as the handshake line carries it.
    :param key_pem: the private key as unencrypted PEM. Secret: never logged, never on a command line.
    """

    pem: bytes = field(repr=False)
    der: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)

    @classmethod
    def from_pem(cls, pem: bytes, key_pem: bytes) -> Certificate:
        """Take up a certificate that was made elsewhere, e.g. by the host that started a plugin which is reattached to.

        :raises ConfigError: there is no certificate in `pem`.
        """
        return cls(pem, der_of(pem), key_pem)


def pem_of(der: bytes) -> bytes:
    """A certificate's DER as PEM."""
    return _pem("CERTIFICATE", der)


def _pem(label: str, der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label.encode(), b"\n".join(lines), label.encode())


def der_of(pem: bytes) -> bytes:
    """The DER of the first certificate in a PEM text.

    :raises ConfigError: there is none.
    """
    found = _PEM.search(pem)
    try:
        if found is not None:
            return base64.b64decode(b"".join(found[1].split()), validate=True)
    except binascii.Error:
        pass
    raise ConfigError("no certificate found where PEM text with a BEGIN CERTIFICATE block was expected")


def generate_certificate(curve: Curve = "P-521", host: str = "localhost") -> Certificate:
    """Make a fresh key and a self-signed certificate for it.

    :param curve: P-521 is what Go's side uses; Go accepts the others as well.
    :param host: the name that the peer will check.
    """
    # `ec` alone, and here, not above: most processes never make a certificate, and what builds them in cryptography
    # takes thirty milliseconds more to import than the two hundred bytes around the key take to write.
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    kinds: dict[Curve, tuple[ec.EllipticCurve, hashes.HashAlgorithm]] = {
        "P-256": (ec.SECP256R1(), hashes.SHA256()),
        "P-384": (ec.SECP384R1(), hashes.SHA384()),
        "P-521": (ec.SECP521R1(), hashes.SHA512()),
    }
    parameters, digest = kinds[curve]
    key = ec.generate_private_key(parameters)
    point = _uncompressed(key.public_key())
    key_id = hashlib.sha1(point, usedforsecurity=False).digest()
    body = _certificate_body(_public_key(curve, point), _SIGNED_WITH[curve], key_id, host)
    signature = key.sign(body, ec.ECDSA(digest))
    der = _der(_SEQUENCE, body, _SIGNED_WITH[curve], _der(_BIT_STRING, b"\0", signature))
    secret = key.private_numbers().private_value.to_bytes((key.key_size + 7) // 8, "big")
    return Certificate(pem=pem_of(der), der=der, key_pem=_pem("PRIVATE KEY", _private_key(curve, secret, point)))


# DER (X.690): the pieces of a certificate (RFC 5280) and of a private key (RFC 5208, RFC 5915).

_BOOLEAN, _INTEGER, _BIT_STRING, _OCTET_STRING, _OID = 0x01, 0x02, 0x03, 0x04, 0x06
_UTF8, _UTC_TIME, _GENERALIZED_TIME, _SEQUENCE, _SET = 0x0C, 0x17, 0x18, 0x30, 0x31


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 128:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 128 + len(length))) + length + content


def _oid(text: str) -> bytes:
    first, second, *rest = map(int, text.split("."))
    out = bytearray((first * 40 + second,))
    for number in rest:
        digits = [number & 127]
        while number := number >> 7:
            digits.append(number & 127 | 128)
        out += bytes(reversed(digits))
    return _der(_OID, bytes(out))


def _integer(number: int) -> bytes:
    return _der(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _time(moment: float) -> bytes:
    """UTCTime until 2049, GeneralizedTime from then on (RFC 5280, section 4.1.2.5)."""
    parts = time.gmtime(moment)
    if parts.tm_year < 2050:
        return _der(_UTC_TIME, time.strftime("%y%m%d%H%M%SZ", parts).encode())
    return _der(_GENERALIZED_TIME, time.strftime("%Y%m%d%H%M%SZ", parts).encode())


_CURVES = {"P-256": _oid("1.2.840.10045.3.1.7"), "P-384": _oid("1.3.132.0.34"), "P-521": _oid("1.3.132.0.35")}
_EC_KEY = _oid("1.2.840.10045.2.1")
_SIGNED_WITH = {  # ECDSA with SHA-256, SHA-384, SHA-512
    curve: _der(_SEQUENCE, _oid(f"1.2.840.10045.4.3.{number}"))
    for curve, number in (("P-256", 2), ("P-384", 3), ("P-521", 4))
}
_DIGITAL_SIGNATURE, _KEY_ENCIPHERMENT, _KEY_AGREEMENT, _SIGNS_CERTIFICATES = 0x80, 0x20, 0x08, 0x04


def _uncompressed(key: Any) -> bytes:
    """A public key as a point: 4, x, y."""
    numbers = key.public_numbers()
    size = (key.key_size + 7) // 8
    x, y = numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")
    return b"\4%b%b" % (x, y)


def _public_key(curve: str, point: bytes) -> bytes:
    return _der(_SEQUENCE, _der(_SEQUENCE, _EC_KEY, _CURVES[curve]), _der(_BIT_STRING, b"\0", point))


def _private_key(curve: str, secret: bytes, point: bytes) -> bytes:
    """PKCS #8, unencrypted."""
    key = _der(_SEQUENCE, _integer(1), _der(_OCTET_STRING, secret), _der(0xA1, _der(_BIT_STRING, b"\0", point)))
    return _der(_SEQUENCE, _integer(0), _der(_SEQUENCE, _EC_KEY, _CURVES[curve]), _der(_OCTET_STRING, key))


def _certificate_body(public_key: bytes, signed_with: bytes, key_id: bytes, host: str) -> bytes:
    """What is signed."""
    name = _der(
        _SEQUENCE,
        _der(_SET, _der(_SEQUENCE, _oid("2.5.4.10"), _der(_UTF8, b"hybridload"))),
        _der(_SET, _der(_SEQUENCE, _oid("2.5.4.3"), _der(_UTF8, host.encode()))),
    )
    start = time.time() - _BACKDATED_SECONDS
    usage = bytes((2, _DIGITAL_SIGNATURE | _KEY_ENCIPHERMENT | _KEY_AGREEMENT | _SIGNS_CERTIFICATES))  # 2 bits unused
    return _der(
        _SEQUENCE,
        _der(0xA0, _integer(2)),  # version 3
        _integer(int.from_bytes(os.urandom(20), "big") >> 1 | 1),
        signed_with,
        name,
        _der(_SEQUENCE, _time(start), _time(start + _LIFETIME_HOURS * 3600)),
        name,
        public_key,
        _der(
            0xA3,
            _der(
                _SEQUENCE,
                _extension("2.5.29.19", _der(_SEQUENCE, _der(_BOOLEAN, b"\xff")), critical=True),  # its own CA
                _extension("2.5.29.15", _der(_BIT_STRING, usage), critical=True),
                # For clients and servers.
                _extension("2.5.29.37", _der(_SEQUENCE, _oid("1.3.6.1.5.5.7.3.2"), _oid("1.3.6.1.5.5.7.3.1"))),
                _extension("2.5.29.17", _der(_SEQUENCE, _der(0x82, host.encode("ascii")))),  # alternative name
                _extension("2.5.29.14", _der(_OCTET_STRING, key_id)),
            ),
        ),
    )


def _extension(oid: str, value: bytes, critical: bool = False) -> bytes:
    return _der(_SEQUENCE, _oid(oid), _der(_BOOLEAN, b"\xff") if critical else b"", _der(_OCTET_STRING, value))
