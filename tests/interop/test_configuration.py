"""What a host can configure of its plugins and a plugin of itself, each with a real plugin at the other end."""

from __future__ import annotations

import dataclasses
import grp
import io
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from hybridload.errors import ConfigError, ExitedBeforeHandshake, RemoteError
from hybridload.goplugin import Client, cleanup_clients, discover
from hybridload.goplugin.grpc.handlers import ServiceHandler, method_handler
from hybridload.goplugin.lifetime import Lifetime
from hybridload.goplugin.process import ProcessSpec
from hybridload.goplugin.runner import LocalRunner, RunningPlugin

PYTHON_PLUGIN = Path(__file__).parent.parent / "goplugin" / "torture_plugin.py"
PATIENCE = 20.0
MIB = 1 << 20


@pytest.fixture
def python_plugin(tmp_path: Path) -> Callable[[str], list[str]]:
    """The torture plugin in Python, with arguments of `serve`."""

    def command(arguments: str = "") -> list[str]:
        path = tmp_path / "plugin.py"
        path.write_text(
            f"import sys; sys.path.insert(0, {str(PYTHON_PLUGIN.parent)!r})\n"
            "from torture_plugin import *\n"
            "kinds = {'greeter': GREETER, 'torture': TORTURE}, {'greeter': GreeterImpl(''), 'torture': TortureImpl()}\n"
            f"serve(*kinds, handshake=HANDSHAKE, {arguments})\n"
        )
        return [sys.executable, str(path)]

    return command


@pytest.fixture
def new(go_build: Callable[[str], Path], go_plugins: Any) -> Iterator[Callable[..., Client]]:
    """Makes clients of `tests/go/greeter`, or of a command, which are killed when the test is over."""
    with ExitStack() as stack:

        def make(*command: str | Path, **options: Any) -> Client:
            client = Client(
                command or [go_build("tests/go/greeter")],
                **{"plugins": go_plugins.plugins, "handshake": go_plugins.handshake, **options},
            )
            stack.callback(client.kill)
            return client

        yield make


# Sockets


def test_tcp_ports_are_taken_from_the_hosts_range(
    new: Callable[..., Client], python_plugin: Callable[[str], list[str]]
) -> None:
    clients = [
        new(*python_plugin("network='tcp'"), min_port=23_400, max_port=23_499, auto_mtls=mtls) for mtls in (True, False)
    ]
    ports = set()
    for client in clients:
        client.start()
        config = client.reattach_config
        assert config.network == "tcp"
        assert client.dispense("greeter").greet()
        ports.add(int(config.address.rpartition(":")[2]))
    assert len(ports) == 2
    assert ports <= set(range(23_400, 23_500))


@pytest.mark.parametrize("language", ["go", "python"])
def test_sockets_are_in_the_folder_and_of_the_group_that_the_host_gives(
    new: Callable[..., Client], python_plugin: Callable[[str], list[str]], short_path: Path, language: str
) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    command = () if language == "go" else python_plugin("")
    client = new(*command, unix_socket_dir=short_path, unix_socket_group=group)
    client.start()
    socket = Path(client.reattach_config.address)
    assert socket.parent.parent == short_path
    found = socket.stat()
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert found.st_gid == os.getgid()
    # Members of the group get in, and nobody else.
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o710
    assert client.dispense("greeter").greet()
    client.kill()
    assert not socket.parent.exists()


@pytest.mark.parametrize("protocol", ["grpc", "netrpc"])
def test_why_a_go_plugin_cannot_listen_is_in_the_error(
    new: Callable[..., Client], short_path: Path, protocol: str
) -> None:
    deep = short_path / ("d" * 100)  # more than a socket's path has room for
    deep.mkdir()
    with pytest.raises(
        ExitedBeforeHandshake, match=r'plugin init error: error="listen unix .*: bind: invalid argument"'
    ):
        new(unix_socket_dir=deep, env={"TORTURE_PROTOCOL": protocol}).start()


