from __future__ import annotations

import datetime
import gc
import os
import ssl
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hybridload.goplugin.certificates import Certificate, generate_certificate, pem_of
from hybridload.goplugin.streams.base import Stream, StreamClosed, StreamError, StreamReset, TLSRefused
from hybridload.goplugin.streams.sockets import connect, listen_unix, socket_pair
from hybridload.goplugin.streams.tls import TLSListener, TLSStream, client_context, server_context

Pair = tuple[TLSStream, TLSStream]
ReceiveExactly = Callable[[Stream, int], bytes]
ReceiveAll = Callable[[Stream], bytes]


@pytest.fixture(scope="module")
def host() -> Certificate:
    return generate_certificate()


@pytest.fixture(scope="module")
def plugin() -> Certificate:
    return generate_certificate()


@pytest.fixture(params=["TLSv1.2", "TLSv1.3"])
def pair(
    request: pytest.FixtureRequest, host: Certificate, plugin: Certificate, pool: ThreadPoolExecutor
) -> Iterator[Pair]:
    near, far = socket_pair()
    clients = client_context(host, plugin.der)
    clients.maximum_version = ssl.TLSVersion[request.param.replace(".", "_")]
    ours, theirs = TLSStream(near, clients, "localhost"), TLSStream(far, server_context(plugin, host.pem))
    shaken = [pool.submit(stream.handshake) for stream in (ours, theirs)]
    assert [each.result(5) for each in shaken] == [None, None]
    assert (ours.version, ours.alpn) == (request.param, "h2")
    yield ours, theirs
    ours.close()
    theirs.close()


def custom_certificate(*, host: str = "localhost", days: int = 1, age: int = 0) -> Certificate:
    key = ec.generate_private_key(ec.SECP521R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=age, minutes=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA512())
    )
    der = made.public_bytes(serialization.Encoding.DER)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(pem_of(der), der, key_pem)


# What holds between two of ours


def test_bytes_arrive_in_order_in_both_directions_at_once(
    pair: Pair, pool: ThreadPoolExecutor, receive_exactly: ReceiveExactly
) -> None:
    data = [os.urandom(3_000_000), os.urandom(3_000_000)]
    received = [pool.submit(receive_exactly, stream, 3_000_000) for stream in pair]
    sent = [pool.submit(stream.send, each) for stream, each in zip(pair, data, strict=True)]
    assert [each.result() for each in sent] == [None, None]
    assert [each.result() for each in received] == data[::-1]


def test_sends_of_several_threads_stay_whole(
    pair: Pair, pool: ThreadPoolExecutor, receive_exactly: ReceiveExactly
) -> None:
    ours, theirs = pair
    size = 150_000
    sent = [pool.submit(ours.send, bytes([letter]) * size) for letter in b"abcd"]
    received = receive_exactly(theirs, 4 * size)
    assert sorted(received[at : at + size] for at in range(0, 4 * size, size)) == [bytes([c]) * size for c in b"abcd"]
    assert [each.result() for each in sent] == [None] * 4


def test_send_all_joins_many_buffers(pair: Pair, pool: ThreadPoolExecutor, receive_exactly: ReceiveExactly) -> None:
    ours, theirs = pair
    buffers = [os.urandom(size) for size in (0, 9, 200_000, 1, 65_536, 65_537, 0)]
    expected = b"".join(buffers)
    received = pool.submit(receive_exactly, theirs, len(expected))
    ours.send_all([memoryview(each) for each in buffers])
    assert received.result() == expected
    ours.send(b"")
    ours.send_all([])
    ours.send(b"x")
    assert theirs.receive(timeout=5) == b"x"


def test_receive_returns_at_most_what_was_asked_for(pair: Pair) -> None:
    ours, theirs = pair
    ours.send(b"abcdef")
    assert theirs.receive(2, timeout=5) == b"ab"
    buffer = bytearray(3)
    assert theirs.receive_into(memoryview(buffer)) == 3
    assert buffer == b"cde"
    assert theirs.readable()
    assert theirs.receive(10) == b"f"
    with pytest.raises(TimeoutError):
        theirs.receive(timeout=0.01)


