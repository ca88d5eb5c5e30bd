"""Serving without a host that starts the program: test mode, and by hand under a debugger."""

from __future__ import annotations

import io
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from hybridload.contract import Contract
from hybridload.errors import ConfigError, ContractError, PluginCrashed
from hybridload.goplugin import Client, ReattachConfig, ServeTest
from hybridload.goplugin.serve import serve
from hybridload.handshake import Handshake
from hybridload.testing import in_this_process

HANDSHAKE = Handshake("SERVE_HERE", "hello", 3)
PATIENCE = 20.0


class Greeter(Protocol):
    def greet(self, name: str = "you") -> str: ...
    def fail(self) -> None: ...
    def count(self, to: int) -> Iterator[int]: ...
    def wait(self) -> None: ...


class Hello:
    def __init__(self) -> None:
        self.closed = 0
        self.entered = threading.Event()
        self.free = threading.Event()

    def greet(self, name: str = "you") -> str:
        print(f"greeting {name}")
        print("to stderr", file=sys.stderr)
        return f"Hello, {name}!"

    def fail(self) -> None:
        raise LookupError("nowhere")

    def count(self, to: int) -> Iterator[int]:
        yield from range(to)

    def wait(self) -> None:
        self.entered.set()
        self.free.wait(PATIENCE)

    def close(self) -> None:
        self.closed += 1


PLUGINS = {"greeter": Contract(Greeter)}


@pytest.mark.parametrize("engine", ["direct", "grpcio"])
def test_a_plugin_and_its_host_in_one_process(engine: str) -> None:
    hello = Hello()
    with in_this_process(PLUGINS, {"greeter": hello}, serve_options={"engine": engine}, engine=engine) as client:
        greeter = client.dispense("greeter")
        assert greeter.greet("Ada") == "Hello, Ada!"
        assert list(greeter.count(3)) == [0, 1, 2]
        with pytest.raises(LookupError, match="nowhere"):
            greeter.fail()
        assert client.pid == os.getpid()
        client.ping()
        assert hello.closed == 0
    assert hello.closed == 1
    assert client.exited is False


def test_what_is_wrong_with_the_implementations_is_raised_where_they_are_given() -> None:
    with pytest.raises(ContractError, match="greet"):
        with in_this_process(PLUGINS, {"greeter": object()}):
            pytest.fail("it was served")
    with pytest.raises(ConfigError, match="lacks 'greeter'"):
        with in_this_process(PLUGINS, {}):
            pytest.fail("it was served")


def test_the_process_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    descriptor = os.fstat(1)
    # What was meant for somebody else in this process is neither read nor taken away.
    monkeypatch.setenv("PLUGIN_CLIENT_CERT", "no certificate")
    monkeypatch.setenv("PLUGIN_PROTOCOL_VERSIONS", "77")
    seen: list[bool] = []

    def stop(config: ReattachConfig) -> None:
        now = sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        seen.append(now == before and os.path.samestat(os.fstat(1), descriptor))
        test.cancel.set()

    test = ServeTest(on_reattach=stop)
    serve(PLUGINS, {"greeter": Hello()}, handshake=HANDSHAKE, test=test)  # in the main thread
    assert seen == [True]
    assert test.closed.is_set()
    assert os.environ["PLUGIN_CLIENT_CERT"] == "no certificate"


@pytest.mark.parametrize("sync_stdio", [False, True])
def test_printed_output_goes_where_it_went_and_to_the_host_if_wanted(
    capsys: pytest.CaptureFixture[str], sync_stdio: bool
) -> None:
    out, err = io.StringIO(), io.StringIO()
    with in_this_process(
        PLUGINS, {"greeter": Hello()}, sync_stdio=sync_stdio, sync_stdout=out, sync_stderr=err
    ) as client:
        client.dispense("greeter").greet("Zoë")
    captured = capsys.readouterr()
    assert captured.out == "greeting Zoë\n"
    assert captured.err == "to stderr\n"
    assert out.getvalue() == ("greeting Zoë\n" if sync_stdio else "")
    assert err.getvalue() == ("to stderr\n" if sync_stdio else "")


def test_the_end_comes_from_outside_and_calls_in_flight_are_told() -> None:
    hello = Hello()
    configs: queue.SimpleQueue[ReattachConfig] = queue.SimpleQueue()
    test = ServeTest(on_reattach=configs.put)
    thread = threading.Thread(
        target=serve, args=(PLUGINS, {"greeter": hello}), kwargs={"handshake": HANDSHAKE, "test": test}
    )
    thread.start()
    config = configs.get(timeout=PATIENCE)
    assert config == ReattachConfig("grpc", 3, "unix", config.address, os.getpid(), True, config.started)
    with Client.reattach(config, plugins=PLUGINS, handshake=HANDSHAKE) as client:
        errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

        def call() -> None:
            try:
                client.dispense("greeter").wait()
            except BaseException as error:
                errors.put(error)

        caller = threading.Thread(target=call)
        caller.start()
        assert hello.entered.wait(PATIENCE)
        assert not test.closed.is_set()
        test.cancel.set()
        assert isinstance(errors.get(timeout=PATIENCE), PluginCrashed)
        hello.free.set()
        caller.join()
    thread.join(PATIENCE)
    assert test.closed.is_set()
    assert not Path(config.address).exists()


