from __future__ import annotations

import pytest

from hybridload.goplugin.streams.spinning import LOOK, Spinning


class Peer:
    """A stream and its clock: every look takes ten microseconds, and bytes come when it is time."""

    peer = "a peer"

    def __init__(self) -> None:
        self.now = 0.0
        self.comes_at = 0.0
        self.looks = 0
        self.slept: list[float | None] = []

    def answers_within(self, seconds: float) -> None:
        self.comes_at = self.now + seconds
        self.slept.clear()
        self.looks = 0

    def receive(self, max_bytes: int = 65536, timeout: float | None = None) -> bytes:
        if timeout == 0:
            self.now += 1e-5
            self.looks += 1
            if self.now < self.comes_at:
                raise TimeoutError
        else:
            self.slept.append(timeout)
            self.now = max(self.now, self.comes_at)
        return b"answer"


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def spinning(peer: Peer) -> Spinning:
    return Spinning(peer, lambda: peer.now)  # type: ignore[arg-type]


def call(peer: Peer, spinning: Spinning, seconds: float) -> bool:
    """Receive what comes after so many seconds; whether it was waited for asleep."""
    peer.answers_within(seconds)
    assert spinning.receive(100, 3.0) == b"answer"
    assert peer.slept in ([], [3.0])
    return bool(peer.slept)


def test_what_comes_soon_is_received_without_sleeping(peer: Peer, spinning: Spinning) -> None:
    assert [call(peer, spinning, LOOK / 2) for _ in range(5)] == [False] * 5


def test_what_takes_longer_is_slept_for_and_looked_for_ever_more_rarely(peer: Peer, spinning: Spinning) -> None:
    looked = []
    for number in range(265):
        assert call(peer, spinning, 1.0)
        if peer.looks:
            assert peer.looks <= LOOK / 1e-5 + 1
            looked.append(number)
    assert looked == [0, 2, 5, 10, 19, 36, 69, 134, 199, 264]


def test_once_answers_come_soon_again_they_are_looked_for_each_time(peer: Peer, spinning: Spinning) -> None:
    for _ in range(200):
        call(peer, spinning, 1.0)
    quick = [call(peer, spinning, LOOK / 2) for _ in range(70)]
    assert quick == sorted(quick, reverse=True)
    assert not quick[-1]
    assert [call(peer, spinning, seconds) for seconds in (1.0, 1.0, LOOK / 2)] == [True, True, False]


def test_the_rest_of_what_has_begun_is_always_looked_for(peer: Peer, spinning: Spinning) -> None:
    assert call(peer, spinning, 1.0)
    peer.answers_within(LOOK / 2)
    assert spinning.receive_rest(100, 3.0) == b"answer"
    assert peer.slept == []
    peer.answers_within(1.0)
    assert spinning.receive_rest(100, 3.0) == b"answer"
    assert peer.slept == [3.0]
    assert call(peer, spinning, LOOK / 2), "the rest says nothing of how long answers take"
