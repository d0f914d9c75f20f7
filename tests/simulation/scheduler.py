"""One deterministic scheduler in place of threads, time and the event loops of all processes.

A thread of the kernel is a greenlet: the kernel's code runs unchanged, and gives way at each call of the model, each
sleep and each wait. Handlers are ordinary tasks. Threads and tasks take turns on one event loop, whose clock jumps to
the next timer, so an order of events depends on the seed alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from greenlet import GreenletExit, getcurrent, greenlet

from tests.virtual_time import VirtualLoop
from workers.stage.producer import Call, ClientThread, overdue

BEGAN_AT = 1_000.0
"""The simulated time at the start. It is no small number, since the kernel compares times with 0."""
LAZY = 60
"""A sleep or poll of the kernel takes up to this many times longer if nothing happens meanwhile, since a thread may be
late. Rounds in which nothing happens are most of the cost of a history."""
AT_ONCE, SOON = 0.5, 0.85
"""The share of calls at which no other thread runs, and the share that takes no time."""


class Event(NamedTuple):
    """One line of a history."""

    step: int
    time: float
    who: str
    what: str


class Simulation:
    """The event loop, the seeded source of all choices, and the history."""

    def __init__(self, seed: int | random.Random) -> None:
        self.random = random.Random(seed) if isinstance(seed, int) else seed
        self.loop = VirtualLoop()
        self.history: list[Event] = []
        self.steps = 0
        self.error: BaseException | None = None
        """The first unexpected error of a thread."""
        self._stop_at = 0
        self.hub = getcurrent()
        """The greenlet of the event loop."""

    def monotonic(self) -> float:
        """The simulated seconds."""
        return BEGAN_AT + self.loop.time()

    time = monotonic

    def sleep(self, seconds: float) -> None:
        """Fail: only threads of processes sleep."""
        raise AssertionError(f"a sleep of {seconds} s outside of a process")

    def note(self, who: str, what: str) -> None:
        """Add a line to the history."""
        self.history.append(Event(self.steps, self.monotonic(), who, what))

    def step(self) -> bool:
        """Count a step. Return whether `run` ends here, so that the caller has to give way."""
        self.steps += 1
        if self.steps != self._stop_at:
            return False
        self.loop.stop()
        return True

    def run(self, steps: int, seconds: float = 60.0) -> None:
        """Run threads and tasks for this number of steps, or until the simulated seconds have passed."""
        self._stop_at = self.steps + steps
        timer = self.loop.call_later(seconds, self.loop.stop)
        self.loop.run_forever()
        timer.cancel()
        if self.error is not None:
            raise self.error

    def failed(self, error: BaseException) -> None:
        """Remember the error of a thread, and stop."""
        self.error = self.error or error
        self.loop.stop()

    def close(self) -> None:
        """Close the event loop."""
        self.loop.close()


@dataclass(eq=False)
class _Sleeper:
    """A thread that waits."""

    thread: greenlet
    timer: asyncio.Handle


class Host:
    """A simulated process: its threads, its clock, and its connection to Kafka. It may pause, be cut off, and die."""

    laziness = LAZY

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.simulation = simulation
        self.name = name
        self.dead = False
        self.paused = False
        self.cut = False
        self._threads: list[greenlet] = []
        self._sleepers: dict[greenlet, _Sleeper] = {}
        self._naps: dict[asyncio.Future[None], None] = {}
        self._held: list[Callable[[], object]] = []
        """Calls that wait for the end of the pause."""
        self._woken = False

    # -- the clock of the process ----------------------------------------------------------------------------------

    def monotonic(self) -> float:
        """The simulated seconds."""
        return self.simulation.monotonic()

    time = monotonic

    def sleep(self, seconds: float) -> None:
        """Let the calling thread sleep, possibly longer than asked; an event of the process ends the sleep early."""
        self.wait(seconds * self.laziness)

    # -- the connection --------------------------------------------------------------------------------------------

    @property
    def reachable(self) -> bool:
        """True if the process can exchange messages with Kafka now."""
        return not (self.dead or self.paused or self.cut)

    # -- threads ---------------------------------------------------------------------------------------------------

    def spawn(self, function: Callable[[], object]) -> None:
        """Start a thread."""

        def work() -> None:
            try:
                function()
            except GreenletExit:
                pass
            except BaseException as error:
                self.ended(error)
            self._threads.remove(thread)

        thread = greenlet(work, self.simulation.hub)
        self._threads.append(thread)
        self._soon(thread.switch)

    def ended(self, error: BaseException) -> None:
        """Note that a thread ended with an error. By default, the simulation fails."""
        self.simulation.failed(error)

    def point(self, what: str = "") -> None:
        """Let other threads run here. Any fault may come at this point."""
        if what:
            self.note(what)
        draw = self.simulation.random.random()
        if self.simulation.step() or draw > AT_ONCE or self.dead:
            self._switch(0.0 if draw < SOON else 0.002 * draw if draw < 0.99 else 0.3 * draw)

    def wait(self, seconds: float) -> None:
        """Let the calling thread wait. The wait ends early if something has happened since the last wait."""
        ends = self.simulation.step()
        if self._woken and not ends:
            self._woken = False
        else:
            self._switch(seconds)

    def wake(self) -> None:
        """End the waits of all threads, because something has happened."""
        self._woken = True
        for sleeper in list(self._sleepers.values()):
            sleeper.timer.cancel()
            sleeper.timer = self.simulation.loop.call_soon(self._resume, sleeper.thread)

    def note(self, what: str) -> None:
        """Add a line about this process to the history."""
        self.simulation.note(self.name, what)

    # -- the event loop of the process -----------------------------------------------------------------------------

    def call_soon_threadsafe(self, call: Callable[..., object], *args: object) -> None:
        """Call on the event loop, as a thread of the kernel asks for it."""
        self._soon(call, *args)

    async def nap(self, seconds: float) -> None:
        """Let a handler wait. A pause of the process prolongs the wait, and its death ends it."""
        self.simulation.step()
        if self.dead:
            return
        over: asyncio.Future[None] = self.simulation.loop.create_future()
        self._naps[over] = None
        timer = self.simulation.loop.call_later(seconds, self._end_nap, over)
        try:
            await over
        finally:
            timer.cancel()
            self._naps.pop(over, None)

    # -- faults ----------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Freeze all threads and handlers, as SIGSTOP does."""
        self.paused = True

    def go_on(self) -> None:
        """End the pause."""
        self.paused = False
        held, self._held = self._held, []
        for call in held:
            self.simulation.loop.call_soon(call)

    def die(self) -> None:
        """End all threads and handlers at once, as SIGKILL does."""
        self.dead = True
        self._held.clear()
        for sleeper in self._sleepers.values():
            sleeper.timer.cancel()
        self._sleepers.clear()
        for thread in list(self._threads):
            thread.throw()
        self.end_naps()

    def end_naps(self, share: float = 1.0) -> None:
        """End this share of the handlers' waits."""
        for over in list(self._naps):
            if self.simulation.random.random() < share:
                self._end_nap(over)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _switch(self, seconds: float) -> None:
        loop, thread = self.simulation.loop, getcurrent()
        if self.dead:
            raise GreenletExit
        timer: asyncio.Handle = (
            loop.call_later(seconds, self._resume, thread) if seconds else loop.call_soon(self._resume, thread)
        )
        if seconds:
            self._sleepers[thread] = _Sleeper(thread, timer)
        self.simulation.hub.switch()
        if self.dead:
            raise GreenletExit

    def _resume(self, thread: greenlet) -> None:
        self._sleepers.pop(thread, None)
        if self.paused:
            self._held.append(lambda: self._resume(thread))
        elif not self.dead:
            thread.switch()

    def _soon(self, call: Callable[..., object], *args: object) -> None:
        def now() -> None:
            if self.paused:
                self._held.append(now)
            elif not self.dead:
                call(*args)

        self.simulation.loop.call_soon(now)

    def _end_nap(self, over: asyncio.Future[None]) -> None:
        if self.paused and not self.dead:
            self._held.append(lambda: self._end_nap(over))
        elif not over.done():
            over.set_result(None)


