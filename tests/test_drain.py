"""Counting calls: what a gate and a limit keep to, whatever comes in between."""

from __future__ import annotations

from concurrent.futures import Future

from hybridload.drain import Limit


def test_a_call_that_ends_while_turns_are_handed_out_lets_nobody_in_too_many() -> None:
    """The garbage collector may end a dropped stream at any step, in the very thread that hands out."""
    limit = Limit(2)

    class Collecting(Future[None]):
        """A turn that is being handed out while a stream is collected."""

        def set_running_or_notify_cancel(self) -> bool:
            limit.leave()
            return super().set_running_or_notify_cancel()

    assert limit.enter()
    assert limit.enter()
    turns: list[Future[None]] = [Collecting(), Future(), Future()]
    limit._turns.extend(turns)
    limit.leave()
    assert [turn.done() for turn in turns] == [True, True, False]
    assert limit.inside == 2


def test_a_turn_that_nobody_waits_for_takes_no_place() -> None:
    limit = Limit(1)
    assert limit.enter()
    given_up, waiting = limit.queue(), limit.queue()
    assert given_up.cancel()
    limit.leave()
    assert waiting.done()
    assert limit.inside == 1
