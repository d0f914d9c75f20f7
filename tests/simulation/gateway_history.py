"""Drawn histories of two gateways on one SQLite store, before the Kafka of `relay_kafka`.

A history is drawn step by step from a `random.Random`: requests, kills, pauses, faults of the disk and of Kafka, the
store's restoration from a backup. The gateways' threads run from one pause to the next, so a seed repeats its history.
After the history, the faults stop, and the relays drain the outbox. Then `verify` compares the answers, the store
and Kafka.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Connection, event, select, text
from sqlalchemy.exc import OperationalError

from gateway.accept.acceptance import Acceptance
from gateway.accept.cancelling import CANCELLING, cancel_job
from gateway.accept.idempotency import KeyReused, StoredAnswer
from gateway.accept.jobs import JobExists, JobsRequest, NewJob
from gateway.accept.outlet import RecordOutlet
from gateway.accept.position import waiting
from gateway.accept.relay import Relay
from gateway.access import Principal
from gateway.access.principal import DEFAULT_SCOPES
from gateway.store.engine import open_engine
from gateway.store.meta import value_of
from gateway.store.settings import StoreSettings
from gateway.store.store import StoreAway
from gateway.store.tables import jobs
from gateway.store.writer import Refused
from schemas.settings import KafkaSettings
from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.simulation.history import silent
from tests.simulation.relay_kafka import Lost, RelayKafka
from tests.simulation.stepped import (
    Stepped,
    SteppedEvent,
    SteppedFuture,
    SteppedStore,
    SteppedWriter,
    pause,
    stepped,
)
from tests.unit.gateway_rig import empty_store

KAFKA = KafkaSettings()
METRICS = Metrics()
PRINCIPAL = Principal("acme", "key:1", "api_key", DEFAULT_SCOPES)
KEYS = ("one", "two", "three", None, None, None)
IDS = ("job_a", "job_b", None, None, None)
"""Ids that requests choose themselves; None stands for a new id."""
FULL_ROWS = 12
"""The outbox's limit: low, so that histories reach it."""
DRAIN_SECONDS = 90.0
"""The most seconds of the simulation that the relays may take to empty the outbox after the last fault."""
ROUND_SECONDS = 0.25
REFUSED = "refused"
"""The answer to a request that was not accepted."""


class HoldIgnored(BaseException):
    """Jobs were accepted while the store was on hold."""


@dataclass(frozen=True)
class HeldRequest(JobsRequest):
    """A change that fails the history if it accepts jobs while the store is on hold."""

    own: str = ""
    hold: Callable[[], str | None] = lambda: None

    @classmethod
    def together(cls, connection: Connection, changes: Sequence[JobsRequest]) -> list[StoredAnswer | Refused]:
        found = JobsRequest.together(connection, changes)
        for change, answer in zip(changes, found, strict=True):
            assert isinstance(change, HeldRequest)
            accepted = isinstance(answer, StoredAnswer) and answer.body == change.own.encode()
            if accepted and change.hold() is not None:
                raise HoldIgnored("a job was accepted although the store was on hold")
        return found


@dataclass
class Request:
    """A request for jobs, and its answer."""

    number: int
    key: str | None
    body: str
    ids: tuple[str, ...]
    era: int
    """The number of restorations before the request."""
    answer: str | None = None
    """The answer's body, or REFUSED and the error's name; None if the gateway died before it answered."""

    @property
    def own(self) -> str:
        """The answer of this request if it is no repeat."""
        return f"answer {self.number}"

    @property
    def values(self) -> list[str]:
        """The values of its jobs' records."""
        return [f"{self.number}.{index}" for index in range(len(self.ids))]

    def change(self, clock: HandClock, hold: Callable[[], str | None]) -> JobsRequest:
        """Return the change by which the door accepts the jobs."""
        new = [
            NewJob(job_id, "/v1/jobs", value.encode(), request=value.encode())
            for job_id, value in zip(self.ids, self.values, strict=True)
        ]
        made = StoredAnswer(202, self.own.encode())
        return HeldRequest(
            PRINCIPAL, self.key, self.body.encode(), new, made, KAFKA.topics, clock, own=self.own, hold=hold
        )


