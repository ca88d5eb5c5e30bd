"""The loop: what is due, and that it is never put off."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from hybridload.loop import Loop

PATIENCE = 60.0  # seconds


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_news_are_not_put_off_by_what_is_due_later(loop: Loop) -> None:
    done = threading.Event()
    thread = loop._thread = threading.Thread(target=loop._run)  # not started: as if it had no processor yet
    loop.soon("news", done.set)
    loop.at("news", time.monotonic() + 600, done.set)
    thread.start()
    assert done.wait(PATIENCE)