def test_half_close_keeps_what_was_on_its_way(pair: Pair, receive_all: ReceiveAll) -> None:
    ours, theirs = pair
    theirs.send(b"sent before the farewell")
    ours.send(b"question")
    assert ours.readable()
    ours.close_write()
    ours.close_write()
    assert receive_all(theirs) == b"question"
    assert theirs.receive() == b""
    assert theirs.readable()
    theirs.send(b", and after it")
    theirs.close_write()
    assert receive_all(ours) == b"sent before the farewell, and after it"
    assert ours.receive() == b""
    with pytest.raises(StreamClosed, match="sending half"):
        ours.send(b"x")


def test_close_wakes_blocked_receives_on_both_sides(pair: Pair, pool: ThreadPoolExecutor) -> None:
    ours, theirs = pair
    mine, other = pool.submit(ours.receive), pool.submit(theirs.receive)
    time.sleep(0.02)  # lets them block; the outcome is the same when they do not
    ours.close()
    ours.close()
    with pytest.raises(StreamClosed):
        mine.result(5)
    assert other.result(5) == b""
    for use in (lambda: ours.send(b"x"), ours.receive, lambda: ours.receive(timeout=1)):
        with pytest.raises(StreamClosed):
            use()
    assert ours.readable()
    assert not ours.writable()


def test_close_never_waits_for_a_peer_that_does_not_read(pair: Pair, pool: ThreadPoolExecutor) -> None:
    ours, theirs = pair
    blocked = pool.submit(ours.send, bytes(50_000_000))
    assert theirs.receive(timeout=5)
    assert not ours.writable()
    ours.close()
    with pytest.raises(StreamClosed):
        blocked.result(5)


def test_a_connection_that_breaks_off_is_a_reset_and_stays_one(host: Certificate, plugin: Certificate) -> None:
    near, far = socket_pair()
    ours = TLSStream(near, client_context(host, plugin.der), "localhost")
    theirs = TLSStream(far, server_context(plugin, host.der))
    thread = threading.Thread(target=theirs.handshake)
    thread.start()
    ours.send(b"hello")
    thread.join()
    assert theirs.receive() == b"hello"
    far.close()
    for _ in range(2):
        with pytest.raises(StreamReset, match="without a TLS farewell"):
            ours.receive()
    assert ours.readable()
    ours.close()
    theirs.close()


def test_readable_looks_inside_the_records(pair: Pair) -> None:
    ours, theirs = pair
    assert not ours.readable()
    theirs.send(b"x")
    assert ours.readable()
    assert ours.readable()
    assert ours.receive(timeout=0) == b"x"
    assert not ours.readable()
    theirs.close()
    assert ours.readable()
    assert ours.receive() == b""


def test_a_waiting_receiver_does_not_keep_a_sender_from_sending(pair: Pair, pool: ThreadPoolExecutor) -> None:
    ours, theirs = pair
    waiting = pool.submit(ours.receive)
    time.sleep(0.01)
    assert not ours.readable()
    for _ in range(100):
        ours.send(b"ping")
        assert theirs.receive(timeout=5) == b"ping"
    theirs.send(b"done")
    assert waiting.result(5) == b"done"


def test_two_threads_use_both_directions_for_long(pair: Pair, pool: ThreadPoolExecutor) -> None:
    """Ten thousand small messages each way, unsynchronised: what breaks an SSLSocket that two threads share."""
    count = 10_000

    def talk(stream: TLSStream) -> None:
        for number in range(count):
            stream.send(number.to_bytes(4, "big"))

    def listen(stream: TLSStream) -> bool:
        received = bytearray()
        while len(received) < 4 * count:
            received += stream.receive(timeout=20)
        return received == b"".join(number.to_bytes(4, "big") for number in range(count))

    talks = [pool.submit(talk, stream) for stream in pair]
    assert all(pool.submit(listen, stream) for stream in pair)
    assert [each.result() for each in talks] == [None, None]


