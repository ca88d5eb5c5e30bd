"""Threads of ours: how large their stacks are, whom that concerns, and what happens when there is no room for more."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from hybridload.goplugin.threads import SMALL_STACK, STACK, OutOfThreads, Thread

SIZE_OF_STACK = """
import ctypes, threading
from hybridload.goplugin.threads import SMALL_STACK, OutOfThreads, Thread, start_new_thread

def size_of_stack():
    libc, attributes, size = ctypes.CDLL(None), ctypes.create_string_buffer(256), ctypes.c_size_t()
    libc.pthread_self.restype = ctypes.c_void_p
    libc.pthread_getattr_np(ctypes.c_void_p(libc.pthread_self()), attributes)
    libc.pthread_attr_getstacksize(attributes, ctypes.byref(size))
    return size.value

def sizes(*threads):
    found = []
    for thread in threads:
        thread._target = lambda: found.append(size_of_stack())
        thread.start()
        thread.join()
    return found
"""

RECURSION = """
import copy, functools, json, pickle, sys
from hybridload.goplugin.threads import Thread

def nested(wrap, depth=20000):
    value = []
    for _ in range(depth):
        value = wrap(value)
    return value

class Endless:
    def __getattr__(self, name): return getattr(self, name + "a")
    def __call__(self): return functools.partial(self)()
    def __eq__(self, other): return Endless() == Endless()
    def __repr__(self): return repr(Endless())
    def __str__(self): return "%s" % Endless()
    def __add__(self, other): return Endless() + Endless()

def through_sorted(item): return sorted([item], key=through_sorted)
def through_max(item): return max([item, item], key=through_max)
def through_map(item): return list(map(through_map, [item]))
def through_reduce(*_): return functools.reduce(through_reduce, [1, 2])
def through_exec(): exec("through_exec()")
@functools.cache
def through_cache(number): return through_cache(number + 1)

# A row each: what plugins recurse through without end, in Python and in C.
ROWS = {
    "getattr": lambda: Endless().name, "call": lambda: Endless()(), "eq": lambda: Endless() == Endless(),
    "repr": lambda: repr(Endless()), "str": lambda: str(Endless()), "add": lambda: Endless() + Endless(),
    "sorted": lambda: through_sorted(1), "max": lambda: through_max(1), "map": lambda: through_map(1),
    "reduce": lambda: through_reduce(1), "exec": through_exec, "cache": lambda: through_cache(1),
    "json.dumps": lambda: json.dumps(nested(lambda value: {"a": value})),
    "json.loads": lambda: json.loads('{"a":' * 20000), "pickle": lambda: pickle.dumps(nested(lambda value: [value])),
    "deepcopy": lambda: copy.deepcopy(nested(lambda value: [value])),
    "hash": lambda: hash(nested(lambda value: (value,))),
    "list ==": lambda: nested(lambda value: [value]) == nested(lambda value: [value]),
    "compile": lambda: compile("+".join(["a"] * 90000), "", "eval"),
    "parse": lambda: compile("-" * 90000 + "1", "", "eval"),
}

def run():
    try:
        ROWS[sys.argv[1]]()
    except (RecursionError, MemoryError, TypeError) as error:  # the parser calls it MemoryError, and a list has no hash
        print(type(error).__name__)

def below(depth):  # as far down as a handler is called
    if depth:
        below(depth - 1)
    else:
        run()

if sys.argv[1] == "rows":
    print(*ROWS, sep="\\n")
else:
    thread = Thread(target=below, args=(30,))
    thread.start()
    thread.join()
"""


def _python(code: str, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, (arguments, ran.returncode, ran.stderr)
    return ran.stdout


def test_endless_recursion_in_a_thread_of_ours_ends_in_an_exception() -> None:
    for row in _python(RECURSION, "rows").splitlines():
        assert _python(RECURSION, row).strip() in ("RecursionError", "MemoryError", "TypeError"), row


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system chooses")
def test_stacks_are_as_large_as_is_said_and_nobody_elses_change() -> None:
    found = _python(
        SIZE_OF_STACK + "print(*sizes(Thread(), Thread(stack=SMALL_STACK), threading.Thread()), threading.stack_size())"
    )
    assert found.split() == [str(STACK), str(SMALL_STACK), found.split()[2], "0"]
    assert int(found.split()[2]) not in (STACK, SMALL_STACK)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system chooses")
def test_threads_that_a_program_starts_meanwhile_never_get_our_stacks() -> None:
    code = """
import sys
sys.setswitchinterval(1e-6)
small, done = [], threading.Event()
def start_others():
    while not done.is_set():
        small.extend(size for size in sizes(threading.Thread()) if size == SMALL_STACK)
others = [threading.Thread(target=start_others) for _ in range(3)]
for each in others: each.start()
for _ in range(1500):
    thread = Thread(target=int, stack=SMALL_STACK)
    thread.start()
    thread.join()
done.set()
for each in others: each.join()
print(small)
"""
    assert _python(SIZE_OF_STACK + code).strip() == "[]"


def test_a_size_that_the_program_has_set_counts() -> None:
    code = "threading.stack_size(3 << 20); print(*sizes(Thread(), Thread(stack=SMALL_STACK)), threading.stack_size())"
    assert _python(SIZE_OF_STACK + code).split() == [str(3 << 20)] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="counts private memory")
def test_a_thread_for_which_memory_is_short_is_refused_and_nobody_waits_for_it() -> None:
    code = """
import os, resource, signal
outcomes = []
for left in range(0, 1300, 25):  # kB beside the stack
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.alarm(10)
        used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + SMALL_STACK + 8192 + left * 1024,) * 2)
        try:
            thread = Thread(target=int, stack=SMALL_STACK)
            thread.start()
            thread.join()
        except OutOfThreads:
            os._exit(3)
        os._exit(0)
    outcomes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(sorted(set(outcomes)))
"""
    assert _python(SIZE_OF_STACK + code).strip() == "[0, 3]"


def test_out_of_threads_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OutOfThreads, match=r"can't start new thread.*limits.memory"):
        Thread(target=int).start()


def test_a_thread_that_is_started_twice_is_a_mistake_of_another_kind() -> None:
    thread = Thread(target=int)
    thread.start()
    thread.join()
    with pytest.raises(RuntimeError, match="only be started once") as raised:
        thread.start()
    assert not isinstance(raised.value, OutOfThreads)
