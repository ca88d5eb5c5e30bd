"""Who has no business at a socket gets nothing there, and whoever has goes on being served.

A stranger runs as the same user, so the file system lets it in; only the certificates of AutoMTLS keep it out.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hybridload.errors import HandshakeError, PluginError
from hybridload.goplugin import Client
from hybridload.goplugin.certificates import Certificate, generate_certificate
from tests.interop.odd_certificates import odd_certificate

NewClient = Callable[..., Client]
HERE = Path(__file__).parent
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)  # the preface and empty settings
PATIENCE = 20.0
ALERT = 21  # the first byte of a TLS record that says why nothing follows

# Plugins that go wrong in one respect.
WRONG = {
    "expired": "certificates.generate_certificate = lambda: odd_certificate(age=10)",
    "another name": "certificates.generate_certificate = lambda: odd_certificate('example.org')",
    "another certificate": """
from hybridload.goplugin import entrance
told, other = entrance.Entrance.line, odd_certificate().der
entrance.Entrance.line = lambda self, version: dataclasses.replace(told(self, version), certificate=other)
""",
    "no certificate": """
from hybridload.goplugin import entrance
told = entrance.Entrance.line
entrance.Entrance.line = lambda self, version: dataclasses.replace(told(self, version), certificate=None)
""",
    "TLS 1.1": """