def test_tls_inside_tls(pair: Pair, host: Certificate, plugin: Certificate, pool: ThreadPoolExecutor) -> None:
    inner = TLSStream(pair[0], client_context(host, plugin.der), "localhost")
    outer = TLSStream(pair[1], server_context(plugin, host.der))
    received = pool.submit(outer.receive)
    inner.send(b"deep")
    assert received.result(5) == b"deep"
    inner.close()
    assert outer.receive() == b""
    outer.close()


# Who is refused


def refusals(
    client: ssl.SSLContext, server: ssl.SSLContext, name: str = "localhost"
) -> tuple[StreamError | None, StreamError | None]:
    """What a client and a server that exchange a byte each run into."""
    near, far = socket_pair()
    ends = (TLSStream(near, client, name), TLSStream(far, server))

    def use(stream: TLSStream) -> StreamError | None:
        try:
            stream.send(b"x")
            assert stream.receive(timeout=5) == b"x"
            stream.close_write()
        except StreamError as error:
            stream.close()
            return error
        return None

    with ThreadPoolExecutor() as pool:
        client_error, server_error = pool.map(use, ends)
    for end in ends:
        end.close()
    return client_error, server_error


def test_the_right_pair_is_accepted(host: Certificate, plugin: Certificate) -> None:
    assert refusals(client_context(host, plugin.der), server_context(plugin, host.der)) == (None, None)
    assert refusals(client_context(host, plugin.pem, ()), server_context(plugin, host.pem, ())) == (None, None)


def test_a_foreign_client_is_refused_and_told(host: Certificate, plugin: Certificate) -> None:
    foreign = generate_certificate()
    ours, theirs = refusals(client_context(foreign, plugin.der), server_context(plugin, host.der))
    assert isinstance(ours, TLSRefused)
    assert isinstance(theirs, TLSRefused)
    assert "self-signed certificate" in str(theirs)
    assert "unknown ca" in str(ours)


def test_a_client_without_a_certificate_is_refused(host: Certificate, plugin: Certificate) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(cadata=plugin.der)
    ours, theirs = refusals(bare, server_context(plugin, host.der))
    assert isinstance(ours, TLSRefused)
    assert "peer did not return a certificate" in str(theirs)


def test_a_foreign_server_is_refused(host: Certificate, plugin: Certificate) -> None:
    foreign = generate_certificate()
    ours, theirs = refusals(client_context(host, plugin.der), server_context(foreign, host.der))
    assert isinstance(ours, TLSRefused)
    assert "self-signed certificate" in str(ours)
    assert isinstance(theirs, TLSRefused)


def test_an_expired_certificate_is_refused_on_either_side(host: Certificate, plugin: Certificate) -> None:
    old = custom_certificate(age=10)
    ours, _ = refusals(client_context(host, old.der), server_context(old, host.der))
    assert "certificate has expired" in str(ours)
    _, theirs = refusals(client_context(old, plugin.der), server_context(plugin, old.der))
    assert "certificate has expired" in str(theirs)


def test_a_certificate_for_another_name_is_refused(host: Certificate) -> None:
    other = custom_certificate(host="example.org")
    ours, theirs = refusals(client_context(host, other.der), server_context(other, host.der))
    assert isinstance(ours, TLSRefused)
    assert "Hostname mismatch" in str(ours)
    assert isinstance(theirs, TLSRefused)


@pytest.mark.parametrize("old_end", ["client", "server"])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_tls_1_1_is_refused(host: Certificate, plugin: Certificate, old_end: str) -> None:
    contexts = {"client": client_context(host, plugin.der), "server": server_context(plugin, host.der)}
    contexts[old_end].minimum_version = ssl.TLSVersion.TLSv1
    contexts[old_end].maximum_version = ssl.TLSVersion.TLSv1_1
    contexts[old_end].set_ciphers("ALL:@SECLEVEL=0")
    ours, theirs = refusals(contexts["client"], contexts["server"])
    assert isinstance(ours, TLSRefused)
    assert isinstance(theirs, TLSRefused)


