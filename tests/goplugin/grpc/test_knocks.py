"""Knocks of a multiplexed plugin, as the broker takes them."""

from __future__ import annotations

import threading
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from hybridload.goplugin.grpc import broker as module
from hybridload.goplugin.grpc import messages
from hybridload.goplugin.grpc.broker import GRPCBroker


def test_knocks_that_nobody_answers_wait_on_one_thread_and_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    transport: Any = SimpleNamespace(multiplexed=True)
    before = threading.active_count()
    with closing(GRPCBroker(transport, SimpleNamespace(), None, name="test")) as broker:  # type: ignore[arg-type]
        answers = broker.outgoing()
        for service_id in range(1, 101):
            broker.receive([messages.ConnInfo(service_id=service_id, knock={"knock": True})])
        assert threading.active_count() <= before + 1
        refused = [next(answers) for _ in range(100)]
    assert sorted(answer.service_id for answer in refused) == list(range(1, 101))
    assert refused[0].knock.error.startswith("nobody accepts the id ")
    assert threading.active_count() == before
