"""Drawn histories of delivery's tiers: real handlers decide, and the simulation stands for Kafka, endpoints and time.

Two delivery processes share the partitions of `model_results` and of all tiers. Endpoints answer, fail for a while, ask
for a wait, or go away. Processes are killed, also between a POST and its settling, and their clocks jump. A POST takes
no time. A process handles the first record of a partition as soon as the handler's `due_ms` says so, as a stage does.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict, deque
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, cast

from schemas import topics as names
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.topics import Topics
from telemetry.metrics import Metrics
from workers.delivery.deliver import DeliveryHandler
from workers.delivery.keyring import Keyring
from workers.delivery.post import Delivered, FailedDelivery, FailureReason, Poster, PostOutcome
from workers.delivery.settings import DeliverySettings
from workers.stage.record import Output, Record

TOPICS = Topics("t.")
TIERS = {name: delay for delay, name in TOPICS.tiers.items()}
PARTITIONS = 2
START = 1_700_000_000.0
HOUR, DAY = 3600.0, 86_400.0
LONGEST_DAYS = 30.0
"""Each event has ended after this time: ten waits of a day by Retry-After, and deferrals."""
CLOCKS_DIFFER_SECONDS = 60.0
"""By so much, a wrong clock may always move a record."""
MOST_TURNS = 500
"""The most times that an event is handled: some ten a wait, and seventy for an origin that is away for days."""
METRICS = Metrics()
VALUE = write_result(Result(job_id="job", outcome=Outcome.SUCCEEDED, text="x", created_at=int(START)))
OK = Delivered(200, 0.0)
GONE = FailedDelivery(FailureReason.GONE, 0.0, 410)
REFUSED = FailedDelivery(FailureReason.REFUSED, 0.0, detail="names a private address")
FAILURES: tuple[PostOutcome, ...] = (
    FailedDelivery(FailureReason.CONNECT_FAILED, 0.0),
    FailedDelivery(FailureReason.SERVER_ERROR, 0.0, 500),
    FailedDelivery(FailureReason.CLIENT_ERROR, 0.0, 404),
    *(FailedDelivery(FailureReason.SERVER_ERROR, 0.0, 503, asked) for asked in (1.0, 90.0, 4000.0)),
    *(FailedDelivery(FailureReason.THROTTLED, 0.0, 429, asked) for asked in (30.0, 86_400.0)),
)


class Attempt(NamedTuple):
    """One POST."""

    number: int
    at: float
    outcome: PostOutcome
    deferred: int
    """How often the event was deferred before."""


@dataclass
class SkewedClock:
    """A process's clock: the simulation's time, and an error of the wall clock."""

    world: TierHistory
    wrong: float = 0.0

    def time(self) -> float:
        return START + self.world.now + self.wrong

    def monotonic(self) -> float:
        return 1000.0 + self.world.now

    def sleep(self, seconds: float) -> None:
        raise AssertionError("delivery never blocks its loop")


@dataclass
class Endpoint:
    """A callback URL, and its outcomes: each holds until a time."""

    url: str
    outcomes: list[tuple[float, PostOutcome]]

    def outcome(self, now: float) -> PostOutcome:
        return next(outcome for until, outcome in self.outcomes if now < until)


@dataclass
class Partition:
    """A partition: its records with the times of their appending, and its process."""

    topic: str
    number: int
    records: deque[tuple[Record, float, float]] = field(default_factory=deque)
    """Records that are not settled; each with its time, and with `alone(time)`."""
    offsets: Iterator[int] = field(default_factory=count)
    owner: Process | None = None
    left_at: float = 0.0
    _alone: float = 0.0

    def alone(self, now: float) -> float:
        """Return the seconds without a process so far."""
        return self._alone + (now - self.left_at if self.owner is None else 0.0)

    def give(self, owner: Process | None, now: float) -> None:
        """Change the process."""
        self._alone, self.left_at = self.alone(now), now
        self.owner = owner


class Process:
    """A delivery process: a real handler, whose poster asks the simulation."""

    def __init__(self, world: TierHistory, settings: DeliverySettings, wrong: float) -> None:
        self.clock = SkewedClock(world, wrong)
        poster = cast("Poster", _SimulatedPoster(world))
        rng = random.Random(world.rng.random())
        self.handler = DeliveryHandler(TOPICS, world.keyring, poster, self.clock, METRICS, settings, rng)
        for key, value in world.endpoint_records:
            self.handler.states.apply(key, value)

    def due(self, record: Record, now: float) -> float:
        """Return the simulation's time at which the stage handles a partition's first record."""
        due_ms = self.handler.due_ms(record)
        return now if due_ms is None else now + (due_ms - 1000 * self.clock.time()) / 1000


@dataclass
class _SimulatedPoster:
    """A poster whose outcomes are the endpoints' present ones."""

    world: TierHistory

    async def post(
        self, url: str, _body: bytes, headers: Mapping[str, str], _tenant: str, number: int = 1
    ) -> PostOutcome:
        return self.world.posted(url, headers["webhook-id"], number)


