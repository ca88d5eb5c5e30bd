"""The handshake line, both ways."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridload.errors import HandshakeError, UnrecognizedOutput, VersionMismatch
from hybridload.goplugin.line import HandshakeLine

DER = bytes(range(256))
BASE64 = base64.b64encode(DER).decode().rstrip("=")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"1|1|tcp|127.0.0.1:1234\n", HandshakeLine(1, "tcp", "127.0.0.1:1234", "netrpc")),
        (b"1|1|unix|/tmp/s|grpc\n", HandshakeLine(1, "unix", "/tmp/s")),
        (b"1|7|unix|/tmp/s|grpc|\r\n", HandshakeLine(7, "unix", "/tmp/s")),
        (b"1|0|unix|/tmp/s|netrpc|", HandshakeLine(0, "unix", "/tmp/s", "netrpc")),
        (b"  1|1|unix|/tmp/s|grpc|short  ", HandshakeLine(1, "unix", "/tmp/s")),
        (f"1|1|unix|/s|grpc|{BASE64}".encode(), HandshakeLine(1, "unix", "/s", certificate=DER)),
        (b"1|1|unix|/s|grpc||true", HandshakeLine(1, "unix", "/s", multiplex=True)),
        (b"1|1|unix|/s|grpc||false", HandshakeLine(1, "unix", "/s", multiplex=False)),
        (b"1|1|unix|/s|grpc||1|more|and more", HandshakeLine(1, "unix", "/s", multiplex=True)),
    ],
)
def test_reads_a_line_of_any_length(raw: bytes, expected: HandshakeLine) -> None:
    assert HandshakeLine.parse(raw) == expected


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "first line"),
        (b"hello, world", "hello, world"),
        (b"1|1|unix", "handshake line"),
        (b"x|1|unix|/s|grpc", "core protocol version"),
        (b"1|x|unix|/s|grpc", "application protocol version"),
        (b"1|-1|unix|/s|grpc", "application protocol version"),
        ("1|٣|unix|/s|grpc".encode(), "application protocol version"),
        (b"1|" + b"9" * 5000 + b"|unix|/s|grpc", "not a number"),
        (b"1|1|udp|/s|grpc", "neither unix nor tcp"),
        (b"1|1|unix||grpc", "no address"),
        (b"1|1|unix|a\0b|grpc", "no address"),
        (b"1|1|tcp|1234|grpc", "does not end in a port"),
        (b"1|1|tcp|127.0.0.1|grpc", "does not end in a port"),
        (b"1|1|tcp|127.0.0.1:|grpc", "does not end in a port"),
        (b"1|1|tcp|127.0.0.1:0|grpc", "does not end in a port"),
        (b"1|1|tcp|127.0.0.1:65536|grpc", "does not end in a port"),
        (b"1|1|tcp|localhost:http|grpc", "does not end in a port"),
        (b"1|1|unix|/s|grpc|" + b"A" * 100_000, "longer than 65536 bytes"),
        (b"1|1|unix|/s|", "neither grpc nor netrpc"),
        (b"1|1|unix|/s|http", "neither grpc nor netrpc"),
        (b"1|1|unix|/s|grpc|" + b"!" * 60, "not base64"),
        (b"\xff\xfe|1|unix|/s", "not UTF-8"),
    ],
)
def test_says_what_is_wrong_with_a_line(raw: bytes, says: str) -> None:
    with pytest.raises(UnrecognizedOutput, match=says):
        HandshakeLine.parse(raw)


def test_another_core_version_is_a_version_mismatch() -> None:
    with pytest.raises(VersionMismatch, match="version 2 of go-plugin's core protocol"):
        HandshakeLine.parse(b"2|1|unix|/s|grpc")


@given(st.binary())
def test_any_bytes_give_a_line_or_a_handshake_error(raw: bytes) -> None:
    try:
        HandshakeLine.parse(raw)
    except HandshakeError:
        pass


@given(st.text(alphabet="1|unixtcpgr/ \n:9x=", max_size=60))
def test_anything_that_looks_like_a_line_gives_one_or_a_handshake_error(text: str) -> None:
    try:
        HandshakeLine.parse(text.encode())
    except HandshakeError:
        pass


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="|\0"), min_size=1).filter(
    lambda text: text == text.strip()
)


@given(
    st.integers(0, 10**9 - 1),
    st.tuples(st.just("unix"), TEXTS)
    | st.tuples(st.just("tcp"), st.builds("{}:{}".format, TEXTS, st.integers(1, 65535))),
    st.sampled_from(["grpc", "netrpc"]),
    st.none() | st.binary(min_size=40, max_size=2000),
    st.none() | st.booleans(),
)
def test_what_is_formatted_is_read_back(version, address, protocol, certificate, multiplex) -> None:  # type: ignore[no-untyped-def]
    line = HandshakeLine(version, *address, protocol, certificate, multiplex)
    assert HandshakeLine.parse(line.format().encode()) == line
