from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hybridload.goplugin.in_flight import InFlight


def test_with_no_call_in_flight_nobody_waits() -> None:
    calls = InFlight()
    assert calls.wait_for_none(0)
    calls.enter()
    calls.leave()
    assert calls.wait_for_none(0)


def test_waiting_ends_with_the_last_call_or_in_time() -> None:
    calls = InFlight()
    calls.enter()
    calls.enter()
    calls.leave()
    assert not calls.wait_for_none(0.001)
    calls.leave()
    assert calls.wait_for_none(0)


def test_the_last_to_leave_is_never_missed() -> None:
    with ThreadPoolExecutor(3) as pool:
        for _ in range(300):
            calls = InFlight()
            calls.enter()
            calls.enter()
            waiting = [pool.submit(calls.wait_for_none, 60), pool.submit(calls.leave), pool.submit(calls.leave)]
            assert waiting[0].result()
