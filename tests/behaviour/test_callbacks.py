"""Objects that cross: the host's called by the plugin, the plugin's called by the host, each calling the other."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import Any

import pytest

from hybridload.errors import RemoteError

from .conftest import Row


class Listener:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def hear(self, text: str) -> str:
        self.heard.append(text)
        return text[::-1]


class Peer:
    """Calls the plugin while the plugin calls it."""

    def __init__(self, everything: Any) -> None:
        self.everything = everything
        self.calls = 0

    def catch(self, depth: int) -> int:
        self.calls += 1
        return 0 if depth == 0 else 1 + int(self.everything.bounce(self, depth - 1))


def test_the_plugin_calls_the_hosts_object(everything: Any) -> None:
    listener = Listener()
    assert everything.tell(listener, ["abc", "", "ü"]) == ["cba", "", "ü"]
    assert listener.heard == ["abc", "", "ü"]


def test_an_object_may_be_kept_beyond_the_call_that_brought_it(everything: Any) -> None:
    everything.keep(Listener())
    assert everything.tell_kept("abc") == "cba"
    assert everything.tell_kept("xyz") == "zyx"


def test_an_object_of_the_plugin_keeps_its_state(everything: Any) -> None:
    one, other = everything.counter(1), everything.counter(10)
    assert [one.add(2), one.add(3), other.add(1)] == [3, 6, 11]


def test_an_object_that_crosses_is_the_thing_itself_only_where_nothing_crosses(everything: Any, row: Row) -> None:
    counter = everything.counter(0)
    assert hasattr(counter, "_value") is row.differs("shared-objects")


def test_calls_go_back_and_forth_to_any_depth(everything: Any) -> None:
    peer = Peer(everything)
    assert everything.bounce(peer, 6) == 6
    assert peer.calls == 3


def test_a_callback_that_fails_fails_the_call(everything: Any, row: Row) -> None:
    """In Go as well: a status that a handler passes on keeps the details that the exception is rebuilt from."""

    class Deaf:
        def hear(self, text: str) -> str:
            raise LookupError(f"did not get {text}")

    with pytest.raises(RemoteError if row.differs("text-errors") else LookupError, match="did not get that"):
        everything.tell(Deaf(), ["that"])


def test_an_object_that_nobody_has_any_more_is_kept_by_nobody(everything: Any) -> None:
    listeners = [Listener() for _ in range(20)]
    for listener in listeners:
        assert everything.tell(listener, ["abc"]) == ["cba"]
    kept = [weakref.ref(listener) for listener in listeners]
    del listener, listeners
    deadline = time.monotonic() + 20  # less than an object waits for somebody to connect
    while any(each() is not None for each in kept):
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.01)


def test_objects_are_told_apart(everything: Any) -> None:
    listeners = [Listener() for _ in range(4)]
    threads = [
        threading.Thread(target=everything.tell, args=(listener, [f"{number} {turn}" for turn in range(10)]))
        for number, listener in enumerate(listeners)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [listener.heard for listener in listeners] == [
        [f"{number} {turn}" for turn in range(10)] for number in range(4)
    ]


def test_what_a_callback_refuses_as_too_large_names_the_hosts_limit(everything: Any, row: Row) -> None:
    class Echo:
        def hear(self, text: str) -> str:
            return str(len(text))

    text = "x" * 3_600_000  # more than the host takes of the row's plugin, less than a Go plugin takes of a host
    if row.differs("any-size"):
        assert everything.tell(Echo(), [text]) == ["3600000"]
        return
    with pytest.raises(RemoteError, match="host's limit: max_message"):
        everything.tell(Echo(), [text])
    assert everything.tell(Echo(), ["abc"]) == ["3"]
