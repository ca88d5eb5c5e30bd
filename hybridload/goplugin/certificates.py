"""The certificates of AutoMTLS: each side makes one for itself and trusts exactly the other's.

The shape is the one that go-plugin gives its own (mtls.go): self-signed, its own CA, named `localhost` in subject and
subject alternative name, good for client and server, ECDSA on P-521, signed with SHA-512, thirty years from half a
minute ago. Towards a Go peer curve and names other than the alternative name are free.

The key stays in memory. Nothing here writes a file, and no `repr` shows a key.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Literal

from hybridload.errors import ConfigError

Curve = Literal["P-256", "P-384", "P-521"]

_LIFETIME_HOURS = 262_980
_BACKDATED_SECONDS = 30  # for peers in containers and machines whose clock is a little behind
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s*([A-Za-z0-9+/=\s]+?)\s*-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True)
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
    text = base64.b64encode(der)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return b"-----BEGIN CERTIFICATE-----\n" + b"\n".join(lines) + b"\n-----END CERTIFICATE-----\n"


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

    :param curve: P-521 is what Go's side uses; P-256 is quicker to sign with and Go accepts it.
    :param host: the name that the peer will check.
    """
    # Here and not above: `cryptography.x509` takes 60 ms to import, and most processes never make a certificate.
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    curves: dict[Curve, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    key = ec.generate_private_key(curves[curve])
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "hybridload"),
            x509.NameAttribute(NameOID.COMMON_NAME, host),
        ]
    )
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=_BACKDATED_SECONDS)
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=True,
        data_encipherment=False,
        key_agreement=True,
        key_cert_sign=True,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(hours=_LIFETIME_HOURS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA512())
    )
    return Certificate(
        pem=certificate.public_bytes(serialization.Encoding.PEM),
        der=certificate.public_bytes(serialization.Encoding.DER),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