class Gateway:
    """One process: its store, its relay, and the part that decides if work is accepted."""

    def __init__(self, clock: HandClock) -> None:
        self.store = SteppedStore.open("sqlite:///unused")
        settings = StoreSettings(outbox_rows=FULL_ROWS)
        self.relay = Relay(self.store, KAFKA, clock, METRICS)
        self.acceptance = Acceptance(self.store, KAFKA, settings, clock, METRICS)
        self.threads = [
            self.store._writer.thread,
            stepped("relay", self.relay._run),
            stepped("acceptance", self.acceptance._run),
        ]
        self.owed = 0
        """The number of requests without an answer."""
        self.frozen = False
        self.disk_fails = 0
        """The number of next commits that the disk refuses."""
        self.dies_before_commit = False
        self.doomed = False
        event.listen(self.store._writer._engine, "commit", self._before_commit)

    def runnable(self) -> list[Stepped]:
        """Return the threads that would go on if they were stepped."""
        return [] if self.frozen else [thread for thread in self.threads if thread.can_run]

    def kill(self) -> None:
        """End the process where it is."""
        for thread in self.threads:
            thread.kill()

    def stop(self) -> None:
        """Ask the relay and the acceptance to end."""
        for part in (self.relay, self.acceptance):
            part._stopping.set()
            part._wake()

    def _before_commit(self, _connection: Connection) -> None:
        if self.dies_before_commit:
            self.doomed = True
            raise OperationalError("COMMIT", {}, Exception("killed"))
        if self.disk_fails:
            self.disk_fails -= 1
            raise OperationalError("COMMIT", {}, Exception("disk I/O error"))


