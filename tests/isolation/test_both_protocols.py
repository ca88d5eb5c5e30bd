"""A Python object in its own process is the same over gRPC and over net/rpc: the same tests hold for both."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hybridload import Loader, deadline
from hybridload.deadlines import limited
from hybridload.errors import CallTimeout, ConfigError, PluginCrashed

from .conftest import Open, in_thread, wait_until

SDK = """
import asyncio, dataclasses, enum, logging, os, signal, sys, time
from collections.abc import Iterator
from datetime import datetime
from typing import Protocol
from hybridload import Contract, Handshake
from hybridload.contract import NetRPC

class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"

@dataclasses.dataclass
class Item:
    name: str
    color: Color = Color.RED
    tags: list[str] = dataclasses.field(default_factory=list)
    added: datetime | None = None

class Refusal(Exception):
    pass

class Listener(Protocol):
    def told(self, words: str) -> int: ...

class Work(Protocol):
    def double(self, number: int) -> int: ...
    def keep(self, item: Item, count: int = 2) -> list[Item]: ...
    def pid(self) -> int: ...
    def fail(self, words: str) -> None: ...
    def text(self, wrong: str) -> str: ...
    def number(self) -> int: ...
    def things(self, wrong: str) -> list[Item]: ...
    def nothing(self) -> None: ...
    def wait_for(self, file: str) -> int: ...
    def say(self, words: str) -> None: ...
    def last_words(self, words: str, end: str) -> int: ...
    def tell(self, listener: Listener, words: list[str]) -> int: ...
    async def async_double(self, number: int) -> int: ...
    async def async_fail(self, words: str) -> None: ...
    async def async_wait_for(self, file: str) -> int: ...

class Loose(Protocol):
    def same(self, value: object) -> object: ...
    def named(self, first: object, second: object = None) -> object: ...

class Streaming(Protocol):
    def double(self, number: int) -> int: ...
    def count(self, items: int) -> Iterator[int]: ...

class Worker:
    def double(self, number):
        return 2 * number
    def keep(self, item, count=2):
        return [item] * count
    def pid(self):
        return os.getpid()
    def fail(self, words):
        raise Refusal(words)
    def text(self, wrong):
        return None if wrong == "nothing" else 5
    def number(self):
        return 2 ** 70
    def things(self, wrong):
        return (Item("a"),) if wrong == "tuple" else [Item("a", "red")]
    def nothing(self):
        return 5
    def wait_for(self, file):
        open(file + ".entered", "w").close()
        while not os.path.exists(file):
            time.sleep(0.002)
        return os.getpid()
    def say(self, words):
        print(words)
        logging.getLogger("work.inside").warning("logged %s", words)
    def last_words(self, words, end):
        sys.__stderr__.write(words + "\\n")
        sys.__stderr__.flush()
        os._exit(7) if end == "exit" else os.kill(os.getpid(), signal.SIGKILL)
    def tell(self, listener, words):
        return sum(listener.told(each) for each in words)
    async def async_double(self, number):
        await asyncio.sleep(0)
        return 2 * number
    async def async_fail(self, words):
        raise KeyError(words)
    async def async_wait_for(self, file):
        open(file + ".entered", "w").close()
        while not os.path.exists(file):
            await asyncio.sleep(0.002)
        open(file + ".done", "w").close()
        return os.getpid()
    def same(self, value):
        return value
    def named(self, first, second=None):
        return [first, second]
    def count(self, items):
        yield from range(items)

