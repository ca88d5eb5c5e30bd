"""go-plugin's own tests, from the other side: their helper processes are plugins that a host has to cope with.

`go test -c` builds them into one binary; a mode is one plugin, good or bad. Each row below is one of the uses that
client_test.go of v1.8.0 makes of a mode, with the outcome that Go's client has there. Where Go's `Start` succeeds
because it only parses the line, ours has connected as well, so a line that leads nowhere is an error here.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import signal
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import pytest

from hybridload import Contract, Field, Handshake
from hybridload.errors import (
    ChecksumMismatch,
    ExitedBeforeHandshake,
    HandshakeError,
    PluginClosed,
    PluginCrashed,
    PluginError,
    StartTimeout,
    UnrecognizedOutput,
    VersionMismatch,
)
from hybridload.goplugin import Client
from hybridload.goplugin.reattach import ReattachConfig
from hybridload.goplugin.transport import TLS

GO_PLUGIN = "github.com/hashicorp/go-plugin"
HANDSHAKE = Handshake("TEST_MAGIC_COOKIE", "test")
PATIENCE = 20.0  # seconds


class PingPong(Protocol):
    def ping(self) -> str: ...


class Doubler(Protocol):
    """Their testInterface, with the messages of their test/grpc/test.proto."""

    def double(self, value: int) -> Annotated[int, Field(2)]: ...
    def print_KV(self, key: str, text: str | None = None, number: int | None = None) -> None: ...
    def bidirectional(
        self, peer: Annotated[PingPong, Contract(PingPong, service="grpctest.PingPong")]
    ) -> Annotated[PingPong, Contract(PingPong, service="grpctest.PingPong")]: ...
    def stream(self, value: Iterator[int]) -> Iterator[Annotated[int, Field(2)]]: ...
    def print_stdio(self, stdout: bytes, stderr: bytes) -> None: ...
    def panic(self, message: str) -> None: ...


TEST = Contract(Doubler, service="grpctest.Test")


class Pong:
    def ping(self) -> str:
        return "pong"


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.all: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.all.append(record)

    def where(self, level: int, text: str) -> list[logging.LogRecord]:
        return [record for record in list(self.all) if record.levelno == level and text in record.getMessage()]


@dataclass
class Bench:
    """What a row has to work with."""

    binary: Path
    folder: Path
    source: str
    engine: str
    records: Records
    stderr: io.BytesIO = field(default_factory=io.BytesIO)
    stdout: io.BytesIO = field(default_factory=io.BytesIO)
    synced: io.BytesIO = field(default_factory=io.BytesIO)
    clients: list[Client] = field(default_factory=list)

    def client(self, mode: str, *arguments: str | Path, versions: tuple[int, ...] = (), **options: Any) -> Client:
        """A client of one mode, as their `helperProcess` starts it.

        With a timeout, so that Go does not take a mode that waits for ever for a deadlock and end it.
        """
        logger = logging.getLogger("hybridload.plugin.conformance")
        kinds = {"test": TEST}
        client = Client(
            [str(self.binary), "-test.run=TestHelperProcess", "-test.timeout=2m", "--", mode, *map(str, arguments)],
            **{
                "plugins": dict.fromkeys(versions, kinds) if versions else kinds,
                "handshake": HANDSHAKE,
                "name": mode,
                "env": {"GO_WANT_HELPER_PROCESS": "1"},
                "auto_mtls": False,
                "allowed_protocols": ("grpc", "netrpc"),
                "start_timeout": 10.0,
                "logger": logger,
                "stderr": self.stderr,
                "sync_stdout": self.stdout,
                "sync_stderr": self.synced,
                "engine": self.engine,
                **options,
            },
        )
        self.clients.append(client)
        return client

    def refused(self, client: Client, error: type[PluginError], says: str | None = None) -> PluginError:
        """Start a client that must not come to terms; nothing is left of it, and it cannot be started again."""
        with pytest.raises(error, match=says) as caught:
            client.start()
        assert client.exited
        with pytest.raises(PluginClosed):
            client.start()
        return caught.value

    @property
    def tls(self) -> TLS:
        """What their helperTLSProvider has: a certificate of the tests' own authority, in the text of the tests."""
        pem = {name: self._constant(name) for name in ("TestClusterCACert", "TestClusterServerCert")}
        pem["TestClusterServerKey"] = self._constant("TestClusterServerKey")
        chain = self.folder / "chain.pem"
        chain.write_text(f"{pem['TestClusterServerCert']}\n{pem['TestClusterServerKey']}\n")
        client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=pem["TestClusterCACert"])
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=pem["TestClusterCACert"])
        for context in (client, server):
            context.load_cert_chain(chain)
            context.set_alpn_protocols(["h2"])
        return TLS(client, server, server_name="127.0.0.1")

    def _constant(self, name: str) -> str:
        found = re.search(rf"{name}\s*=\s*`(.*?)`", self.source, re.DOTALL)
        assert found is not None
        return found[1]