class History:
    """Two gateways, their clients, and the faults; `told` is the history as text."""

    def __init__(self, rng: random.Random, folder: Path, clock: HandClock, kafka: RelayKafka) -> None:
        self.rng, self.folder, self.clock, self.kafka = rng, folder, clock, kafka
        self.told: list[str] = []
        self.requests: list[Request] = []
        self.broken: BaseException | None = None
        """An error of a change that no client expects."""
        self.era = 0
        self._backup: bytes | None = None
        self._place(empty_store())
        self.gateways: list[Gateway] = []
        self.start()
        self.start()

    # -- the parts of a history ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a gateway, unless two run."""
        if len(self.gateways) < 2:
            self._say("start")
            self.gateways.append(Gateway(self.clock))

    def run(self) -> None:
        """Step one thread some times."""
        able = self._able()
        thread = self.rng.choice(able) if able else None
        for _ in range(self.rng.randint(1, 12)):
            if thread is not None and thread.can_run:
                self.step(thread)

    def flow(self) -> None:
        """Step threads in any order."""
        for _ in range(self.rng.randint(5, 60)):
            if able := self._able():
                self.step(self.rng.choice(able))

    def step(self, thread: Stepped) -> None:
        """Let a thread go on to its next pause."""
        thread.switch()
        if self.broken is not None:
            raise self.broken
        for gateway in [gateway for gateway in self.gateways if gateway.doomed]:
            self._say("killed before COMMIT")
            self._bury(gateway)

    def tick(self) -> None:
        """Let time pass."""
        self.clock.sleep(self.rng.choice((0.05, 0.1, 0.25, 0.25, 0.25, 0.5, 1.0, 1.0, 2.5, 9.0)))

    def ask(self) -> None:
        """Send a request, which may repeat the key or the job ids of another request."""
        gateway = self._any()
        if gateway is None:
            return
        number = len(self.requests)
        ids = tuple(f"job_{number}_{index}" for index in range(self.rng.choice((1, 1, 1, 2, 3))))
        if (chosen := self.rng.choice(IDS)) is not None:
            ids = (*ids[:-1], chosen)
        self.send(gateway, Request(number, self.rng.choice(KEYS), self.rng.choice("aab"), ids, self.era))

    def send(self, gateway: Gateway, request: Request) -> None:
        """Hand a request to a gateway."""
        self.requests.append(request)
        self._say(f"request {request.number}, key {request.key}, body {request.body}, ids {','.join(request.ids)}")
        gateway.owed += 1
        change = request.change(self.clock, lambda: gateway.store.hold.refusal)
        gateway.store.submit(change).add_done_callback(partial(self._answered, gateway, request))

    def cancel(self) -> None:
        """Cancel some job."""
        gateway = self._any()
        if gateway is not None and self.requests:
            job_id = self.rng.choice(self.rng.choice(self.requests).ids)
            self._say(f"cancel {job_id}")
            gateway.store.submit(lambda connection: cancel_job(connection, "acme", job_id, KAFKA.topics, self.clock))

    def kill_any(self) -> None:
        """Kill a gateway now, or just before its next COMMIT."""
        gateway = self._any()
        if gateway is None:
            return
        if self.rng.random() < 0.4:
            gateway.dies_before_commit = True
            self._say("kill before the next COMMIT")
        else:
            self.kill(gateway)

    def freeze(self) -> None:
        """Stop a gateway's threads."""
        gateway = self._any()
        if gateway is not None:
            gateway.frozen = True
            self._say("freeze")

    def break_disk(self) -> None:
        """Let the next one or two commits of a gateway fail."""
        gateway = self._any()
        if gateway is not None:
            gateway.disk_fails = self.rng.randint(1, 2)
            self._say(f"the disk refuses {gateway.disk_fails} commits")

    def take_kafka_away(self) -> None:
        """Let Kafka answer nothing."""
        self.kafka.away = True
        self._say("Kafka is away")

    def mend(self) -> None:
        """Let stopped gateways go on, and Kafka answer."""
        for gateway in self.gateways:
            gateway.frozen = False
        self.kafka.away = False
        self._say("mend")

    def crash_kafka(self) -> None:
        """Kill the broker, which undoes a commit without markers."""
        self._say("Kafka crashes")
        self.kafka.crash()

    def lose_commit(self) -> None:
        """Lose the answer to the next Kafka commit."""
        self.kafka.lost = self.rng.choice((Lost.APPLIED, Lost.IGNORED))
        self._say(f"the answer to the next Kafka commit is lost, {self.kafka.lost.value}")

    def back_up(self) -> None:
        """Make a backup of the store."""
        self._say("backup")
        target = self.folder / "backup.db"
        with closing(sqlite3.connect(ONE.file)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
        self._backup = target.read_bytes()
        target.unlink()

    def restore(self) -> None:
        """Lose the store, and restore the backup."""
        if self._backup is None:
            return
        self._say("restore")
        for gateway in list(self.gateways):
            self._bury(gateway)
        self.era += 1
        self._place(self._backup)

    def storm(self, steps: int) -> None:
        """Draw a history of so many steps."""
        parts: tuple[tuple[Callable[[], None], float], ...] = (
            (self.run, 25),
            (self.flow, 25),
            (self.tick, 10),
            (self.ask, 14),
            (self.cancel, 3),
            (self.start, 8),
            (self.kill_any, 2),
            (self.freeze, 2),
            (self.break_disk, 1),
            (self.take_kafka_away, 2),
            (self.lose_commit, 2),
            (self.mend, 6),
            (self.back_up, 1),
            (self.restore, 0.5),
        )
        calls, weights = zip(*parts, strict=True)
        for _ in range(steps):
            if self.kafka.unmarked and self.rng.random() < 0.05:
                self.crash_kafka()
            else:
                self.rng.choices(calls, weights)[0]()

    # -- after the faults ------------------------------------------------------------------------------------------

    def calm(self) -> None:
        """End all faults, and let two gateways run."""
        self._say("calm")
        self.mend()
        self.kafka.lost = None
        for gateway in self.gateways:
            gateway.dies_before_commit, gateway.disk_fails = False, 0
        while len(self.gateways) < 2:
            self.start()

    def rounds(self, seconds: float) -> None:
        """Let all threads run for some time."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.round()

    def round(self) -> None:
        """Let all threads run until each waits, then let a moment pass."""
        while able := self._able():
            for thread in able:
                self.step(thread)
        self.clock.sleep(ROUND_SECONDS)

    def drain(self) -> None:
        """Run until each request is answered and the outbox is empty."""
        until = self.clock.now + DRAIN_SECONDS
        while (owed := sum(gateway.owed for gateway in self.gateways)) or self.outbox():
            assert self.clock.now < until, f"{owed} requests and {self.outbox()} rows still wait"
            self.round()

    def outbox(self) -> int:
        """The number of rows that wait for Kafka."""
        return self.gateways[0].store.read_now(waiting)[0]

    def repeat_all(self) -> None:
        """Send each key's requests once more."""
        for key, body in sorted({(each.key, each.body) for each in self.requests if each.key is not None}):
            number = len(self.requests)
            self.send(self.gateways[0], Request(number, key, body, (f"job_{number}_0",), self.era))
        self.drain()

    def forget_position(self) -> None:
        """Let Kafka forget the position, as after a week without gateways, and start new gateways."""
        self._say("Kafka forgets the position")
        self.rounds(1.0)
        self.abandon()
        self.kafka.forget_position()
        self.calm()

    def holder(self) -> Gateway:
        """Return the gateway whose relay has the lease."""
        holder = self.gateways[0].store.read_now(lambda connection: value_of(connection, "relay")) or ""
        (found,) = [gateway for gateway in self.gateways if holder.startswith(gateway.relay._lease._id)]
        return found

    def stop(self, gateway: Gateway) -> None:
        """Stop a gateway in good order."""
        self._say("stop")
        gateway.stop()
        self.rounds(1.0)
        assert all(thread.dead for thread in gateway.threads[1:]), "a part does not stop"
        self._bury(gateway)

    def kill(self, gateway: Gateway) -> None:
        """Kill a gateway."""
        self._say("kill")
        self._bury(gateway)

    def abandon(self) -> None:
        """Kill all gateways."""
        for gateway in self.gateways:
            gateway.kill()
        self.gateways.clear()

    # -- the comparison --------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Compare answers, store and Kafka."""
        columns = select(jobs.c.request, jobs.c.job_id, jobs.c.status).order_by(text("rowid"))
        rows = self.gateways[0].store.read_now(lambda connection: connection.execute(columns).all())
        durable = [row.request.decode() for row in rows]
        records = [piece for piece in self.kafka.records() if piece.place[0] == KAFKA.topics.requests()]
        found = [piece.value.decode() for piece in records if piece.value is not None]
        doubled = [value for value, times in Counter(found).items() if times > 1]
        assert not doubled, f"on Kafka more than once: {doubled}"
        assert [value for value in found if value in set(durable)] == durable, (
            "Kafka lacks accepted jobs, or their order"
        )
        self._verify_requests(set(durable), set(found))
        self._verify_keys(set(durable))
        self._verify_cancelled([(row.job_id, row.status == CANCELLING) for row in rows])

    def _verify_requests(self, durable: set[str], found: set[str]) -> None:
        for request in self.requests:
            values = set(request.values)
            assert values & durable in (set(), values), f"request {request.number} is in the store in part"
            assert values & found in (set(), values), f"request {request.number} is on Kafka in part"
            is_lost = request.era < self.era
            if request.answer == request.own:
                assert is_lost or values <= durable, f"request {request.number} was accepted and is not in the store"
            elif request.answer is not None:
                assert not values & (durable | found), f"request {request.number}: {request.answer}, but it is accepted"
            if not is_lost:
                assert values & found == values & durable, f"request {request.number} is on Kafka without a row"

    def _verify_keys(self, durable: set[str]) -> None:
        named = {request.own: request for request in self.requests}
        for key in {request.key for request in self.requests} - {None}:
            of_key = [request for request in self.requests if request.key == key]
            stored = [request for request in of_key if set(request.values) <= durable]
            assert len(stored) <= 1, f"the key {key} has several jobs"
            for era in range(self.era + 1):
                answers = {each.answer for each in of_key if each.era == era} & named.keys()
                assert len(answers) <= 1, f"the key {key} has several answers: {answers}"
            for request in of_key:
                if request.answer in named:
                    assert named[request.answer].body == request.body, f"request {request.number} got a foreign answer"
                elif request.answer == f"{REFUSED}: KeyReused" and request.era == self.era and stored:
                    assert stored[0].body != request.body, f"request {request.number}, a repeat, was refused"

    def _verify_cancelled(self, rows: Sequence[tuple[str, bool]]) -> None:
        records = [piece for piece in self.kafka.records() if piece.place[0] == KAFKA.topics.control]
        told = Counter(json.loads(piece.value or b"")["job_id"] for piece in records)
        for job_id, is_cancelling in rows:
            if self.era == 0:
                assert told[job_id] == is_cancelling, f"{told[job_id]} orders to cancel {job_id}"
            else:
                assert told[job_id] >= is_cancelling, f"the order to cancel {job_id} is lost"

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _able(self) -> list[Stepped]:
        """Return the threads that would go on if they were stepped."""
        return [thread for gateway in self.gateways for thread in gateway.runnable()]

    def _place(self, content: bytes) -> None:
        """Make a store of its own for this era."""
        file = self.folder / f"store{self.era}.db"
        file.write_bytes(content)
        ONE.move(file)

    def _any(self) -> Gateway | None:
        return self.rng.choice(self.gateways) if self.gateways else None

    def _bury(self, gateway: Gateway) -> None:
        gateway.kill()
        self.gateways.remove(gateway)

    def _answered(self, gateway: Gateway, request: Request, future: Future[StoredAnswer]) -> None:
        gateway.owed -= 1
        error = future.exception()
        if isinstance(error, KeyReused | JobExists | StoreAway):
            request.answer = f"{REFUSED}: {type(error).__name__}"
        elif error is not None:
            self.broken = error
        else:
            request.answer = future.result().body.decode()
        self._say(f"request {request.number}: {request.answer}")

    def _say(self, text: str) -> None:
        self.told.append(f"{self.clock.now:9.2f} {text}")


class OneEngine:
    """The engine of all histories, whose connections go to the present history's file.

    SQLAlchemy compiles each statement once for each engine, which takes longer than the statements.
    """

    def __init__(self) -> None:
        self.engine = open_engine("sqlite:///unused")
        self.file = Path()
        event.listen(self.engine, "do_connect", self._choose)
        event.listen(self.engine, "connect", self._hasten)

    def move(self, file: Path) -> None:
        """Let new connections go to this file, and close the old ones."""
        self.engine.dispose()
        self.file = file

    def _choose(self, _dialect: object, _record: object, arguments: list[str], _named: object) -> None:
        arguments[0] = str(self.file)

    def _hasten(self, connection: sqlite3.Connection, _record: object) -> None:
        """Let commits not wait for the disk: processes die here, and machines do not."""
        connection.execute("PRAGMA synchronous=OFF")


ONE = OneEngine()


@contextmanager
def history(rng: random.Random, folder: Path) -> Iterator[History]:
    """Yield a history whose gateways run in steps; kill them at the end. An error carries the history's text."""
    clock = HandClock(1_800_000_000.0)
    kafka = RelayKafka(clock.monotonic, pause)
    empty_store()
    events = SimpleNamespace(Event=partial(SteppedEvent, clock))
    patches: dict[str, Any] = {
        "gateway.store.store.open_engine": lambda _url: ONE.engine,
        "gateway.store.store.Writer": SteppedWriter,
        "gateway.store.writer.Future": SteppedFuture,
        "gateway.accept.relay.threading": events,
        "gateway.accept.side_thread.threading": events,
        "gateway.accept.position.Consumer": kafka.consumer,
        "gateway.accept.relay.RecordOutlet": partial(RecordOutlet, make_producer=kafka.producer),
        "workers.stage.producer.ClientThread.__init__": lambda _caller, _name: None,
        "workers.stage.producer.ClientThread.call": lambda _caller, _seconds, function, *args: function(*args),
        "workers.stage.producer.ClientThread.end": lambda _caller: None,
        "workers.stage.producer.ClientThread.aside": lambda _caller, function, _name: function(),
        "workers.stage.producer._destroy": lambda _doomed: None,
    }
    with silent(), pytest.MonkeyPatch.context() as patch:
        for name, value in patches.items():
            patch.setattr(name, value, raising=False)
        made = History(rng, folder, clock, kafka)
        try:
            yield made
        except Exception as error:
            error.add_note("\n".join(made.told))
            raise
        finally:
            made.abandon()
            ONE.engine.dispose()
