"""What becomes of a plugin that runs: the rules, without a clock, a thread or a process.

A supervisor is told what happened and answers with what is to be done; whoever asks does it and tells what came of it.
Time is an argument, chance is injected, so every story can be told to it in a test.

The rules:

1. A crash costs one restart. The first within `restart_window` seconds comes at once; each further one waits twice as
   long as the one before, from `backoff` up to `backoff_max` seconds, less up to half of that by chance, so that many
   hosts do not start their plugins in step.
2. An isolation has `max_restarts` restarts within any `restart_window` seconds; a start that fails costs one too. When
   they are used up, the next isolation of the chain takes over, with a budget of its own.
3. An isolation that takes over gets one try, as it does when a plugin is loaded. One that the plugin has no source for
   is passed over.
4. While a later isolation serves, every better one that failed is probed each `retry_after` seconds: started beside
   the one that serves. The first that works takes over.
5. When no isolation is left, or when a failure forbids to look further (a checksum that does not match), the plugin has
   failed: calls are refused. The chain is tried anew after `retry_after` seconds, with fresh budgets.
6. A plugin that does not answer is stopped, and then it is one that crashed.
7. What the host asks for (load, switch, reload) goes before: whatever was due is forgotten.
8. Closed is closed.

What a state does with what it is told is the table `RULES`. News that a state has no rule for is late, and changes
nothing. The state `CRASHED` is passed through: it is told to those who listen, and rule 1 or 2 follows at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum, StrEnum
from typing import Any, TypeAlias

from hybridload.config.chain import Chain, Isolation
from hybridload.frozen import frozen, names


class State(StrEnum):
    """Where a plugin stands."""

    UNLOADED = "unloaded"
    STARTING = "starting"
    RUNNING = "running"
    CRASHED = "crashed"
    BACKING_OFF = "backing off"
    FAILED_OVER = "failed over"
    FAILED = "failed"
    CLOSED = "closed"


@frozen
class Policy:
    """How much is done for a plugin. The fields are keys of the configuration.

    :param max_restarts: within `restart_window`, in one isolation.
    :param restart_window: seconds.
    :param backoff: seconds before the second restart within the window.
    :param backoff_max: seconds that a restart waits at the most.
    :param retry_after: seconds until a better isolation is probed, or a plugin that failed is tried anew.
    :param health_interval: seconds between two health checks; 0 for none.
    :param health_timeout: seconds that an answer to one may take.
    """

    max_restarts: int = 5
    restart_window: float = 60.0
    backoff: float = 0.1
    backoff_max: float = 10.0
    retry_after: float = 60.0
    health_interval: float = 10.0
    health_timeout: float = 5.0

    @classmethod
    def of(cls, settings: object) -> Policy:
        """What a plugin's settings say; the defaults where they say nothing."""
        given = {name: getattr(settings, name) for name in names(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})


# What a supervisor is told


class Failure(Enum):
    """How a start failed."""

    AGAIN = "it may work another time"
    ABSENT = "the plugin has no source for that isolation"
    FATAL = "no isolation may be tried in its place"


@frozen
class Loaded:
    """The host loaded, switched or reloaded the plugin.

    :param better: isolations that come first in the chain, were tried and failed.
    """

    chain: Chain
    isolation: Isolation
    better: Chain = ()


@frozen
class Started:
    """What was asked to start runs, and serves from now on."""


@frozen
class StartFailed:
    """What was asked to start does not run."""

    how: Failure = Failure.AGAIN


@frozen
class Crashed:
    """What served has ended by itself."""


@frozen
class Unhealthy:
    """What serves does not answer."""


@frozen
class Due:
    """The time that was to be waited for has come."""


@frozen
class Close:
    """The host has no more use for the plugin."""


News: TypeAlias = Loaded | Started | StartFailed | Crashed | Unhealthy | Due | Close


# What it answers


@frozen
class Start:
    """Start the plugin in that isolation: nothing serves."""

    isolation: Isolation


@frozen
class Probe:
    """Start the plugin in that isolation beside the one that serves."""

    isolation: Isolation


@frozen
class Wait:
    """Say `Due` in so many seconds, unless something else happens before."""

    seconds: float


@frozen
class Stop:
    """Kill what serves: it does not answer."""


@frozen
class Tell:
    """Tell whoever listens that the plugin has come to a state.

    :param restart: which restart within the window this is, when it is one.
    :param delay: seconds until something is done about it.
    """

    state: State
    isolation: Isolation | None
    restart: int = 0
    delay: float | None = None


Output: TypeAlias = Start | Probe | Wait | Stop | Tell


