"""net/rpc against real Go, over the pipes of a Go process, and what Go would never send."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from hybridload.goplugin.netrpc.gob import (
    Encoder,
    Field,
    GobCorrupt,
    GobError,
    GobMismatch,
    GobTooLarge,
    GobValue,
    Limits,
    Registry,
    Slice,
    String,
    Struct,
    Uint,
    from_hint,
)
from hybridload.goplugin.netrpc.rpc import Call, Refusal, Reply, RpcClient, RpcServer

STRING, ANY = String(), from_hint(object)


@dataclass(frozen=True)
class Point:
    x: int = 0
    y: int = 0


@dataclass
class Person:
    name: str
    age: Annotated[int, Uint(8)]
    home: Point | None
    tags: dict[str, str]


PERSON = from_hint(Person)


class Peer:
    """A Go process that speaks net/rpc on its standard input and output."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        assert process.stdout
        self.send_to = process.stdin.fileno()
        self.receive_from = process.stdout.fileno()

    def send(self, data: bytes) -> None:
        os.write(self.send_to, data)

    def receive(self) -> bytes:
        return os.read(self.receive_from, 1 << 16)


@pytest.fixture
def peer(go_build: Callable[[str], Path]) -> Callable[[str], Any]:
    @contextmanager
    def start(mode: str, stderr: int | None = None) -> Iterator[tuple[Peer, subprocess.Popen[bytes]]]:
        program = go_build("tests/go/rpcpeer")
        with subprocess.Popen([program, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr) as process:
            yield Peer(process), process

    return start


def replies(client: RpcClient, peer: Peer, count: int) -> list[Reply]:
    found: list[Reply] = []
    while len(found) < count:
        data = peer.receive()
        assert data, "the server closed the connection"
        found += client.receive(data)
    return found


def test_a_go_server_answers_every_shape_of_call(peer: Any) -> None:
    registry = Registry()
    registry.register("main.Point", Point)
    calls: list[tuple[str, Any, Any, Any, Any]] = [
        ("Greet", None, object, str, "Hello!"),
        ("Put", {"key": "k", "value": b"v"}, dict[str, object], object, "k=v"),
        ("Get", "k", str, bytes, b"value of k"),
        ("Move", Person("Ann", 40, Point(1, 2), {}), Person, Person, Person("Ann", 40, Point(2, 1), {})),
        ("Any", GobValue("main.Point", Point()), object, object, Point(3, 4)),
        ("Nothing", True, bool, None, None),
        ("Nothing", False, bool, object, {}),
    ]
    with peer("serve") as (go, _):
        client = RpcClient(registry)
        for method, argument, argument_hint, reply_hint, expected in calls:
            reply_type = None if reply_hint is None else registry.go_type(reply_hint)
            seq, data = client.call(f"Plugin.{method}", argument, registry.go_type(argument_hint), reply_type)
            go.send(data)
            assert replies(client, go, 1) == [Reply(seq, expected)]


def test_a_failed_call_costs_nothing_but_itself(peer: Any) -> None:
    with peer("serve") as (go, _):
        client = RpcClient()
        failing = [
            ("Plugin.Fail", "it broke", STRING, "it broke"),
            ("Plugin.Missing", True, from_hint(bool), "rpc: can't find method Plugin.Missing"),
            ("Other.Method", True, from_hint(bool), "rpc: can't find service Other.Method"),
            ("Plugin.Get", 5, from_hint(int), "gob: decoding into local type *string, received remote type int"),
        ]
        for method, argument, argument_type, text in failing:
            seq, data = client.call(method, argument, argument_type, STRING)
            go.send(data)
            assert replies(client, go, 1) == [Reply(seq, error=text)]

        seq, data = client.call("Plugin.Get", "k", STRING, STRING)
        go.send(data)
        [reply] = replies(client, go, 1)
        assert isinstance(reply.mismatch, GobMismatch)
        assert "expected string, received []byte" in str(reply.mismatch)

        seq, data = client.call("Plugin.Get", "k", STRING, from_hint(bytes))
        go.send(data)
        assert replies(client, go, 1) == [Reply(seq, b"value of k")]


def test_answers_may_come_in_any_order(peer: Any) -> None:
    with peer("serve") as (go, _):
        client = RpcClient()
        waiting, data = client.call("Plugin.Wait", "late", STRING, STRING)
        go.send(data)
        quick, data = client.call("Plugin.Get", "k", STRING, from_hint(bytes))
        go.send(data)
        assert replies(client, go, 1) == [Reply(quick, b"value of k")]
        assert client.pending == (waiting,)

        opened, data = client.call("Plugin.Open", True, from_hint(bool), None)
        go.send(data)
        assert {reply.seq: reply.value for reply in replies(client, go, 2)} == {waiting: "late", opened: None}
        assert client.pending == ()


def test_the_answer_to_a_forgotten_call_is_passed_over(peer: Any) -> None:
    with peer("serve") as (go, _):
        client = RpcClient()
        forgotten, data = client.call("Plugin.Greet", None, ANY, STRING)
        client.forget(forgotten)
        go.send(data)
        seq, data = client.call("Plugin.Greet", None, ANY, STRING)
        go.send(data)
        assert replies(client, go, 1) == [Reply(seq, "Hello!")]


def test_a_go_client_is_answered_in_gos_words(peer: Any) -> None:
    bool_, int_ = from_hint(bool), from_hint(int)
    services = {
        "Plugin": {"Greet": ANY, "Put": from_hint(dict[str, object]), "Move": PERSON, "Fail": bool_,
                   "Unsendable": STRING, "Length": STRING}
    }  # fmt: skip
    server = RpcServer(services)

    def answer(call: Call) -> bytes:
        match call:
            case Call(_, "Plugin", "Greet", argument):
                return server.reply(call, f"Hello! {argument}", STRING)
            case Call(_, "Plugin", "Put", argument):
                return server.reply(call, repr(dict(sorted(argument.items()))), STRING)
            case Call(_, "Plugin", "Move", argument):
                home = Point(argument.home.y, argument.home.x)
                return server.reply(call, Person(argument.name, argument.age + 1, home, {"moved": "yes"}), PERSON)
            case Call(_, "Plugin", "Fail", _):
                return server.error(call, "")
            case Call(_, "Plugin", "Unsendable", _):
                with pytest.raises(GobError, match=r"expected a str, got the float 1\.5"):
                    server.reply(call, [1.5], Slice(STRING))
                return server.error(call, "no such luck")
        return server.reply(call, len(call.argument), int_)

    with peer("call", subprocess.PIPE) as (go, process):
        while data := go.receive():
            for call in server.receive(data):
                go.send(server.error(call, call.text) if isinstance(call, Refusal) else answer(call))
        results = json.loads(process.stderr.read())
    assert results == {
        "Plugin.Greet": "Hello! None",
        "Plugin.Put": "{'key': 'k', 'more': {'n': 1}, 'value': b'v'}",
        "Plugin.Move": {"Name": "Ann", "Age": 41, "Home": {"X": 2, "Y": 1}, "Tags": {"moved": "yes"}},
        "Plugin.Fail": "error: error without a text",
        "Plugin.Unsendable": "error: no such luck",
        "Plugin.Missing": "error: rpc: can't find method Plugin.Missing",
        "Missing.Method": "error: rpc: can't find service Missing.Method",
        "nodot": "error: rpc: service/method request ill-formed: nodot",
        "Plugin.Length": "error: The received value does not fit: expected string, received int.",
        "lengths": [1, *range(1, 50)],
    }


def test_a_call_that_cannot_be_sent_is_no_call() -> None:
    client, server = RpcClient(), RpcServer({"Plugin": {"Greet": Struct("Args", [Field("Name", STRING)])}})
    arguments = Struct("Args", [Field("Name", STRING)])
    with pytest.raises(GobError, match="Name: expected a str"):
        client.call("Plugin.Greet", {"Name": 1}, arguments)
    assert client.pending == ()

    seq, data = client.call("Plugin.Greet", {"Name": "Ann"}, arguments)
    assert list(server.receive(data)) == [Call(seq, "Plugin", "Greet", {"Name": "Ann"})]
    assert seq == 0


def test_the_first_call_is_byte_for_byte_what_go_sends() -> None:
    _, data = RpcClient().call("Dispenser.Dispense", "greeter", STRING)
    assert data.hex() == (
        "2e7f030101075265717565737401ff80000102010d536572766963654d6574686f64010c000103536571010600000017ff8001124469"
        "7370656e7365722e44697370656e7365000a0c000767726565746572"
    )


def test_the_first_answer_is_byte_for_byte_what_go_sends() -> None:
    server = RpcServer({})
    assert server.reply(Call(0, "Dispenser", "Dispense"), 1, Uint(32)).hex() == (
        "397f03010108526573706f6e736501ff80000103010d536572766963654d6574686f64010c00010353657101060001054572726f7201"
        "0c00000017ff80011244697370656e7365722e44697370656e73650003060001"
    )


def test_an_error_carries_an_empty_struct() -> None:
    server = RpcServer({})
    first, second = (server.error(Call(1, "A", "B"), "no") for _ in range(2))
    assert first.endswith(bytes.fromhex("0aff81030102ff8200000003ff8200"))
    assert second.endswith(bytes.fromhex("03ff8200"))


def test_what_came_before_the_stream_broke_is_delivered() -> None:
    client = RpcClient()
    first, _ = client.call("A.B", True, from_hint(bool))
    lost, _ = client.call("A.B", True, from_hint(bool))
    server = RpcServer({})
    received = client.receive(server.reply(Call(first, "A", "B"), "x", STRING) + b"\xf0broken")
    assert next(received) == Reply(first, "x")
    with pytest.raises(GobCorrupt):
        next(received)
    assert client.pending == (lost,)
    with pytest.raises(GobCorrupt):
        list(client.receive(b""))


def test_an_answer_to_no_call_is_passed_over() -> None:
    client = RpcClient()
    server = RpcServer({})
    assert list(client.receive(server.reply(Call(7, "A", "B"), [1], Slice(from_hint(int))))) == []
    seq, _ = client.call("A.B", True, from_hint(bool))
    assert list(client.receive(server.reply(Call(seq, "A", "B"), "x", STRING))) == [Reply(seq, "x")]


def test_a_call_in_single_bytes_is_the_same_call() -> None:
    client, server = RpcClient(), RpcServer({"Plugin": {"Put": ANY, "Ping": None}})
    _, data = client.call("Plugin.Put", GobValue("map[string]int32", {"a": 1}), ANY)
    _, more = client.call("Plugin.Ping", [1, 2], Slice(from_hint(int)))
    calls = [call for byte in data + more for call in server.receive(bytes((byte,)))]
    assert calls == [Call(0, "Plugin", "Put", {"a": 1}), Call(1, "Plugin", "Ping")]


def test_limits_hold_on_both_sides() -> None:
    """What is too large costs its own call: it is refused when its length is read, and none of it is kept."""
    limits = Limits(message=100)
    client, server = RpcClient(limits=limits), RpcServer({"A": {"B": STRING}}, limits=limits)
    _, large = client.call("A.B", "x" * 200, STRING)
    _, small = client.call("A.B", "x", STRING, STRING)
    received = [each for byte in large + small for each in server.receive(bytes((byte,)))]
    refused = "SERVER: Received message larger than max_message (204 vs. 100)"
    assert received == [Refusal(0, "A", "B", refused), Call(1, "A", "B", "x")]
    assert list(client.receive(server.error(received[0], refused))) == [Reply(0, error=refused)]
    large = server.reply(received[1], "y" * 1000, STRING)
    _, data = client.call("A.B", "z", STRING, STRING)
    [call] = server.receive(data)
    small = server.reply(call, "z", STRING)
    first, second = (reply for byte in large + small for reply in client.receive(bytes((byte,))))
    assert isinstance(first.mismatch, GobTooLarge)
    assert (first.mismatch.size, first.mismatch.limit) == (1005, 100)
    assert second == Reply(2, "z")


def test_a_length_that_nobody_could_send_ends_the_connection() -> None:
    client = RpcClient(limits=Limits(message=100))
    with pytest.raises(GobCorrupt, match="over the limit"):
        list(client.receive(b"\xfb\x01\x00\x00\x00\x01"))


def test_a_header_that_is_too_large_ends_the_connection() -> None:
    client, server = RpcClient(), RpcServer({}, limits=Limits(message=100))
    _, data = client.call("A." + "B" * 200, None, ANY)
    with pytest.raises(GobCorrupt, match="max"):
        list(server.receive(data))


def test_a_header_of_another_shape_ends_the_connection() -> None:
    other = Encoder().encode({"Hello": "x"}, Struct("Other", [Field("Hello", STRING)]))
    with pytest.raises(GobCorrupt, match="ServiceMethod"):
        list(RpcServer({}).receive(other))
    with pytest.raises(GobCorrupt, match="ServiceMethod"):
        list(RpcClient().receive(other))


def test_a_second_call_of_a_method_is_byte_for_byte_what_go_sends() -> None:
    client = RpcClient()
    client.call("Plugin.Greet", None, ANY)
    assert client.call("Plugin.Greet", None, ANY)[1].hex() == "13ff80010c506c7567696e2e477265657401010003100000"


def test_many_calls_of_one_method_leave_nothing_behind() -> None:
    client, server = RpcClient(), RpcServer({"Plugin": {"Get": STRING}})
    for number in range(300):
        seq, data = client.call("Plugin.Get", str(number), STRING, STRING)
        [call] = server.receive(data)
        assert isinstance(call, Call)
        answer = server.error(call, "odd") if number % 2 else server.reply(call, "x" * number, STRING)
        if number % 5 == 0:
            client.forget(seq)
        expected = Reply(seq, error="odd") if number % 2 else Reply(seq, "x" * number)
        assert list(client.receive(answer)) == ([] if number % 5 == 0 else [expected])
        assert client.pending == ()
    assert client._answers == {}


def test_answers_in_another_order_and_in_single_bytes_find_their_calls() -> None:
    client, server = RpcClient(), RpcServer({"Plugin": {"Get": STRING}})
    for _ in range(2):
        asked = [client.call("Plugin.Get", str(number), STRING, STRING) for number in range(5)]
        calls = [call for _, data in asked for call in server.receive(data)]
        answers = b"".join(
            server.reply(call, call.argument, STRING) for call in reversed(calls) if isinstance(call, Call)
        )
        received = [reply for byte in answers for reply in client.receive(bytes((byte,)))]
        assert received == [Reply(seq, str(number)) for number, (seq, _) in reversed(list(enumerate(asked)))]