@pytest.fixture
def bench(go_build: Callable[..., Path], go_plugin_folder: Path, tmp_path: Path, engine: str) -> Iterator[Bench]:
    records = Records()
    logger = logging.getLogger("hybridload.plugin.conformance")
    logger.addHandler(records)
    logger.setLevel(1)
    source = (go_plugin_folder / "plugin_test.go").read_text()
    made = Bench(go_build(GO_PLUGIN, tests=True), tmp_path, source, engine, records)
    yield made
    for client in made.clients:
        client.kill()
    logger.removeHandler(records)


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return value


def ends_well(client: Client) -> None:
    """Killing asks first, and a good plugin does as it is asked."""
    client.kill()
    assert client.exited
    assert client.returncode == 0


def dies(client: Client, dispensed: Any) -> None:
    """The process is killed behind the host's back: whoever calls learns of it, by name."""
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    assert client.wait(PATIENCE)
    with pytest.raises(PluginCrashed):
        dispensed.double(1)


# The rows, by mode and the name of the Go test that has the same outcome


def mock(bench: Bench) -> None:
    bench.refused(bench.client("mock"), HandshakeError, "1234")


def bad_version_is_not_started_by_kill(bench: Bench) -> None:
    booted = bench.folder / "booted"
    client = bench.client("bad-version", booted)
    bench.refused(client, VersionMismatch, "11")
    booted.unlink()
    client.kill()
    assert not booted.exists()


def invalid_rpc_address(bench: Bench) -> None:
    bench.refused(bench.client("invalid-rpc-address"), UnrecognizedOutput, "lolinvalid")


def start_timeout(bench: Bench) -> None:
    bench.refused(bench.client("start-timeout", start_timeout=0.05), StartTimeout)


def unknown_command(bench: Bench) -> None:
    bench.refused(bench.client("no-such-mode"), ExitedBeforeHandshake, 'Unknown command: "no-such-mode"')


def stderr(bench: Bench) -> None:
    bench.refused(bench.client("stderr"), PluginCrashed, "exit status 0")
    assert b"HELLO\n" in bench.stderr.getvalue()
    assert b"WORLD\n" in bench.stderr.getvalue()


def stderr_that_looks_like_json(bench: Bench) -> None:
    bench.refused(bench.client("stderr-json"), PluginCrashed, "exit status 0")
    logged = [record.getMessage() for record in bench.records.all]
    assert [line for line in logged if line in ('["HELLO"]', "12345", '{"a":1}')] == ['["HELLO"]', "12345", '{"a":1}']


def text_with_a_level(bench: Bench) -> None:
    bench.refused(bench.client("level-warn-text"), PluginCrashed, "exit status 0")
    assert bench.records.where(logging.WARNING, "test line 98765")


def stdin_is_the_hosts(bench: Bench) -> None:
    said = bench.folder / "stdin"
    said.write_bytes(b"hello")
    before = os.dup(0)
    try:
        with said.open("rb") as file:
            os.dup2(file.fileno(), 0)
        client = bench.client("stdin")
        bench.refused(client, PluginCrashed, "exit status 0")  # 1 for any other input
    finally:
        os.dup2(before, 0)
        os.close(before)


def host_environment(mode: str, inherit: bool) -> Callable[[Bench], None]:
    def row(bench: Bench) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PLUGIN_TEST_SKIP_HOST_ENV", "foo")
            client = bench.client(mode, inherit_env=inherit)
            # It ends with 1 when the variable was there, or was not, against its mode.
            bench.refused(client, PluginCrashed, "exit status 0")

    return row


def multiplexing_is_refused(mode: str) -> Callable[[Bench], None]:
    def row(bench: Bench) -> None:
        bench.refused(bench.client(mode, multiplex=True), HandshakeError, "multiplex")

    return row