class Supervisor:
    """The state of one plugin.

    :param policy: may be changed at any time, and counts from the next decision on.
    :param chance: gives numbers from 0 up to 1; `random.random` by default.
    """

    def __init__(self, policy: Policy | None = None, chance: Callable[[], float] | None = None) -> None:
        self.policy = policy or Policy()
        self.state = State.UNLOADED
        self.chain: Chain = ()
        self.isolation: Isolation | None = None
        """Where the plugin runs, is being started, or ran last."""
        self.better: Chain = ()
        """Isolations of the chain that were tried, failed, and would be preferred."""
        self.due: float | None = None
        """When `Due` is to be said, on the clock of `now`."""
        self._chance = chance
        self._restarts: dict[Isolation, deque[float]] = {}
        self._taking_over = False
        self._probed = 0
        self._outputs: list[Output] = []

    def receive(self, news: News, now: float) -> list[Output]:
        """What is to be done about `news`, in order.

        :param now: seconds, on a clock that only goes forward.
        """
        rule = RULES[self.state].get(type(news))
        if rule is not None:
            rule(self, news, now)
        outputs, self._outputs = self._outputs, []
        return outputs

    # -- rules

    def _loaded(self, news: Loaded, now: float) -> None:
        self.chain, self.isolation, self.better = news.chain, news.isolation, news.better
        self._serve(now)

    def _started(self, news: Started, now: float) -> None:
        self._serve(now)

    def _probe_started(self, news: Started, now: float) -> None:
        self.isolation, self.better = self.better[self._probed], self.better[: self._probed]
        self._serve(now)

    def _start_failed(self, news: StartFailed, now: float) -> None:
        if news.how is Failure.FATAL:
            self._fail(now)
        elif news.how is Failure.ABSENT or self._taking_over:
            self._next(now, tried=news.how is not Failure.ABSENT)
        else:
            self._restart(now)

    def _probe_failed(self, news: StartFailed, now: float) -> None:
        if news.how is Failure.ABSENT:
            self.better = self.better[: self._probed] + self.better[self._probed + 1 :]
        else:
            self._probed += 1
        if self._probed < len(self.better):
            self._outputs.append(Probe(self.better[self._probed]))
        elif self.better:
            self._wait(now, self.policy.retry_after)
        else:
            self._serve(now)

    def _crashed(self, news: Crashed, now: float) -> None:
        self._become(State.CRASHED)
        self._restart(now)

    def _unhealthy(self, news: Unhealthy, now: float) -> None:
        self._outputs.append(Stop())
        self._become(State.CRASHED)
        self._restart(now)

    def _try_again(self, news: Due, now: float) -> None:
        self._start(now)

    def _probe(self, news: Due, now: float) -> None:
        self.due, self._probed = None, 0
        self._outputs.append(Probe(self.better[0]))

    def _start_over(self, news: Due, now: float) -> None:
        self._restarts.clear()
        self.better = ()
        self._take_over(self.chain[0])

    def _close(self, news: Close, now: float) -> None:
        self.due = None
        self._become(State.CLOSED)

    # -- what they have in common

    def _serve(self, now: float) -> None:
        self.due = None
        if self.better:
            self._become(State.FAILED_OVER, delay=self.policy.retry_after)
            self._wait(now, self.policy.retry_after)
        else:
            self._become(State.RUNNING)

    def _restart(self, now: float) -> None:
        done = self._recent(now)
        if len(done) >= self.policy.max_restarts:
            self._next(now, tried=True)
        elif not done:
            self._start(now)
        else:
            delay = min(self.policy.backoff_max, self.policy.backoff * 2.0 ** (len(done) - 1))
            delay *= 1 - (self._chance or _chance)() / 2
            self._become(State.BACKING_OFF, delay=delay)
            self._wait(now, delay)

    def _start(self, now: float) -> None:
        assert self.isolation is not None
        done = self._recent(now)
        done.append(now)
        self.due, self._taking_over = None, False
        self._become(State.STARTING, restart=len(done))
        self._outputs.append(Start(self.isolation))

    def _next(self, now: float, *, tried: bool) -> None:
        assert self.isolation is not None
        after = self.chain[self.chain.index(self.isolation) + 1 :]
        if tried:
            self.better = (*self.better, self.isolation)
        if after:
            self._take_over(after[0])
        else:
            self._fail(now)

    def _take_over(self, isolation: Isolation) -> None:
        self.due, self.isolation, self._taking_over = None, isolation, True
        self._become(State.STARTING)
        self._outputs.append(Start(isolation))

    def _fail(self, now: float) -> None:
        self._become(State.FAILED, delay=self.policy.retry_after)
        self._wait(now, self.policy.retry_after)

    def _recent(self, now: float) -> deque[float]:
        """When the isolation was restarted within the window."""
        assert self.isolation is not None
        times = self._restarts.setdefault(self.isolation, deque())
        while times and times[0] <= now - self.policy.restart_window:
            times.popleft()
        return times

    def _become(self, state: State, *, restart: int = 0, delay: float | None = None) -> None:
        self.state = state
        self._outputs.append(Tell(state, self.isolation, restart, delay))

    def _wait(self, now: float, seconds: float) -> None:
        self.due = now + seconds
        self._outputs.append(Wait(seconds))


def _chance() -> float:
    from random import random

    return random()


_Rule: TypeAlias = Callable[[Supervisor, Any, float], None]
_ANYWHERE: Mapping[type, _Rule] = {Loaded: Supervisor._loaded, Close: Supervisor._close}

RULES: Mapping[State, Mapping[type, _Rule]] = {
    State.UNLOADED: _ANYWHERE,
    State.STARTING: {
        **_ANYWHERE,
        Started: Supervisor._started,
        StartFailed: Supervisor._start_failed,
    },
    State.RUNNING: {
        **_ANYWHERE,
        Crashed: Supervisor._crashed,
        Unhealthy: Supervisor._unhealthy,
    },
    State.CRASHED: {},
    State.BACKING_OFF: {
        **_ANYWHERE,
        Due: Supervisor._try_again,
    },
    State.FAILED_OVER: {
        **_ANYWHERE,
        Started: Supervisor._probe_started,
        StartFailed: Supervisor._probe_failed,
        Crashed: Supervisor._crashed,
        Unhealthy: Supervisor._unhealthy,
        Due: Supervisor._probe,
    },
    State.FAILED: {
        **_ANYWHERE,
        Due: Supervisor._start_over,
    },
    State.CLOSED: {},
}
"""State -> what it is told -> what it does."""
