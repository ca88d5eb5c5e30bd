"""Server reflection: a Go tool asks a Python plugin as it asks a Go one, and our client asks both."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from hybridload import Contract
from hybridload.errors import RemoteError
from hybridload.goplugin import Client
from hybridload.goplugin.grpc.reflection_client import NoReflection, ReflectionClient
from hybridload.goplugin.plugins import PluginSet

PYTHON_PLUGIN = Path(__file__).parent.parent / "goplugin" / "torture_plugin.py"
PATIENCE = 60.0

PROTOCOL_SERVICES = {
    "grpc.health.v1.Health": [
        "Check(grpc.health.v1.HealthCheckRequest) returns (grpc.health.v1.HealthCheckResponse)",
        "Watch(grpc.health.v1.HealthCheckRequest) returns (stream grpc.health.v1.HealthCheckResponse)",
    ],
    **{
        f"grpc.reflection.{version}.ServerReflection": [
            f"ServerReflectionInfo(stream grpc.reflection.{version}.ServerReflectionRequest) "
            f"returns (stream grpc.reflection.{version}.ServerReflectionResponse)"
        ]
        for version in ("v1", "v1alpha")
    },
    "plugin.GRPCBroker": ["StartStream(stream plugin.ConnInfo) returns (stream plugin.ConnInfo)"],
    "plugin.GRPCController": ["Shutdown(plugin.Empty) returns (plugin.Empty)"],
    "plugin.GRPCStdio": ["StreamStdio(google.protobuf.Empty) returns (stream plugin.StdioData)"],
}

Start = Callable[..., Client]


@pytest.fixture
def start(go_build: Callable[[str], Path], go_plugins: Any) -> Iterator[Start]:
    """Starts the plugin of a language."""
    with ExitStack() as stack:

        def begin(language: str, **options: Any) -> Client:
            command = [go_build("tests/go/greeter")] if language == "go" else [sys.executable, PYTHON_PLUGIN]
            plugins: PluginSet = {"greeter": go_plugins.plugins["greeter"]}
            client = Client(command, **{"plugins": plugins, "handshake": go_plugins.handshake, **options})
            stack.callback(client.kill)
            client.start()
            return client

        yield begin


def ask(reflector: Path, client: Client, version: str) -> list[dict[str, Any]]:
    config = client.reattach_config
    command = [reflector, config.network, config.address, version]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def reflection_client(client: Client) -> ReflectionClient:
    connection = client._connected()
    return ReflectionClient(connection.channel, connection.rpc_error, plugin=client.name)


@pytest.mark.parametrize("plugin_engine", ["direct", "grpcio"])
@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_a_go_tool_reads_a_python_plugin_as_it_reads_a_go_one(
    go_build: Callable[[str], Path], start: Start, version: str, plugin_engine: str
) -> None:
    reflector = go_build("tests/go/reflector")
    answers = {
        language: ask(reflector, start(language, auto_mtls=False, env={"HYBRIDLOAD_ENGINE": plugin_engine}), version)
        for language in ("go", "python")
    }
    services = {
        language: {each["service"]: each["methods"] for each in told if "service" in each}
        for language, told in answers.items()
    }
    for told in services.values():
        assert PROTOCOL_SERVICES.items() <= told.items()
    own = {name: services["python"][name] for name in services["python"].keys() - PROTOCOL_SERVICES.keys()}
    assert sorted(own) == ["proto.GreeterService", "proto.PythonService", "torture.Torture"]
    assert own["proto.GreeterService"] == ["Greet(proto.GreetRequest) returns (proto.GreetResponse)"]
    assert "Chat(stream torture.ChatRequest) returns (stream torture.ChatResponse)" in own["torture.Torture"]
    assert all(each["host"] == "here" for each in answers["python"] if "service" in each)
    # What is not there is answered in the same way. How many files an answer has depends on what was sent before it.
    odd = {
        language: {
            each["question"]: each.get("code") or each.get("numbers")
            for each in told
            if "question" in each and each["question"] != "nothing"
        }
        for language, told in answers.items()
    }
    assert odd["python"] == odd["go"]
    assert odd["python"]["unknown symbol"] == 5
    assert "code = InvalidArgument" in answers["python"][-1]["error"]


@pytest.mark.parametrize("engine_name", ["direct", "grpcio"])
@pytest.mark.parametrize("language", ["go", "python"])
def test_our_client_reads_both(start: Start, language: str, engine_name: str) -> None:
    asking = reflection_client(start(language, engine=engine_name))
    assert asking.versions() == ("v1", "v1alpha")
    services = asking.services()
    assert {*PROTOCOL_SERVICES, "proto.GreeterService", "torture.Torture"} <= set(services)
    for name in services:
        service = asking.service(name)
        assert service.full_name == name
        assert len(service.methods) > 0
    chat = asking.service("torture.Torture").methods_by_name["Chat"]
    assert chat.client_streaming
    assert chat.server_streaming
    with pytest.raises(RemoteError, match=r"does not describe no\.Such"):
        asking.service("no.Such")


def test_a_server_without_reflection_is_told_apart(
    go_build: Callable[[str], Path], start: Start, go_plugins: Any
) -> None:
    client = Client(
        [go_build("tests/go/bareplugin")],
        plugins={"greeter": go_plugins.plugins["greeter"]},
        handshake=go_plugins.handshake,
        auto_mtls=False,
    )
    with client:
        asking = reflection_client(client)
        assert asking.versions() == ()
        with pytest.raises(NoReflection):
            asking.services()


class Python(Protocol):
    def run(self, code: str) -> str: ...


def test_it_costs_nothing_until_somebody_asks(go_plugins: Any) -> None:
    contract = Contract(Python, service="proto.PythonService")
    look = "import sys; result = 'hybridload.goplugin.grpc.descriptors' in sys.modules"
    with Client([sys.executable, PYTHON_PLUGIN], plugins={"p": contract}, handshake=go_plugins.handshake) as client:
        plugin = client.dispense("p")
        assert plugin.run(look) == "False"
        reflection_client(client).services()
        assert plugin.run(look) == "True"
