"""`Probe` and plugins whose server reflection is hostile: each ends in a finding or a named error, soon and small."""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hybridload.errors import CallTimeout, RemoteError
from hybridload.goplugin.grpc.reflection_client import BadReflection
from hybridload.goplugin.probe import Probe

PROGRAM = Path(__file__).parent / "hostile_reflection_plugin.py"
PATIENCE = 60.0  # seconds
MIB = 1 << 20


@pytest.fixture
def probe() -> Iterator[Callable[[str], Probe]]:
    with ExitStack() as stack:

        def start(attack: str) -> Probe:
            return stack.enter_context(Probe([sys.executable, str(PROGRAM), attack], auto_mtls=False))

        yield start


# attack -> what the report says of the service
FINDINGS = {
    "wide": "more than 2000 others",
    "chain": "more than 2000 others",
    "endless": "more than 2000 others",
    "cycle": "does not fit together",
    "self": "does not fit together",
    "another": "which evil.S needs, with another",
    "garbage": "no file descriptor",
    "no text": "does not fit together",
    "no answer": "cannot be read",
    "large": "more than 16 MiB",
    "nothing": "does not fit together",
    "nested map": "does not fit together",
    "no map": "does not fit together",
}


@pytest.mark.parametrize("attack", FINDINGS)
def test_a_service_that_is_described_badly_is_a_finding(probe: Callable[[str], Probe], attack: str) -> None:
    asked = probe(attack)
    tracemalloc.start()
    try:
        report = asked.report(PATIENCE)
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()
    [service] = report.services
    assert (service.name, service.described) == ("evil.S", False)
    assert service.problem is not None
    assert FINDINGS[attack] in service.problem
    assert report.health == "SERVING"


@pytest.mark.parametrize("attack", ["many", "long list"])
def test_too_many_services_are_an_error(probe: Callable[[str], Probe], attack: str) -> None:
    with pytest.raises(BadReflection, match=r"5000 services, and at most 1000|tells more than"):
        probe(attack).report(PATIENCE)


@pytest.mark.parametrize("attack", ["good", "long"])
def test_what_is_odd_is_described_as_far_as_it_goes(probe: Callable[[str], Probe], attack: str) -> None:
    report = probe(attack).report(PATIENCE)
    [service] = report.services
    assert [method.name for method in service.methods] == ["Go"], service.problem
    assert report.messages is not None
    assert "evil.M" in report.messages


def test_a_call_is_refused_in_the_same_words(probe: Callable[[str], Probe]) -> None:
    with pytest.raises(BadReflection, match="no file descriptor"):
        next(probe("garbage").call("evil.S/Go", {}, PATIENCE))


def test_time_holds_for_reflection(probe: Callable[[str], Probe]) -> None:
    asked = probe("silent")
    for ask in (lambda: asked.report(1.0), lambda: next(asked.call("evil.S/Go", {}, 1.0))):
        began = time.monotonic()
        with pytest.raises(CallTimeout, match="server reflection"):
            ask()
        assert time.monotonic() - began < 5


def test_time_holds_for_streams(probe: Callable[[str], Probe]) -> None:
    answers: list[Any] = []
    began = time.monotonic()
    with pytest.raises(CallTimeout):
        answers.extend(probe("good").call("evil.S/Go", {}, 2.0))
    assert 2.0 < time.monotonic() - began < 10


def test_a_stream_may_have_no_limit(probe: Callable[[str], Probe]) -> None:
    answers = probe("good").call("evil.S/Go", {})
    assert [next(answers) for _ in range(3)] == [{}] * 3


def test_what_fails_otherwise_is_a_remote_error(probe: Callable[[str], Probe]) -> None:
    with pytest.raises(RemoteError):
        next(probe("nothing").call("evil.S/Go", {}, PATIENCE))
