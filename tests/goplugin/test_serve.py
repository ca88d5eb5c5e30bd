"""Plugins that `serve` serves, as processes, seen by a host that is written for the purpose or by our own client."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import select
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from hybridload.errors import ConfigError, PluginClosed, PluginCrashed, RemoteError
from hybridload.goplugin.client import Client
from hybridload.goplugin.grpc import messages
from hybridload.goplugin.host_environment import CLIENT_CERT, MULTIPLEX, PROTOCOL_VERSIONS, SOCKET_DIR, SOCKET_GROUP
from hybridload.goplugin.serve import _signals

FOLDER = Path(__file__).parent
PATIENCE = 20.0

spec = importlib.util.spec_from_file_location("torture_plugin", FOLDER / "torture_plugin.py")
assert spec is not None
assert spec.loader is not None
torture_plugin: Any = importlib.util.module_from_spec(spec)
sys.modules["torture_plugin"] = torture_plugin
spec.loader.exec_module(torture_plugin)


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., list[str]]:
    """A plugin's command: the given lines, which may use what `torture_plugin` has."""

    def make(source: str = "main()", before: str = "") -> list[str]:
        path = tmp_path / f"plugin{len(list(tmp_path.iterdir()))}.py"
        lines = (before, f"import sys; sys.path.insert(0, {str(FOLDER)!r})", "from torture_plugin import *", source)
        path.write_text("\n".join(textwrap.dedent(part).strip() for part in lines))
        return [sys.executable, str(path)]

    return make


def environment(**more: str) -> dict[str, str]:
    env = {**os.environ, "BASIC_PLUGIN": "hello", PROTOCOL_VERSIONS: "1", **more}
    env.pop("PYTHONUNBUFFERED", None)
    return {**env, **{key: value for key, value in more.items() if key == "PYTHONUNBUFFERED"}}


