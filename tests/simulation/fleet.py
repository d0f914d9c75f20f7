"""Several real stages on the model of Kafka, the faults that may befall them, and the promises that they keep.

`Fleet` has a method for each fault, and `settle` for the end of a history: the faults stop, the fleet drains, and every
promise is checked. Most promises are checked all the time, so a history ends where one is broken.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from telemetry.metrics import Metrics
from tests.simulation.kafka import SESSION_SECONDS, Kafka, Kind, ModelConsumer, ModelProducer, Place, State, Transaction
from tests.simulation.scheduler import Host, SimulatedCaller, Simulation
from workers.stage.producer import COMMIT_SECONDS
from workers.stage.progress import Progress
from workers.stage.record import Failure, HandlerCrashed, Output, Record
from workers.stage.settings import StageSettings
from workers.stage.settler import IdentityShared, Settler, SettlerState
from workers.stage.source import GroupSource, PartitionId
from workers.stage.stage import Stage
from workers.stage.window import Limits

REQUESTS, RESULTS, GROUP = "requests", "results", "jobs"
STUCK_SECONDS = 300.0
"""A fleet without faults has finished all work after this simulated time, or it never will."""
HEALTHY_SECONDS = 20.0
"""If a job kills, healthy jobs come again after this time."""
ANSWERS_LOST_SECONDS = 0.3, (COMMIT_SECONDS + SESSION_SECONDS) / 2, 7.0
"""How long a process may be cut off after a lost answer: until it asks again, until its commit has timed out although
its session has not, or until it has lost its partitions."""
METRICS = Metrics()
"""All stages share these, because making them takes longer than a whole stage."""


class Broken(AssertionError):  # noqa: N818 - it names what happened
    """A promise of the kernel is broken."""


@dataclass(frozen=True, slots=True)
class Job:
    """A record's work."""

    seconds: float
    deed: str = ""
    """`kill`: the record kills its process. `crash`: it kills the engine of its process. Else nothing."""
    due_ms: int | None = None
    lingers: bool = False


class WatchedStage(Stage):
    """A stage whose process follows which partitions it has."""

    process: Process

    def assigned(self, partitions: Sequence[PartitionId]) -> None:
        self.process.told("assigned", partitions)
        super().assigned(partitions)

    def revoked(self, partitions: Sequence[PartitionId]) -> None:
        self.process.told("revoked", partitions)
        super().revoked(partitions)  # meanwhile the stage may try records again
        self.process.forget(partitions)

    def lost(self, partitions: Sequence[PartitionId]) -> None:
        self.process.told("lost", partitions)
        super().lost(partitions)
        self.process.forget(partitions)


class WatchedSettler(Settler):
    """A settler whose process checks that it ends its transaction."""

    process: Process

    def close(self) -> None:
        self.process.undisturbed = self.process.fleet.kafka.reaches(self.process)
        super().close()
        self.process.check_closed()