PLUGINS = {"work": Contract(Work)}
LOOSE = {"loose": Contract(Loose, netrpc=NetRPC())}
STREAMING = {"streaming": Contract(Streaming)}
HANDSHAKE = Handshake("ISOLATION_TEST", "on")
"""
CONFIG = """
[host]
plugins = "both_sdk:PLUGINS"
handshake = "both_sdk:HANDSHAKE"
[plugins.worker]
entry_point = "both_sdk:Worker"
isolation = "subprocess"
protocols = ["{}"]
{}
"""

Hire = Callable[..., tuple[Loader, Any]]


@pytest.fixture
def sdk(write_module: Any) -> Any:
    write_module("both_sdk", SDK)
    return importlib.import_module("both_sdk")


@pytest.fixture(params=["grpc", "netrpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def hire(sdk: Any, open_loader: Open, protocol: str) -> Hire:
    """Loads the worker with the given lines in its table."""

    def begin(*lines: str, **options: Any) -> tuple[Loader, Any]:
        loader = open_loader(config=CONFIG.format(protocol, "\n".join(lines)), **options)
        worker = loader.load("worker")
        assert loader.status("worker").protocol == protocol
        assert loader.status("worker").pid != os.getpid()
        return loader, worker

    return begin


# Calls


@pytest.mark.parametrize("mtls", ["true", "false"])
def test_values_come_back_as_they_were(hire: Hire, sdk: Any, mtls: str) -> None:
    _, worker = hire(f"auto_mtls = {mtls}")
    item = sdk.Item("ü", sdk.Color.BLUE, ["a", "", "b"])
    assert worker.keep(item) == [item, item]
    assert worker.keep(item, count=0) == []
    assert worker.double(-(2**62)) == -(2**63)


def test_an_exception_is_itself(hire: Hire, sdk: Any) -> None:
    _, worker = hire()
    for words in ("no", "", "two\nlines \0 ü"):
        with pytest.raises(sdk.Refusal) as caught:
            worker.fail(words)
        assert str(caught.value) == words
    assert worker.double(1) == 2


@pytest.mark.parametrize(
    ("method", "wrong", "error"),
    [
        ("text", ["nothing"], TypeError),
        ("text", ["number"], TypeError),
        ("number", [], OverflowError),
        ("things", ["tuple"], TypeError),
        ("things", ["color"], TypeError),
        ("nothing", [], TypeError),
    ],
)
def test_a_result_that_is_not_what_the_hint_says_fails_the_call(
    hire: Hire, method: str, wrong: list[str], error: type[Exception]
) -> None:
    _, worker = hire()
    with pytest.raises(error, match=rf"{method}\(\) result"):
        getattr(worker, method)(*wrong)
    assert worker.double(1) == 2


def test_asynchronous_methods_run_side_by_side(hire: Hire) -> None:
    _, worker = hire()

    async def ask() -> list[int]:
        with pytest.raises(KeyError, match="nowhere"):
            await worker.async_fail("nowhere")
        return await asyncio.gather(*(worker.async_double(number) for number in range(200)))

    assert asyncio.run(ask()) == [2 * number for number in range(200)]
    assert asyncio.run(ask())[-1] == 398  # on another event loop
    assert worker.double(4) == 8


def test_a_cancelled_call_costs_nothing_but_itself(hire: Hire, tmp_path: Path) -> None:
    _, worker = hire()

    file = tmp_path / "go"

    async def ask() -> int:
        waiting = asyncio.create_task(worker.async_wait_for(str(file)))
        await asyncio.to_thread(wait_until, Path(f"{file}.entered").exists)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        file.touch()  # now it is answered, if it was not told
        found: int = await worker.async_double(21)
        return found

    assert asyncio.run(ask()) == 42


def test_eight_threads_get_their_own_answers(hire: Hire) -> None:
    _, worker = hire()

    def ask(thread: int) -> bool:
        numbers = range(thread * 1000, thread * 1000 + 300)
        return [worker.double(number) for number in numbers] == [2 * number for number in numbers]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))


def test_a_slow_method_does_not_hold_up_others(hire: Hire, tmp_path: Path) -> None:
    _, worker = hire()
    files = [str(tmp_path / f"go{number}") for number in range(4)]
    slow = [in_thread(worker.wait_for, file) for file in files]
    wait_until(lambda: all(Path(f"{file}.entered").exists() for file in files))
    assert [worker.double(number) for number in range(50)] == [2 * number for number in range(50)]
    assert not any(call.done() for call in slow)
    for file in files:
        Path(file).touch()
    assert {call.result(60) for call in slow} == {worker.pid()}


def test_a_late_answer_is_nobodys(hire: Hire, tmp_path: Path) -> None:
    loader, worker = hire("call_timeout = 2.0")
    file = str(tmp_path / "go")
    with pytest.raises(CallTimeout, match=r"'worker' did not answer within 2 s"):
        worker.wait_for(file)
    Path(file).touch()  # now it is answered
    pid = worker.pid()
    assert [worker.double(number) for number in range(100)] == [2 * number for number in range(100)]
    assert loader.status("worker").restarts == 0
    assert loader.status("worker").pid == pid


@pytest.mark.parametrize("own", ["", "call_timeout = 60.0"], ids=["alone", "with a longer call_timeout"])
def test_a_call_ends_with_the_callers_deadline(hire: Hire, tmp_path: Path, own: str) -> None:
    loader, worker = hire(own)
    pid = worker.pid()
    file = str(tmp_path / "go")
    with deadline(0.2), pytest.raises(CallTimeout, match="'worker'"):
        worker.wait_for(file)
    with deadline(0.2), pytest.raises(CallTimeout, match="'worker'"):
        asyncio.run(worker.async_wait_for(file))
    with deadline(0.0), pytest.raises(CallTimeout, match="has passed already"):
        worker.double(1)
    Path(file).touch()  # now they are answered, if they were not told
    assert [worker.double(number) for number in range(100)] == [2 * number for number in range(100)]
    assert (worker.pid(), loader.status("worker").restarts) == (pid, 0)


class Ears:
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.left: float | None = None

    def told(self, words: str) -> int:
        self.left = limited(None, "host")
        if words == "bad":
            raise LookupError("that is bad")
        self.heard.append(words)
        return len(words)


@pytest.mark.parametrize("mtls", ["true", "false"])
def test_an_object_of_the_host_is_called_back(hire: Hire, mtls: str) -> None:
    _, worker = hire(f"auto_mtls = {mtls}")
    ears = Ears()
    assert worker.tell(ears, ["one", "three"]) == 8
    assert ears.heard == ["one", "three"]
    with pytest.raises(LookupError, match="that is bad"):
        worker.tell(ears, ["bad"])
    assert worker.tell(Ears(), []) == 0
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: worker.tell(Ears(), ["x" * n] * 3), range(40))) == [3 * n for n in range(40)]


# Output


def test_what_it_prints_and_logs_arrives(hire: Hire, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    _, worker = hire()
    worker.say("hello, host")
    wait_until(lambda: "logged hello, host" in caplog.messages and "hello, host" in caplog.messages)
    (logged,) = (record for record in caplog.records if record.getMessage() == "logged hello, host")
    assert (logged.name, logged.levelno) == ("work.inside", logging.WARNING)


# Ends


@pytest.mark.parametrize(("end", "said"), [("exit", "exit status 7"), ("kill", "SIGKILL")])
def test_a_call_during_which_it_dies_tells_how_and_its_last_words(hire: Hire, end: str, said: str) -> None:
    loader, worker = hire()
    with pytest.raises(PluginCrashed) as caught:
        worker.last_words("out of cheese", end)
    assert said in str(caught.value)
    assert "'worker'" in str(caught.value)
    assert caught.value.stderr[-1] == "out of cheese"
    assert caught.value.returncode == (7 if end == "exit" else -signal.SIGKILL)
    assert worker.double(3) == 6  # another process
    assert loader.status("worker").restarts == 1


def test_calls_in_flight_are_told_when_it_is_killed(hire: Hire, tmp_path: Path) -> None:
    loader, worker = hire()
    files = [str(tmp_path / f"go{number}") for number in range(6)]
    calls = [in_thread(worker.wait_for, file) for file in files]
    wait_until(lambda: all(Path(f"{file}.entered").exists() for file in files))
    pid = loader.status("worker").pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    for call in calls:
        assert isinstance(call.exception(60), PluginCrashed), call.exception()
    assert worker.double(3) == 6


def test_what_keeps_crashing_is_fallen_back_from(sdk: Any, open_loader: Open, protocol: str) -> None:
    config = CONFIG.format(protocol, "max_restarts = 0").replace('"subprocess"', '["subprocess", "in-process"]')
    loader = open_loader(config=config)
    worker = loader.load("worker")
    with pytest.raises(PluginCrashed):
        worker.last_words("the end", "exit")
    assert worker.pid() == os.getpid()
    assert loader.status("worker").degraded


def test_a_switch_and_back(hire: Hire) -> None:
    loader, worker = hire()
    first = worker.pid()
    loader.switch("worker", "in-process")
    assert worker.pid() == os.getpid()
    loader.switch("worker", "subprocess")
    assert worker.pid() not in (os.getpid(), first)


@pytest.mark.parametrize("protocol", ["netrpc"])
def test_what_hangs_is_found_and_replaced(hire: Hire, tmp_path: Path) -> None:
    loader, worker = hire("health_interval = 0.1", "health_timeout = 1.0")
    file = str(tmp_path / "go")
    call = in_thread(worker.wait_for, file)
    wait_until(Path(f"{file}.entered").exists)
    pid = loader.status("worker").pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(PluginCrashed, match="does not answer and was killed"):
        call.result(60)
    assert worker.pid() != pid


# Where the two differ


@pytest.mark.parametrize("protocol", ["netrpc"])
def test_over_netrpc_a_deadline_cancels_no_work_and_holds_for_nothing_called_back(hire: Hire, tmp_path: Path) -> None:
    _, worker = hire()
    file = str(tmp_path / "go")
    with deadline(2.0), pytest.raises(CallTimeout):
        asyncio.run(worker.async_wait_for(file))
    Path(file).touch()
    wait_until(Path(f"{file}.done").exists)  # over gRPC it is cancelled: see tests/behaviour/test_deadlines.py
    ears = Ears()
    with deadline(60):
        worker.tell(ears, ["how long?"])
    assert ears.left is None


def test_what_streams_is_served_over_grpc_and_refused_over_netrpc(sdk: Any, open_loader: Open) -> None:
    config = CONFIG.replace("PLUGINS", "STREAMING").replace('protocols = ["{}"]\n{}', "")
    loader = open_loader(config=config)
    assert list(loader.load("worker").count(3)) == [0, 1, 2]
    assert loader.status("worker").protocol == "grpc"
    loader.close()
    with pytest.raises(ConfigError, match=r"count\(\) at .*: it streams, and over net/rpc"):
        open_loader(config=CONFIG.format("netrpc", "").replace("PLUGINS", "STREAMING")).load("worker")


LOOSE = [True, 5, 2.5, "text", b"bytes", None, [1, "two", [3.0]], {"a": 1, "b": {"c": ["d"]}}]


@pytest.mark.parametrize("protocols", ["", 'protocols = ["netrpc"]'])
@pytest.mark.parametrize("isolation", ["in-process", "subprocess"])
def test_a_contract_that_declares_netrpc_may_carry_any_object(
    sdk: Any, open_loader: Open, isolation: str, protocols: str
) -> None:
    config = CONFIG.replace("PLUGINS", "LOOSE").replace('protocols = ["{}"]\n{}', protocols)
    loader = open_loader(config=config)
    worker = loader.load("worker", isolation=isolation)
    for value in LOOSE:
        assert worker.same(value) == value
        assert worker.named(value) == [value, None]
        assert worker.named(1, second=value) == [1, value]
    if isolation == "subprocess":
        assert loader.status("worker").protocol == "netrpc"
        with pytest.raises((TypeError, ValueError), match="object"):
            worker.same(object())
        assert worker.same("goes on") == "goes on"


def test_over_grpc_any_object_is_refused(sdk: Any, open_loader: Open) -> None:
    with pytest.raises(ConfigError, match="object travels over net/rpc alone"):
        open_loader(config=CONFIG.format("grpc", "").replace("PLUGINS", "LOOSE")).load("worker")
