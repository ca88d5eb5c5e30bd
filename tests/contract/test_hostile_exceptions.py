"""Exceptions that no honest plugin sends: none of them ends, exhausts or confuses the host that catches it.

Each is decoded in a process of its own with a memory limit (`victim`), which then does with it what hosts do: str,
repr, traceback.format_exception, logging.exception, pickle, copy. A new case is a row of `CRAFTED`.
"""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybridload.contract.exceptions import _TYPE, _messages, _set_value

HUGE = 3_000_000_000
BUILTIN = sorted(
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
)
OURS = ["victim." + name for name in ("Missing", "Garbled", "Unparsed", "Several", "Frozen")]


@dataclass(frozen=True)
class Crafted:
    """An exception as a plugin may send it."""

    type_name: str
    args: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    cause: Crafted | None = None
    context: Crafted | None = None
    members: tuple[Crafted, ...] = ()

    def fill(self, data: Any) -> Any:
        data.type_name = self.type_name
        data.message = "words"
        for argument in self.args:
            _set_value(data.args.add(), argument, 10_000)
        for name, value in self.attributes.items():
            _set_value(data.attributes[name], value, 10_000)
        data.notes.extend(self.notes)
        for link in ("cause", "context"):
            inner = getattr(self, link)
            if inner is not None:
                inner.fill(getattr(data, link))
        for member in self.members:
            member.fill(data.members.add())
        return data

    def details(self) -> bytes:
        messages = _messages()
        status = messages["Status"](code=2, message="the message")
        data = self.fill(messages["RemoteException"]())
        status.details.add(type_url=_TYPE).value = data.SerializeToString()
        encoded: bytes = status.SerializeToString()
        return encoded


