"""One plugin of a loader: where it runs, the objects that callers hold for it, and what is done when it crashes.

What is to be done is decided in `supervise`; here it is done. How calls find their way is `door`'s business.

Threads: a plugin has one lock, held while it starts, switches or closes, so that it does one of these at a time; calls
never take it. A crash is news from the thread that watches the process: the door is shut there, and the loader's loop
does the rest on a thread of its own. No lock is held while events are told.

What was left for another place is ended at once when no call is in flight there, and by the loop otherwise, once the
last has ended: whoever switches waits for no call, for it may be part of one, as a callback is. Until it is gone it is
asked for signs of life. User code that runs amid a start, a signal handler or the plugin's own constructor, is refused
what would have to wait for that very start.
"""

from __future__ import annotations

import copy
import functools
import math
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from hybridload.config import Chain, Isolation, PluginSettings
from hybridload.contract import Contract
from hybridload.door import Door, Slots
from hybridload.drain import Gate
from hybridload.errors import (
    Attempt,
    CallTimeout,
    ChecksumMismatch,
    ConfigError,
    ContractError,
    NoUsableIsolation,
    PluginClosed,
    PluginCrashed,
    PluginError,
    start_failed,
)
from hybridload.events import Events, PluginEvent
from hybridload.frozen import field, frozen, names, replace
from hybridload.goplugin.lifeline import Lifeline
from hybridload.goplugin.prefork.host import ForkServer
from hybridload.handle import Methods, handle_class, new_handle, rebind, stand_in
from hybridload.handshake import Handshake
from hybridload.isolation import Opening, Request, Running, driver
from hybridload.loop import Loop
from hybridload.owned_lock import OwnedLock, Taken
from hybridload.supervise import (
    Close,
    Crashed,
    Due,
    Failure,
    Loaded,
    News,
    Policy,
    Probe,
    Start,
    Started,
    StartFailed,
    State,
    Stop,
    Supervisor,
    Tell,
    Unhealthy,
    Wait,
)
from hybridload.watch import WatchedFile, files_of, forget_bytecode

if TYPE_CHECKING:
    from hybridload.goplugin.plugins import VersionedPlugins
    from hybridload.sources import Resolution, Sources

_DRAIN_TIMEOUT = 30.0
"""Seconds that calls in flight may take to end where they started, when a plugin is switched or closed."""
_SWEEP = 1.0
"""Seconds between two looks for calls that are awaited on an event loop which was closed meanwhile."""
_PARTING = 5.0
"""Seconds that calls in flight may take to fail after their plugin has died."""
_RELOAD_PAUSE, _RELOAD_PAUSE_MAX = 0.5, 30.0
"""Seconds until a reload that failed is tried again: at first, and at the most."""
_START_TIMEOUT = 60.0
"""Seconds, where ``start_timeout`` is not set: go-plugin's, as a `Client` has them."""

_LIVE = frozenset(
    {
        *names(Policy),
        *("isolation", "isolation_from", "max_concurrency", "when_busy", "after_fork", "watch", "enabled"),
        *("fallback_on_checksum", "start_timeout", "strict", "prefork"),
    }
)
"""Settings that are applied to a plugin that runs; any other needs a new start."""
_OF_OBJECTS = frozenset({"entry_point", "options", "strict"})
"""The settings that make an in-process object what it is; the others are about processes."""


@frozen
class PluginStatus:
    """What became of a plugin.

    :param state: ``"unloaded"``, ``"starting"``, ``"running"``, ``"crashed"``, ``"backing off"``, ``"failed over"``
        (running, but in a later isolation than one that failed), ``"failed"`` or ``"closed"``.
    :param isolation: where it runs, or ran last; `None` when it never did.
    :param kinds: the kinds that were loaded.
    :param chain: the isolations to try, in order.
    :param pid: of the process it runs in, the host's own for in-process; `None` while none runs.
    :param protocol: ``"grpc"`` or ``"netrpc"``; `None` in-process.
    :param version: of the plugin set in use.
    :param restarts: how often a new process took the place of one that ended by itself.
    :param degraded: whether it runs in another isolation than the first one that could have served it.
    :param last_error: the last error, in words.
    :param attempts: the isolations that were tried and failed since all was well last.
    :param next_retry: seconds until it is started again, or until a better isolation is tried; `None` when nothing is
        due.
    :param in_flight: calls in flight, as far as they are counted: in-process calls are not without ``max_concurrency``.
    :param origin: where the name comes from.
    """

    name: str
    state: str = "unloaded"
    isolation: str | None = None
    kinds: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    pid: int | None = None
    protocol: str | None = None
    version: int | None = None
    restarts: int = 0
    degraded: bool = False
    last_error: str | None = None
    attempts: tuple[Attempt, ...] = ()
    next_retry: float | None = None
    in_flight: int = 0
    origin: str = ""


