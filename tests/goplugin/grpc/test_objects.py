"""Objects that travel: a host and a plugin call each other back, over every engine and every kind of connection."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hybridload import Contract
from hybridload.errors import ContractError, PluginError
from hybridload.goplugin import Client
from hybridload.goplugin.grpc import objects

FOLDER = Path(__file__).parent.parent
PROGRAM = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import callback_plugin; callback_plugin.main()"
spec = importlib.util.spec_from_file_location("callback_plugin", FOLDER / "callback_plugin.py")
assert spec is not None
assert spec.loader is not None
callback_plugin: Any = importlib.util.module_from_spec(spec)
sys.modules["callback_plugin"] = callback_plugin
spec.loader.exec_module(callback_plugin)

PATIENCE = 20.0  # seconds
IDLE_THREADS = 4
CONNECTIONS = {
    "plain": {"auto_mtls": False},
    "mtls": {},
    "multiplex": {"auto_mtls": False, "multiplex": True},
    "mtls+multiplex": {"multiplex": True},
}


@pytest.fixture(params=["direct", "grpcio"])
def engine(request: pytest.FixtureRequest) -> str:
    """What carries gRPC, on both sides."""
    chosen: str = request.param
    return chosen


everywhere = pytest.mark.parametrize("connection", CONNECTIONS, indirect=True)


@pytest.fixture(params=["plain", "mtls+multiplex"])
def connection(request: pytest.FixtureRequest) -> dict[str, bool]:
    return CONNECTIONS[request.param]


@pytest.fixture
def start(engine: str) -> Iterator[Callable[..., Client]]:
    clients = []

    def begin(**options: Any) -> Client:
        client = Client(
            [sys.executable, "-c", PROGRAM, engine],
            **{
                "plugins": callback_plugin.PLUGINS,
                "handshake": callback_plugin.HANDSHAKE,
                "name": "party",
                "engine": engine,
                **options,
            },
        )
        clients.append(client)
        return client

    yield begin
    for client in clients:
        client.kill()


@pytest.fixture
def client(start: Callable[..., Client], connection: dict[str, bool]) -> Client:
    return start(**connection)


@pytest.fixture
def party(client: Client) -> Any:
    return client.dispense("party")


class Ear:
    """Hears, and remembers."""

    def __init__(self, name: str = "ear") -> None:
        self.name = name
        self.texts: list[str] = []

    def heard(self, text: str) -> str:
        self.texts.append(text)
        return f"{self.name} heard {text}"


class AsyncEar:
    async def heard(self, text: str) -> str:
        await asyncio.sleep(0)
        return f"heard {text} on {threading.current_thread().name}"


class Deaf:
    def heard(self, text: str) -> str:
        raise callback_plugin.Refused(text, 3)


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while (wrong := condition()) is not None:
        assert time.monotonic() < deadline, wrong
        time.sleep(0.02)


def settles(before: dict[str, int], now: Callable[[], dict[str, int]]) -> None:
    """Wait until no more is open than before. A few threads may stay, idle, for the next call."""
    allowed = {**before, "threads": before["threads"] + IDLE_THREADS}

    def wrong() -> Any:
        gc.collect()
        after = now()
        return None if all(after[kind] <= allowed[kind] for kind in allowed) else (before, after)

    eventually(wrong)


# What can be passed, and where


@everywhere
def test_an_argument_is_called_back(party: Any) -> None:
    ear = Ear()
    assert party.tell(ear, "hello") == "ear heard hello"
    assert ear.texts == ["hello"]


def test_objects_travel_in_lists_streams_and_options(party: Any) -> None:
    ears = [Ear("left"), Ear("right")]
    assert party.tell_all(ears, "x") == ["left heard x", "right heard x"]
    assert party.tell_each(iter(ears)) == ["left heard 0", "right heard 1"]
    assert party.tell_if("x") == "nobody"
    assert party.tell_if("x", ears[0]) == "left heard x"


@everywhere
def test_a_result_is_an_object_that_stays_where_it_is(party: Any) -> None:
    first, second = party.counter(1), party.counter(10)
    assert [first.add(1), second.add(1), first.add(1)] == [2, 11, 3]
    assert [counter.add(1) for counter in party.counters(3)] == [1, 2, 3]


def test_a_stream_calls_back_between_its_items(party: Any) -> None:
    ear = Ear()
    heard = party.watch(ear, 1000)
    assert [next(heard) for _ in range(3)] == ["ear heard 0", "ear heard 1", "ear heard 2"]
    heard.close()
    assert len(ear.texts) < 1000


def test_asynchronous_methods_call_back_asynchronous_ones(party: Any) -> None:
    async def talk() -> list[str]:
        ear = AsyncEar()
        told = await asyncio.gather(*(party.tell_soon(ear, str(number)) for number in range(5)))
        return [*told, *[item async for item in party.watch_soon(ear, 2)]]

    said = asyncio.run(talk())
    assert [text.split(" on ")[0] for text in said] == [f"heard {n}" for n in (0, 1, 2, 3, 4, 0, 1)]
    assert {text.split(" on ")[1] for text in said} == {"hybridload event loop"}


def test_what_a_callback_raises_reaches_the_plugin_and_comes_back_as_itself(party: Any) -> None:
    with pytest.raises(callback_plugin.Refused) as caught:
        party.tell(Deaf(), "no")
    assert caught.value.args == ("no", 3)
    assert party.tell(Ear(), "still there") == "ear heard still there"


@everywhere
def test_calls_go_back_and_forth_within_each_other(party: Any) -> None:
    assert party.nested(callback_plugin.PartyImpl(), 9) == 45


def test_many_threads_call_back_at_once(party: Any) -> None:
    ears = [Ear(str(number)) for number in range(16)]
    answers: dict[int, list[str]] = {}

    def talk(number: int) -> None:
        answers[number] = [party.tell(ears[number], str(turn)) for turn in range(10)]

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: [f"{n} heard {turn}" for turn in range(10)] for n in range(16)}


# How long it lives


def test_an_argument_may_be_kept_and_ends_when_it_is_dropped(party: Any) -> None:
    party.tell(Ear(), "warm")
    ears = [Ear("first"), Ear("second")]
    before = callback_plugin.open_things()
    for ear in ears:
        party.keep(ear)
    assert party.tell_kept("x") == ["first heard x", "second heard x"]
    assert party.tell_kept("y") == ["first heard y", "second heard y"]
    party.forget()
    settles(before, callback_plugin.open_things)


def test_a_result_ends_when_it_is_dropped(party: Any) -> None:
    party.counter(1).add(1)
    before = party.open_things()
    counters = [party.counter(number) for number in range(5)]
    assert [counter.add(1) for counter in counters] == [1, 2, 3, 4, 5]
    del counters
    settles(before, party.open_things)


def test_a_method_that_was_taken_from_an_object_keeps_it(party: Any) -> None:
    assert party.counter(1).add(1) == 2
    add = party.counter(1).add
    gc.collect()
    assert [add(1), add(1)] == [2, 3]


@everywhere
def test_five_hundred_callbacks_leave_nothing_on_either_side(party: Any) -> None:
    ear = Ear()
    for _ in range(20):  # so that what serves calls has its threads
        party.tell(ear, "warm")
    theirs, ours = party.open_things(), callback_plugin.open_things()
    for number in range(500):
        assert party.tell(ear, str(number)) == f"ear heard {number}"
    settles(theirs, party.open_things)
    settles(ours, callback_plugin.open_things)


def test_callbacks_that_fail_leave_nothing_either(party: Any) -> None:
    with pytest.raises(callback_plugin.Refused):
        party.tell(Deaf(), "warm")
    theirs, ours = party.open_things(), callback_plugin.open_things()
    for _ in range(20):
        with pytest.raises(callback_plugin.Refused):
            party.tell(Deaf(), "no")
    settles(theirs, party.open_things)
    settles(ours, callback_plugin.open_things)


def test_an_object_that_nobody_takes_is_given_up(
    start: Callable[..., Client], connection: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "UNCLAIMED", 3.0)
    contract = Contract(callback_plugin.Guest, service="party.Party")
    guest = start(plugins={"party": contract}, **connection).dispense("party")
    assert guest.tell(Ear(), "x", Ear()) == "ear heard x"
    before = callback_plugin.open_things()
    for _ in range(5):
        assert guest.tell(Ear(), "x", Ear()) == "ear heard x"
    settles(before, callback_plugin.open_things)


def test_when_the_plugin_is_killed_its_objects_say_so(client: Client, party: Any) -> None:
    counter = party.counter(1)
    assert counter.add(1) == 2
    client.kill()
    with pytest.raises(PluginError, match="party"):
        counter.add(1)


def test_what_does_not_implement_the_interface_is_refused_before_it_is_sent(party: Any) -> None:
    with pytest.raises(ContractError, match="heard"):
        party.tell(object(), "x")