def grpc(bench: Bench) -> None:
    client = bench.client("test-grpc", allowed_protocols=("grpc",))
    client.start()
    assert client.protocol == "grpc"
    tester = client.dispense("test")
    assert tester.double(21) == 42
    client.ping()
    ends_well(client)
    with pytest.raises(PluginClosed):
        client.ping()


def grpc_both_ways(bench: Bench) -> None:
    tester = bench.client("test-grpc").dispense("test")
    assert tester.bidirectional(Pong()).ping() == "pong"
    assert list(tester.stream(iter(range(10)))) == list(range(10))


def grpc_multiplexed(bench: Bench) -> None:
    tester = bench.client("test-grpc", multiplex=True, auto_mtls=True).dispense("test")
    assert tester.bidirectional(Pong()).ping() == "pong"
    assert list(tester.stream(iter(range(10)))) == list(range(10))


def grpc_crash(bench: Bench) -> None:
    client = bench.client("test-grpc")
    dies(client, client.dispense("test"))


def grpc_not_allowed(bench: Bench) -> None:
    bench.refused(bench.client("test-grpc", allowed_protocols=("netrpc",)), HandshakeError, "speaks grpc")


def grpc_sync_stdio(bench: Bench) -> None:
    client = bench.client("test-grpc")
    client.dispense("test").print_stdio(b"hello\nworld!", b"and some error\n messages!")
    eventually(lambda: bench.stdout.getvalue() and bench.synced.getvalue())
    assert client.reattach_config.pid == client.pid
    ends_well(client)
    assert bench.stdout.getvalue() == b"hello\nworld!"
    assert bench.synced.getvalue() == b"and some error\n messages!"


def grpc_reattach(bench: Bench) -> None:
    first = bench.client("test-grpc", outlive_host=True)
    first.start()
    attach = ReattachConfig.from_json(first.reattach_config.to_json())
    second = Client.reattach(attach, plugins={"test": TEST}, handshake=HANDSHAKE, auto_mtls=False, engine=bench.engine)
    bench.clients.append(second)
    assert second.dispense("test").double(21) == 42
    second.kill()
    assert second.exited
    assert first.wait(PATIENCE)
    assert first.returncode == 0


def grpc_over_tls(bench: Bench) -> None:
    client = bench.client("test-grpc-tls", tls=bench.tls)
    tester = client.dispense("test")
    assert tester.double(21) == 42
    assert tester.bidirectional(Pong()).ping() == "pong"
    ends_well(client)


def grpc_over_tls_without(bench: Bench) -> None:
    bench.refused(bench.client("test-grpc-tls", start_timeout=3.0), HandshakeError)


def grpc_mtls(bench: Bench) -> None:
    client = bench.client("test-mtls", versions=(2,), auto_mtls=True)
    tester = client.dispense("test")
    assert client.app_version == 2
    assert tester.double(3) == 6
    dies(client, tester)


def grpc_logger(bench: Bench) -> None:
    client = bench.client("test-interface-logger-grpc")
    tester = client.dispense("test")
    tester.print_KV("foo", text="bar")
    tester.print_KV("foo", number=12)
    records = eventually(lambda: len(found := bench.records.where(logging.INFO, "PrintKV called")) == 2 and found)
    assert [record.foo for record in records] == ["bar", 12]
    ends_well(client)


def grpc_panic(bench: Bench) -> None:
    client = bench.client("test-interface-logger-grpc")
    with pytest.raises(PluginCrashed, match="invalid foo bar"):
        client.dispense("test").panic("invalid foo bar")
    assert bench.records.where(logging.ERROR, "panic: invalid foo bar")
    assert len(bench.records.where(logging.ERROR, "")) >= 10  # the stack


def versioned(bench: Bench) -> None:
    client = bench.client("test-versioned-plugins", versions=(2,), tls=bench.tls)
    tester = client.dispense("test")
    assert (client.protocol, client.app_version) == ("grpc", 2)
    dies(client, tester)


def versioned_without_a_common_version(bench: Bench) -> None:
    bench.refused(bench.client("test-versioned-plugins"), VersionMismatch, "2")


def new_server_takes_an_old_kind_of_host(bench: Bench) -> None:
    client = bench.client("test-proto-upgraded-client", versions=(2,), tls=bench.tls)
    assert client.dispense("test").double(21) == 42
    assert client.app_version == 2