from hybridload.goplugin.streams import tls
made = tls.server_context
def old(*arguments):
    context = made(*arguments)
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context
tls.server_context = old
""",
}


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., list[str]]:
    """The command of `brokering.py` with lines before it is served, and arguments of `serve`."""

    def make(before: str = "", arguments: str = "") -> list[str]:
        path = tmp_path / "plugin.py"
        path.write_text(
            f"import dataclasses, ssl, sys, warnings; sys.path.insert(0, {str(HERE)!r})\n"
            "warnings.simplefilter('ignore')\n"
            "from hybridload.goplugin import certificates\nfrom odd_certificates import odd_certificate\n"
            f"{before}\nfrom brokering import *\n"
            f"serve(PLUGINS, {{'torture': Broker(KIND)}}, handshake=HANDSHAKE, {arguments})\n"
        )
        return [sys.executable, str(path)]

    return make


@pytest.fixture(scope="module")
def foreign() -> Certificate:
    return generate_certificate()


@pytest.fixture(scope="module")
def expired() -> Certificate:
    return odd_certificate(age=10)


# Strangers


class Strangers:
    """Come to an address in every way that is not the right one."""

    def __init__(self, network: str, address: str, certificates: dict[str, Certificate], folder: Path) -> None:
        self._where = (network, address)
        self._certificates = certificates
        self._folder = folder
        self._silent = ExitStack()

    def come(self) -> None:
        """All of them, one after the other; one says nothing and stays."""
        self._silent.enter_context(self._connect())
        self._says_plainly(HTTP2)
        self._says_plainly(bytes(range(256)) * 64)
        self._says_plainly(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self._says_plainly(b"\x16\x03\x01\x40\x00" + bytes(0x4000))  # a record that says it is a handshake
        self._connect().close()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            self._comes_with_tls(self._context(version))
            for certificate in self._certificates.values():
                self._comes_with_tls(self._context(version, certificate))
        self._comes_with_tls(self._context(ssl.TLSVersion.TLSv1_1))

    def leave(self) -> None:
        self._silent.close()

    def _connect(self) -> socket.socket:
        network, address = self._where
        stranger = socket.socket(socket.AF_UNIX if network == "unix" else socket.AF_INET)
        stranger.settimeout(PATIENCE)
        host, _, port = address.rpartition(":")
        stranger.connect(address if network == "unix" else (host, int(port)))
        return stranger

    def _says_plainly(self, words: bytes) -> None:
        with self._connect() as stranger:
            received = bytearray()
            try:
                stranger.sendall(words)
                stranger.shutdown(socket.SHUT_WR)
                while chunk := stranger.recv(4096):
                    received += chunk
            except ConnectionError:
                pass
            assert not received or received[0] == ALERT, f"a stranger that said {words[:20]!r} got {bytes(received)!r}"
            assert len(received) < 16

    def _comes_with_tls(self, context: ssl.SSLContext) -> None:
        with self._connect() as stranger:
            try:
                with context.wrap_socket(stranger, server_hostname="localhost") as wrapped:
                    wrapped.sendall(HTTP2)
                    received = wrapped.recv(4096)
            except (ssl.SSLError, ConnectionError):
                return
        assert received == b"", f"a stranger got {received!r}"

    def _context(self, version: ssl.TLSVersion, certificate: Certificate | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        context.minimum_version = min(version, ssl.TLSVersion.TLSv1_2)
        context.maximum_version = version
        if version < ssl.TLSVersion.TLSv1_2:
            context.set_ciphers("ALL:@SECLEVEL=0")
        if certificate is not None:
            path = self._folder / "stranger.pem"
            path.write_bytes(certificate.pem + certificate.key_pem)
            context.load_cert_chain(path)
        return context


@pytest.fixture
def strangers(foreign: Certificate, expired: Certificate, tmp_path: Path) -> Iterator[Callable[..., Strangers]]:
    certificates = {"foreign": foreign, "expired": expired, "another name": odd_certificate("example.org")}
    with ExitStack() as stack:

        def at(network: str, address: str, **more: Certificate) -> Strangers:
            made = Strangers(network, address, {**certificates, **more}, tmp_path)
            stack.callback(made.leave)
            return made

        yield at


OLD_TLS = pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")


@OLD_TLS
@pytest.mark.parametrize("network", ["unix", "tcp"])
def test_strangers_get_nothing_from_a_python_plugin(
    new_client: NewClient,
    program: Callable[..., list[str]],
    brokering: Any,
    strangers: Callable[..., Strangers],
    engine: str,
    network: str,
) -> None:
    command = program(arguments=f"network={network!r}")
    client = new_client(*command, plugins=brokering.PLUGINS, env={"HYBRIDLOAD_ENGINE": engine})
    client.start()
    torture = client.dispense("torture")
    at = client.reattach_config
    strangers(at.network, at.address).come()
    assert torture.echo(b"still here") == b"still here"
    service_id = client.dispense("broker").next_id()
    client.dispense("broker").accept_and_serve(service_id, brokering.greeter("Hello!"))
    assert torture.call_back(service_id, 2) == ["Hello!"] * 2


@OLD_TLS
def test_strangers_get_nothing_from_what_a_host_serves(
    new_client: NewClient, go_plugins: Any, brokering: Any, strangers: Callable[..., Strangers]
) -> None:
    client = new_client(plugins={**go_plugins.plugins, "broker": brokering.BrokerKind()})
    client.start()
    broker, torture = client.dispense("broker"), client.dispense("torture")
    broker_id = broker.next_id()
    served = broker.accept_and_serve(broker_id, brokering.greeter("Hello from the host!"))
    listener = broker.accept(broker.next_id())
    folder = Path(listener.address).parent
    sockets = [str(path) for each in folder.parent.glob("hybridload-*") if each.is_dir() for path in each.iterdir()]
    listener.close()
    assert sockets
    for address in sockets:
        if os.path.exists(address):
            strangers("unix", address).come()
    assert torture.call_back(broker_id, 2) == ["Hello from the host!"] * 2
    served.close()


@OLD_TLS
def test_strangers_get_nothing_from_a_go_plugin_that_goes_on(
    new_client: NewClient, strangers: Callable[..., Strangers]
) -> None:
    client = new_client()
    client.start()
    at = client.reattach_config
    strangers(at.network, at.address).come()
    assert client.dispense("torture").echo(b"still here") == b"still here"


def test_nobody_else_gets_into_a_multiplexed_plugin(
    new_client: NewClient, program: Callable[..., list[str]], brokering: Any, short_path: Path, engine: str
) -> None:
    client = new_client(
        *program(),
        plugins=brokering.PLUGINS,
        multiplex=True,
        unix_socket_dir=short_path,
        env={"HYBRIDLOAD_ENGINE": engine},
    )
    client.start()
    torture = client.dispense("torture")
    assert torture.echo(b"first") == b"first"
    assert not [path for path in short_path.rglob("*") if path.is_socket()]
    assert torture.echo(b"still here") == b"still here"


# Who is not what it says


@pytest.mark.parametrize("wrong", WRONG)
def test_a_host_refuses_a_plugin_with(
    new_client: NewClient, program: Callable[..., list[str]], brokering: Any, wrong: str
) -> None:
    client = new_client(*program(WRONG[wrong]), plugins=brokering.PLUGINS, start_timeout=5.0)
    with pytest.raises(HandshakeError) as caught:
        client.start()
    assert "certificate" in str(caught.value) or "TLS" in str(caught.value)


@pytest.mark.parametrize("language", ["go", "python"])
@pytest.mark.parametrize("multiplex", [False, True], ids=["sockets", "multiplex"])
def test_a_plugin_refuses_a_host_whose_certificate_has_expired(
    new_client: NewClient,
    program: Callable[..., list[str]],
    brokering: Any,
    expired: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    language: str,
    multiplex: bool,
) -> None:
    monkeypatch.setattr("hybridload.goplugin.certificates.generate_certificate", lambda: expired)
    command = program() if language == "python" else []
    client = new_client(*command, multiplex=multiplex, start_timeout=5.0, env={"HYBRIDLOAD_ENGINE": engine})

    def use() -> None:
        client.start()
        client.dispense("torture").echo(b"x")

    with pytest.raises(PluginError) as caught:
        use()
    assert "certificate" in str(caught.value) or "TLS" in str(caught.value)
