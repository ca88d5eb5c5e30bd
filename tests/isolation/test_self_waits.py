"""One thread that would wait for itself, and one failure of user code or of the system that would end supervision.

Hosts here are programs of their own, for they install signal handlers and set the collector's threshold; each prints
what came of it. What interrupts what is a row of a table.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SDK = """
import os
from typing import Protocol
from hybridload import Contract, Handshake

class Callback(Protocol):
    def call(self, text: str) -> str: ...
class AsyncCallback(Protocol):
    async def call(self, text: str) -> str: ...
class Work(Protocol):
    def echo(self, text: str) -> str: ...
    def nap(self, seconds: float) -> str: ...
    def back(self, callback: Callback, text: str) -> str: ...
    async def back_async(self, callback: AsyncCallback, text: str) -> str: ...

class Worker:
    def echo(self, text): return text
    def nap(self, seconds):
        import time
        time.sleep(seconds)
        return "napped"
    def back(self, callback, text): return callback.call(text)
    async def back_async(self, callback, text): return await callback.call(text)
    def close(self): pass

class Slow(Worker):
    def __init__(self):
        import time
        time.sleep(1)

class Recursive(Worker):
    loader = None
    def __init__(self):
        try:
            self.loader.load("recursive")
        except Exception as error:
            print("refused:", type(error).__name__, error)

HANDSHAKE = Handshake("SELF_WAIT", "on")
PLUGINS = {"work": Contract(Work)}
"""
CONFIG = """
[host]
plugins = "self_sdk:PLUGINS"
handshake = "self_sdk:HANDSHAKE"
[plugins.p]
entry_point = "self_sdk:Worker"
isolation = "subprocess"
[plugins.netrpc]
entry_point = "self_sdk:Worker"
isolation = "subprocess"
protocols = ["netrpc"]
[plugins.multiplexed]
entry_point = "self_sdk:Worker"
isolation = "subprocess"
multiplex = true
[plugins.counted]
entry_point = "self_sdk:Worker"
max_concurrency = 3
[plugins.slow]
entry_point = "self_sdk:Slow"
isolation = "subprocess"
[plugins.recursive]
entry_point = "self_sdk:Recursive"
[plugins.forked]
entry_point = "self_sdk:Worker"
isolation = "subprocess"
prefork = true
[plugins.forked_too]
entry_point = "self_sdk:Worker"
isolation = "subprocess"
prefork = true
"""
BEGINNING = """
import faulthandler, gc, os, signal, sys, threading, time
faulthandler.dump_traceback_later(100, exit=True)
import self_sdk
from hybridload import Loader
loader = Loader(config="plugins.toml")
def attempt(work, *args):
    began = time.monotonic()
    try:
        result = work(*args)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    took = time.monotonic() - began
    assert took < 15, took
    return result
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "self_sdk.py").write_text(SDK)
    (tmp_path / "plugins.toml").write_text(CONFIG)
    return tmp_path


def run(folder: Path, program: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + textwrap.dedent(program), *args],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


