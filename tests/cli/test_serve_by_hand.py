"""`hybridload serve --by-hand`: a plugin under a debugger, and a host that uses it."""

import os
import re
import shlex
import signal
from collections.abc import Callable
from typing import Any


def test_a_host_calls_what_is_served_by_hand(start: Callable[..., Any], hybridload: Callable[..., Any]) -> None:
    serving = start("serve", "--by-hand", "test.shops:corner")
    for line in serving.stdout:
        found = re.fullmatch(r"\s+(HYBRIDLOAD_REATTACH)=(.*)\n", line.decode())
        if found is not None:
            break
    else:
        raise AssertionError(serving.communicate(timeout=30)[1])
    environment = {found[1]: shlex.split(found[2])[0]}
    assert f'"Pid": {serving.pid}' in environment["HYBRIDLOAD_REATTACH"]
    for _ in range(2):
        assert hybridload("call", "corner", "maybe", '["here"]', env=environment).out == "here\n"
        assert serving.poll() is None
    os.kill(serving.pid, signal.SIGINT)
    _, err = serving.communicate(timeout=30)
    assert serving.returncode == 0, err
