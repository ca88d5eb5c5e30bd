"""A program that starts a plugin again and again, and each time has another system call of the start fail.

Run by `test_faults`: ``python faults.py REQUEST``, where the request is JSON: the configuration file and the errors to
fail with. It counts the calls in `SITES`, of all threads, while a plugin is loaded; the first load fails at the first
call, the second at the second, until a load ends before its turn. After each it looks what is left, and whether the
plugin can be loaded now. It prints what is wrong, one finding a line, and how many calls there were.
"""

from __future__ import annotations

import errno
import faulthandler
import functools
import gc
import importlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from hybridload import Loader
from hybridload.errors import PluginError

ERRORS: dict[str, Callable[[], BaseException]] = {
    **{
        name: functools.partial(lambda number: OSError(number, os.strerror(number)), getattr(errno, name))
        for name in ("EMFILE", "ENOSPC", "ENOMEM", "EAGAIN")
    },
    "thread": lambda: RuntimeError("can't start new thread"),
    "memory": MemoryError,
}
"""What a call can fail with."""

_ANY = ("EMFILE", "ENOSPC", "ENOMEM", "EAGAIN", "memory")
SITES: dict[str, tuple[str, ...]] = {
    # What is called -> how it can fail. Another one is another row.
    "builtins:open": _ANY,
    "os:open": _ANY,
    "os:pipe": _ANY,
    "os:dup": _ANY,
    "os:mkdir": _ANY,
    "os:memfd_create": _ANY,
    "os:pidfd_open": _ANY,
    "os:fchmod": _ANY,
    "fcntl:fcntl": _ANY,
    "selectors:DefaultSelector._selector_cls": _ANY,
    "socket:socketpair": _ANY,
    "socket:socket.__init__": _ANY,
    "socket:socket.bind": _ANY,
    "socket:socket.listen": _ANY,
    "socket:socket.connect": ("EAGAIN", "ENOMEM", "memory"),
    "subprocess:_fork_exec": ("EMFILE", "ENOMEM", "EAGAIN", "memory"),
    "threading:_start_new_thread": ("thread", "memory"),
    "ssl:SSLContext.__new__": ("memory",),
    "ssl:SSLContext.load_cert_chain": ("EMFILE", "memory"),
    "hybridload.goplugin.certificates:generate_certificate": ("memory",),
}


class Faults:
    """Fails the nth call, once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = 0
        self._error = ""
        self.hit = ""

    def arm(self, number: int, error: str) -> None:
        self._error, self.hit, self._left = error, "", number

    def disarm(self) -> None:
        self._left = 0

    def pass_by(self, site: str, errors: tuple[str, ...]) -> None:
        if not self._left or self._error not in errors:
            return
        with self._lock:
            if not self._left:
                return
            self._left -= 1
            if self._left:
                return
        caller = traceback.extract_stack(limit=8)[:-2]
        self.hit = f"{site} from " + " < ".join(f"{each.name}:{each.lineno}" for each in reversed(caller))
        raise ERRORS[self._error]()

    def put_into(self, site: str, errors: tuple[str, ...]) -> None:
        module, _, path = site.partition(":")
        owner: Any = importlib.import_module(module)
        *parts, name = path.split(".")
        for part in parts:
            owner = getattr(owner, part)
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            # A socket made of a descriptor takes no new one.
            if name != "__init__" or (len(args) < 5 and kwargs.get("fileno") is None):
                self.pass_by(site, errors)
            return real(*args, **kwargs)

        setattr(
            owner,
            name,
            staticmethod(call) if name == "__new__" or (isinstance(real, type) and isinstance(owner, type)) else call,
        )


def left(folder: str) -> dict[str, Any]:
    """What this process has by now."""
    children: list[str] = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                children += file.read().split()
        except OSError:
            continue
    descriptors = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            descriptors[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
    return {
        "descriptors": sorted(value.split(":")[0] for value in descriptors.values()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "processes": children,
        "folders": sorted(os.listdir(folder)),
    }


def wait_until_as(before: dict[str, Any], folder: str) -> list[str]:
    ends = time.monotonic() + 10
    while (now := left(folder)) != before:
        if time.monotonic() > ends:
            return [f"{kind} {before[kind]} -> {now[kind]}" for kind in before if before[kind] != now[kind]]
        gc.collect()
        time.sleep(0.005)
    return []


def main() -> None:
    request = json.loads(sys.argv[1])
    logging.disable(logging.CRITICAL)
    folder = tempfile.gettempdir()
    findings: list[str] = []
    threading.excepthook = lambda args: findings.append(
        f"{faults.hit}: thread {args.thread and args.thread.name} ended with {args.exc_type.__name__}: {args.exc_value}"
        + "".join(traceback.format_tb(args.exc_traceback)[-4:])
    )
    faults = Faults()

    def load(loader: Loader) -> None:
        if (answer := loader.load("one").greet()) not in request["answers"]:
            findings.append(f"answered {answer!r}")

    with Loader(config=request["config"]) as loader:
        load(loader)
    for site, errors in SITES.items():
        faults.put_into(site, errors)
    before = left(folder)
    counts = {}
    for error in request["errors"]:
        number = 0
        while True:
            number += request.get("step", 1)
            faulthandler.dump_traceback_later(90, exit=True)
            found = len(findings)
            loader = Loader(config=request["config"])
            faults.arm(number, error)
            outcome = "loaded"
            try:
                loader.load("one")
            except PluginError as refusal:
                outcome = f"{type(refusal).__name__}: {refusal}"
            except BaseException as refusal:
                outcome = f"{type(refusal).__name__}: {refusal}"
                findings.append(f"load raised {outcome}" + "".join(traceback.format_tb(refusal.__traceback__)))
            faults.disarm()
            for step in (functools.partial(load, loader), loader.close):
                try:
                    step()
                except BaseException as refusal:
                    words = f"then {step} raised {type(refusal).__name__}: {refusal}"
                    findings.append(words + "".join(traceback.format_tb(refusal.__traceback__)[-4:]))
            findings += wait_until_as(before, folder)
            before = left(folder)
            findings[found:] = [
                f"{error} at call {number}, {faults.hit} ({outcome}): {each}" for each in findings[found:]
            ]
            if request.get("tell"):
                print(error, number, faults.hit, outcome[:150], file=sys.stderr, flush=True)
            if not faults.hit:
                break
        counts[error] = number
    json.dump({"findings": findings, "counts": counts}, sys.stdout)


if __name__ == "__main__":
    main()
