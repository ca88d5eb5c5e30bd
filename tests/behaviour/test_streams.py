"""Streams in every direction: to their end, ended early, failing in the middle, abandoned."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from behaviour_sdk import HANDSHAKE, PLUGINS

from hybridload import Loader
from hybridload.errors import ConfigError, ContractError, RemoteError

from .conftest import PATIENCE, Row


def test_an_interface_that_streams_is_refused_where_nothing_can_stream(
    everything: Any, row: Row, row_config: Path
) -> None:
    if not row.differs("no-streams"):
        assert list(everything.count(0, 2)) == [0, 1]
        return
    with (
        Loader(PLUGINS, handshake=HANDSHAKE, config=row_config) as loader,
        pytest.raises((ConfigError, ContractError), match=r"count\(\) at .*: it streams, and over net/rpc"),
    ):
        loader.load("everything")


def test_results_stream_in_order(streaming: Any) -> None:
    assert list(streaming.count(3, 8)) == [3, 4, 5, 6, 7]


def test_a_stream_may_be_empty(streaming: Any) -> None:
    assert list(streaming.count(1, 1)) == []


def test_a_long_stream_arrives_whole(streaming: Any) -> None:
    assert sum(1 for _ in streaming.count(0, 5_000)) == 5_000


def test_an_ended_stream_stays_ended(streaming: Any) -> None:
    stream = streaming.count(0, 1)
    assert [*stream, *stream] == [0]


def test_a_stream_fails_in_the_middle_after_what_came_before(streaming: Any, row: Row) -> None:
    stream = streaming.count_then_fail(3)
    if row.differs("go-errors"):
        with pytest.raises(RemoteError, match="no more than 3") as caught:
            list(stream)
        assert caught.value.code == "INVALID_ARGUMENT"
    else:
        assert [next(stream), next(stream), next(stream)] == [0, 1, 2]
        with pytest.raises(ValueError, match="no more than 3"):
            next(stream)
    assert list(stream) == []


def test_a_closed_stream_ends_the_plugins_generator(streaming: Any, key: str) -> None:
    stream = streaming.endless(key)
    assert next(stream) == 0
    stream.close()
    assert streaming.ended(key)
    assert list(stream) == []


def test_an_abandoned_stream_ends_the_plugins_generator(streaming: Any, key: str) -> None:
    stream = streaming.endless(key)
    assert next(stream) == 0
    del stream
    assert streaming.ended(key)


def test_when_a_stream_starts(streaming: Any, row: Row, key: str) -> None:
    stream = streaming.endless(key)
    if row.differs("eager-streams"):
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(streaming.ended, key)
            next(stream)
            stream.close()
            assert ended.result()
    else:
        stream.close()
        assert next(stream, "nothing") == "nothing"


def test_arguments_stream_to_the_plugin(streaming: Any) -> None:
    assert streaming.total(iter(range(1_000))) == 499_500
    assert streaming.total(iter([])) == 0


def test_a_plugin_need_not_take_the_whole_stream(streaming: Any) -> None:
    closed = threading.Event()

    def numbers() -> Iterator[int]:
        try:
            number = 41
            while True:
                number += 1
                yield number
        finally:
            closed.set()

    assert streaming.first(numbers()) == 42
    assert closed.wait(PATIENCE)


def test_an_argument_stream_that_fails_raises_its_own_error(streaming: Any) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise LookupError("out of numbers")

    with pytest.raises(LookupError, match="out of numbers"):
        streaming.total(numbers())


def test_both_directions_stream_at_once(streaming: Any) -> None:
    """Each number is only given once the one before it has come back."""
    answered = threading.Semaphore(1)

    def numbers() -> Iterator[int]:
        for number in range(20):
            assert answered.acquire(timeout=PATIENCE)
            yield number

    received = []
    for number in streaming.scaled(3, numbers()):
        received.append(number)
        answered.release()
    assert received == list(range(0, 60, 3))


def test_the_plugin_may_end_both_directions_early(streaming: Any) -> None:
    def numbers() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    assert list(streaming.until(4, numbers())) == [0, 1, 2, 3]


def test_both_directions_fail_with_the_hosts_own_error(streaming: Any) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise LookupError("out of numbers")

    with pytest.raises(LookupError, match="out of numbers"):
        list(streaming.scaled(2, numbers()))


def test_a_value_in_a_stream_that_does_not_fit_is_refused(streaming: Any, row: Row) -> None:
    if row.differs("unchecked-values"):
        assert list(streaming.scaled(2, iter(["a"]))) == ["aa"]
    else:
        with pytest.raises(TypeError, match="numbers"):
            list(streaming.scaled(2, iter(["a"])))