def test_hosts_come_and_go_and_never_end_it() -> None:
    with in_this_process(PLUGINS, {"greeter": Hello()}, handshake=HANDSHAKE) as client:
        config = client.reattach_config
        for _ in range(3):
            with Client.reattach(config, plugins=PLUGINS, handshake=HANDSHAKE) as other:
                assert other.dispense("greeter").greet() == "Hello, you!"
        assert client.dispense("greeter").greet() == "Hello, you!"


def test_the_lowest_version_is_served_or_the_one_that_is_wanted() -> None:
    versions = {1: PLUGINS, 4: PLUGINS}
    implementations: dict[int, dict[str, object]] = {1: {"greeter": Hello()}, 4: {"greeter": Hello()}}
    for wanted, served in ((None, 1), (4, 4)):
        with in_this_process(versions, implementations, version=wanted) as client:
            assert client.app_version == served
    with pytest.raises(ConfigError, match="has version 7, and the plugin set 1, 4"):
        with in_this_process(versions, implementations, version=7):
            pytest.fail("it was served")


def test_tcp() -> None:
    with in_this_process(PLUGINS, {"greeter": Hello()}, serve_options={"network": "tcp"}) as client:
        assert client.reattach_config.network == "tcp"
        assert client.dispense("greeter").greet() == "Hello, you!"


# By hand

PROGRAM = """
import os, sys
from typing import Protocol
from hybridload import Handshake, serve

class Greeter(Protocol):
    def greet(self) -> str: ...

class Hello:
    def greet(self):
        print("greeting")
        return f"Hello from {os.getpid()}!"
    def close(self):
        print("closing")

serve({"greeter": Greeter}, {"greeter": Hello()}, handshake=Handshake("BY_HAND", "hello"), debug=DEBUG)
print("the end")
"""


class Simple(Protocol):
    def greet(self) -> str: ...


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def begin(debug: str) -> subprocess.Popen[str]:
        path = tmp_path / "greeter_program.py"
        path.write_text(PROGRAM.replace("DEBUG", debug))
        started.append(
            subprocess.Popen(
                [sys.executable, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def announced(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the plugin says is to be set, as a shell would read it."""
    assert process.stdout is not None
    for line in process.stdout:
        found = re.fullmatch(r"\s+(HYBRIDLOAD_REATTACH=.*)\n", line)
        if found is not None:
            (assignment,) = shlex.split(found[1])
            value: dict[str, Any] = json.loads(assignment.partition("=")[2])
            return value
    raise AssertionError(process.communicate(timeout=PATIENCE)[1])


@pytest.mark.parametrize(("debug", "name"), [("True", "greeter_program"), ("'hello'", "hello")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_by_hand_until_it_is_interrupted(start: Start, debug: str, name: str, number: int) -> None:
    process = start(debug)
    value = announced(process)
    assert list(value) == [name]
    config = ReattachConfig.from_json(json.dumps(value[name]))
    assert (config.pid, config.test, config.protocol, config.protocol_version) == (process.pid, True, "grpc", 1)
    plugins = {"greeter": Contract(Simple, service="proto.GreeterService")}
    printed = io.StringIO()
    for _ in range(2):
        with Client.reattach(
            config, plugins=plugins, handshake=Handshake("BY_HAND", "hello"), sync_stdout=printed
        ) as client:
            assert client.dispense("greeter").greet() == f"Hello from {process.pid}!"
    assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    # It is in the terminal as well.
    assert out.split() == ["greeting", "greeting", "closing", "the", "end"]
    assert printed.getvalue() == "greeting\ngreeting\n"
    assert not Path(config.address).exists()


def test_serve_mux_serves_the_plugin_that_its_argument_names(tmp_path: Path) -> None:
    program = tmp_path / "both.py"
    program.write_text(
        "from functools import partial\nfrom typing import Protocol\n"
        "from hybridload import Contract, Handshake, serve\nfrom hybridload.goplugin import serve_mux\n"
        "class Simple(Protocol):\n    def greet(self) -> str: ...\n"
        "class Says:\n    def __init__(self, words): self.words = words\n    def greet(self): return self.words\n"
        "shake = Handshake('BOTH', 'yes')\n"
        "plugins = {'greeter': Contract(Simple, service='proto.GreeterService')}\n"
        "serve_mux({n: partial(serve, plugins, {'greeter': Says(n)}, handshake=shake) for n in ('one', 'two')})\n"
    )
    plugins = {"greeter": Contract(Simple, service="proto.GreeterService")}
    for name in ("one", "two"):
        with Client([sys.executable, program, name], plugins=plugins, handshake=Handshake("BOTH", "yes")) as client:
            assert client.dispense("greeter").greet() == name
    for arguments, words in (([], "starts it with the name of one"), (["six"], "holds no plugin 'six'")):
        done = subprocess.run(
            [sys.executable, program, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 1
        assert words in done.stderr
        assert "Its plugins are: one, two." in done.stderr
        assert done.stdout == ""