class SimulatedCall(Call):
    """A call that is under way on another simulated thread."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._ended = False
        self._error: BaseException | None = None

    def end(self, error: BaseException | None) -> None:
        """Note that the call has returned, or raised this error."""
        self._ended, self._error = True, error
        self._host.wake()

    @property
    def has_ended(self) -> bool:
        """True if the call has returned or raised."""
        return self._ended

    def result(self, seconds: float) -> None:
        """Wait for the call to end."""
        deadline = self._host.monotonic() + seconds
        while not self._ended:
            left = deadline - self._host.monotonic()
            if left <= 0:
                raise overdue()
            self._host.wait(left)
        if self._error is not None:
            raise self._error


class SimulatedCaller(ClientThread):
    """Makes each call on a simulated thread of its own. The kernel makes no call before the last one has ended."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def start(self, function: Callable[..., Any], *args: Any) -> Call:
        """Start the call, and return at once."""
        call = SimulatedCall(self._host)

        def make() -> None:
            try:
                function(*args)
            except GreenletExit:
                raise
            except BaseException as error:
                call.end(error)
            else:
                call.end(None)

        self._host.spawn(make)
        return call

    def end(self) -> None:
        """Do nothing: each thread ends with its call."""

    def aside(self, function: Callable[[], None], name: str) -> None:
        """Call `function` on another simulated thread."""
        self._host.spawn(function)