IN_CALLBACK = """
    import asyncio
    name, how = sys.argv[1:]
    plugin = loader.load(name)
    there, back = ("subprocess", "in-process") if name == "counted" else ("in-process", "subprocess")
    acts = {
        "status": lambda: loader.status(name).state,
        "call": lambda: plugin.echo("nested"),
        "switch": lambda: loader.switch(name, there),
        "load": lambda: loader.load(name, isolation=back) is plugin,
        "reload": lambda: loader.reload(name),
        "close": loader.close,
    }
    async_acts = {
        "switch": lambda: loader.aswitch(name, there),
        "load": lambda: loader.aload(name, isolation=back),
        "reload": lambda: loader.areload(name),
        "close": loader.aclose,
    }
    class Callback:
        def call(self, text):
            return f"{text}: {attempt(acts[text])}"
    class AsyncCallback:
        async def call(self, text):
            began = time.monotonic()
            await async_acts[text]()
            assert time.monotonic() - began < 15
            return f"{text}: None"
    for what in acts if how == "sync" else async_acts:
        if how == "sync":
            print(attempt(plugin.back, Callback(), what), flush=True)
        else:
            print(attempt(lambda: asyncio.run(plugin.back_async(AsyncCallback(), what))), flush=True)
    attempt(loader.close)
"""


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("name", ["p", "p over grpcio", "netrpc", "multiplexed", "counted"])
def test_a_callback_may_use_the_loader(folder: Path, name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, engine = name.partition(" over ")
    monkeypatch.setenv("HYBRIDLOAD_ENGINE", engine or "direct")
    told = run(folder, IN_CALLBACK, name, how)
    if how == "sync":
        assert told.split("\n") == [
            *("status: running", "call: nested", "switch: None", "load: True", "reload: None", "close: None", ""),
        ]
    else:
        assert told.split("\n") == ["switch: None", "load: None", "reload: None", "close: None", ""]


AMID_A_FORK = """
    from hybridload.goplugin.prefork import host
    ask = host._Server.ask
    def interrupted(*args, **kwargs):
        host._Server.ask = ask
        signal.raise_signal(signal.SIGALRM)
        return ask(*args, **kwargs)
    host._Server.ask = interrupted
    signal.signal(signal.SIGALRM, lambda *_: print(attempt(lambda: loader.load("forked_too").echo("handler"))))
    print(attempt(lambda: loader.load("forked").echo("outer")))
    print(loader.load("forked_too").echo("again"))
    attempt(loader.close)
    import psutil
    assert not psutil.Process().children()
"""


def test_a_handler_may_start_a_plugin_while_the_fork_server_is_being_asked_for_another(folder: Path) -> None:
    assert run(folder, AMID_A_FORK).split() == ["handler", "outer", "again"]


IN_HANDLER = """
    what, amid = sys.argv[1:]
    acts = {
        "close": loader.close,
        "status": lambda: loader.status("slow").state,
        "loaded": lambda: sorted(loader.loaded()),
        "load": lambda: loader.load("slow") and "loaded",
        "load another": lambda: loader.load("recursive") and "loaded",
        "reload": lambda: loader.reload("p"),
        "switch": lambda: loader.switch("p", "in-process"),
    }
    plugin = loader.load("p")
    signal.signal(signal.SIGALRM, lambda *_: print("handler:", attempt(acts[what]), flush=True))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    amids = {
        "load": lambda: loader.load("slow") and "loaded",
        "call": lambda: plugin.nap(1.0),
        "reload": lambda: loader.reload("p"),
    }
    print("outer:", attempt(amids[amid]))
    attempt(loader.close)
    import psutil
    assert not psutil.Process().children()
"""
HANDLERS = [
    ("close", "load", "None", "PluginClosed"),
    ("close", "call", "None", "napped"),
    ("status", "load", "unloaded", "loaded"),
    ("loaded", "load", "['p']", "loaded"),
    ("load", "load", "PluginError: Plugin 'slow' is being started", "loaded"),
    ("load another", "load", "loaded", "loaded"),
    ("switch", "load", "None", "loaded"),
    ("switch", "call", "None", "napped"),
    ("reload", "call", "None", "napped"),
    ("status", "call", "unloaded", "napped"),
]


@pytest.mark.parametrize(("what", "amid", "inside", "outer"), HANDLERS)
def test_a_signal_handler_may_use_the_loader(folder: Path, what: str, amid: str, inside: str, outer: str) -> None:
    """Each works, or is refused at once."""
    told = run(folder, IN_HANDLER, what, amid)
    assert f"handler: {inside}" in told
    assert f"outer: {outer}" in told


def test_a_client_is_killed_by_a_signal_handler_amid_its_start(folder: Path) -> None:
    told = run(
        folder,
        """
        from hybridload.goplugin import Client
        sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
        client = Client(sleeper, plugins=self_sdk.PLUGINS, handshake=self_sdk.HANDSHAKE)
        def handler(*_):
            print("start:", attempt(client.start))
            print("kill:", attempt(client.kill))
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        print("outer:", attempt(client.start))
        print("exited:", client.exited)
        """,
    )
    assert "start: PluginError: Plugin 'python" in told
    assert "kill: None" in told
    assert "outer: PluginClosed" in told
    assert "exited: True" in told


def test_a_handler_and_a_finalizer_may_look_at_any_moment(folder: Path) -> None:
    run(
        folder,
        """
        loader.load("counted")
        looks = [0, 0]
        def handler(*_):
            looks[0] += 1
            loader.status("counted"), loader.loaded()
        class Asks:
            def __init__(self): self.me = self
            def __del__(self):
                looks[1] += 1
                loader.status("counted"), loader.loaded(), loader.on_event(print)()
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        gc.set_threshold(5, 1, 1)
        ends = time.monotonic() + 1
        while time.monotonic() < ends or min(looks) < 20:
            Asks(), loader.loaded(), loader.status("counted"), loader.reload("counted")
        signal.setitimer(signal.ITIMER_REAL, 0)
        loader.close()
        """,
    )


def test_a_constructor_that_loads_itself_is_refused(folder: Path) -> None:
    told = run(
        folder,
        """
        self_sdk.Recursive.loader = loader
        print(attempt(loader.load, "recursive").echo("works"))
        loader.close()
        """,
    )
    assert "refused: PluginError Plugin 'recursive' is being started" in told
    assert "works" in told


def test_constructors_that_load_each_other_do_not_wait_for_ever(folder: Path) -> None:
    told = run(
        folder,
        """
        both = threading.Barrier(2)
        def crosswise(other):
            class Crossing(self_sdk.Worker):
                def __init__(self):
                    both.wait(30)
                    print(other, attempt(loader.load, other))
            return Crossing
        self_sdk.Slow, self_sdk.Recursive = crosswise("recursive"), crosswise("slow")
        names = ("slow", "recursive")
        def load(name):
            print("outer", name, attempt(lambda: loader.load(name, isolation="in-process").echo("works")))
        threads = [threading.Thread(target=load, args=(name,)) for name in names]
        for each in threads: each.start()
        for each in threads: each.join()
        loader.close()
        """,
    )
    assert "is being started" in told
    assert told.count("works") == 2


def test_callbacks_that_switch_each_others_plugins_do_not_wait_for_each_other(folder: Path) -> None:
    told = run(
        folder,
        """
        both = threading.Barrier(2)
        class Switching:
            def __init__(self, other): self.other = other
            def call(self, text):
                both.wait(30)
                return str(attempt(loader.switch, self.other, "in-process"))
        def call(mine, other):
            told = attempt(loader.load(mine).back, Switching(other), "x")
            print(f"{mine} {told}\\n", end="")  # in one piece: another thread prints as well
        threads = [threading.Thread(target=call, args=pair) for pair in (("p", "netrpc"), ("netrpc", "p"))]
        for each in threads: each.start()
        for each in threads: each.join()
        attempt(loader.close)
        """,
    )
    assert sorted(told.split("\n")) == ["", "netrpc None", "p None"]


def test_a_listener_and_a_log_handler_may_use_the_loader(folder: Path) -> None:
    told = run(
        folder,
        """
        import logging
        class Handler(logging.Handler):
            def emit(self, record):
                loader.status("p"), loader.loaded()
                if "crashed" in record.getMessage():
                    print("handler:", attempt(loader.reload, "counted"))
        logging.getLogger("hybridload").addHandler(Handler())
        loader.load("counted"), loader.load("p")
        crashed = threading.Event()
        def listen(event):
            if event.what == "running" and event.plugin == "p":
                print("listener:", attempt(loader.reload, "counted"), attempt(loader.close))
                crashed.set()
        loader.on_event(listen)
        os.kill(loader.status("p").pid, signal.SIGKILL)
        assert crashed.wait(60)
        loader.close()
        """,
    )
    assert "handler: None" in told
    assert "listener: None None" in told
