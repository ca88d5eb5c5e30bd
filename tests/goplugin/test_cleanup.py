"""`cleanup_clients` in a signal handler, as go-plugin's hosts have it."""

from __future__ import annotations

import subprocess
import sys

HOST = """
import faulthandler, signal, sys
from typing import Protocol
from hybridload import Contract, Handshake
from hybridload.errors import PluginClosed
from hybridload.goplugin import Client, cleanup_clients

class Greeter(Protocol):
    def greet(self) -> str: ...

faulthandler.dump_traceback_later(20, exit=True)
signal.signal(signal.SIGTERM, lambda *_: cleanup_clients())
waits = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
client = Client(
    [sys.executable, "-c", waits],
    plugins={"greeter": Contract(Greeter)},
    handshake=Handshake("CLEANUP", "on"),
    managed=True,
)
try:
    client.start()
except PluginClosed:
    print("closed", client.exited)
"""


def test_a_handler_that_kills_all_clients_may_interrupt_the_start_of_one() -> None:
    done = subprocess.run([sys.executable, "-c", HOST], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "closed True\n"
