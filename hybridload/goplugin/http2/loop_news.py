"""How coroutines hear of what threads do to a call."""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future

from hybridload.goplugin.event_loop import settle_soon


class LoopNews:
    """Tells the coroutines of one call what its state has to tell; takes the place of a thread's `Condition`.

    :param loop: where they run.
    """

    __slots__ = ("_waiting", "loop")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: list[Future[None]] = []

    def expect(self) -> Future[None]:
        """What to await: done with the next news. Called on the loop, with the link's lock held."""
        waiter: Future[None] = self.loop.create_future()
        self._waiting.append(waiter)
        return waiter

    def is_over(self) -> bool:
        """Whether the call is over. Called with the link's lock held."""
        raise NotImplementedError

    def notify_all(self) -> None:
        """There is news. Called on any thread, with the link's lock held."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            settle_soon(waiter)