def new_server_wants_tls(bench: Bench) -> None:
    bench.refused(bench.client("test-proto-upgraded-client", versions=(2,), start_timeout=3.0), HandshakeError)


def wrong_protocol_for_the_version(bench: Bench) -> None:
    bench.refused(bench.client("test-proto-upgraded-plugin", allowed_protocols=("grpc",)), HandshakeError, "netrpc")


def the_highest_version_is_grpc(bench: Bench) -> None:
    client = bench.client("test-proto-upgraded-plugin", versions=(1, 2), tls=bench.tls)
    assert client.dispense("test").double(21) == 42
    assert (client.protocol, client.app_version) == ("grpc", 2)


class NetRPCDoubler(Protocol):
    """Their testInterface as far as it goes over net/rpc."""

    def double(self, value: int) -> int: ...
    def print_KV(self, key: str, value: str) -> None: ...


NETRPC_TEST = Contract(NetRPCDoubler)


def netrpc_client(bench: Bench, mode: str, *arguments: str | Path, **options: Any) -> Client:
    return bench.client(mode, *arguments, plugins={"test": NETRPC_TEST}, **options)


def netrpc(bench: Bench) -> None:
    client = netrpc_client(bench, "test-interface")
    assert client.dispense("test").double(21) == 42
    assert client.protocol == "netrpc"
    client.ping()
    ends_well(client)
    with pytest.raises(PluginClosed):
        client.ping()


def netrpc_crash(bench: Bench) -> None:
    client = netrpc_client(bench, "test-interface")
    dies(client, client.dispense("test"))


def netrpc_reattach(bench: Bench) -> None:
    first = netrpc_client(bench, "test-interface", outlive_host=True)
    first.start()
    attach = ReattachConfig.from_json(first.reattach_config.to_json())
    second = Client.reattach(attach, plugins={"test": NETRPC_TEST}, handshake=HANDSHAKE, auto_mtls=False)
    bench.clients.append(second)
    assert second.dispense("test").double(21) == 42
    second.kill()
    assert second.exited
    assert first.wait(PATIENCE)
    assert first.returncode == 0


def netrpc_wrong_checksum(bench: Bench) -> None:
    client = netrpc_client(bench, "test-interface", sha256="31" * 32)
    with pytest.raises(ChecksumMismatch):
        client.start()
    assert client.pid is None


def netrpc_right_checksum(bench: Bench) -> None:
    digest = hashlib.sha256(bench.binary.read_bytes()).hexdigest()
    assert netrpc_client(bench, "test-interface", sha256=digest).dispense("test").double(21) == 42


def netrpc_cleanup(bench: Bench) -> None:
    output = bench.folder / "output"
    client = netrpc_client(bench, "cleanup", output)
    client.start()
    ends_well(client)
    assert output.read_text() == "foo"
    assert not bench.records.where(logging.ERROR, "")


def netrpc_daemon(bench: Bench) -> None:
    assert netrpc_client(bench, "test-interface-daemon").dispense("test").double(21) == 42


def netrpc_over_tls(bench: Bench) -> None:
    client = netrpc_client(bench, "test-interface-tls", tls=bench.tls)
    assert client.dispense("test").double(21) == 42
    ends_well(client)


def netrpc_over_tls_without(bench: Bench) -> None:
    bench.refused(netrpc_client(bench, "test-interface-tls", start_timeout=3.0), HandshakeError)


def netrpc_mtls(bench: Bench) -> None:
    client = bench.client("test-interface-mtls", plugins={0: {"test": NETRPC_TEST}}, auto_mtls=True)
    tester = client.dispense("test")
    assert tester.double(3) == 6
    dies(client, tester)


def netrpc_logger(bench: Bench) -> None:
    client = netrpc_client(bench, "test-interface-logger-netrpc")
    tester = client.dispense("test")
    tester.print_KV("foo", "bar")
    records = eventually(lambda: bench.records.where(logging.INFO, "PrintKV called"))
    assert [record.foo for record in records] == ["bar"]
    ends_well(client)


def old_version_wants_tls(bench: Bench) -> None:
    client = bench.client("test-proto-upgraded-plugin", plugins={1: {"old": NETRPC_TEST}}, start_timeout=3.0)
    bench.refused(client, HandshakeError)