def test_a_peer_that_does_not_speak_tls_is_refused(host: Certificate, plugin: Certificate) -> None:
    near, far = socket_pair()
    ours = TLSStream(near, client_context(host, plugin.der), "localhost")
    far.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    for _ in range(2):
        with pytest.raises(TLSRefused, match="wrong version number"):
            ours.handshake()
    with pytest.raises(TLSRefused):
        ours.send(b"x")
    ours.close()
    far.close()


def test_a_peer_that_hangs_up_during_the_handshake_is_named(host: Certificate, plugin: Certificate) -> None:
    near, far = socket_pair()
    ours = TLSStream(near, client_context(host, plugin.der), "localhost")
    far.close_write()
    with pytest.raises(StreamReset, match="does it speak TLS"):
        ours.receive()
    ours.close()
    far.close()


def test_a_silent_peer_runs_into_the_handshake_deadline(host: Certificate, plugin: Certificate) -> None:
    near, far = socket_pair()
    ours = TLSStream(near, client_context(host, plugin.der), "localhost", handshake_timeout=0.02)
    assert not ours.readable()
    assert not ours.writable()
    with pytest.raises(TLSRefused, match=r"not done within 0\.02 s"):
        ours.send(b"x")
    with pytest.raises(TLSRefused):
        ours.receive()
    ours.close()
    far.close()


def test_close_ends_a_handshake(host: Certificate, plugin: Certificate, pool: ThreadPoolExecutor) -> None:
    near, far = socket_pair()
    ours = TLSStream(near, client_context(host, plugin.der), "localhost")
    shaking = pool.submit(ours.handshake)
    time.sleep(0.01)
    ours.close()
    with pytest.raises(StreamClosed):
        shaking.result(5)
    far.close()


def test_a_stranger_neither_holds_up_nor_harms_a_listener(host: Certificate, plugin: Certificate) -> None:
    listener = TLSListener(listen_unix(), server_context(plugin, host.der), handshake_timeout=1.0)
    silent = connect(listener.network, listener.address)
    stranger = listener.accept(timeout=5)
    ours = TLSStream(connect(listener.network, listener.address), client_context(host, plugin.der), "localhost")
    theirs = listener.accept(timeout=5)
    thread = threading.Thread(target=lambda: theirs.send(b"welcome"))
    thread.start()
    assert ours.receive(timeout=5) == b"welcome"
    thread.join()
    with pytest.raises(TLSRefused):
        stranger.receive()
    for stream in (silent, stranger, ours, theirs):
        stream.close()
    listener.close()


# No key is left anywhere


@pytest.mark.parametrize("memory_files", [True, False])
def test_no_key_file_is_left(
    host: Certificate, plugin: Certificate, monkeypatch: pytest.MonkeyPatch, memory_files: bool
) -> None:
    if not memory_files:
        monkeypatch.delattr(os, "memfd_create")
    client_context(host, plugin.der)
    assert os.listdir(tempfile.gettempdir()) == []
    broken = Certificate(host.pem, host.der, b"no key")
    with pytest.raises(ssl.SSLError):
        client_context(broken, plugin.der)
    assert os.listdir(tempfile.gettempdir()) == []


# Against Go's crypto/tls


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("alpn", ["h2", ""])
def test_our_client_with_a_go_server(
    go_peer: Callable[..., Any], host: Certificate, version: str, alpn: str, pool: ThreadPoolExecutor,
    receive_all: ReceiveAll,
) -> None:  # fmt: skip
    address = os.path.join(tempfile.gettempdir(), "socket")
    peer = go_peer("tlspeer", "-role=server", f"-address={address}", f"-alpn={alpn}", f"-max-version={version}")
    context = client_context(host, from_line(peer.line()), (alpn,) if alpn else ())
    peer.tell(host.pem.decode() + "END\n")
    assert peer.line() == "listening"
    ours = TLSStream(connect("unix", address), context, "localhost")
    data = os.urandom(2_000_000)
    received = pool.submit(receive_all, ours)
    ours.send(data)
    ours.close_write()
    assert received.result() == data
    assert peer.report() == {"version": f"TLS {version}", "alpn": alpn, "echoed": len(data), "error": ""}
    ours.close()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("alpn", ["h2", ""])