class Victim:
    """The process; a new one takes the place of one that has ended."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", "import victim; victim.main()"],
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def catch(self, details: bytes) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(len(details).to_bytes(8, "big") + details)
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self.close()
            self.__init__()  # type: ignore[misc]
            raise AssertionError(f"the host ended with {code}")
        answer: dict[str, Any] = json.loads(line)
        assert "failure" not in answer, answer["failure"] + "\n" + answer["traceback"]
        assert answer["size"] < 4_000_000
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    running = Victim()
    yield running
    running.close()


def chained(length: int) -> Crafted:
    made = Crafted("ValueError", ("end",))
    for _ in range(length):
        made = Crafted("ValueError", ("x",), cause=made)
    return made


def nested(depth: int) -> Crafted:
    made = Crafted("ValueError", ("end",))
    for _ in range(depth):
        made = Crafted("ExceptionGroup", ("g",), members=(made,))
    return made


CRAFTED = {
    "positions far before the text": (
        Crafted("UnicodeDecodeError", ("u", b"x", -(2**62), 1 - 2**62, "r")),
        "RemoteError",
    ),
    "positions far behind the text": (Crafted("UnicodeDecodeError", ("u", b"x", 2**62, 2**62 + 1, "r")), "RemoteError"),
    "positions that go backwards": (Crafted("UnicodeEncodeError", ("u", "xyz", 2, 1, "r")), "RemoteError"),
    "positions without a text": (Crafted("UnicodeEncodeError", ("u", "", 0, 1, "r")), "RemoteError"),
    "positions to translate": (Crafted("UnicodeTranslateError", ("x", -1, 0, "r")), "RemoteError"),
    "positions in range": (Crafted("UnicodeDecodeError", ("u", b"xy", 0, 1, "r")), "UnicodeDecodeError"),
    "positions of a class of ours": (Crafted(OURS[1], ("u", b"x", -9, -8, "r")), "RemoteError"),
    "a column far away": (Crafted("SyntaxError", ("m", ("f", 1, 1, "text", 1, HUGE))), "RemoteError"),
    "a column far away in an old form": (Crafted("SyntaxError", ("m", ("f", 1, HUGE, "text"))), "RemoteError"),
    "a column that is text": (Crafted("IndentationError", ("m", ("f", 1, "1", "text", 1, 2))), "RemoteError"),
    "a line that is text": (Crafted("SyntaxError", ("m", ("f", "1", 1, "text", 1, 2))), "RemoteError"),
    "a line that is a number of thousands of bits": (
        Crafted("TabError", ("m", ("f", 2**500, 1, "t", 1, 2))),
        "RemoteError",
    ),
    "source that is a number": (Crafted("SyntaxError", ("m", ("f", 1, 1, 5, 1, 2))), "RemoteError"),
    "a place and more": (Crafted("SyntaxError", ("m", ("f", 1, 1, "text", 1, 2, ("x", "y", "z")))), "RemoteError"),
    "a place of a class of ours": (Crafted(OURS[2], ("m", ("f", 1, 1, "text", 1, HUGE))), "RemoteError"),
    "a syntax error": (Crafted("SyntaxError", ("m", ("f", 1, 1, "text", 1, 3))), "SyntaxError"),
    "an errno that C cannot hold": (Crafted("OSError", (2**100, "m", None, None)), "RemoteError"),
    "a filename that is a tuple": (Crafted("PermissionError", (13, "m", (1, 2), None)), "RemoteError"),
    "an errno of another class": (Crafted("OSError", (2, "m", None, None)), "RemoteError"),
    "add_note as text": (Crafted("ValueError", ("m",), {"add_note": "x"}, ("note",)), "ValueError"),
    "with_traceback as text": (Crafted("ValueError", ("m",), {"with_traceback": "x", "__notes__": 3}), "ValueError"),
    "a method as text": (Crafted(OURS[0], ("m",), {"describe": "x", "limit": 3}), "Missing"),
    "args as a number": (Crafted("ValueError", ("m",), {"args": 5}), "ValueError"),
    "a hidden position": (
        Crafted("UnicodeDecodeError", ("u", b"x", 0, 1, "r"), {"start": -(2**62)}),
        "UnicodeDecodeError",
    ),
    "hidden columns": (
        Crafted("SyntaxError", ("m", ("f", 1, 1, "t", 1, 2)), {"end_offset": HUGE, "offset": -HUGE, "text": 3}),
        "SyntaxError",
    ),
    "a name to import": (Crafted("ImportError", ("m",), {"name": "antigravity", "name_from": "x"}), "ImportError"),
    "a name that is a number": (Crafted("AttributeError", ("m",), {"name": 5, "obj": "x"}), "AttributeError"),
    "a name that UTF-8 cannot hold": (Crafted("AttributeError", ("m",), {"name": "\ud800"}), "AttributeError"),
    "what pickle asks for": (
        Crafted("ValueError", ("m",), {"__reduce_ex__": 1, "__getstate__": 1, "__setstate__": 1, "__deepcopy__": 1}),
        "ValueError",
    ),
    "a frozen class": (Crafted(OURS[4], (), {"code": 3}, ("note",), cause=Crafted("ValueError")), "Frozen"),
    "a group without members": (Crafted("ExceptionGroup", ("g",)), "ExceptionGroup"),
    "a group whose message is a number": (
        Crafted("ExceptionGroup", (5,), members=(Crafted("KeyError"),)),
        "RemoteError",
    ),
    "a group of ours": (Crafted(OURS[3], ("g",), {"derive": 1}, members=(Crafted("KeyError"),)), "Several"),
    "a chain": (chained(10), "ValueError"),
    "a long chain": (chained(90), "RemoteError"),
    "a chain that protobuf refuses": (chained(300), "RemoteError"),
    "nested groups": (nested(9), "ExceptionGroup"),
    "deeply nested groups": (nested(90), "RemoteError"),
    "a wide group": (Crafted("ExceptionGroup", ("g",), members=(Crafted("ValueError"),) * 600), "RemoteError"),
    "a large text": (Crafted("ValueError", ("x" * 9000, "y" * 9000, "z" * 9000)), "RemoteError"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_exception_is_rebuilt_only_when_it_is_harmless(case: str, victim: Victim) -> None:
    crafted, expected = CRAFTED[case]
    assert victim.catch(crafted.details())["type"] == expected


numbers = st.integers() | st.sampled_from([-1, 0, 1, 2, 9_999, HUGE, -HUGE, 2**62, -(2**62), 2**63, 2**500])
scalars = st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=30) | st.binary(max_size=30)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)
words = st.text(max_size=8)
unicode_arguments = st.tuples(words, st.binary(max_size=8) | words, numbers, numbers, words)
place = st.tuples(words | st.none(), numbers, numbers, words | st.none(), numbers, numbers)
arguments = (
    st.lists(values, max_size=6).map(tuple)
    | unicode_arguments
    | unicode_arguments.map(lambda parts: parts[1:])
    | st.tuples(words, place)
    | st.tuples(words, place.map(lambda parts: parts[:4]))
    | st.tuples(numbers, words, values, values)
    | st.tuples(words)
)
type_names = st.sampled_from(BUILTIN + OURS) | words
known_names = sorted(
    {name for kind in BUILTIN for name in dir(getattr(builtins, kind))} | {"describe", "limit", "code"}
)
attributes = st.dictionaries(st.sampled_from(known_names) | words, values, max_size=4)
plain = st.builds(Crafted, type_names, arguments, attributes, st.lists(words, max_size=3).map(tuple))
crafted = st.recursive(
    plain,
    lambda inner: st.builds(
        Crafted,
        type_names,
        arguments,
        attributes,
        cause=inner | st.none(),
        context=inner | st.none(),
        members=st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(crafted)
def test_whatever_a_plugin_sends_can_be_shown_logged_and_copied(victim: Victim, crafted: Crafted) -> None:
    victim.catch(crafted.details())


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_became_of_it_on_the_way_can_be_shown_logged_and_copied(victim: Victim, data: st.DataObject) -> None:
    details = bytearray(data.draw(crafted).details())
    for _ in range(data.draw(st.integers(1, 4))):
        details[data.draw(st.integers(0, len(details) - 1))] = data.draw(st.integers(0, 255))
    victim.catch(bytes(details))