class Process(Host):
    """One process of the fleet: a stage, its handler, its pace and its engine."""

    def __init__(self, fleet: Fleet, replica: str) -> None:
        super().__init__(fleet.simulation, replica)
        self.fleet = fleet
        self.over = False
        self.loses = ""
        """The request whose next answer is lost, or `results`: the next commit with results."""
        self.crashes_amid = 0
        """The engine crashes as soon as this number of records run; 0 if it does not."""
        self.undisturbed = False
        """True if the settler is being closed, and reaches Kafka."""
        self.paced = fleet.paced
        self.producers: list[ModelProducer] = []
        self._engine = object()
        self._running: set[tuple[Place, int]] = set()
        self._casualties: set[tuple[Place, int]] = set()
        """Records that died in a crash of the engine."""
        make_consumer: Any = partial(ModelConsumer, fleet.kafka, self)  # a Consumer as far as the kernel calls it
        intake = GroupSource({}, GROUP, [REQUESTS], on_error=lambda error: None, make_consumer=make_consumer)
        self.settler = WatchedSettler(
            {},
            f"{GROUP}.{replica}",
            intake.group_metadata,
            self,
            METRICS,
            [RESULTS],
            self._producer,
            lambda name: SimulatedCaller(self),
        )
        self.settler.process = self
        settings = StageSettings(GROUP, Limits(records=fleet.window), drain_seconds=fleet.drain_seconds)
        self.stage = WatchedStage(settings, self, intake, self.settler, self, METRICS, self)
        self.stage.process = self
        self.stage.proxy.loop = self  # type: ignore[assignment]  # the kernel calls one method of it
        self.stage.proxy.runner.at_a_time_seconds = math.inf  # the machine's speed must not show
        self.spawn(self._live)

    def stop(self) -> None:
        """Tell the process to drain and end, as SIGTERM does."""
        self.stage.stop()
        self.wake()

    def crash_engine(self) -> None:
        """Kill the engine: all running records die. Some of them notice it together, and others later."""
        self._engine, self.crashes_amid = object(), 0
        self.end_naps(share=0.5)
        self.fleet.harm += 1

    # -- the handler -----------------------------------------------------------------------------------------------

    async def handle(self, record: Record) -> Sequence[Output]:
        """Answer the record after a while, or follow its deed."""
        job, key = self.fleet.jobs[record.value], ((record.topic, record.partition), record.offset)
        self._begin(record, job, key)
        engine, rng = self._engine, self.simulation.random
        try:
            for _ in range(rng.randrange(1, 3)):
                await self.nap(job.seconds)
                if engine is not self._engine:
                    break
            if 0 < self.crashes_amid <= len(self._running):
                self.note(f"its engine crashes amid {len(self._running)} records")
                self.crash_engine()
            if job.deed == "kill" and not self.dead:
                self.fleet.kill(self, by=record.value)
            if job.deed == "crash" and engine is self._engine:
                self.note(f"job {record.value.decode()} crashes the engine")
                self.crash_engine()
            if engine is not self._engine:
                await self.nap(rng.choice((0.0, 0.5)) * rng.random())
                if key in self._running:
                    self._casualties.add(key)
                raise HandlerCrashed
        finally:
            self._running.discard(key)
            self.simulation.loop.call_soon(self.wake)
        self._casualties.discard(key)
        return [Output(RESULTS, record.value, may_linger=job.lingers)]

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        """Return a failed result."""
        self.note(f"gives up job {record.value.decode()}: {failure.code}")
        self.simulation.loop.call_soon(self.wake)
        return [Output(RESULTS, record.value, headers=[("outcome", failure.code.encode())])]

    def _begin(self, record: Record, job: Job, key: tuple[Place, int]) -> None:
        self.note(f"begins job {record.value.decode()} ({record.partition}@{record.offset})")
        if job.due_ms is not None and job.due_ms > self.time() * 1000:
            self.fleet.breaks(f"job {record.value.decode()} begins {job.due_ms / 1000 - self.time():.3f} s early")
        beside = self._running - self._casualties if key in self._casualties else self._running & self._casualties
        if beside:
            self.fleet.breaks(
                f"{self.name}: job {record.value.decode()} begins beside a suspect, or as one: {sorted(beside)}"
            )
        self._running.add(key)

    # -- the pace --------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """Return how many records the handler has room for."""
        return self.fleet.room

    def due_ms(self, record: Record) -> int | None:
        """Return when the record is due."""
        return self.fleet.jobs[record.value].due_ms

    # -- its life --------------------------------------------------------------------------------------------------

    def point(self, what: str = "") -> None:
        """Lose the answer that `loses` names."""
        if self.loses and (what == f"{self.loses}!" or (self.loses == "results" and self._commits_results(what))):
            self.loses = ""
            self.fleet.cut(self, self.simulation.random.choice(ANSWERS_LOST_SECONDS))
        super().point(what)

    def _commits_results(self, what: str) -> bool:
        return what == "commit!" and bool(self.fleet.kafka.transactions[f"{GROUP}.{self.name}"].entries)

    def told(self, how: str, partitions: Sequence[PartitionId]) -> None:
        """Note a change of the assignment."""
        self.note(f"{how} {','.join(str(number) for _, number in sorted(partitions))}")

    def forget(self, partitions: Sequence[PartitionId]) -> None:
        """Forget the records of partitions that other processes get."""
        gone = set(partitions)
        self._running = {key for key in self._running if key[0] not in gone}
        self._casualties = {key for key in self._casualties if key[0] not in gone}

    def ended(self, error: BaseException) -> None:
        """End the process with an error of its stage."""
        if isinstance(error, IdentityShared):
            self.fleet.harm += 1
            self._end(f"ends: {type(error).__name__}")
        else:
            super().ended(error)

    def _producer(self, config: dict[str, Any]) -> Any:
        producer = ModelProducer(self.fleet.kafka, self, config)
        self.producers.append(producer)
        return producer

    def check_closed(self) -> None:
        """Check that the closed settler has ended its transaction, unless Kafka could not be reached."""
        transaction = self.fleet.kafka.transactions.get(f"{GROUP}.{self.name}")
        is_open = transaction is not None and transaction.state is State.ONGOING
        unended = self.settler.state in (SettlerState.ABORTING, SettlerState.COMMITTING)
        if is_open and unended and self.undisturbed and not self.fleet.is_twin(self):
            self.fleet.breaks(f"{self.name} stopped and left its transaction open")

    def _live(self) -> None:
        self.stage.live()
        self._end("has stopped" if self.stage.error is None else f"ends: {type(self.stage.error).__name__}")

    def _end(self, how: str) -> None:
        self.note(how)
        self.over = True
        self.fleet.harm += self.stage.error is not None
        self.simulation.loop.call_soon(self.fleet.bury, self)


