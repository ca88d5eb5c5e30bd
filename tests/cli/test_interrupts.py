"""Ctrl-C, at any moment of any command: it ends soon, with 130, without a traceback, and nothing stays behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SOON = 5.0  # seconds; less than one when the machine has nothing else to do

# Says when the command line has taken up SIGINT: what comes before is Python's own start.
STARTED = """
import os, signal, sys
take_up = signal.signal
def told(*arguments):
    taken = take_up(*arguments)
    os.write({}, b".")
    return taken
signal.signal = told
from hybridload.cli import main
main()
"""
# Interrupts itself at a point of its imports that is given first.
IMPORTING = """
import dataclasses, importlib.abc, os, signal, sys

def interrupt(*_):
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        os.kill(os.getpid(), signal.SIGINT)

class Interrupts(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == where:
            interrupt()

where = sys.argv.pop(1)
for name in [name for name in sys.modules if name.partition(".")[0] in ("logging", "string")]:
    del sys.modules[name]
sys.meta_path.insert(0, Interrupts())
if where == "a dataclass":
    dataclasses.Field.__set_name__ = interrupt
from hybridload.cli import main
main()
"""
SLOW = """
import os, signal, subprocess, sys, time
from shop_plugin import Corner

def here():
    open(os.environ["HERE"], "w").close()

def hangs():
    "A factory that never returns, where it is imported or where it runs."
    here()
    while True:
        try:
            time.sleep(60)
        except BaseException:  # whatever it is told
            pass

class Sleepy(Corner):
    def fail(self, kind):
        here()
        time.sleep(60)

class Lingering(Sleepy):
    "Ends late, and loses what it is told while it does."
    def close(self):
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass

class Stopped(Corner):
    "Does not even notice that its host wants it to end."
    def fail(self, kind):
        here()
        os.kill(os.getpid(), signal.SIGSTOP)
"""
SILENT = ("probe", "--timeout", "60", "--", "sh", "-c", ': > "$HERE"; exec sleep 60')

# A command, and when to interrupt it: some seconds after it began, or when it is where it hangs.
COMMANDS: dict[str, tuple[tuple[str, ...], float | None]] = {
    "list": (("list", "--check"), 0.6),
    "call": (("call", "sleepy", "fail", '["x"]', "-i", "subprocess"), None),
    "call in-process": (("call", "sleepy", "fail", '["x"]'), None),
    "call that reads its arguments": (("call", "corner", "say", "-"), 0.6),
    "stream": (("call", "corner", "count", "[100000000]", "-i", "subprocess"), 0.6),
    "asynchronous stream": (
        ("call", "async", "count", "[100000000]", "--kind", "async", "--plugins", "shop_sdk:BOTH"),
        0.6,
    ),
    "factory that hangs": (("call", "hangs", "clear"), None),
    "factory that hangs elsewhere": (("call", "hangs", "clear", "-i", "subprocess"), None),
    "end that hangs": (("call", "lingering", "fail", '["x"]'), None),
    "end that hangs elsewhere": (("call", "lingering", "fail", '["x"]', "-i", "subprocess"), None),
    "plugin that is stopped": (("call", "stopped", "fail", '["x"]', "-i", "subprocess"), None),
    "probe": (SILENT, None),
    "serve without a host": (("serve", "--by-hand", "test.shops:hangs"), None),
}


@pytest.fixture
def interrupt(
    shop: Path, install: Callable[..., None], environment: dict[str, str]
) -> Callable[..., tuple[int, str, float]]:
    """Runs a command and interrupts it when it has said some words, or some seconds after it began."""
    (shop / "slow_plugin.py").write_text(SLOW)
    install(
        corner="shop_plugin:Corner",
        hangs="slow_plugin:hangs",
        sleepy="slow_plugin:Sleepy",
        lingering="slow_plugin:Lingering",
        stopped="slow_plugin:Stopped",
        **{"async": "shop_plugin:Async"},
    )

    def run(arguments: tuple[str, ...], moment: float | None, times: int = 1) -> tuple[int, str, float]:
        here = shop / "here"
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-c", STARTED.format(writer), *arguments],
            cwd=shop,
            env={**environment, "HERE": str(here)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(writer,),
        )
        os.close(writer)
        assert process.stderr is not None
        assert process.stdin is not None
        with process, process.stdin:
            try:
                assert os.read(reader, 1) == b"."
                if moment is not None:
                    time.sleep(moment)
                while moment is None and not here.exists() and process.poll() is None:
                    time.sleep(0.01)
                begun = time.monotonic()
                for _ in range(times):
                    process.send_signal(signal.SIGINT)
                code = process.wait(60)
                lasted = time.monotonic() - begun
            finally:
                process.kill()
                os.close(reader)
            # Not to its end: what was left for the guard to end has it open, too.
            os.set_blocking(process.stderr.fileno(), False)
            return code, (process.stderr.read() or b"").decode(), lasted

    return run


def check(ended: tuple[int, str, float]) -> None:
    code, said, lasted = ended
    assert code == 130, said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert lasted < SOON


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_ends_a_command(command: str, interrupt: Callable[..., tuple[int, str, float]]) -> None:
    check(interrupt(*COMMANDS[command]))


@pytest.mark.parametrize("moment", [0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5])
def test_ctrl_c_ends_a_command_that_is_only_beginning(
    moment: float, interrupt: Callable[..., tuple[int, str, float]]
) -> None:
    arguments, _ = COMMANDS["call"]
    check(interrupt(arguments, moment))


def test_the_second_one_does_not_wait(interrupt: Callable[..., tuple[int, str, float]]) -> None:
    check(interrupt(*COMMANDS["end that hangs"], times=2))


@pytest.mark.parametrize(
    "where", ["hybridload.cli.app", "logging", "string", "a dataclass", "hybridload.loader", "typer"]
)
def test_ctrl_c_ends_a_command_that_is_being_imported(where: str, environment: dict[str, str]) -> None:
    """`string` is imported by `logging`; Python makes a RuntimeError of what `__set_name__` raises."""
    process = subprocess.run(
        [sys.executable, "-c", IMPORTING, where, "list"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 130, process.stderr
    assert process.stderr == ""
