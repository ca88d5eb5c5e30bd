"""Threads that wait for something to do: as many as things are being done at once, reused, joined at the end."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from hybridload.goplugin.threads import OutOfThreads, Thread
from hybridload.interrupts import held

logger = logging.getLogger(__name__)

Job = Callable[[], None]

_KEPT_IDLE: Final = 16


class WorkersClosed(Exception):
    """Nothing more is taken on."""


class Workers:
    """Starts a thread when a job comes and none is idle. Jobs may block on whatever they like.

    :param name: the threads' name, before a number.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._waiting: deque[Job] = deque()  # for a thread, where none could be started
        self._idle = 0
        self._started = 0
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def submit(self, job: Job, *, patient: bool = False) -> None:
        """Run `job` in a thread of its own.

        :param patient: where no thread can be started it waits until one has nothing else to do.
        :raises WorkersClosed: `close` was called.
        :raises OutOfThreads: no thread can be started, and the job is not patient, or there is none to wait for.
        """
        with held, self._lock:  # an interrupted half of it would leave a thread without a job
            if self._closed:
                raise WorkersClosed(f"{self._name} takes nothing on any more")
            if self._idle:
                self._idle -= 1
                self._jobs.put(job)
                return
            self._started += 1
            name = f"{self._name}-{self._started}"
            thread = Thread(target=self._work, name=name, daemon=True)
            # Those that ended are dropped here and not by themselves: `close` must not miss one on its last steps.
            self._threads = {each for each in self._threads if each.is_alive()}
            try:
                thread.start()
            except OutOfThreads:
                if not patient or not self._threads:
                    raise
                self._waiting.append(job)
                return
            self._threads.add(thread)
            self._jobs.put(job)  # a thread keeps what it is started with until it ends

    def close(self, timeout: float | None = None) -> bool:
        """Take nothing more on, and join the threads: those that are idle at once, the others when they are done.

        The calling thread, if it is one of them, is not waited for.

        :param timeout: in seconds; `None` waits for as long as jobs take.
        :returns: whether all threads ended.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in range(self._idle):
                    self._jobs.put(None)
                self._idle = 0
            threads = [thread for thread in self._threads if thread is not threading.current_thread()]
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _work(self) -> None:
        job = self._jobs.get()
        while job is not None:
            self._do(job)
            del job  # it may hold a request or an object of the user's
            if not self._stay():
                return
            job = self._jobs.get()

    def _do(self, job: Job) -> None:
        try:
            job()
        except Exception:
            logger.exception("a job of %s failed", self._name)

    def _stay(self) -> bool:
        with self._lock:
            if self._waiting and not self._closed:
                self._jobs.put(self._waiting.popleft())
                return True
            if self._closed or self._idle >= _KEPT_IDLE:
                return False
            self._idle += 1
            return True