@frozen
class Host:
    """What the plugins of one loader share."""

    plugins: VersionedPlugins
    reference: str | None
    handshake: Handshake
    watch: bool
    strict: bool | None = None
    lifeline: Lifeline = field(default_factory=Lifeline)
    fork_server: ForkServer = field(default_factory=ForkServer)
    loop: Loop = field(default_factory=Loop)
    events: Events = field(default_factory=Events)
    taken: Taken = field(default_factory=dict)

    def tell(self) -> None:
        """Tell what happened. What the loop does goes on meanwhile, whatever listeners take or raise."""
        if self.loop.works_here():
            self.loop.soon("events", self.events.deliver)
        else:
            self.events.deliver()


class _Place:
    """Where a plugin runs, and the gate that its calls pass.

    :param files: what is watched for it, as it was before the plugin read it.
    :param lost: it ended by itself, or does not answer, and the supervisor knows.
    :param doubted: a call there failed as it would if that were so.
    :param reload_due: when another is to take its place because the files have changed (`time.monotonic`).
    :param reload_pause: seconds until that is tried again, when it fails.
    :param refusal: why it failed last, in words.
    """

    __slots__ = (
        *("attempts", "doubted", "files", "gate", "isolation", "lost", "methods", "running"),
        *("refusal", "reload_due", "reload_pause"),
    )

    def __init__(self, isolation: Isolation, running: Running, files: list[WatchedFile]) -> None:
        self.isolation = isolation
        self.running = running
        self.files = files
        self.attempts: tuple[Attempt, ...] = ()
        self.gate = Gate()
        self.methods: dict[str, Methods] = {}
        self.lost = False
        self.doubted = False
        self.reload_due, self.reload_pause, self.refusal = math.inf, _RELOAD_PAUSE, ""


class _Examined(NamedTuple):
    """What a place that was doubted had to say: what is wrong with it, if anything is."""

    place: _Place
    error: Exception | None


