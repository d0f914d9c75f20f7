"""Starts a real Apache Kafka in a few seconds, by `Broker` or by `start_detached`.

A `Broker` ends with the calling process; the brokers that `start_detached` starts outlive that process.

`cli.devkit.kafka.errors` lists the errors that both raise.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cli.devkit.kafka.cluster import SMALL_JVM, Cluster, Node, load, prepare
from cli.devkit.kafka.errors import PortInUse
from cli.devkit.kafka.process import Detached, Leashed, NodeProcess, wait_until_serving
from telemetry.clock import Clock, Deadline, SystemClock

_STOP_TIMEOUT_SECONDS = 30.0
_POLL_SECONDS = 0.05
_PORT_RACES = 3
_SCRATCH_PREFIX = "postback-broker-"
_OWNED = "owned"
"""A file that the folder's owner keeps locked. The kernel releases the lock when the owner ends in any way."""
_CLOCK = SystemClock()


class Broker:
    """A cluster of one or three brokers that ends with this process, even if this process is killed.

    A `Broker` is a context manager. The methods' `index` counts brokers from 0.
    """

    def __init__(
        self, cluster: Cluster, data: Path, clock: Clock, temporary: Scratch | None, jvm: Sequence[str]
    ) -> None:
        self.data = data
        self._cluster = cluster
        self._clock = clock
        self._temporary = temporary
        self._jvm = jvm
        self._processes = [Leashed(node, jvm) for node in cluster.nodes]

    @classmethod
    def start(
        cls,
        port: int = 0,
        data: Path | None = None,
        brokers: int = 1,
        clock: Clock = _CLOCK,
        jvm: Sequence[str] = SMALL_JVM,
    ) -> Broker:
        """Start brokers and return when all of them serve.

        `port` is the first broker's port, and the other brokers get the next ports. If `port` is 0, free ports are
        chosen. Without `data`, the records are in a temporary folder. `stop` removes this folder; if this process is
        killed, the next start removes it. `jvm` holds each broker's JVM flags. Raises the errors that
        `cli.devkit.kafka.errors` lists.
        """
        for attempt in range(1, _PORT_RACES + 1):
            try:
                return cls._start_once(port, data, brokers, clock, jvm)
            except PortInUse:
                # Another process may take a chosen port before the JVM listens on it. Then choose other ports.
                if port or attempt == _PORT_RACES:
                    raise
        raise AssertionError("the last attempt returns or raises")

    @classmethod
    def _start_once(cls, port: int, data: Path | None, brokers: int, clock: Clock, jvm: Sequence[str]) -> Broker:
        temporary: Scratch | None = None
        if data is None:
            temporary = Scratch()
            data = temporary.path
        home = data.resolve()
        broker: Broker | None = None
        try:
            broker = cls(prepare(home, brokers, port), home, clock, temporary, jvm)
            wait_until_serving(dict(zip(broker._cluster.nodes, broker._processes, strict=True)), clock)
        except BaseException:
            if broker:
                _end(broker._processes, clock, gently=False)
            if temporary:
                temporary.remove()
            raise
        return broker

    @property
    def bootstrap_servers(self) -> str:
        """The brokers' addresses for clients: `127.0.0.1:port`, comma-separated."""
        return self._cluster.bootstrap_servers

    @property
    def pids(self) -> list[int]:
        """The brokers' process ids, by index.

        For a killed broker, the list has its last id until the broker is restarted.
        """
        return [process.pid for process in self._processes]

    def kill(self, index: int = 0) -> None:
        """End a broker without warning (SIGKILL) and return when it is gone."""
        _end([self._processes[index]], self._clock, gently=False)

    def restart(self, index: int = 0) -> None:
        """Kill a broker if it runs, start it again with the same data and port, and return when it serves."""
        self.kill(index)
        node = self._cluster.nodes[index]
        self._processes[index] = Leashed(node, self._jvm)
        wait_until_serving({node: self._processes[index]}, self._clock)

    def pause(self, index: int = 0) -> None:
        """Freeze a broker (SIGSTOP) and return when it is frozen.

        The broker's connections stay open, but the broker sends no answers.
        """
        process = self._processes[index]
        process.signal(signal.SIGSTOP)
        while process.alive and not process.frozen:  # wait until the last of the JVM's threads has stopped
            self._clock.sleep(_POLL_SECONDS)

    def resume(self, index: int = 0) -> None:
        """Resume a paused broker (SIGCONT)."""
        self._processes[index].signal(signal.SIGCONT)

    def stop(self) -> None:
        """End all brokers: by an orderly shutdown if their data is kept, at once if the data is temporary."""
        _end(self._processes, self._clock, gently=self._temporary is None)
        if self._temporary:
            self._temporary.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class Scratch:
    """A temporary folder for the data of this process's brokers. Each start removes the folders of killed processes."""

    def __init__(self) -> None:
        base = Path(tempfile.gettempdir())
        for left in base.glob(f"{_SCRATCH_PREFIX}*"):
            _remove_if_left(left)
        self.path = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=base))
        # The file is locked before it is named `owned`, because another start removes folders whose `owned` is not
        # locked.
        taken = self.path / "taken"
        self._lock = os.open(taken, os.O_CREAT | os.O_RDONLY, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        taken.rename(self.path / _OWNED)

    def remove(self) -> None:
        """Remove the folder. Repeated calls are harmless."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _remove_if_left(folder: Path) -> None:
    try:
        lock = os.open(folder / _OWNED, os.O_RDONLY)
    except OSError:
        return  # the folder is being made or removed, or belongs to another user
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # the process that owns the folder is alive
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """Brokers that outlive the process that started them."""

    bootstrap_servers: str
    data: Path
    pids: tuple[int, ...]
    was_running: bool
    """True if all brokers ran already, so that the call started none."""


def default_data() -> Path:
    """The default data folder of detached brokers, by the XDG base directory specification."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "postback" / "broker"


def start_detached(
    data: Path | None = None, port: int = 9092, brokers: int | None = None, clock: Clock = _CLOCK
) -> RunningBroker:
    """Start brokers that outlive this process, and return a RunningBroker when all of them serve.

    Brokers that already run are left running. `port` is the first broker's port, and the other brokers get the next
    ports. If `port` is 0, free ports are chosen. If `brokers` is None, as many brokers start as have data in the
    folder, or 1 if there is no data. If the start fails, this function ends the brokers that it started, and raises an
    error of `cli.devkit.kafka.errors`.
    """
    home = (data or default_data()).resolve()
    with _one_at_a_time(home):
        cluster = load(home)
        running = _running(cluster)
        if cluster is None or not running:
            cluster = prepare(home, brokers, port)
        started = {node: Detached.launch(node) for node in cluster.nodes if node not in running}
        processes = {**running, **started}
        try:
            wait_until_serving(processes, clock)
        except BaseException:
            _end(started.values(), clock, gently=False)
            raise
    pids = tuple(processes[node].pid for node in cluster.nodes)
    return RunningBroker(cluster.bootstrap_servers, home, pids, was_running=not started)


def stop_detached(data: Path | None = None, clock: Clock = _CLOCK) -> bool:
    """Stop detached brokers, keep their data, and return when they are gone. Returns False if no broker ran."""
    home = (data or default_data()).resolve()
    if not home.is_dir():
        return False
    with _one_at_a_time(home):
        running = _running(load(home))
        _end(running.values(), clock, gently=True)
    return bool(running)


def _running(cluster: Cluster | None) -> dict[Node, Detached]:
    nodes = cluster.nodes if cluster else ()
    return {node: process for node in nodes if (process := Detached.find(node))}


@contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    """Hold the folder's lock, so that the second of two simultaneous starts finds the brokers of the first."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _end(processes: Iterable[NodeProcess], clock: Clock, *, gently: bool) -> None:
    """End processes and return when they are gone. If `gently`, SIGTERM comes first, and SIGKILL only after 30 s."""
    remaining = list(processes)
    if gently:
        for process in remaining:
            # Wake the process if it is frozen, because a frozen process handles no SIGTERM.
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGTERM)
        remaining = _wait_gone(remaining, Deadline.after(clock, _STOP_TIMEOUT_SECONDS))
    for process in remaining:
        process.signal(signal.SIGKILL)
    _wait_gone(remaining, Deadline.after(clock, _STOP_TIMEOUT_SECONDS))


def _wait_gone(processes: list[NodeProcess], deadline: Deadline) -> list[NodeProcess]:
    while processes := [process for process in processes if process.alive]:
        if deadline.passed:
            break
        deadline.clock.sleep(_POLL_SECONDS)
    return processes