class Fleet:
    """The processes, their Kafka, their jobs, and the promises."""

    def __init__(self, seed: int | random.Random) -> None:
        self.simulation = Simulation(seed)
        rng = self.random = self.simulation.random
        self.kafka = Kafka(self.simulation, rng)
        self.kafka.copies = rng.choice((1, 3))
        self.partitions = rng.randrange(1, 5)
        self.kafka.create(REQUESTS, self.partitions)
        self.kafka.create(RESULTS, rng.randrange(1, self.partitions + 1))
        self.kafka.on_committed = self._committed
        self.kafka.on_expelled = self._expelled
        self.window = rng.choice((2, 5, 20))
        self.room = rng.choice((3, 1000))
        self.drain_seconds = rng.choice((0.5, 5.0, 20.0))
        self.paced = rng.random() < 0.2
        self.deeds = rng.choice(("", "", "", "kill", "crash"))
        self.names = "abc"[: rng.randrange(1, 4)]
        self.processes: list[Process] = []
        self.jobs: dict[bytes, Job] = {}
        self.harm = 0
        """Deaths and expulsions that no record is to blame for. Three of them may end in giving up an innocent job."""
        self.answers: Counter[bytes] = Counter()
        self._owed: set[bytes] = set()
        """Jobs that were committed to the requests' topic and have no result yet."""
        self._killers_left = 1
        self._checked: Counter[Place] = Counter()
        """Offsets below these were found to be settled."""
        self._fresh: frozenset[bytes] = frozenset()
        """Jobs that came when all faults were over, so that nobody has a reason to suspect them."""

    def close(self) -> None:
        """End all processes."""
        for process in list(self.processes):
            self.bury(process)
        self.simulation.run(1_000, 0.1)  # handlers end
        self.simulation.close()

    def breaks(self, promise: str) -> None:
        """Fail the history."""
        self.simulation.note("-", f"BROKEN: {promise}")
        self.simulation.failed(Broken(promise))

    # -- work ------------------------------------------------------------------------------------------------------

    def add(self, count: int, *, aborted: bool = False, in_transaction: bool = False) -> None:
        """Append jobs, as a transaction or without one; an aborted transaction leaves only gaps."""
        number = self.random.randrange(self.partitions)
        self.simulation.note("-", f"{count} jobs{' aborted' if aborted else ''}, from partition {number} on")
        delay = self.random.choice((0.5, 3.0)) if self.paced else 0.0
        places = set()
        for _ in range(count):
            number = (number + self.random.randrange(2)) % self.partitions
            name = str(len(self.jobs)).encode()
            self.jobs[name] = self._job(delay, aborted=aborted)
            self.kafka.append((REQUESTS, number), name, -1 if in_transaction or aborted else None)
            places.add((REQUESTS, number))
            if not aborted:
                self._owed.add(name)
        if in_transaction or aborted:
            for place in sorted(places):
                self.kafka.log(place).mark(-1, 0, commits=not aborted)
                self.kafka.stir(place)

    def _job(self, delay: float, *, aborted: bool) -> Job:
        rng = self.random
        deed = ""
        if self.deeds and self._killers_left and not aborted and rng.random() < 0.1:
            self._killers_left, deed = self._killers_left - 1, self.deeds
        due_ms = int((self.simulation.time() + delay) * 1000) if self.paced else None
        seconds = rng.choice((0.0, 0.01, 0.1, 1.0)) * rng.random()
        return Job(seconds, deed, due_ms, lingers=rng.random() < 0.1)

    # -- faults ----------------------------------------------------------------------------------------------------

    def alive(self, name: str) -> list[Process]:
        """Return the processes of this name: more than one if they share their identity."""
        return [process for process in self.processes if process.name == name]

    def is_twin(self, process: Process) -> bool:
        """Return whether another process has the same name."""
        return len(self.alive(process.name)) > 1

    def start(self, name: str) -> None:
        """Start a process, even if one of this name is alive."""
        self.simulation.note(name, "starts" if not self.alive(name) else "starts beside its twin")
        self.processes.append(Process(self, name))

    def kill(self, process: Process, by: bytes | None = None) -> None:
        """Kill a process."""
        process.note("is killed" if by is None else f"is killed by job {by.decode()}")
        self.harm += by is None
        self.bury(process)

    def bury(self, process: Process) -> None:
        """End everything of a process that has ended."""
        if process in self.processes:
            self.processes.remove(process)
            self._hear()
            self.kafka.consumers = [each for each in self.kafka.consumers if each.host is not process]
            process.die()

    def stop(self, process: Process) -> None:
        """Tell a process to drain and end."""
        process.note("is told to stop")
        process.stop()

    def pause(self, process: Process) -> None:
        """Freeze a process."""
        process.note("is paused")
        self._hear()
        process.undisturbed = False
        process.pause()

    def go_on(self, process: Process) -> None:
        """Let a frozen process go on."""
        process.note("goes on")
        self._hear()
        process.go_on()

    def cut(self, process: Process, seconds: float) -> None:
        """Cut a process off from Kafka for a while."""
        process.note(f"is cut off for {seconds:g} s")
        self._hear()
        process.cut, process.undisturbed = True, False
        self.simulation.loop.call_later(seconds, self.mend, process)

    def mend(self, process: Process) -> None:
        """Connect a process with Kafka again."""
        if process.cut:
            self._hear()
            process.cut = False
            process.wake()

    def _hear(self) -> None:
        """Let Kafka hear the last heartbeats before a connection changes."""
        self.kafka.restless = True
        self.kafka.tick()

    def lose_answer(self, process: Process, request: str) -> None:
        """Lose the answer to the process's next request of this kind, and cut the process off."""
        process.note(f"will lose the answer to {request}")
        process.loses = request

    def stumble(self, process: Process, when: str) -> None:
        """Let the process's next commit raise an error (see `ModelProducer.stumbles`)."""
        process.note(f"will stumble over its next commit: {when}")
        for producer in process.producers[-1:]:
            producer.stumbles = when

    def refuse_offsets(self, process: Process) -> None:
        """Let the coordinator refuse the committed offsets of the partitions that the process gets next."""
        process.note("will be refused the committed offsets")
        for consumer in self.kafka.consumers:
            if consumer.host is process:
                consumer.is_refused = True

    def brokers_away(self) -> None:
        """Let all brokers stop answering."""
        self.simulation.note("-", "brokers away")
        self.kafka.go_away()
        for process in self.processes:
            process.undisturbed = False

    def brokers_back(self, *, restarted: bool) -> None:
        """Let the brokers answer again."""
        self.simulation.note("-", "brokers back" + (" from a restart" if restarted else ""))
        self.kafka.come_back(restarted=restarted)
        self.kafka.stir()

    def rebalance(self) -> None:
        """Give the partitions to other members."""
        self.simulation.note("-", "rebalance")
        for group in self.kafka.groups.values():
            group.turn += 1
            self.kafka.rebalance(group)

    def more_partitions(self) -> None:
        """Add a partition to the requests."""
        self.partitions += 1
        self.simulation.note("-", f"{self.partitions} partitions")
        self.kafka.create(REQUESTS, self.partitions)

    def trim(self) -> None:
        """Remove committed records, as retention does."""
        self.simulation.note("-", "retention")
        for place, (offset, _) in self._group_offsets().items():
            self.kafka.log(place).start = max(self.kafka.log(place).start, offset)

    # -- the end ---------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """End all faults, drain, and check the promises."""
        self.simulation.note("-", "no more faults")
        if not self.kafka.up:
            self.brokers_back(restarted=False)
        for process in list(self.processes):
            self.mend(process)
            process.loses, process.crashes_amid = "", 0
            if process.paused:
                self.go_on(process)
            if self.alive(process.name)[-1] is not process:
                self.kill(process)
        self._until(lambda: self.unfinished, "work is left")
        before = len(self.jobs)
        self.deeds = ""
        self.add(2 * self.partitions)
        self._fresh = frozenset(str(number).encode() for number in range(before, len(self.jobs)))
        self._until(lambda: self.unfinished, "fresh work is left")
        for process in list(self.processes):
            self.stop(process)
        self._until(lambda: ", ".join(process.name for process in self.processes), "processes do not stop", ends=True)
        results = Counter(entry.value or b"" for log in self.kafka.logs[RESULTS] for _, entry in log.committed())
        wanted = Counter(dict.fromkeys(self.answers, 1))
        if results != wanted or self._owed:
            raise Broken(f"results {results - wanted}, missing {wanted - results}")

    @property
    def unfinished(self) -> str:
        """Describe unfinished work; empty if there is none."""
        if self._owed:
            return f"jobs {b' '.join(sorted(self._owed)).decode()} have no result"
        if any(process.stage.stopping for process in self.processes) or len(self.processes) < len(self.names):
            return "processes are about to stop or to start"
        members = self.kafka.groups[GROUP].members.values() if GROUP in self.kafka.groups else ()
        if len(members) != len(self.names) or any(member.owned != member.target for member in members):
            return "the group is not stable"
        offsets = self._group_offsets()
        for number in range(self.partitions):
            log = self.kafka.log((REQUESTS, number))
            committed = offsets.get((REQUESTS, number), (0, ""))[0]
            if committed < log.end:
                return f"partition {number} is committed to {committed}, its end is {log.end}"
            if not any(consumer.has_told_end((REQUESTS, number)) for consumer in self.kafka.consumers):
                return f"nobody has read partition {number} to its end"
        if any(log.stable < log.end for log in self.kafka.logs[RESULTS]):
            return "a transaction holds the results' readers"
        return ""

    def _until(self, left: Callable[[], str], problem: str, *, ends: bool = False) -> None:
        end = self.simulation.monotonic() + STUCK_SECONDS
        more_at = self.simulation.monotonic() + HEALTHY_SECONDS
        while left():
            if self.deeds and self.simulation.monotonic() > more_at:
                self.add(2 * self.partitions)  # no job is given up before another one has completed
                more_at += HEALTHY_SECONDS
            if not ends:
                for name in self.names:
                    if not self.alive(name):
                        self.start(name)
            self.simulation.run(20, 2.0)
            if self.simulation.monotonic() > end:
                raise Broken(f"{problem} after {STUCK_SECONDS:g} s without faults: {left()}")

    # -- the promises ----------------------------------------------------------------------------------------------

    def _group_offsets(self) -> dict[Place, tuple[int, str]]:
        return self.kafka.groups[GROUP].offsets if GROUP in self.kafka.groups else {}

    def _expelled(self, host: object) -> None:
        self.simulation.note(getattr(host, "name", "?"), "is expelled from the group")
        self.harm += 1

    def _committed(self, transactional_id: str, transaction: Transaction) -> None:
        """Check a transaction that Kafka has committed."""
        answered = [entry for place, entry in transaction.entries if place[0] == RESULTS]
        name = transactional_id.rpartition(".")[2]
        for entry in answered:
            assert entry.value is not None, "results have values"
            self.answers[entry.value] += 1
            self._owed.discard(entry.value)
            if self.answers[entry.value] > 1:
                self.breaks(f"job {entry.value.decode()} has {self.answers[entry.value]} results")
            if entry.headers and not self.jobs[entry.value].deed and self.harm < 3:
                self.breaks(f"job {entry.value.decode()} was given up, and has killed nothing")
        said = " ".join(str(entry.value, "ascii") for entry in answered if entry.value)
        where = [f"{place[1]}@{offset}" for (_, place), (offset, _) in transaction.offsets.items()]
        self.simulation.note(name, f"has committed results {said or '-'} and offsets {' '.join(where) or '-'}")
        for (_, place), (offset, metadata) in transaction.offsets.items():
            self._check(place, Progress.decode(offset, metadata))

    def _check(self, place: Place, progress: Progress) -> None:
        """Check that all offsets that a commit calls done have results."""
        entries = self.kafka.log(place).entries
        if progress.base + progress.done.bit_length() > len(entries):
            self.breaks(f"offsets past the end of partition {place[1]} are committed as done")
            return
        above = [progress.base + bit for bit in range(progress.done.bit_length()) if progress.done >> bit & 1]
        for offset in [*range(self._checked[place], progress.base), *above]:
            entry = entries[offset]
            if entry.kind is Kind.RECORD and not entry.aborted and entry.value in self._owed:
                self.breaks(f"{place[1]}@{offset} is committed as done, and job {entry.value!r} has no result")
        self._checked[place] = max(self._checked[place], progress.base)
        if any(entries[offset].value in self._fresh for offset in progress.running):
            self.breaks(f"fresh jobs are suspected in partition {place[1]}: {progress.running}")