# Messages


@pytest.mark.parametrize("engine", ["direct", "grpcio"])
def test_messages_have_the_limit_that_is_set(new: Callable[..., Client], engine: str) -> None:
    size = 20 * MIB
    client = new(env={"TORTURE_MAX_MESSAGE": "unlimited"}, engine=engine)
    client.start()
    assert len(client.dispense("torture").echo(b"x" * size)) == size
    limited = new(
        env={"TORTURE_MAX_MESSAGE": "unlimited"},
        engine=engine,
        channel_options=[("grpc.max_receive_message_length", MIB)],
    )
    limited.start()
    torture = limited.dispense("torture")
    assert len(torture.echo(b"x" * (MIB // 2))) == MIB // 2
    with pytest.raises(RemoteError) as caught:
        torture.echo(b"x" * size)
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    limited.ping()


@pytest.mark.parametrize("engine", ["direct", "grpcio"])
def test_a_plugin_may_set_a_limit(
    new: Callable[..., Client], python_plugin: Callable[[str], list[str]], engine: str
) -> None:
    options = "server_options=[('grpc.max_receive_message_length', 1 << 20)]"
    client = new(*python_plugin(options), env={"HYBRIDLOAD_ENGINE": engine})
    client.start()
    torture = client.dispense("torture")
    assert len(torture.echo(b"x" * (MIB // 2))) == MIB // 2
    with pytest.raises(RemoteError) as caught:
        torture.echo(b"x" * (2 * MIB))
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    client.ping()


# Output


def test_a_file_gets_every_byte_of_the_raw_standard_error(new: Callable[..., Client], go_plugins: Any) -> None:
    raw = io.BytesIO()
    client = new(stderr=raw)
    client.start()
    client.dispense("torture").write(target=go_plugins.raw_stderr, text=b"no line feed \xff\x00 and no text")
    client.kill()
    assert b"no line feed \xff\x00 and no text" in raw.getvalue()
    assert b'"@message":"plugin address"' in raw.getvalue()


def test_a_log_line_longer_than_the_buffer_comes_in_pieces(
    new: Callable[..., Client], go_plugins: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = new(log_buffer_size=1000, name="pieces")
    client.start()
    with caplog.at_level(logging.DEBUG):
        client.dispense("torture").write(target=go_plugins.raw_stderr, text=b"y" * 2500 + b"\n")
        client.kill()
    pieces = [record.getMessage() for record in caplog.records if set(record.getMessage()) == {"y"}]
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= 1000
    assert "".join(pieces) == "y" * 2500


# Its life


def test_managed_clients_are_killed_together(new: Callable[..., Client]) -> None:
    managed = [new(managed=True) for _ in range(3)]
    other = new()
    for client in (*managed, other):
        client.start()
    cleanup_clients()
    assert [client.exited for client in managed] == [True, True, True]
    assert not other.exited
    cleanup_clients()
    with pytest.raises(ConfigError):
        new(min_port=2, max_port=1)


class Written:
    """A hand-written plugin that keeps what it was given."""

    def grpc_client(self, broker: Any, channel: Any) -> tuple[Any, Any]:
        return broker, channel

    def grpc_server(self, broker: Any, server: Any) -> None: ...


@pytest.mark.parametrize("ended_by", ["kill", "crash"])
def test_a_hand_written_plugin_is_told_when_its_plugin_ends(new: Callable[..., Client], ended_by: str) -> None:
    client = new(plugins={"torture": Written()})
    client.start()
    broker, channel = client.dispense("torture")
    lifetime: Lifetime = broker.lifetime
    told = threading.Event()
    lifetime.when_ended(told.set)
    assert not lifetime.ended
    if ended_by == "kill":
        client.kill()
    else:
        channel.unary_unary("/torture.Torture/Exit").future(b"\x08\x03", timeout=PATIENCE)
    assert lifetime.wait(PATIENCE)
    assert told.wait(PATIENCE)
    late: list[bool] = []
    lifetime.when_ended(lambda: late.append(True))
    assert late == [True]


# A runner


class ElsewhereRunner(LocalRunner):
    """Runs plugins as if in a container: they know files by paths that mean nothing to the host, relative to theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.translated: list[tuple[str, str]] = []

    def start(self, spec: ProcessSpec, **options: Any) -> RunningPlugin:
        sockets = os.path.relpath(spec.env["PLUGIN_UNIX_SOCKET_DIR"], self.folder)
        env = {**spec.env, "PLUGIN_UNIX_SOCKET_DIR": sockets}
        return super().start(dataclasses.replace(spec, env=env, cwd=str(self.folder)), **options)

    def plugin_to_host(self, network: Any, address: str) -> tuple[Any, str]:
        assert not os.path.isabs(address)
        self.translated.append(("inwards", address))
        return network, os.path.normpath(self.folder / address)

    def host_to_plugin(self, network: str, address: str) -> tuple[str, str]:
        assert os.path.isabs(address)
        self.translated.append(("outwards", address))
        return network, os.path.relpath(address, self.folder)

    def diagnose(self) -> str:
        return "The container had no memory left."


@pytest.mark.parametrize("engine", ["direct", "grpcio"])
@pytest.mark.parametrize("flags", [{}, {"auto_mtls": False}, {"multiplex": True}], ids=["mtls", "plain", "multiplex"])
def test_a_runner_translates_addresses_both_ways(
    new: Callable[..., Client], tmp_path: Path, flags: dict[str, bool], engine: str
) -> None:
    runner = ElsewhereRunner(tmp_path)
    client = new(runner=runner, plugins={"torture": Written()}, engine=engine, **flags)
    client.start()
    broker, channel = client.dispense("torture")
    # The plugin dials what the host accepts ...
    greet = method_handler(lambda request, context: b"\n\x05hello")
    accepted = broker.next_id()
    register = ServiceHandler("proto.GreeterService", {"Greet": greet})
    with closing(broker.accept_and_serve(accepted, lambda server: server.add_generic_rpc_handlers((register,)))):
        called = channel.unary_unary("/torture.Torture/CallBack")(bytes([8, accepted, 16, 2]), timeout=PATIENCE)
    assert called.count(b"hello") == 2
    # ... and the other way round.
    offered = channel.unary_unary("/torture.Torture/Offer")(b"\x08\x01", timeout=PATIENCE)
    with broker.dial(offered[-1]) as dialled:
        assert dialled.unary_unary("/proto.GreeterService/Greet")(b"", timeout=PATIENCE)
    ways = {way for way, _ in runner.translated}
    assert ways == ({"inwards"} if "multiplex" in flags else {"inwards", "outwards"})


def test_a_runners_diagnosis_is_part_of_the_error(
    new: Callable[..., Client], go_build: Callable[[str], Path], tmp_path: Path
) -> None:
    client = new(go_build("tests/go/badplugins"), "exit", "7", runner=ElsewhereRunner(tmp_path))
    with pytest.raises(ExitedBeforeHandshake, match="had no memory left"):
        client.start()


# Discovery


def test_programs_are_discovered_by_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, mode in (("greeter-b", 0o755), ("greeter-a", 0o755), ("greeter-notes", 0o644), ("other", 0o755)):
        path = tmp_path / name
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
    (tmp_path / "greeter-folder").mkdir()
    assert discover("greeter-*", tmp_path) == [tmp_path / "greeter-a", tmp_path / "greeter-b"]
    monkeypatch.chdir(tmp_path)
    assert discover("greeter-*") == [tmp_path / "greeter-a", tmp_path / "greeter-b"]
    assert discover("greeter-*", tmp_path / "none") == []
    for pattern in ("", "/bin/*"):
        with pytest.raises(ValueError, match="glob"):
            discover(pattern, tmp_path)