def old_version_is_netrpc(bench: Bench) -> None:
    client = bench.client("test-proto-upgraded-plugin", plugins={1: {"old": NETRPC_TEST}}, tls=bench.tls)
    assert client.dispense("old").double(21) == 42
    assert (client.protocol, client.app_version) == ("netrpc", 1)


def an_unknown_kind(bench: Bench) -> None:
    client = bench.client("test-interface", plugins={"tset": NETRPC_TEST})
    client.start()
    with pytest.raises(PluginError, match="tset"):
        client.dispense("tset").double(1)


# What happens before a connection is the same for every engine.
BEFORE_CONNECTING: dict[str, list[Callable[[Bench], None]]] = {
    "mock": [mock],
    "bad-version": [bad_version_is_not_started_by_kill],
    "invalid-rpc-address": [invalid_rpc_address],
    "start-timeout": [start_timeout],
    "no-such-mode": [unknown_command],
    "stderr": [stderr],
    "stderr-json": [stderr_that_looks_like_json],
    "level-warn-text": [text_with_a_level],
    "stdin": [stdin_is_the_hosts],
    "test-skip-host-env-true": [host_environment("test-skip-host-env-true", False)],
    "test-skip-host-env-false": [host_environment("test-skip-host-env-false", True)],
    "mux-grpc-with-old-plugin": [multiplexing_is_refused("mux-grpc-with-old-plugin")],
    "mux-grpc-with-unsupported-plugin": [multiplexing_is_refused("mux-grpc-with-unsupported-plugin")],
}
OVER_GRPC: dict[str, list[Callable[[Bench], None]]] = {
    "test-grpc": [grpc, grpc_both_ways, grpc_multiplexed, grpc_crash, grpc_not_allowed, grpc_sync_stdio, grpc_reattach],
    "test-grpc-tls": [grpc_over_tls, grpc_over_tls_without],
    "test-mtls": [grpc_mtls],
    "test-interface-logger-grpc": [grpc_logger, grpc_panic],
    "test-versioned-plugins": [versioned, versioned_without_a_common_version],
    "test-proto-upgraded-client": [new_server_takes_an_old_kind_of_host, new_server_wants_tls],
    "test-proto-upgraded-plugin": [wrong_protocol_for_the_version, the_highest_version_is_grpc],
}
OVER_NETRPC: dict[str, list[Callable[[Bench], None]]] = {
    "cleanup": [netrpc_cleanup],
    "test-interface": [
        netrpc,
        netrpc_crash,
        netrpc_reattach,
        netrpc_wrong_checksum,
        netrpc_right_checksum,
        an_unknown_kind,
    ],
    "test-interface-daemon": [netrpc_daemon],
    "test-interface-tls": [netrpc_over_tls, netrpc_over_tls_without],
    "test-interface-mtls": [netrpc_mtls],
    "test-interface-logger-netrpc": [netrpc_logger],
    "test-proto-upgraded-plugin": [old_version_wants_tls, old_version_is_netrpc],
}


def _rows(rows: Mapping[str, list[Callable[[Bench], None]]], *engines: str) -> list[Any]:
    return [
        pytest.param(engine, row, id=f"{engine}-{mode}-{row.__name__.replace('_', ' ')}")
        for mode, found in rows.items()
        for row in found
        for engine in engines
    ]


@pytest.mark.leaves("files", reason="a plugin of Go's that crashes or is multiplexed leaves its socket file behind")
@pytest.mark.parametrize(
    ("engine", "row"),
    [
        *_rows(BEFORE_CONNECTING, "direct"),
        *_rows(OVER_GRPC, "direct", "grpcio"),
        *_rows(OVER_NETRPC, "direct"),
    ],
)
def test_our_host_copes_as_their_client_does(bench: Bench, row: Callable[[Bench], None]) -> None:
    row(bench)


def test_no_mode_is_forgotten(go_plugin_folder: Path) -> None:
    source = (go_plugin_folder / "plugin_test.go").read_text()
    helper = source[source.index("func TestHelperProcess(") :]
    modes = set(re.findall(r'\tcase "([^"]+)":', helper[: helper.index("\n}\n")]))
    assert modes == (BEFORE_CONNECTING.keys() | OVER_GRPC.keys() | OVER_NETRPC.keys()) - {"no-such-mode"}
