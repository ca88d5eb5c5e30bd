from __future__ import annotations

from collections.abc import Callable

import pytest

from hybridload.goplugin.streams.spinning import LOOK, TRY, Spinning

WAKING = 5e-5
"""Seconds that it takes a sleeper to be woken."""


class Peer:
    """A stream and its clock: a look takes two microseconds, and bytes come when it is time.

    :param answers_in: seconds from the beginning of a receive.
    :param needs_the_processor: it can only answer while nobody looks.
    :param takes_the_processor: whoever looks is interrupted by others.
    """

    peer = "a peer"

    def __init__(self) -> None:
        self.now = 0.0
        self.answers_in = 0.0
        self.needs_the_processor = self.takes_the_processor = False
        self.looks = self.sleeps = 0
        self._comes_at = 0.0

    def call(self, spinning: Spinning, *, rest: bool = False) -> str:
        """Receive something; how that was done."""
        self.looks = self.sleeps = 0
        self._comes_at = self.now + self.answers_in
        receive = spinning.receive_rest if rest else spinning.receive
        assert receive(100, 3.0) == b"answer"
        assert self.looks <= LOOK / 2e-6 + 1
        return "looked" if not self.sleeps else "both" if self.looks else "slept"

    def looker(self) -> Callable[[], bool]:
        return self._look

    def _look(self) -> bool:
        self.looks += 1
        self.now += 2e-6
        if self.needs_the_processor:
            self._comes_at += 2e-6
        if self.takes_the_processor:
            self.now += LOOK
        return self.now >= self._comes_at

    def receive(self, max_bytes: int = 65536, timeout: float | None = None) -> bytes:
        assert timeout == 3.0
        if self.now < self._comes_at:
            self.sleeps += 1
            self.now = self._comes_at + WAKING
        return b"answer"


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def spinning(peer: Peer) -> Spinning:
    return Spinning(peer, lambda: peer.now)  # type: ignore[arg-type]


def ways(peer: Peer, spinning: Spinning, calls: int = 10 * TRY) -> dict[str, int]:
    done = [peer.call(spinning) for _ in range(calls)]
    return {way: done.count(way) for way in dict.fromkeys(done)}


def test_what_comes_soon_is_looked_for(peer: Peer, spinning: Spinning) -> None:
    peer.answers_in = LOOK / 3
    assert ways(peer, spinning) == {"looked": 10 * TRY}


@pytest.mark.parametrize("answers_in", [1.5 * LOOK, 50 * LOOK])
def test_what_takes_longer_is_slept_for_and_now_and_then_looked_for(
    peer: Peer, spinning: Spinning, answers_in: float
) -> None:
    peer.answers_in = answers_in
    assert [peer.call(spinning) for _ in range(4)] == ["both", "both", "both", "slept"]
    assert ways(peer, spinning) == {"slept": 10 * TRY - 10, "both": 10}


@pytest.mark.parametrize("hindrance", ["needs_the_processor", "takes_the_processor"])
def test_where_there_are_not_processors_enough_it_is_slept_for(peer: Peer, spinning: Spinning, hindrance: str) -> None:
    peer.answers_in = LOOK / 3
    setattr(peer, hindrance, True)
    ways(peer, spinning)  # which is how it learns
    assert ways(peer, spinning)["slept"] == 10 * TRY - 10


def test_an_answer_that_took_long_now_and_then_changes_nothing(peer: Peer, spinning: Spinning) -> None:
    for _ in range(100):
        peer.answers_in = 50 * LOOK
        assert peer.call(spinning) == "both"
        peer.answers_in = LOOK / 3
        assert [peer.call(spinning) for _ in range(3)] == ["looked"] * 3


def test_it_learns_anew(peer: Peer, spinning: Spinning) -> None:
    for answers_in, way in ((LOOK / 3, "looked"), (50 * LOOK, "slept"), (LOOK / 3, "looked")):
        peer.answers_in = answers_in
        ways(peer, spinning, 4 * TRY)
        assert ways(peer, spinning, TRY)[way] >= TRY - 1


def test_the_rest_of_what_has_begun_is_received_in_the_same_way(peer: Peer, spinning: Spinning) -> None:
    peer.answers_in = 50 * LOOK
    assert [peer.call(spinning, rest=True) for _ in range(20)] == ["both"] * 20
    ways(peer, spinning)
    assert peer.call(spinning, rest=True) == "slept"