class Host:
    """A host that knows nothing but the protocol: starts the command, reads the line, connects."""

    def __init__(self, command: list[str], **more: str) -> None:
        self.process = subprocess.Popen(
            command, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().decode()
        self.fields = self.line.rstrip("\n").split("|")
        self.channel = grpc.insecure_channel(f"unix:{self.fields[3]}") if len(self.fields) > 3 else None

    @property
    def socket(self) -> Path:
        return Path(self.fields[3])

    def call(self, path: str, request: bytes = b"", timeout: float = PATIENCE) -> bytes:
        assert self.channel is not None
        return bytes(self.channel.unary_unary(path)(request, timeout=timeout))

    def stdio(self) -> Any:
        assert self.channel is not None
        return self.channel.unary_stream(messages.STREAM_STDIO, response_deserializer=messages.StdioData.FromString)(
            b"", timeout=PATIENCE
        )

    def shutdown(self) -> int:
        self.call(messages.SHUTDOWN)
        return self.process.wait(PATIENCE)

    def rest(self) -> tuple[str, str]:
        out, err = self.process.communicate(timeout=PATIENCE)
        return out.decode(), err.decode()

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
        # Not killed: that would leave the socket's folder behind.
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def start(program: Callable[..., list[str]]) -> Iterator[Callable[..., Host]]:
    hosts: list[Host] = []

    def begin(source: str = "main()", before: str = "", **more: str) -> Host:
        hosts.append(Host(program(source, before), **more))
        return hosts[-1]

    yield begin
    for host in hosts:
        host.close()


@pytest.fixture
def client(program: Callable[..., list[str]]) -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def begin(source: str = "main()", before: str = "", **options: Any) -> Client:
        command = program(source, before)
        clients.append(
            Client(command, plugins=torture_plugin.PLUGINS, handshake=torture_plugin.HANDSHAKE, name="p", **options)
        )
        clients[-1].start()
        return clients[-1]

    yield begin
    for each in clients:
        each.kill()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


# Before the line


@pytest.mark.parametrize("cookie", [None, "goodbye"], ids=["missing", "wrong"])
def test_without_the_cookie_a_person_is_told_what_this_is(
    program: Callable[..., list[str]], cookie: str | None
) -> None:
    env = environment()
    del env["BASIC_PLUGIN"]
    if cookie is not None:
        env["BASIC_PLUGIN"] = cookie
    done = subprocess.run(program(), env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "is a plugin and is not meant to be executed directly" in done.stderr
    assert "BASIC_PLUGIN" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_line_has_six_fields_and_a_private_socket_that_goes_away(start: Callable[..., Host]) -> None:
    host = start("main()\nprint('after', file=sys.stderr)")
    assert re.fullmatch(r"1\|1\|unix\|/.+\|grpc\|\n", host.line)
    folder = host.socket.parent
    assert folder.name.startswith("hybridload-")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_ISSOCK(host.socket.stat().st_mode)
    assert host.shutdown() == 0
    assert not folder.exists()
    assert "after\n" in host.rest()[1]


@pytest.mark.parametrize("value", ["true", "1", "false", "no"])
def test_whoever_asks_about_multiplexing_learns_that_it_can_be_done(start: Callable[..., Host], value: str) -> None:
    """Go's plugins say so whatever the value is; only a true one has it done."""
    assert start(**{MULTIPLEX: value}).fields[4:] == ["grpc", "", "true"]


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [("1,3", "3"), ("2,1", "2"), ("3,2,1", "3"), ("7,8", "1"), ("", "1"), ("x, 2,,-3", "2"), ("1" * 30, "1")],
)
def test_the_highest_common_version_is_served_and_the_lowest_when_there_is_none(
    start: Callable[..., Host], listed: str, chosen: str
) -> None:
    source = """
    kinds = {"greeter": GREETER}
    served = {"greeter": GreeterImpl()}
    serve({2: kinds, 1: kinds, 3: kinds}, {1: served, 3: served, 2: served}, handshake=HANDSHAKE)
    """
    assert start(source, **{PROTOCOL_VERSIONS: listed}).fields[1] == chosen


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        (CLIENT_CERT, "-----BEGIN CERTIFICATE-----", "The host's certificate in PLUGIN_CLIENT_CERT cannot be read"),
        (
            CLIENT_CERT,
            "-----BEGIN CERTIFICATE-----\udcff",
            "The host's certificate in PLUGIN_CLIENT_CERT cannot be read",
        ),
        (CLIENT_CERT, "\udcff\udcfe", "The host's certificate in PLUGIN_CLIENT_CERT cannot be read"),
        (SOCKET_GROUP, "1" * 14, "there can be no group 11111111111111"),
        (SOCKET_GROUP, "1" * 5000, "there can be no group 1111"),
        (SOCKET_GROUP, str(2**32 - 1), "there can be no group"),
        (SOCKET_GROUP, "\udcff", "group"),
        (SOCKET_DIR, "/no/such/folder", "does not exist"),
        (SOCKET_DIR, "\udcff", "does not exist"),
    ],
)
def test_a_value_of_the_hosts_that_is_none_is_told(
    start: Callable[..., Host], variable: str, value: str, words: str
) -> None:
    host = start(**{variable: value})
    assert host.line == ""
    assert host.process.wait(PATIENCE) == 1
    last = host.rest()[1].splitlines()[-1]
    assert last.startswith("hybridload.errors.")  # raised by `serve`
    assert words in last
    assert variable in last


@pytest.mark.parametrize("group", [0, True, b"root"])
def test_a_group_is_given_as_text(group: Any) -> None:
    words = re.escape(f"unix_socket_group: {group!r} is no group: give its name, or its number")
    with pytest.raises(ConfigError, match=words):
        Client(["true"], plugins=torture_plugin.PLUGINS, handshake=None, unix_socket_group=group).start()


