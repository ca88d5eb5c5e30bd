from __future__ import annotations

import datetime
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from hybridload.errors import ConfigError
from hybridload.goplugin.certificates import Certificate, Curve, der_of, generate_certificate, pem_of


@pytest.mark.parametrize(
    ("curve", "name", "digest"),
    [("P-256", "secp256r1", "sha256"), ("P-384", "secp384r1", "sha384"), ("P-521", "secp521r1", "sha512")],
)
def test_a_certificate_has_the_shape_that_go_plugin_gives_its_own(curve: Curve, name: str, digest: str) -> None:
    made = x509.load_der_x509_certificate(generate_certificate(curve).der)
    key = made.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == name
    assert made.signature_hash_algorithm is not None
    assert made.signature_hash_algorithm.name == digest
    made.verify_directly_issued_by(made)
    assert made.subject == made.issuer
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    now = datetime.datetime.now(datetime.UTC)
    assert now - datetime.timedelta(minutes=1) < made.not_valid_before_utc < now
    assert made.not_valid_after_utc > now + datetime.timedelta(days=29 * 365)


def test_two_certificates_share_nothing() -> None:
    one, other = generate_certificate("P-256"), generate_certificate("P-256")
    assert one.key_pem != other.key_pem
    assert (
        x509.load_der_x509_certificate(one.der).serial_number != x509.load_der_x509_certificate(other.der).serial_number
    )


def test_no_repr_shows_the_key() -> None:
    certificate = Certificate(b"public", b"der", b"very secret")
    assert repr(certificate) == "Certificate()"


def test_pem_and_der_are_two_forms_of_one_thing() -> None:
    certificate = generate_certificate("P-256")
    assert der_of(certificate.pem) == certificate.der
    assert pem_of(certificate.der) == certificate.pem
    assert Certificate.from_pem(certificate.pem, certificate.key_pem) == certificate
    assert der_of(b"some words\r\n" + certificate.pem.replace(b"\n", b"\r\n") + certificate.pem) == certificate.der


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"words",
        b"-----BEGIN CERTIFICATE-----\n=A=\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\nAAAA",
    ],
)
def test_text_without_a_certificate_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigError, match="BEGIN CERTIFICATE"):
        der_of(text)


def test_importing_the_module_does_not_import_cryptography() -> None:
    program = "import sys, hybridload.goplugin.certificates; print('cryptography' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program]) == b"False\n"