class TierHistory:
    """Events and their endpoints, two processes, and the faults; `told` is the history as text."""

    def __init__(self, rng: random.Random, keyring: Keyring, *, set_clocks: bool) -> None:
        self.rng, self.keyring, self.now = rng, keyring, 0.0
        self.told: list[str] = []
        self.set_clocks = set_clocks
        """True if clocks are set wrong for good; otherwise they differ by some seconds, and jump for some minutes."""
        # No record may wait for a probe's outcome, since one record is handled at a time.
        self.settings = DeliverySettings(breaker_failures=rng.choice((3, 20)), destination_queue_records=0)
        skew = rng.choice((0.0, 0.0, 2.0, 25.0))
        self.skews = [rng.uniform(-skew, skew) for _ in range(2)]
        self.broker_wrong = rng.uniform(-skew, skew)
        self.differ = max(*self.skews, self.broker_wrong) - min(*self.skews, self.broker_wrong)
        """The largest difference of two clocks, in seconds."""
        self.endpoint_records: list[tuple[bytes | None, bytes | None]] = []
        self.partitions = [
            Partition(topic, number) for topic in (TOPICS.results, *TIERS) for number in range(PARTITIONS)
        ]
        self.by_topic = {(each.topic, each.number): each for each in self.partitions}
        self.processes: list[Process | None] = [None, None]
        self.endpoints: dict[str, Endpoint] = {}
        self.attempts: defaultdict[str, list[Attempt]] = defaultdict(list)
        """The settled attempts by event."""
        self.ends: defaultdict[str, list[str]] = defaultdict(list)
        """How each event ended, and the dead letter's reason."""
        self.letters: dict[str, str] = {}
        """The dead letters' reasons in words."""
        self.turns: Counter[str] = Counter()
        """How often each event was handled."""
        self.idle: list[tuple[float, float]] = []
        """The beginnings and ends of the times without a process."""
        self._idle_since: float | None = None
        self.jumps: list[tuple[float, float]] = []
        """The beginnings and ends of clocks' jumps."""
        self.seen: Counter[str] = Counter()
        self._posts: list[tuple[str, int, PostOutcome]] = []
        self._coming: list[tuple[float, int, str, Any]] = []
        self._kill_after_post = False
        self._set_at = float("-inf")
        self.sets = 0
        """How often a clock was set; each time may make a record wait once more."""
        for place in range(2):
            self.start(place)
        self._draw()

    # -- drawing ---------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        """Draw endpoints, events and faults, with their times."""
        rng = self.rng
        for number in range(rng.randint(2, 4)):
            origin = f"https://o{rng.randint(0, 2)}.example"
            url = f"{origin}/{number}"
            self.endpoints[url] = Endpoint(url, self._outcomes())
        for number in range(rng.randint(6, 14)):
            at = rng.choice((0.0, rng.uniform(0, 60), rng.uniform(0, HOUR), rng.uniform(0, 2 * DAY)))
            self._coming.append((at, number, "event", rng.choice(list(self.endpoints))))
        for number in range(rng.randint(0, 8)):
            self._coming.append((rng.uniform(0, rng.choice((HOUR, 3 * DAY))), 100 + number, "kill", rng.randint(0, 1)))
        for number in range(rng.randint(0, 3)):
            self._coming.append((rng.uniform(0, rng.choice((HOUR, 3 * DAY))), 200 + number, "jump", rng.randint(0, 1)))
        self._coming.sort(reverse=True)

    def _outcomes(self) -> list[tuple[float, PostOutcome]]:
        """Draw an endpoint's life: up to three phases, and an end."""
        rng = self.rng
        found: list[tuple[float, PostOutcome]] = []
        until = 0.0
        for _ in range(rng.randint(0, 3)):
            until += rng.choice((rng.uniform(1, 60), rng.uniform(60, HOUR), rng.uniform(HOUR, 2 * DAY)))
            found.append((until, rng.choice([OK, *FAILURES])))
        lasts: list[PostOutcome] = [OK, OK, OK, GONE, REFUSED, *rng.sample(FAILURES, 2)]
        return [*found, (float("inf"), rng.choice(lasts))]

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until no record waits."""
        while self._coming or any(partition.records for partition in self.partitions):
            due, partition = self._next()
            if self._coming and self._coming[-1][0] <= due:
                at, _, kind, what = self._coming.pop()
                self.now = max(self.now, at)
                getattr(self, f"_{kind}")(what)
            elif due > self.now:
                self.now = min(due, self.now + 200.0) if self._is_jumping() else due
            else:
                assert partition is not None
                self._handle(partition)
            assert self.now < LONGEST_DAYS * DAY, "events do not end"

    def _next(self) -> tuple[float, Partition | None]:
        """Return the partition whose first record is due next, and the time."""
        best: tuple[float, Partition | None] = float("inf"), None
        for partition in self.partitions:
            if partition.records and partition.owner is not None:
                due = partition.owner.due(partition.records[0][0], self.now)
                if due < best[0]:
                    best = due, partition
        return best

    def _handle(self, partition: Partition) -> None:
        owner, (record, appended, alone) = partition.owner, partition.records[0]
        assert owner is not None
        self._verify_turn(partition, appended, partition.alone(self.now) - alone)
        event = record.header(names.WEBHOOK_ID) or ""
        self.turns[event] += 1
        assert self.turns[event] < MOST_TURNS, f"{event} goes through the tiers without end"
        outputs = _result(owner.handler.handle(record))
        if self._posts and self._kill_after_post:
            self._kill_after_post = False
            self._say("killed between POST and settling")
            self._posts.clear()
            self._die(self.processes.index(owner))
            return
        partition.records.popleft()
        for _, number, outcome in self._posts:
            self.attempts[event].append(Attempt(number, self.now, outcome, int(record.header(names.DEFERRED) or 0)))
            if isinstance(outcome, Delivered):
                self.ends[event].append("delivered")
        self._posts.clear()
        for output in outputs:
            self._take(output, event, partition.number)

    def _take(self, output: Output, event: str, number: int) -> None:
        if output.topic in TIERS:
            self.seen["waits"] += 1
            self._append(output, number)
        elif output.topic == TOPICS.dead_letters:
            headers = dict(output.headers or ())
            self.ends[event].append((headers[names.REASON] or b"").decode())
            self.letters[event] = (headers[names.REASON_DETAIL] or b"").decode()
        elif output.topic == TOPICS.endpoints:
            self.endpoint_records.append((output.key, output.value))
            for process in self.processes:
                if process is not None:
                    process.handler.states.apply(output.key, output.value)
        else:
            assert output.topic == TOPICS.attempts
            assert json.loads(output.value or b"")["attempt"] == self.attempts[event][-1].number

    def _append(self, output: Output, number: int) -> None:
        partition = self.by_topic[output.topic, number]
        stamp = int(1000 * (START + self.now + self.broker_wrong))
        record = Record(
            output.topic, number, next(partition.offsets), output.value or b"", output.key, output.headers, stamp
        )
        partition.records.append((record, self.now, partition.alone(self.now)))

    def posted(self, url: str, event: str, number: int) -> PostOutcome:
        """Answer a POST."""
        outcome = self.endpoints[url].outcome(self.now)
        self._say(f"{event[-3:]} attempt {number}: {type(outcome).__name__} {getattr(outcome, 'reason', '')}")
        self._posts.append((event, number, outcome))
        return outcome

    # -- events and faults -----------------------------------------------------------------------------------------

    def _event(self, url: str) -> None:
        number = self.seen["events"]
        self.seen["events"] += 1
        event = f"msg_{number:032x}"
        self._say(f"{event[-3:]} for {url}")
        self.ends[event] = []
        headers = [
            (names.JOB_ID, b"job"),
            (names.WEBHOOK_ID, event.encode()),
            (names.CALLBACK_URL, url.encode()),
        ]
        self._append(Output(TOPICS.results, VALUE, None, headers), number % PARTITIONS)

    def _kill(self, place: int) -> None:
        if self.rng.random() < 0.5:
            self._kill_after_post = True
        elif self.processes[place] is not None:
            self._die(place)

    def _die(self, place: int) -> None:
        self.seen["kills"] += 1
        self._say(f"process {place} is killed")
        self.processes[place] = None
        self._assign()
        back = self.now + self.rng.choice((1.0, 30.0, 700.0, 5000.0))
        self._coming.append((back, 300, "start", place))
        self._coming.sort(reverse=True)

    def _start(self, place: int) -> None:
        self.start(place)

    def start(self, place: int) -> None:
        """Start a process, unless it runs."""
        if self.processes[place] is None:
            self._say(f"process {place} starts")
            self.processes[place] = Process(self, self.settings, self.skews[place])
            self._assign()

    def _jump(self, place: int) -> None:
        """Set a process's clock; unless `set_clocks`, set it right again within the time for which no jump counts."""
        process, by = self.processes[place], self.rng.choice((-1, 1)) * self.rng.choice((90.0, HOUR, 2 * DAY))
        if process is None:
            return
        self._say(f"the clock of process {place} jumps by {by:.0f} s")
        self.sets += 1
        self._set_at = self.now
        process.clock.wrong = self.skews[place] + by
        if not self.set_clocks:
            mended = self.now + self.rng.uniform(1, 280)
            self.jumps.append((self.now, mended))
            self._coming.append((mended, 400, "mend", place))
            self._coming.sort(reverse=True)

    def _mend(self, place: int) -> None:
        if (process := self.processes[place]) is not None:
            process.clock.wrong = self.skews[place]
            self._say(f"the clock of process {place} is right again")

    def _is_jumping(self) -> bool:
        """True if a clock was set lately: a stage looks at its clock more than once in five minutes."""
        return self.now < self._set_at + 1000.0

    def _assign(self) -> None:
        """Share the partitions among the processes that run."""
        running = [process for process in self.processes if process is not None]
        if running and self._idle_since is not None:
            self.idle.append((self._idle_since, self.now))
            self._idle_since = None
        elif not running and self._idle_since is None:
            self._idle_since = self.now
        for number, partition in enumerate(self.partitions):
            partition.give(running[number % len(running)] if running else None, self.now)

    def alone(self, begin: float, end: float) -> float:
        """Return the seconds between these times in which no process ran, or more."""
        return sum(back - gone for gone, back in self.idle if gone <= end and begin <= back)

    def _verify_turn(self, partition: Partition, appended: float, alone: float) -> None:
        """Fail if a record leaves its tier too early or too late."""
        if partition.topic not in TIERS:
            return
        length = TIERS[partition.topic]
        late = self.now - appended - length
        if self.set_clocks:
            longest = self.sets * length + CLOCKS_DIFFER_SECONDS + self.differ
            assert late <= alone + longest + 0.1, f"{partition.topic}: {late:.1f} s late"
            return
        assert late >= -self.differ - 0.1, f"{partition.topic}: {-late:.1f} s early"
        # The clock of a writer of this partition may have been ahead, of which a minute counts. It counts in full if
        # the record is overdue, as after a time without a process.
        believed = CLOCKS_DIFFER_SECONDS if self.jumped(appended - length, appended) else 0.0
        believed += length if believed and alone else 0.0
        assert late <= alone + self.differ + believed + 0.1, f"{partition.topic}: {late:.1f} s late"

    def jumped(self, begin: float, end: float) -> bool:
        """Return whether a clock was wrong by a jump at some time between these."""
        return any(start <= end and begin <= mended for start, mended in self.jumps)

    def _say(self, text: str) -> None:
        self.told.append(f"{self.now:10.1f} {text}")


def _result(handling: Coroutine[Any, Any, Sequence[Output]]) -> Sequence[Output]:
    """Return the result of a coroutine that waits for nothing."""
    try:
        handling.send(None)
    except StopIteration as ended:
        found: Sequence[Output] = ended.value
        return found
    raise AssertionError("the handler waits, although one record at a time is handled")
