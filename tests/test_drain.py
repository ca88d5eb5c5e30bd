"""Counting calls: what a gate and a limit keep to, whatever comes in between."""

from __future__ import annotations

from concurrent.futures import Future

from hybridload.drain import Limit


def test_a_call_that_ends_while_turns_are_handed_out_lets_nobody_in_too_many() -> None:
    """The garbage collector may end a dropped stream at any step, in the very thread that hands out."""
    limit = Limit(2)

    class Collecting(Future[list[object]]):
        """A turn that is being handed out while a stream is collected."""

        def set_running_or_notify_cancel(self) -> bool:
            seats.pop().clear()
            limit.left()
            return super().set_running_or_notify_cancel()

    seats = [limit.seat(), limit.seat()]
    turns: list[Future[list[object]]] = [Collecting(), Future(), Future()]
    limit._turns.extend(turns)
    seats.pop().clear()
    limit.left()
    assert [turn.done() for turn in turns] == [True, True, False]
    assert limit.inside == 2


def test_a_turn_that_nobody_waits_for_takes_no_place() -> None:
    limit = Limit(1)
    seat = limit.seat()
    given_up, waiting = limit.queue(), limit.queue()
    assert given_up.cancel()
    seat.clear()
    limit.left()
    assert waiting.done()
    assert limit.inside == 1