def test_our_server_with_a_go_client(go_peer: Callable[..., Any], plugin: Certificate, version: str, alpn: str) -> None:
    below = listen_unix()
    peer = go_peer("tlspeer", "-role=client", f"-address={below.address}", f"-alpn={alpn}", f"-max-version={version}")
    listener = TLSListener(below, server_context(plugin, from_line(peer.line()), (alpn,) if alpn else ()))
    peer.tell(plugin.pem.decode() + "END\n")
    theirs = listener.accept(timeout=10)
    while data := theirs.receive(timeout=10):
        theirs.send(data)
    theirs.close_write()
    assert peer.report() == {"version": f"TLS {version}", "alpn": alpn, "echoed": 1 << 20, "error": ""}
    theirs.close()
    listener.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-expired"], "certificate has expired"),
        (["-name=example.org"], "Hostname mismatch"),
        (["-max-version=1.1"], "protocol version"),
    ],
)
def test_our_client_refuses_a_wrong_go_server(
    go_peer: Callable[..., Any], host: Certificate, arguments: list[str], words: str
) -> None:
    address = os.path.join(tempfile.gettempdir(), "socket")
    peer = go_peer("tlspeer", "-role=server", f"-address={address}", "-alpn=h2", *arguments)
    context = client_context(host, from_line(peer.line()))
    peer.tell(host.pem.decode() + "END\n")
    assert peer.line() == "listening"
    ours = TLSStream(connect("unix", address), context, "localhost")
    with pytest.raises(TLSRefused, match=words):
        ours.handshake(timeout=5)
    assert peer.report()["error"]
    ours.close()


def test_a_go_server_refuses_a_foreign_client_and_we_say_so(go_peer: Callable[..., Any], host: Certificate) -> None:
    address = os.path.join(tempfile.gettempdir(), "socket")
    peer = go_peer("tlspeer", "-role=server", f"-address={address}", "-alpn=h2")
    context = client_context(generate_certificate(), from_line(peer.line()))
    peer.tell(host.pem.decode() + "END\n")
    assert peer.line() == "listening"
    ours = TLSStream(connect("unix", address), context, "localhost")
    with pytest.raises(TLSRefused, match="refused our side of TLS"):
        ours.receive(timeout=5)
    assert "certificate" in peer.report()["error"]
    ours.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["-expired"], "certificate has expired"), (["-max-version=1.1"], "unsupported protocol")],
)
def test_our_server_refuses_a_wrong_go_client(
    go_peer: Callable[..., Any], plugin: Certificate, arguments: list[str], words: str
) -> None:
    below = listen_unix()
    peer = go_peer("tlspeer", "-role=client", f"-address={below.address}", "-alpn=h2", *arguments)
    listener = TLSListener(below, server_context(plugin, from_line(peer.line())))
    peer.tell(plugin.pem.decode() + "END\n")
    theirs = listener.accept(timeout=10)
    with pytest.raises(TLSRefused, match=words):
        theirs.receive(timeout=5)
    assert peer.report()["error"]
    theirs.close()
    listener.close()


def from_line(text: str) -> bytes:
    import base64

    return base64.b64decode(text + "=" * (-len(text) % 4))


def test_a_broken_connection_keeps_nothing_of_whoever_found_it_broken(pair: Pair) -> None:
    ours, theirs = pair
    theirs._below.close()

    class Held:
        """What a receiver has in hand."""

    def fail() -> weakref.ref[Held]:
        held = Held()
        with pytest.raises(StreamReset, match="without a TLS farewell"):
            ours.receive(timeout=5)
        return weakref.ref(held)

    before = [fail(), fail()]
    gc.collect()
    assert [each() for each in before] == [None, None]