def test_the_socket_is_in_the_folder_of_the_host_when_it_has_one(start: Callable[..., Host], tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    host = start(**{SOCKET_DIR: str(folder)})
    assert host.socket.parent == folder
    assert host.shutdown() == 0
    assert list(folder.iterdir()) == []


def test_a_group_may_use_the_socket_when_the_host_says_so(start: Callable[..., Host]) -> None:
    host = start(**{SOCKET_GROUP: str(os.getgid())})
    assert stat.S_IMODE(host.socket.stat().st_mode) == 0o660
    assert host.socket.stat().st_gid == os.getgid()
    assert stat.S_IMODE(host.socket.parent.stat().st_mode) == 0o710


def test_a_long_temporary_folder_does_not_make_the_path_too_long_for_a_socket(
    start: Callable[..., Host], tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    host = start(TMPDIR=str(deep))
    assert host.fields[4] == "grpc"
    assert host.shutdown() == 0
    assert not host.socket.parent.exists()


def test_the_variables_of_the_protocol_are_not_handed_on_but_the_cookie_is(client: Callable[..., Client]) -> None:
    run = client().dispense("python").run
    found = run("import os; result = sorted(k for k in os.environ if k.startswith(('PLUGIN_', 'BASIC_')))")
    assert found == "['BASIC_PLUGIN']"


@pytest.mark.parametrize("more", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_what_is_printed_before_serving_is_on_stderr_and_spoils_nothing(
    start: Callable[..., Host], more: dict[str, str]
) -> None:
    host = start("print('before')\nmain()", **more)
    assert host.line.startswith("1|1|unix|")
    assert host.shutdown() == 0
    out, err = host.rest()
    assert out == "closing\n" or out == ""  # no stdio stream was there to take it
    assert "before\n" in err


def test_an_error_before_the_line_is_a_traceback_and_a_status(start: Callable[..., Host]) -> None:
    host = start("serve(PLUGINS, {}, handshake=HANDSHAKE)")
    assert host.line == ""
    assert host.process.wait(PATIENCE) == 1
    assert "ConfigError: implementations lacks 'torture'" in host.rest()[1].splitlines()[-1]


def test_a_program_without_standard_output_is_told_so(program: Callable[..., list[str]]) -> None:
    command = " ".join(program())
    done = subprocess.run(
        ["sh", "-c", f"{command} >&-"], env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert "has no standard output" in done.stderr


# Output


def test_prints_in_a_call_reach_the_host_whatever_their_size(client: Callable[..., Client]) -> None:
    out, err = io.BytesIO(), io.BytesIO()
    host = client(sync_stdout=out, sync_stderr=err)
    torture = host.dispense("torture")
    sizes = (1, 64 * 1024, 10 * 1024 * 1024)
    for size in sizes:
        torture.write(torture_plugin.OS_STDOUT, size, 100)
        torture.write(torture_plugin.OS_STDERR, size, 100)
    host.kill()
    expected = b"".join(torture_plugin.pattern(size, 100) for size in sizes)
    assert out.getvalue() == expected + b"closing\n"
    assert err.getvalue() == expected


def test_prints_of_many_threads_lose_nothing(client: Callable[..., Client]) -> None:
    out = io.BytesIO()
    host = client(sync_stdout=out)
    host.dispense("python").run(
        "import threading, sys\n"
        "def work(n):\n"
        "    for i in range(2000): sys.stdout.write(f'{n} {i}\\n')\n"
        "threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]"
    )
    host.kill()
    lines = out.getvalue().decode().splitlines()
    assert sorted(lines) == sorted([f"{n} {i}" for n in range(8) for i in range(2000)] + ["closing"])
    for n in range(8):
        assert [line for line in lines if line.startswith(f"{n} ")] == [f"{n} {i}" for i in range(2000)]


def test_raw_descriptors_and_children_write_to_the_hosts_pipes(client: Callable[..., Client]) -> None:
    out, err = io.BytesIO(), io.BytesIO()
    host = client(sync_stdout=out, sync_stderr=err)
    size = 10 * 1024 * 1024
    assert host.dispense("torture").write(torture_plugin.RAW_STDOUT, size, 100) == size
    assert host.dispense("torture").write(torture_plugin.RAW_STDERR, 1024 * 1024, 100) == 1024 * 1024
    child = (
        "import subprocess, sys; subprocess.run(['echo', 'child'], stdout=sys.stdout, stderr=sys.stderr, check=True)"
    )
    host.dispense("python").run(child)
    host.kill()
    # Our own host treats both ways of standard output alike. They are two ways, so what is printed at the end over one
    # may come before the last of the other.
    assert out.getvalue().count(b"closing\n") == 1
    assert out.getvalue().replace(b"closing\n", b"") == torture_plugin.pattern(size, 100) + b"child\n"
    assert err.getvalue() == b""


def test_the_replaced_streams_are_what_programs_expect(client: Callable[..., Client]) -> None:
    out = io.StringIO()
    host = client(sync_stdout=out)
    run = host.dispense("python").run
    assert run("import sys; result = sys.stdout.fileno(), sys.stderr.fileno()") == "(1, 2)"
    assert run("import sys; result = sys.stdout.isatty(), sys.stdout.encoding, sys.stdout.writable()") == (
        "(False, 'utf-8', True)"
    )
    run("import sys; sys.stdout.reconfigure(line_buffering=True); print('é \\udc80', end='')")
    run("import sys; sys.__stdout__.write('raw\\n'); sys.__stdout__.flush()")
    run("import faulthandler; faulthandler.enable(); faulthandler.disable()")
    host.kill()
    # The raw pipe is another way, so the two may come in any order.
    assert out.getvalue().replace("raw\n", "") == "é \\udc80closing\n"


def test_a_forked_child_has_the_streams_that_were_there_before(client: Callable[..., Client]) -> None:
    out = io.StringIO()
    host = client(sync_stdout=out)
    host.dispense("python").run(
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    print('forked', flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)"
    )
    host.kill()
    assert "forked\n" in out.getvalue()


def test_stdio_goes_on_for_the_next_host(start: Callable[..., Host]) -> None:
    host = start()
    write = torture_plugin.TORTURE.complete().wire().methods["write"].encode_arguments

    def say(text: bytes) -> None:
        host.call("/torture.Torture/Write", write((torture_plugin.OS_STDOUT, 0, 0, text), {}, None))

    first = host.stdio()
    say(b"one")
    assert next(first).data.startswith(b"o")
    first.cancel()
    say(b"two")
    seen = b""
    for chunk in host.stdio():
        seen += chunk.data
        if seen.endswith(b"two"):
            break
    assert b"two" in seen
    assert host.shutdown() == 0


def test_output_is_delivered_before_the_answer_to_shutdown(start: Callable[..., Host]) -> None:
    host = start()
    stdio = host.stdio()
    assert b"Hello" in host.call("/proto.GreeterService/Greet")
    host.call(messages.SHUTDOWN)
    assert [chunk.data for chunk in stdio] == [b"closing\n"]


# Logs


def test_log_records_reach_the_hosts_logging(client: Callable[..., Client], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1)
    host = client()
    host.dispense("torture").log(0, 2, "warn", 0)
    host.kill()
    records = [record for record in caplog.records if record.name.endswith("torture.log")]
    assert [record.getMessage() for record in records] == ["line 0", "line 1"]
    assert {record.levelname for record in records} == {"WARNING"}
    assert records[1].number == 1  # type: ignore[attr-defined]


def test_twenty_thousand_log_records_arrive_in_order(
    client: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    host = client()
    host.dispense("torture").log(0, 20_000, "info", 10)
    host.kill()
    numbers = [record.number for record in caplog.records if hasattr(record, "number")]
    assert numbers == list(range(20_000))


# Calls


def test_exceptions_cross_and_the_plugin_lives_on(client: Callable[..., Client]) -> None:
    torture = client().dispense("torture")
    with pytest.raises(ValueError, match="boom"):
        torture.fail(0, "boom")
    with pytest.raises(RemoteError, match="SystemExit"):
        torture.fail(3, "")
    assert torture.echo(b"alive") == b"alive"


@pytest.mark.leaves("files", reason="a process that ends by os._exit runs nothing of its own any more")
def test_a_plugin_that_exits_in_a_call_has_crashed(client: Callable[..., Client]) -> None:
    host = client()
    with pytest.raises(PluginCrashed) as caught:
        host.dispense("torture").exit(7)
    assert caught.value.returncode == 7


def test_messages_may_be_larger_than_grpc_likes_by_default(client: Callable[..., Client]) -> None:
    data = os.urandom(1024) * (16 * 1024)
    assert client().dispense("torture").echo(data) == data


def test_streams_in_both_directions(client: Callable[..., Client]) -> None:
    torture = client().dispense("torture")
    assert list(torture.count(1000)) == list(range(1000))
    chunks = [b"a", b"b", b"c"]
    assert list(torture.chat(iter(chunks))) == chunks


def cut_off(call: Callable[[], None]) -> None:
    with pytest.raises((PluginCrashed, PluginClosed)):
        call()


def test_a_stuck_call_and_open_streams_starve_nobody(client: Callable[..., Client]) -> None:
    host = client()
    torture = host.dispense("torture")
    streams = [torture.count(2, pause=3600.0) for _ in range(20)]
    assert [next(stream) for stream in streams] == [0] * 20
    for _ in range(20):
        threading.Thread(target=cut_off, args=(torture.hang,), daemon=True).start()
    assert torture.echo(b"x") == b"x"
    host.ping()
    began = time.monotonic()
    host.kill()
    assert time.monotonic() - began < 6


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_async_methods_are_served(client: Callable[..., Client], tmp_path: Path) -> None:
    import asyncio

    python = client().dispense("python")

    async def many() -> list[float]:
        began = time.monotonic()
        results = await asyncio.gather(*(python.async_sleep(0.5, "") for _ in range(20)))
        assert time.monotonic() - began < 8
        return list(results)

    assert asyncio.run(many()) == [0.5] * 20

    async def collect() -> list[int]:
        return [number async for number in python.async_count(100, "")]

    assert asyncio.run(collect()) == list(range(100))


def test_an_async_method_is_cancelled_when_its_caller_goes_away(client: Callable[..., Client], tmp_path: Path) -> None:
    import asyncio

    python = client().dispense("python")
    marks = [tmp_path / "call", tmp_path / "stream"]

    async def leave() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(python.async_sleep(3600.0, str(marks[0])), 0.5)
        stream = python.async_count(10**9, str(marks[1]))
        assert await anext(stream) == 0
        await stream.aclose()

    asyncio.run(leave())
    deadline = time.monotonic() + PATIENCE
    while not all(mark.exists() for mark in marks) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(mark.exists() for mark in marks)


def test_health_knows_the_plugin_and_nobody_else(start: Callable[..., Host]) -> None:
    host = start()
    for name in ("plugin", ""):
        request = messages.HealthCheckRequest(service=name).SerializeToString()
        answer = messages.HealthCheckResponse.FromString(host.call(messages.HEALTH_CHECK, request))
        assert answer.status == messages.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        host.call(messages.HEALTH_CHECK, messages.HealthCheckRequest(service="x").SerializeToString())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_request_that_is_no_message_is_the_callers_fault(start: Callable[..., Host]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        start().call("/torture.Torture/Echo", b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_hand_written_plugin_registers_what_it_likes(start: Callable[..., Host]) -> None:
    source = """
    import grpc

    class Plugin:
        def grpc_client(self, broker, channel): raise NotImplementedError
        def grpc_server(self, broker, server):
            unary = grpc.unary_unary_rpc_method_handler(lambda request, context: request + b"!")
            leave = grpc.unary_unary_rpc_method_handler(lambda request, context: sys.exit(3))
            stream = grpc.unary_stream_rpc_method_handler(lambda request, context: iter([request] * 3))
            handler = grpc.method_handlers_generic_handler("hand.Written", {"Bang": unary, "Leave": leave})
            server.add_generic_rpc_handlers((handler,))
            server.add_registered_method_handlers("hand.Registered", {"Repeat": stream})

    serve({6: {"provider": Plugin()}}, handshake=HANDSHAKE)
    """
    host = start(source, **{PROTOCOL_VERSIONS: "6"})
    assert host.fields[1] == "6"
    assert host.call("/hand.Written/Bang", b"hi") == b"hi!"
    assert host.channel is not None
    assert list(host.channel.unary_stream("/hand.Registered/Repeat")(b"x", timeout=PATIENCE)) == [b"x"] * 3
    with pytest.raises(grpc.RpcError) as caught:
        host.call("/hand.Written/Leave")
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert caught.value.details() == "SystemExit: 3"
    assert host.shutdown() == 0


# The end


def test_a_call_in_flight_ends_and_a_new_one_is_refused(start: Callable[..., Host]) -> None:
    host = start()
    assert host.channel is not None
    sleep = torture_plugin.TORTURE.complete().wire().methods["sleep"].encode_arguments
    call = host.channel.unary_unary("/torture.Torture/Sleep").future(sleep((0.6,), {}, None), timeout=PATIENCE)
    host.call("/proto.GreeterService/Greet")  # the sleep has been sent before
    shutdown = host.channel.unary_unary(messages.SHUTDOWN).future(b"", timeout=PATIENCE)
    refused = None
    while refused is None and not shutdown.done():
        try:
            host.call("/proto.GreeterService/Greet")
        except grpc.RpcError as error:
            refused = error.code()
    assert refused is grpc.StatusCode.UNAVAILABLE
    call.result()
    assert shutdown.result() == b""
    assert host.process.wait(PATIENCE) == 0


def test_a_stuck_call_does_not_keep_the_plugin_alive(start: Callable[..., Host]) -> None:
    host = start()
    assert host.channel is not None
    call = host.channel.unary_unary("/torture.Torture/Hang").future(b"")
    host.call("/proto.GreeterService/Greet")
    began = time.monotonic()
    assert host.shutdown() == 0
    assert time.monotonic() - began < 4
    assert call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=lambda number: number.name)
def test_signals_end_it_in_good_order(start: Callable[..., Host], tmp_path: Path, number: signal.Signals) -> None:
    mark = tmp_path / "mark"
    # What a program ignores from its start is left alone, and tests may be run under nohup.
    default = f"import signal; signal.signal({int(number)}, signal.SIG_DFL)"
    host = start(f"main({str(mark)!r})", default)
    host.process.send_signal(number)
    assert host.process.wait(PATIENCE) == 0
    assert mark.read_text() == "closed"
    assert not host.socket.parent.exists()


def test_a_signal_in_the_middle_of_waiting_for_the_end_is_no_deadlock() -> None:
    ending = threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with _signals(lambda _: ending.set()):
            with ending._cond:  # as `wait` holds it for a moment
                signal.raise_signal(signal.SIGTERM)
            assert ending.wait(PATIENCE)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_interrupts_are_the_hosts_business_but_children_can_be_interrupted(start: Callable[..., Host]) -> None:
    host = start()
    for _ in range(3):
        host.process.send_signal(signal.SIGINT)
    assert b"Hello" in host.call("/proto.GreeterService/Greet")
    encode = torture_plugin.PYTHON.complete().wire().methods["run"]
    code = (
        "import subprocess\n"
        "child = subprocess.run(['grep', 'SigIgn', '/proc/self/status'], capture_output=True, text=True)\n"
        "result = int(child.stdout.split()[1], 16) >> 1 & 1"
    )
    answer = host.call("/proto.PythonService/Run", encode.encode_arguments((code,), {}, None))
    assert encode.decode_result(answer, None) == "0"
    assert host.shutdown() == 0


def test_serving_works_in_another_thread(start: Callable[..., Host]) -> None:
    source = """
    import threading
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    """
    host = start(source)
    assert b"Hello" in host.call("/proto.GreeterService/Greet")
    assert host.shutdown() == 0


def test_nothing_is_left_in_the_process_when_serving_has_ended(start: Callable[..., Host]) -> None:
    source = """
    import gc, logging, signal, threading
    def state():
        gc.collect()
        descriptors = sorted(os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")[:-1])
        handlers = logging.getLogger().handlers, logging.getLogger().level
        signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        threads = [t.name for t in threading.enumerate() if not isinstance(t, threading._DummyThread)]
        return threads, descriptors, repr(handlers), signals, sys.stdout, sys.stderr
    import grpc, asyncio
    before = state()
    main()
    deadline = time.monotonic() + 5
    while state() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    after = state()
    print("same" if after == before else (before, after), file=sys.stderr)
    """
    host = start(source)
    assert b"Hello" in host.call("/proto.GreeterService/Greet")
    assert host.shutdown() == 0
    assert host.rest()[1].splitlines()[-1] == "same"


# The host's death

HOST = """
import os, subprocess, sys, time
wrapper = sys.argv[1]
command = sys.argv[2:]
if wrapper == "shell":
    command = ["sh", "-c", " ".join(command) + "; true"]
plugin = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
print(plugin.stdout.readline().decode(), end="", flush=True)
time.sleep(3600)
"""


class DoomedHost:
    """A host in a process of its own, which is killed; the plugin's pid is asked of the plugin."""

    def __init__(self, command: list[str], tmp_path: Path, wrapper: str = "none") -> None:
        script = tmp_path / "host.py"
        script.write_text(HOST)
        self.process = subprocess.Popen(
            [sys.executable, str(script), wrapper, *command], env=environment(), stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdout is not None
        self.socket = Path(self.process.stdout.readline().decode().split("|")[3])
        self.channel = grpc.insecure_channel(f"unix:{self.socket}")
        wire = torture_plugin.TORTURE.complete().wire().methods["process"]
        answer = self.channel.unary_unary("/torture.Torture/Process")(b"", timeout=PATIENCE)
        self.plugin: int = wire.decode_result(answer, None)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.channel.close()


@pytest.fixture
def doom(program: Callable[..., list[str]], tmp_path: Path) -> Iterator[Callable[..., DoomedHost]]:
    hosts: list[DoomedHost] = []

    def begin(source: str = "main()", wrapper: str = "none") -> DoomedHost:
        hosts.append(DoomedHost(program(source), tmp_path, wrapper))
        return hosts[-1]

    yield begin
    for host in hosts:
        host.close()


@pytest.mark.parametrize("wrapper", ["none", "shell"])
def test_nothing_is_left_of_a_plugin_whose_host_was_killed(
    doom: Callable[..., DoomedHost], tmp_path: Path, wrapper: str
) -> None:
    mark = tmp_path / "mark"
    host = doom(f"main({str(mark)!r})", wrapper)
    host.kill()
    assert gone(host.plugin)
    assert mark.read_text() == "closed"
    assert not host.socket.parent.exists()


def test_a_stuck_call_does_not_keep_a_plugin_alive_whose_host_was_killed(doom: Callable[..., DoomedHost]) -> None:
    host = doom("import threading\nthreading.Thread(target=time.sleep, args=(3600,)).start()\nmain()")
    host.channel.unary_unary("/torture.Torture/Hang").future(b"")
    host.channel.unary_unary("/proto.GreeterService/Greet")(b"", timeout=PATIENCE)
    host.kill()
    assert gone(host.plugin)
    assert not host.socket.parent.exists()


def test_a_host_that_dies_before_the_line_leaves_nothing(program: Callable[..., list[str]], tmp_path: Path) -> None:
    """The plugin is kept from serving by its own code while the host dies."""
    source = """
    class Slow:
        def grpc_client(self, broker, channel): raise NotImplementedError
        def grpc_server(self, broker, server):
            print(os.getpid(), file=sys.stderr, flush=True)
            time.sleep(3600)
    serve({"slow": Slow()}, handshake=HANDSHAKE)
    """
    reader, writer = os.pipe()
    script = "import subprocess, sys, time\nsubprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)\ntime.sleep(3600)"
    host = subprocess.Popen([sys.executable, "-c", script, *program(source)], env=environment(), stderr=writer)
    os.close(writer)
    with os.fdopen(reader) as log:
        plugin = int(log.readline())
        host.kill()
        host.wait()
        assert gone(plugin)


def test_a_plugin_that_may_outlive_its_host_does(doom: Callable[..., DoomedHost]) -> None:
    host = doom("main(outlive_host=True)")
    host.kill()
    greet = host.channel.unary_unary("/proto.GreeterService/Greet")
    write = torture_plugin.TORTURE.complete().wire().methods["write"].encode_arguments
    # Neither the raw pipes, which nobody holds any more, nor log lines hurt it.
    for target in (torture_plugin.OS_STDOUT, torture_plugin.OS_STDERR):
        host.channel.unary_unary("/torture.Torture/Write")(write((target, 100, 0, b""), {}, None), timeout=PATIENCE)
    log = torture_plugin.TORTURE.complete().wire().methods["log"].encode_arguments
    host.channel.unary_unary("/torture.Torture/Log")(log((0, 10, "info", 0), {}, None), timeout=PATIENCE)
    assert b"Hello" in greet(b"", timeout=PATIENCE)
    assert psutil.pid_exists(host.plugin)
    host.channel.unary_unary(messages.SHUTDOWN)(b"", timeout=PATIENCE)
    assert gone(host.plugin)
    assert not host.socket.parent.exists()


def test_a_host_that_reads_nothing_more_is_gone(start: Callable[..., Host]) -> None:
    host = start()
    assert host.process.stdout is not None
    host.process.stdout.close()
    assert host.process.wait(PATIENCE) == 0
    assert host.process.stderr is not None
    assert select.select([host.process.stderr], [], [], 0)
