"""Streams in every direction: to their end, ended early, failing in the middle, abandoned."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hybridload.errors import RemoteError

from .conftest import PATIENCE, Row


def test_results_stream_in_order(everything: Any) -> None:
    assert list(everything.count(3, 8)) == [3, 4, 5, 6, 7]


def test_a_stream_may_be_empty(everything: Any) -> None:
    assert list(everything.count(1, 1)) == []


def test_a_long_stream_arrives_whole(everything: Any) -> None:
    assert sum(1 for _ in everything.count(0, 5_000)) == 5_000


def test_an_ended_stream_stays_ended(everything: Any) -> None:
    stream = everything.count(0, 1)
    assert [*stream, *stream] == [0]


def test_a_stream_fails_in_the_middle_after_what_came_before(everything: Any, row: Row) -> None:
    stream = everything.count_then_fail(3)
    if row.differs("go-errors"):
        with pytest.raises(RemoteError, match="no more than 3") as caught:
            list(stream)
        assert caught.value.code == "INVALID_ARGUMENT"
    else:
        assert [next(stream), next(stream), next(stream)] == [0, 1, 2]
        with pytest.raises(ValueError, match="no more than 3"):
            next(stream)
    assert list(stream) == []


def test_a_closed_stream_ends_the_plugins_generator(everything: Any, key: str) -> None:
    stream = everything.endless(key)
    assert next(stream) == 0
    stream.close()
    assert everything.ended(key)
    assert list(stream) == []


def test_an_abandoned_stream_ends_the_plugins_generator(everything: Any, key: str) -> None:
    stream = everything.endless(key)
    assert next(stream) == 0
    del stream
    assert everything.ended(key)


def test_when_a_stream_starts(everything: Any, row: Row, key: str) -> None:
    stream = everything.endless(key)
    if row.differs("eager-streams"):
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(everything.ended, key)
            next(stream)
            stream.close()
            assert ended.result()
    else:
        stream.close()
        assert next(stream, "nothing") == "nothing"


def test_arguments_stream_to_the_plugin(everything: Any) -> None:
    assert everything.total(iter(range(1_000))) == 499_500
    assert everything.total(iter([])) == 0


def test_a_plugin_need_not_take_the_whole_stream(everything: Any) -> None:
    closed = threading.Event()

    def numbers() -> Iterator[int]:
        try:
            number = 41
            while True:
                number += 1
                yield number
        finally:
            closed.set()

    assert everything.first(numbers()) == 42
    assert closed.wait(PATIENCE)


def test_an_argument_stream_that_fails_raises_its_own_error(everything: Any) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise LookupError("out of numbers")

    with pytest.raises(LookupError, match="out of numbers"):
        everything.total(numbers())


def test_both_directions_stream_at_once(everything: Any) -> None:
    """Each number is only given once the one before it has come back."""
    answered = threading.Semaphore(1)

    def numbers() -> Iterator[int]:
        for number in range(20):
            assert answered.acquire(timeout=PATIENCE)
            yield number

    received = []
    for number in everything.scaled(3, numbers()):
        received.append(number)
        answered.release()
    assert received == list(range(0, 60, 3))


def test_the_plugin_may_end_both_directions_early(everything: Any) -> None:
    def numbers() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    assert list(everything.until(4, numbers())) == [0, 1, 2, 3]


def test_both_directions_fail_with_the_hosts_own_error(everything: Any) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise LookupError("out of numbers")

    with pytest.raises(LookupError, match="out of numbers"):
        list(everything.scaled(2, numbers()))


def test_a_value_in_a_stream_that_does_not_fit_is_refused(everything: Any, row: Row) -> None:
    if row.differs("unchecked-values"):
        assert list(everything.scaled(2, iter(["a"]))) == ["aa"]
    else:
        with pytest.raises(TypeError, match="numbers"):
            list(everything.scaled(2, iter(["a"])))