class LoadedPlugin:
    """One name: where it runs, and the objects that callers hold for it, one per kind."""

    def __init__(self, host: Host, resolution: Resolution, sources: Sources) -> None:
        self.resolution = resolution
        self._host = host
        self._sources = sources
        self._name = resolution.name
        self._lock = OwnedLock(host.taken, self._in_the_middle)
        self._supervisor = Supervisor(Policy.of(resolution.settings))
        self._door = Door(self._name, doubt=self._doubt, absence=self._absence)
        self._chain: Chain = resolution.chain
        self._given = False
        self._place: _Place | None = None
        self._leaving: list[_Place] = []
        # In the order of loading. Their objects belong to whoever has them: each holds the loader, as its methods do,
        # which threads that know this plugin must not.
        self._kinds: dict[str, None] = {}
        self._handles: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self._slots: weakref.WeakValueDictionary[str, Slots] = weakref.WeakValueDictionary()
        self._restarts = 0
        self._attempts: tuple[Attempt, ...] = ()
        self._last_error: Exception | None = None
        self._wish: Start | Probe | None = None
        # What is being started; `call_off` reaches it from other threads.
        self._opening: Opening | None = None
        self._unasked = False
        self._closing = False
        self._closed = False
        self._configure(resolution.settings)

    # -- what the loader asks for

    @property
    def door(self) -> Door:
        """The way of its calls."""
        return self._door

    def kinds(self) -> tuple[str, ...]:
        return tuple(self._kinds)

    def handles(self, holder: object) -> list[Any]:
        found = [handle for handle in map(self._handles.get, self._kinds) if handle is not None]
        if len(found) == len(self._kinds) or self._place is None or self._lock.is_mine():
            return found
        with self._lock.held():
            return found if self._place is None else [self._handle(kind, holder) for kind in self._kinds]

    def load(self, kind: str, chain: Chain | None, holder: object) -> Any:
        """The object for a kind.

        :param holder: lives as long as that object.
        """
        if self._lock.is_mine() and chain is None and (handle := self._handles.get(kind)) is not None:
            return handle
        with self._changing() as left:
            place = self._place
            if self._is_lost(place):
                self._move(chain or self._chain, kind, left)
                self._restarts += 1
            elif place is None or (chain is not None and chain != self._chain):
                self._move(chain or self.resolution.decide(), kind, left)
            self._given = self._given or chain is not None
            return self._handle(kind, holder)

    def switch(self, chain: Chain) -> None:
        with self._changing() as left:
            if chain != self._chain or self._place is None or self._is_lost(self._place):
                self._move(chain, next(iter(self._kinds)), left)
            self._given = True

    def reload(self) -> None:
        with self._changing() as left:
            place, kind = self._place, next(iter(self._kinds))
            if place is not None:
                forget_bytecode(files_of(self.resolution, place.isolation))
            if place is None or self._is_lost(place):
                self._move(self._chain, kind, left)
            else:
                self._move(self._chain, kind, left, only=place.isolation)

    def status(self) -> PluginStatus:
        self._door.sweep()
        place, error, state, due = self._place, self._last_error, self._supervisor.state, self._supervisor.due
        gone = None if place is None else place.running.gone()
        shown = str(state)
        if state is State.UNLOADED and error is not None:
            shown = "failed"
        elif gone is not None and state in (State.RUNNING, State.FAILED_OVER):
            shown = "crashed"
        running = None if place is None else place.running
        return PluginStatus(
            name=self._name,
            state="closed" if self._closed else shown,
            isolation=None if place is None else place.isolation,
            kinds=self.kinds(),
            chain=self._chain,
            pid=None if running is None or gone is not None else running.pid,
            protocol=None if running is None else running.protocol,
            version=None if running is None else running.version,
            restarts=self._restarts,
            degraded=bool(place is not None and self._supervisor.better),
            last_error=None if (gone or error) is None else str(gone or error),
            attempts=self._attempts,
            next_retry=None if due is None else max(0.0, due - time.monotonic()),
            in_flight=self._door.limit.inside,
            origin=self.resolution.origin,
        )

    def close(self, why: str = "was closed with its loader: load it from a new one") -> None:
        """End it. Calls in flight get the time to end; whoever calls later is told `why`."""
        self.call_off()
        with self._lock.held():
            first, self._closed = not self._closed, True
            place, self._place = self._place, None
            if place is not None:
                self._leaving.append(place)
            left = list(self._leaving)
            if first:
                self._hear(Close())
                self._refuse(functools.partial(PluginClosed, f"Plugin {self._name!r} {why}.", plugin=self._name))
        with ExitStack() as ending:
            for each in left:
                ending.callback(self._leave, each)
            self._host.tell()

    def call_off(self) -> None:
        """Have it start no more: it is about to be closed."""
        self._closing = True
        opening = self._opening
        if opening is not None:
            opening.call_off()

    @property
    def runs_elsewhere(self) -> bool:
        """Whether there is a process of it."""
        return any(not place.running.direct for place in (self._place, *self._leaving) if place is not None)

    def exit(self) -> None:
        """At the interpreter's end: do nothing more. Its process, if it has one, is ended by whoever has that."""
        self._closing = self._closed = True
        opening, place = self._opening, self._place
        if opening is not None:
            opening.call_off()
        if place is None or not place.running.direct:
            what = f"Plugin {self._name!r} has ended with the interpreter: close its loader while that runs."
            self._refuse(functools.partial(PluginClosed, what, plugin=self._name))

    def apply(self, resolution: Resolution, sources: Sources) -> bool:
        """Take other settings, with as little disturbance as they allow; whether anything changed.

        :raises PluginError: they do not work; what ran before goes on with the settings that it had.
        """
        with self._changing() as left:
            before = self.resolution, self._sources
            changed = _changed(before[0].settings, resolution.settings)
            moved = (before[0].python, before[0].program) != (resolution.python, resolution.program)
            if not changed and not moved:
                return False
            self.resolution, self._sources = resolution, sources
            try:
                self._apply(changed, moved, left)
            except BaseException:
                self.resolution, self._sources = before
                raise
            self._configure(resolution.settings)
            return True

    def _apply(self, changed: frozenset[str], moved: bool, left: list[_Place]) -> None:
        place = self._place
        if place is None or not self._kinds:
            return
        chain = self._chain if self._given else self.resolution.decide()
        new = changed & _OF_OBJECTS if place.isolation == "in-process" else changed - _LIVE
        better_now = chain != self._chain and chain[0] != place.isolation
        if moved or new or better_now:
            self._move(chain, next(iter(self._kinds)), left)
        elif chain != self._chain:
            self._chain = chain
            self._hear(Loaded(chain, place.isolation))

    def look(self) -> None:
        """Look at the files that are watched for it, and reload it when one has changed.

        What failed is tried again, later each time: a program may still have been open for writing, and what it needs
        may come after it.
        """
        place, now = self._place, time.monotonic()
        if place is None or self._closed:
            return
        if [each for each in place.files if each.changed()]:
            place.reload_due, place.reload_pause, place.refusal = now, _RELOAD_PAUSE, ""
        if now < place.reload_due:
            return
        try:
            self.reload()
        except PluginError as error:
            place.reload_due = time.monotonic() + place.reload_pause
            place.reload_pause = min(2 * place.reload_pause, _RELOAD_PAUSE_MAX)
            if not self._closed and str(error) != place.refusal:
                place.refusal = str(error)
                self._keep("was to be reloaded, because its files changed; what ran before goes on", error)
                self._host.tell()

    @property
    def isolation(self) -> str | None:
        """Where it runs, or ran last."""
        place = self._place
        return None if place is None else place.isolation

    @property
    def watches(self) -> bool:
        """Whether it has files that are watched."""
        place = self._place
        return place is not None and bool(place.files)

    def forked(self) -> None:
        """In a forked child: the process is the parent's, an in-process object is this child's own by now."""
        self._lock = OwnedLock(self._host.taken, self._in_the_middle)
        self._door.forked()
        self._opening = None
        place = self._place
        if place is None or self._closed or place.running.direct:
            if place is not None:
                place.gate = Gate()
            return
        # Referred to for ever: nothing of it may be finalized here.
        self._parents_place = place
        self._place, self._leaving, self._wish = None, [], None
        self._supervisor = Supervisor(self._supervisor.policy)
        if self.resolution.settings.after_fork == "restart":
            self._door.summon(lambda: self._host.loop.soon(f"{self._name} start", self._start_in_child))
            return
        self._closed = True
        self._supervisor.receive(Close(), time.monotonic())
        what = (
            f"Plugin {self._name!r} runs for the process that this one was forked from: load it from a loader that was "
            'made after the fork, or set after_fork = "restart" for it.'
        )
        self._refuse(functools.partial(PluginClosed, what, plugin=self._name))

    def _start_in_child(self) -> None:
        try:
            with self._changing() as left:
                if self._place is None:
                    self._move(self._chain, next(iter(self._kinds)), left)
        except PluginError as error:
            self._door.refuse(functools.partial(copy.copy, error))

    # -- what the loop asks for

    def attend(self) -> None:
        """Do what is to be done about what happened."""
        left: list[_Place] = []
        more = True
        try:
            while more:
                examined = self._examine()
                with self._lock.held():
                    more = not self._closed and self._attend(left, examined)
                self._host.tell()
        finally:
            # Not here: it may take as long as calls in flight do, and the next crash may come meanwhile.
            for place in left:
                self._leave_aside(place)

    def _examine(self) -> _Examined | None:
        """Ask a place that the failure of a call has thrown doubt on; without the lock, because it may take a while."""
        place = self._place
        if place is None or place.lost or not place.doubted or self._closed:
            return None
        place.doubted = False
        try:
            return _Examined(place, self._ill(place) if place.running.gone() is None else None)
        except BaseException:
            place.doubted = True
            raise

    def _attend(self, left: list[_Place], examined: _Examined | None) -> bool:
        wish, self._wish = self._wish, None
        try:
            if wish is None:
                self._notice(examined)
            else:
                self._fulfil(wish, left)
        except BaseException:
            self._wish = self._wish or wish  # the loop tries again
            raise
        return self._wish is not None

    def _notice(self, examined: _Examined | None) -> None:
        """Tell the supervisor what it does not know yet."""
        place, now = self._place, time.monotonic()
        if place is not None and not place.lost:
            gone = place.running.gone()
            if gone is not None:
                self._lose(place, gone, Crashed())
            elif examined is not None and examined.place is place:
                if examined.error is not None:
                    self._lose(place, examined.error, Unhealthy())
                else:
                    self._door.reopen(place)
        due = self._supervisor.due
        if due is None:
            return
        if due <= now:
            self._hear(Due())
        else:
            self._host.loop.at(f"{self._name} supervisor", due, self.attend)

    def _fulfil(self, wish: Start | Probe, left: list[_Place]) -> None:
        """Start what the supervisor asked for, and tell it what came of it."""
        isolation, old = wish.isolation, self._place
        if not self.resolution.serves(isolation, self._chain):
            self._hear(StartFailed(Failure.ABSENT))
            return
        try:
            place = self._open_one(isolation, next(iter(self._kinds)), unasked=True)
            self._settle(place, left)
        except BaseException as failure:  # as a plugin's constructor may raise it; nobody interrupts this thread
            error = failure if isinstance(failure, PluginError) else self._unexpected(failure)
            self._note(isolation, error)
            self._hear(StartFailed(Failure.FATAL if self._is_fatal(error) else Failure.AGAIN))
            return
        if old is not None and old.lost and old.isolation == isolation:
            self._restarts += 1
        self._hear(Started())

    def _unexpected(self, error: BaseException) -> PluginError:
        """What is no `PluginError`, in words; `error` is its cause."""
        words = "".join(traceback.format_exception_only(error)).strip()
        wrapped = PluginError(f"Plugin {self._name!r} could not be started: {words}", plugin=self._name)
        wrapped.__cause__ = error
        return wrapped

    def check_health(self) -> None:
        """See whether it answers."""
        place = self._place
        if place is None or place.lost or self._closed:
            return
        self._door.sweep()
        error = self._ill(place)
        if error is not None:
            # At once, whoever has the lock: calls in flight there wait for it, also when it is being left by now.
            place.running.condemn("does not answer")
        with self._lock.held():
            if place is not self._place or place.lost or self._closed:
                return
            if error is not None:
                self._lose(place, error, Unhealthy())
            else:
                self._schedule_health(place)
        self._host.tell()
        if error is not None:
            self._host.loop.soon(f"{self._name} supervisor", self.attend)

    def _ill(self, place: _Place) -> Exception | None:
        """What is wrong with it. Silence counts when it comes twice: the host itself may have been stopped."""
        allowed = self._supervisor.policy.health_timeout
        for _ in range(2):
            try:
                place.running.ping(allowed)
            except CallTimeout:
                continue
            except Exception as failure:
                return failure
            return None
        return CallTimeout(
            f"Plugin {self._name!r} answered neither of two health checks within {allowed:g} s (health_timeout).",
            plugin=self._name,
        )

    def _schedule_health(self, place: _Place) -> None:
        interval = self._supervisor.policy.health_interval
        if interval and not place.running.direct:
            self._host.loop.at(f"{self._name} health", time.monotonic() + interval, self.check_health)

    # -- news from other threads

    def _ended(self, place: _Place) -> None:
        """The process of a place has ended by itself."""
        self._door.shut(place)
        if place is self._place and not place.lost and not self._closed:
            opening = self._opening
            if opening is not None and self._unasked:
                opening.call_off()  # what is probed meanwhile has to stand back
            self._host.loop.soon(f"{self._name} supervisor", self.attend)

    def _doubt(self, place: _Place) -> None:
        """A call in a place failed as if the process had ended or its connection were broken."""
        if place is self._place and not place.lost:
            place.doubted = True
            self._door.shut(place)
            self._host.loop.soon(f"{self._name} supervisor", self.attend)

    # -- the supervisor; called with the lock held

    def _hear(self, news: News) -> None:
        outputs = self._supervisor.receive(news, time.monotonic())
        if outputs:
            # Before anything is told, in which more may go wrong.
            self._wish = next((each for each in outputs if isinstance(each, Start | Probe)), None)
        for output in outputs:
            match output:
                case Tell():
                    self._tell(output)
                case Wait():
                    assert self._supervisor.due is not None
                    self._host.loop.at(f"{self._name} supervisor", self._supervisor.due, self.attend)
                case Stop():
                    assert self._place is not None
                    self._place.running.condemn("does not answer")
                case Start() | Probe():
                    pass  # a wish by now

    def _tell(self, tell: Tell) -> None:
        place, delay = self._place, tell.delay
        policy = self._supervisor.policy
        again = "" if delay is None else f"{delay:.3g} s"
        error: Exception | None = None
        match tell.state:
            case State.STARTING:
                times = f" (restart {tell.restart} of {policy.max_restarts})" if tell.restart else ""
                message = f"starting {tell.isolation}{times}"
            case State.RUNNING:
                message = f"running {tell.isolation}, pid {place.running.pid if place else None}"
            case State.CRASHED:
                error = self._last_error
                message = f"crashed: {error}"
            case State.BACKING_OFF:
                message = f"{tell.isolation} is started again in {again}"
            case State.FAILED_OVER:
                message = f"running {tell.isolation}, because {self._failures()}"
                error = self._attempts[-1].error if self._attempts else None
            case State.FAILED:
                error = self._last_error
                message = f"can run nowhere, because {self._failures()}; it is tried again in {again}"
                self._door.refuse(self._unusable)
            case _:
                message = str(tell.state)
        self._host.events.add(
            PluginEvent(
                plugin=self._name,
                what=str(tell.state),
                message=message,
                isolation=tell.isolation,
                pid=None if place is None else place.running.pid,
                error=error,
                delay=delay,
            )
        )

    def _keep(self, message: str, error: Exception) -> None:
        place = self._place
        self._host.events.add(
            PluginEvent(
                plugin=self._name,
                what="kept",
                message=f"{message}: {error}",
                isolation=None if place is None else place.isolation,
                pid=None if place is None else place.running.pid,
                error=error,
            )
        )

    def _failures(self) -> str:
        return "; ".join(f"{attempt.isolation} failed ({attempt.error})" for attempt in self._attempts)

    def _lose(self, place: _Place, error: Exception, news: Crashed | Unhealthy) -> None:
        place.lost = True
        self._door.shut(place)
        self._note(place.isolation, error)
        self._hear(news)

    def _note(self, isolation: Isolation, error: Exception) -> None:
        self._last_error = error
        others = tuple(each for each in self._attempts if each.isolation != isolation)
        self._attempts = (*others, Attempt(isolation, error))

    def _is_lost(self, place: _Place | None) -> bool:
        if place is None:
            return False
        if not place.lost and place.running.gone() is not None:
            self._last_error = place.running.gone()
            place.lost = True
            self._door.shut(place)
        return place.lost

    def _is_fatal(self, error: Exception) -> bool:
        """Whether no other isolation may be tried: the host's or the plugin's author has to mend it first."""
        if isinstance(error, ChecksumMismatch):
            return not self.resolution.settings.fallback_on_checksum
        return isinstance(error, ConfigError | ContractError)

    # -- moving; called with the lock held

    @contextmanager
    def _changing(self) -> Iterator[list[_Place]]:
        """What the host asks for: with the lock, before what the supervisor is at; yields a list for what was left."""
        opening = self._opening
        if opening is not None and self._unasked and not self._lock.is_mine():
            opening.call_off()
        left: list[_Place] = []
        with ExitStack() as ending:
            ending.callback(self._leave_all, left)
            ending.callback(self._host.tell)
            try:
                with self._lock.held():
                    if self._closed or self._closing:
                        raise PluginClosed(f"Plugin {self._name!r} was closed.", plugin=self._name)
                    yield left
            except PluginError:
                raise
            except Exception as error:
                raise start_failed(error, self._name) from error

    def _in_the_middle(self) -> PluginError:
        return PluginError(
            f"Plugin {self._name!r} is being started, switched or closed by this very thread, or by one that waits for "
            "it: what would have to wait for that cannot be done here, in a signal handler, a finalizer or a plugin's "
            "own code. Do it on another thread, or later.",
            plugin=self._name,
        )

    def _move(self, chain: Chain, kind: str, left: list[_Place], *, only: Isolation | None = None) -> None:
        """Open the first isolation of `chain` that works, and have it take the place of the one in use.

        :param only: the only one to try, out of that chain.
        """
        place = self._open(chain if only is None else (only,), kind)
        failed = {each.isolation for each in place.attempts}
        better = self._supervisor.better if only is not None else tuple(each for each in chain if each in failed)
        self._settle(place, left)
        self._chain = chain
        if only is None:
            self._attempts = place.attempts
        self._hear(Loaded(chain, place.isolation, better))

    def _settle(self, place: _Place, left: list[_Place]) -> None:
        """Have calls go to another place from now on."""
        old = self._place
        try:
            for kind in self._kinds:
                if kind not in place.methods:
                    place.methods[kind] = self._methods(place, kind)
        except BaseException:
            place.running.close()
            raise
        self._place = place
        self._door.open(place)
        for kind in self._kinds:
            self._bind(kind, place)
        if old is not None:
            self._leaving.append(old)
            left.append(old)
        place.running.when_gone(functools.partial(self._ended, place))
        self._schedule_health(place)

    def _open(self, chain: Chain, kind: str) -> _Place:
        attempts: list[Attempt] = []
        for isolation in chain:
            if not self.resolution.serves(isolation, chain):
                continue
            try:
                place = self._open_one(isolation, kind)
            except PluginError as error:
                self._last_error = error
                if self._closing:
                    raise PluginClosed(
                        f"Plugin {self._name!r} was closed while it started.", plugin=self._name
                    ) from error
                if self._is_fatal(error):
                    if isinstance(error, ChecksumMismatch):
                        self._attempts = (*attempts, Attempt(isolation, error))
                    raise
                attempts.append(Attempt(isolation, error))
                continue
            place.attempts = tuple(attempts)
            return place
        if self._place is None:
            self._attempts = tuple(attempts)
        refusal = NoUsableIsolation(self._nothing_left(chain, attempts), plugin=self._name, attempts=attempts)
        self._last_error = refusal
        raise refusal from (attempts[-1].error if attempts else None)

    def _open_one(self, isolation: Isolation, kind: str, *, unasked: bool = False) -> _Place:
        """Start the plugin in one isolation and see that it answers."""
        opening = Opening()
        self._unasked, self._opening = unasked, opening
        files = self._watched(isolation)
        ends = time.monotonic() + (self.resolution.settings.start_timeout or _START_TIMEOUT)
        try:
            if self._closing:
                raise PluginClosed(f"Plugin {self._name!r} was closed.", plugin=self._name)
            if isolation != "in-process":
                self._host.loop.start()  # so that no crash comes when there is no thread for it
            running = driver(isolation).open(self._request(kind, opening))
            try:
                place = _Place(isolation, running, files)
                place.methods[kind] = self._methods(place, kind)
                running.ping(max(self._supervisor.policy.health_timeout, ends - time.monotonic()))
            except BaseException:
                running.close()
                raise
            return place
        except PluginError:
            raise
        except Exception as error:  # whatever this host is short of, another isolation may do without
            raise start_failed(error, self._name) from error
        finally:
            self._opening = None

    def _request(self, kind: str, opening: Opening) -> Request:
        return Request(
            name=self._name,
            kind=kind,
            plugins=self._host.plugins,
            plugin_reference=self._host.reference,
            handshake=self._host.handshake,
            resolution=self.resolution,
            sources=self._sources,
            lifeline=self._host.lifeline,
            fork_server=self._host.fork_server,
            strict=self.resolution.settings.strict if self._host.strict is None else self._host.strict,
            opening=opening,
        )

    def _nothing_left(self, chain: Chain, attempts: Sequence[Attempt]) -> str:
        if not attempts:
            return (
                f"Plugin {self._name!r} has no source for {', '.join(chain)}: it comes from {self.resolution.origin}. "
                "Choose another isolation, or give it " + ("a command." if "external" in chain else "an entry point.")
            )
        failed = {attempt.isolation: f"  {attempt}" for attempt in attempts}
        nowhere = f"not tried, because it has no source for that: it comes from {self.resolution.origin}"
        tried = "\n".join(failed.get(isolation, f"  {isolation}: {nowhere}") for isolation in chain)
        return f"Plugin {self._name!r} can run in none of the isolations that were tried:\n{tried}"

    def _leave_all(self, left: list[_Place]) -> None:
        with ExitStack() as ending:
            for place in left:
                ending.callback(self._leave_soon, place)

    def _leave_soon(self, place: _Place) -> None:
        """End what was left: now, or once the calls in flight there have ended; called without the lock."""
        self._door.sweep()
        if place.gate.close(0):
            self._leave(place)
        else:
            self._leave_aside(place)

    def _leave_aside(self, place: _Place) -> None:
        self._host.loop.soon(f"{self._name} leaves {id(place):x}", functools.partial(self._leave, place))

    def _leave(self, place: _Place) -> None:
        """Drain what was left and end it; called without the lock."""
        with ExitStack() as ending:
            ending.callback(self._left, place)
            ending.callback(place.running.close)
            patience = _PARTING if place.lost else _DRAIN_TIMEOUT
            if not self._drain(place, patience) and not place.lost:
                self._host.events.add(
                    PluginEvent(
                        plugin=self._name,
                        what="cut off",
                        message=f"calls were still in flight {patience:g} s after {place.isolation} was left; "
                        "they end now",
                        isolation=place.isolation,
                        pid=place.running.pid,
                    )
                )
                self._host.tell()

    def _left(self, place: _Place) -> None:
        if place in self._leaving:
            self._leaving.remove(place)

    def _drain(self, place: _Place, patience: float) -> bool:
        """Wait for the calls in flight, and meanwhile see whether they are still being worked on.

        :returns: whether they have ended.
        """
        ends = time.monotonic() + patience
        interval = self._supervisor.policy.health_interval
        asks = bool(interval) and not place.running.direct
        while True:
            self._door.sweep()
            step = interval if asks else _SWEEP
            if place.gate.close(max(0.0, min(step, ends - time.monotonic()))):
                return True
            if time.monotonic() >= ends:
                return False
            if asks and not place.lost and place.running.gone() is None and self._ill(place) is not None:
                place.running.condemn("does not answer")
                asks, ends = False, time.monotonic() + _PARTING  # they fail by themselves

    # -- settings; called with the lock held, or before anybody else has the plugin

    def _configure(self, settings: PluginSettings) -> None:
        self._supervisor.policy = Policy.of(settings)
        limited_anew = self._door.call_timeout != settings.call_timeout
        self._door.call_timeout = settings.call_timeout
        self._door.waits_when_busy = settings.when_busy != "error"
        self._door.limit.resize(math.inf if settings.max_concurrency is None else settings.max_concurrency)
        place = self._place
        if place is not None:
            if limited_anew and place.running.direct:
                place.methods = {kind: self._methods(place, kind) for kind in place.methods}
            for kind in self._kinds:
                self._bind(kind, place)
            self._schedule_health(place)
            place.files = self._watched(place.isolation, place.files) or place.files if self._watching else []

    @property
    def _watching(self) -> bool:
        asked = self.resolution.settings.watch
        return self._host.watch if asked is None else asked

    def _watched(self, isolation: Isolation, known: Sequence[WatchedFile] = ()) -> list[WatchedFile]:
        """The files that are watched while it runs so: those that are not known, as they are now."""
        if not self._watching:
            return []
        watched = {each.path: each for each in known}
        return [watched.get(path) or WatchedFile(path) for path in files_of(self.resolution, isolation)]

    # -- slots

    def _handle(self, kind: str, holder: object) -> Any:
        handle = self._handles.get(kind)
        if handle is None:
            handle = self._handles[kind] = self._new_handle(kind, holder)
            self._kinds[kind] = None
        return handle

    def _new_handle(self, kind: str, holder: object) -> Any:
        assert self._place is not None
        place = self._place
        if kind not in place.methods:
            place.methods[kind] = self._methods(place, kind)
        contract = self._contract(kind)
        if contract is None:
            describe = functools.partial(self._describe, holder)
            return stand_in(type(place.methods[kind]), functools.partial(self._made, kind), describe)
        service = contract.complete()
        slots = self._slots[kind] = Slots(service, kind, self._door, holder)
        now = place.methods[kind] if self._is_direct(place) else slots
        # The object holds its slots, also while others are in use.
        return new_handle(handle_class(service), now, functools.partial(self._describe, (holder, slots)))

    def _bind(self, kind: str, place: _Place) -> None:
        handle, slots = self._handles.get(kind), self._slots.get(kind)
        if handle is not None and slots is not None:
            rebind(handle, place.methods[kind] if self._is_direct(place) else slots)

    def _made(self, kind: str) -> Any:
        """What a hand-written plugin's half made for the process that runs; waits for one as a call does."""
        permit = self._door.enter(self._door.deadline())
        try:
            return permit.place.methods[kind]
        finally:
            permit.leave()

    def _is_direct(self, place: _Place) -> bool:
        """Whether the slots are to hold the real object's own methods."""
        return place.running.direct and self._door.limit.most == math.inf

    def _contract(self, kind: str) -> Contract[Any] | None:
        """The contract that the host's object follows: that of the highest version which has the kind."""
        for version in sorted(self._host.plugins, reverse=True):
            offered = self._host.plugins[version].get(kind)
            if offered is not None:
                return offered if isinstance(offered, Contract) else None
        return None

    def _methods(self, place: _Place, kind: str) -> Methods:
        methods = place.running.methods(kind)
        contract = self._contract(kind)
        if contract is None:
            return methods
        service = contract.complete()
        found = {each.name: methods.get(each.name) or self._absent(each.name, place) for each in service.methods}
        timeout = self.resolution.settings.call_timeout
        if timeout is None or not place.running.direct:
            return found
        from hybridload.isolation.in_time import methods_in_time

        return methods_in_time(service, found, self._name, timeout)

    def _absent(self, method: str, place: _Place) -> Callable[..., Any]:
        message = (
            f"Plugin {self._name!r} runs version {place.running.version} of its interface, which has no {method}(): "
            "check status(...).version before you call it."
        )

        def absent(*_: Any, **__: Any) -> Any:
            raise ContractError(message, plugin=self._name)

        return absent

    # -- refusing

    def _refuse(self, error: Callable[[], Exception]) -> None:
        """Have every call refused from now on, wherever it would have gone."""

        def refused(*_: Any, **__: Any) -> Any:
            raise error()

        self._door.refuse(error)
        for kind, handle in self._handles.items():
            slots = self._slots.get(kind)
            if slots is not None:
                rebind(handle, dict.fromkeys(slots, refused))

    def _unusable(self) -> Exception:
        due = self._supervisor.due
        again = "" if due is None else f"\nIt is tried again in {max(0.0, due - time.monotonic()):.3g} s."
        return NoUsableIsolation(
            self._nothing_left(self._chain, self._attempts) + again, plugin=self._name, attempts=self._attempts
        )

    def _absence(self, ending: str) -> Exception:
        error = self._last_error
        return PluginCrashed(
            f"Plugin {self._name!r} ended by itself, is being started again, {ending}. The last error: {error}",
            plugin=self._name,
            returncode=error.returncode if isinstance(error, PluginCrashed) else None,
            stderr=error.stderr if isinstance(error, PluginCrashed) else (),
        )

    def _describe(self, holder: object) -> str:
        place = self._place
        if place is None:
            return f"{self._name!r} (closed)"
        return f"{self._name!r} ({place.isolation}, pid {place.running.pid})"


def _changed(before: PluginSettings, after: PluginSettings) -> frozenset[str]:
    """Which settings differ."""
    after = replace(after, isolation_from=before.isolation_from)
    return frozenset(name for name in names(before) if getattr(before, name) != getattr(after, name))
