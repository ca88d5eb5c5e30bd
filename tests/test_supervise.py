"""The rules of `hybridload.supervise`, told as stories and searched for exceptions."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hybridload.supervise import (
    RULES,
    Close,
    Crashed,
    Due,
    Failure,
    Loaded,
    Policy,
    Probe,
    Start,
    Started,
    StartFailed,
    State,
    Stop,
    Supervisor,
    Tell,
    Unhealthy,
    Wait,
)

CHAIN: Any = ("external", "subprocess", "in-process")
POLICY = Policy(max_restarts=3, restart_window=60, backoff=1, backoff_max=3, retry_after=30)


def supervisor(chain: Any = CHAIN, *, chance: float = 0.0, **policy: Any) -> Supervisor:
    """One whose plugin was just loaded in the first isolation of its chain."""
    made = Supervisor(Policy(**{**{f: getattr(POLICY, f) for f in POLICY.__slots__}, **policy}), lambda: chance)
    made.receive(Loaded(chain, chain[0]), 0)
    return made


def states(outputs: list[Any]) -> list[str]:
    return [str(output.state) for output in outputs if isinstance(output, Tell)]


def deeds(outputs: list[Any]) -> list[Any]:
    return [output for output in outputs if not isinstance(output, Tell)]


def crash(made: Supervisor, now: float) -> list[Any]:
    """A crash whose restart works, after the wait that it takes; what was to be done at once."""
    outputs = made.receive(Crashed(), now)
    if made.due is not None:
        made.receive(Due(), made.due)
    made.receive(Started(), now)
    return deeds(outputs)


def test_the_first_restart_comes_at_once() -> None:
    made = supervisor()
    outputs = made.receive(Crashed(), 1)
    assert states(outputs) == ["crashed", "starting"]
    assert deeds(outputs) == [Start("external")]
    assert states(made.receive(Started(), 2)) == ["running"]


def test_each_further_one_waits_twice_as_long_up_to_the_limit() -> None:
    made = supervisor(max_restarts=6)
    assert [crash(made, 1) for _ in range(6)] == [
        [Start("external")],
        [Wait(1)],
        [Wait(2)],
        [Wait(3)],
        [Wait(3)],
        [Wait(3)],
    ]


def test_chance_takes_up_to_half_of_a_wait() -> None:
    made = supervisor(chance=0.999999)
    crash(made, 1)
    [wait] = crash(made, 1)
    assert wait.seconds == pytest.approx(0.5, rel=1e-3)


def test_a_quiet_window_gives_the_budget_back() -> None:
    made = supervisor(max_restarts=1)
    assert [crash(made, now) for now in (0, 60, 120)] == [[Start("external")]] * 3


def test_the_next_isolation_takes_over_when_the_budget_is_used_up() -> None:
    made = supervisor(max_restarts=1)
    crash(made, 1)
    outputs = made.receive(Crashed(), 2)
    assert deeds(outputs) == [Start("subprocess")]
    outputs = made.receive(Started(), 3)
    assert (states(outputs), deeds(outputs)) == (["failed over"], [Wait(30)])
    assert made.better == ("external",)


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_an_isolation_that_takes_over_gets_one_try(budget: int) -> None:
    """Whatever restarts it would have, once it has served."""
    made = supervisor(max_restarts=budget)
    for _ in range(budget):
        crash(made, 1)
    assert deeds(made.receive(Crashed(), 1)) == [Start("subprocess")]
    assert deeds(made.receive(StartFailed(), 2)) == [Start("in-process")]
    made.receive(Started(), 3)
    assert made.better == ("external", "subprocess")


def test_one_without_a_source_is_passed_over() -> None:
    made = supervisor(max_restarts=0)
    made.receive(Crashed(), 1)
    assert deeds(made.receive(StartFailed(Failure.ABSENT), 2)) == [Start("in-process")]
    made.receive(Started(), 3)
    assert made.better == ("external",)


def test_a_restart_that_fails_costs_a_restart() -> None:
    made = supervisor(("external",), max_restarts=2)
    made.receive(Crashed(), 1)
    assert deeds(made.receive(StartFailed(), 1)) == [Wait(1)]
    assert deeds(made.receive(Due(), 2)) == [Start("external")]
    assert states(made.receive(StartFailed(), 2)) == ["failed"]


def test_back_to_the_preferred_one_when_a_probe_of_it_works() -> None:
    made = supervisor(max_restarts=0)
    made.receive(Crashed(), 1)
    made.receive(Started(), 2)
    assert made.due == 32
    assert made.receive(Due(), 32) == [Probe("external")]
    assert deeds(made.receive(StartFailed(), 33)) == [Wait(30)]
    assert made.state is State.FAILED_OVER
    assert made.receive(Due(), 63) == [Probe("external")]
    assert states(made.receive(Started(), 64)) == ["running"]
    assert (made.isolation, made.better, made.due) == ("external", (), None)


def test_a_probe_of_the_best_that_fails_is_followed_by_one_of_the_second_best() -> None:
    made = Supervisor(POLICY)
    made.receive(Loaded(CHAIN, "in-process", ("external", "subprocess")), 0)
    made.receive(Due(), 30)
    assert made.receive(StartFailed(), 31) == [Probe("subprocess")]
    outputs = made.receive(Started(), 32)
    assert (states(outputs), made.isolation, made.better) == (["failed over"], "subprocess", ("external",))


def test_with_nothing_left_it_has_failed_and_is_tried_anew() -> None:
    made = supervisor(("external", "in-process"), max_restarts=0)
    made.receive(Crashed(), 1)
    outputs = made.receive(StartFailed(), 2)
    assert (states(outputs), deeds(outputs)) == (["failed"], [Wait(30)])
    assert deeds(made.receive(Due(), 32)) == [Start("external")]
    made.receive(Started(), 33)
    assert (made.state, made.better) == (State.RUNNING, ())


def test_what_may_not_be_replaced_is_not() -> None:
    made = supervisor()
    made.receive(Crashed(), 1)
    assert states(made.receive(StartFailed(Failure.FATAL), 2)) == ["failed"]


def test_what_does_not_answer_is_stopped_and_then_crashed() -> None:
    made = supervisor()
    outputs = made.receive(Unhealthy(), 1)
    assert deeds(outputs) == [Stop(), Start("external")]
    assert states(outputs) == ["crashed", "starting"]


def test_what_the_host_asks_for_goes_before() -> None:
    made = supervisor()
    crash(made, 1)
    made.receive(Crashed(), 1)
    assert made.state is State.BACKING_OFF
    made.receive(Loaded(CHAIN, "in-process"), 2)
    assert (made.state, made.due) == (State.RUNNING, None)
    assert made.receive(Due(), 3) == []


def test_closed_is_closed() -> None:
    made = supervisor()
    made.receive(Close(), 1)
    for news in (Loaded(CHAIN, "external"), Started(), StartFailed(), Crashed(), Unhealthy(), Due(), Close()):
        assert made.receive(news, 2) == []
    assert made.state is State.CLOSED


def test_every_state_has_its_rules() -> None:
    assert set(RULES) == set(State)


@settings(max_examples=300, stateful_step_count=40)
class AnyStory(RuleBasedStateMachine):
    """Whatever happens, in an order in which it can happen."""

    @initialize(
        chain=st.permutations(CHAIN).flatmap(lambda all_: st.integers(1, 3).map(lambda n: tuple(all_[:n]))),
        max_restarts=st.integers(0, 3),
        chance=st.floats(0, 1, exclude_max=True),
    )
    def load(self, chain: Any, max_restarts: int, chance: float) -> None:
        self.policy = Policy(max_restarts, 60, 1, 8, 30)
        self.made = Supervisor(self.policy, lambda: chance)
        self.now = 0.0
        self.asked: Start | Probe | None = None
        self.serving = True
        self.taking_over = False
        self.restarts: dict[str, list[float]] = defaultdict(list)
        self.tell(Loaded(chain, chain[0]))

    def tell(self, news: Any) -> None:
        for output in self.made.receive(news, self.now):
            if isinstance(output, Start | Probe):
                assert self.asked is None, "two wishes at once"
                self.asked = output
                assert output.isolation in self.made.chain
                assert isinstance(output, Probe) == self.serving, "started beside, or in place of, nothing"
            elif isinstance(output, Wait):
                assert 0 < output.seconds <= max(self.policy.backoff_max, self.policy.retry_after)
                assert self.made.due == self.now + output.seconds
            elif isinstance(output, Tell) and output.state is State.STARTING and output.restart:
                times = self.restarts[str(output.isolation)]
                times.append(self.now)
                recent = [time for time in times if time > self.now - self.policy.restart_window]
                assert len(recent) <= self.policy.max_restarts
            elif isinstance(output, Tell) and output.state is State.FAILED:
                self.restarts.clear()

    @precondition(lambda self: self.asked is not None)
    @rule(works=st.booleans(), how=st.sampled_from(list(Failure)))
    def try_it(self, works: bool, how: Failure) -> None:
        self.asked = None
        if works:
            self.serving = True
            self.tell(Started())
        else:
            self.tell(StartFailed(how))

    @precondition(lambda self: self.serving and self.asked is None)
    @rule(hung=st.booleans())
    def lose(self, hung: bool) -> None:
        self.serving = False
        self.tell(Unhealthy() if hung else Crashed())

    @precondition(lambda self: self.made.due is not None and self.asked is None)
    @rule()
    def wait(self) -> None:
        assert self.made.due is not None
        self.now = self.made.due
        self.tell(Due())

    @rule(seconds=st.floats(0, 100))
    def live(self, seconds: float) -> None:
        self.now += seconds if self.made.due is None else 0

    @rule(at=st.integers(0, 2))
    def switch(self, at: int) -> None:
        chain = self.made.chain
        self.asked, self.serving = None, True
        self.tell(Loaded(chain, chain[at % len(chain)], chain[: at % len(chain)]))

    @invariant()
    def there_is_always_something_that_goes_on(self) -> None:
        state, waits = self.made.state, self.made.due is not None
        if state in (State.BACKING_OFF, State.FAILED):
            assert waits
            assert not self.serving
        elif state is State.STARTING:
            assert isinstance(self.asked, Start)
        elif state is State.FAILED_OVER:
            assert self.serving
            assert self.made.better
            assert waits or isinstance(self.asked, Probe)
        else:
            assert state is State.RUNNING
            assert (self.serving, waits, self.asked, self.made.better) == (True, False, None, ())

    @invariant()
    def what_is_better_comes_before_what_is_used(self) -> None:
        if self.made.state is State.FAILED_OVER:
            chain = self.made.chain
            at = chain.index(self.made.isolation)  # type: ignore[arg-type]
            assert all(chain.index(each) < at for each in self.made.better)


TestAnyStory = AnyStory.TestCase
