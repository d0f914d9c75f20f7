"""The roles: topics, the ready line, the process, its last resort, settings of rooms, and announcements of models."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest.mock import patch

import pytest
from confluent_kafka import KafkaError, Producer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cli.operations.dead_letters import kind_of
from cli.send.job_warnings import warn_of_unserved
from producers import workers
from producers.errors import BrokerUnreachable
from producers.scan import Stored, StoredPlace
from producers.workers import Announced, live_workers
from schemas import topics as names
from schemas.bounded import BoundedModel
from schemas.codec import Origin, read_job, read_result
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.settings import Constants, FleetSettings, KafkaSettings, RoomSettings
from schemas.topics import Topics
from schemas.worker import (
    LONGEST_ANSWER_SECONDS,
    MAX_MODELS,
    InvalidAnnouncement,
    WorkerAnnouncement,
    announcement,
    read_announcement,
    worker_key,
    write_announcement,
)
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock, SetClock
from telemetry.health import READY, Readiness
from telemetry.metrics import Metrics
from tests.drawn import drawn
from tests.input_models import models
from workers.engines.base import EngineLost, EngineUnavailable
from workers.engines.settings import EngineSection
from workers.enrichment.settings import EnrichmentSettings
from workers.inference.announcer import Announcer
from workers.inference.engine_watch import EngineWatch
from workers.inference.observed import KEPT, AnswerTimes
from workers.inference.routing import Registry, UnknownModel
from workers.inference.settings import WorkerSettings
from workers.kafka.topics import AccessDenied, BrokerAway, unanswered
from workers.roles import last_resort, process
from workers.roles.process import Listen, Process, ReadyLine
from workers.roles.supervision import LoopBeat, alive, readiness_of, run_stages, stop_signal, unless_stopped
from workers.roles.worker import lanes_of
from workers.stage.dead_letters import MAX_LETTER_BYTES
from workers.stage.record import Failure, Header, Output, Record, size_of
from workers.system.errors import ProcessError
from workers.system.memory_limit import LARGEST_WINDOW, MIB, SMALLEST_WINDOW, memory_limit_bytes, window_bytes


# -- roles -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lane", "expected"),
    [
        (None, ["model_requests.gpu", "model_requests.gpu.batch", "model_requests.gpu.spare"]),
        ("gpu", ["model_requests", "model_requests.batch", "model_requests.spare"]),
    ],
)
def test_a_worker_asks_for_all_lanes_of_every_engine_that_it_forwards_to(lane: str | None, expected: list[str]) -> None:
    assert lanes_of({"big": "gpu", "lost": "gpu", "small": None}, lane, Topics()) == expected


# -- ready line ------------------------------------------------------------------------------------------------------
DUTIES = ['answers model "big" from topic model_requests', "delivers results from topic model_results"]


async def test_a_process_says_once_that_it_is_ready_and_not_before_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(process, "LOOK_SECONDS", 0)
    asked = 0

    def readiness() -> Readiness:
        nonlocal asked
        asked += 1
        return READY if asked > 3 else Readiness(("the consumer group has not let it in yet",))

    task = asyncio.create_task(ReadyLine(readiness, DUTIES, "w0", "http://127.0.0.1:9000/metrics").ended())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not task.done(), "a side task that ends would end the process"
    task.cancel()
    assert asked == 4
    [line] = [record.msg for record in caplog.records if "serving" in str(record.msg)]
    assert isinstance(line, dict)
    said = (
        'Ready: answers model "big" from topic model_requests and delivers results from topic model_results, '
        "as replica w0; metrics on http://127.0.0.1:9000/metrics."
    )
    fields = {"action": "serving", "replica": "w0", "metrics_url": "http://127.0.0.1:9000/metrics"}
    assert {name: line[name] for name in ("event", *fields)} == {"event": said, **fields}


async def test_a_process_knows_where_its_metrics_are_once_it_is_observed() -> None:
    process, ports = Process(FleetSettings()), list[int]()
    async with process.observed(Listen(), ports.append):
        assert process.metrics_url == f"http://127.0.0.1:{ports[0]}/metrics"


# -- process ---------------------------------------------------------------------------------------------------------
class Broken:
    """A stage whose Kafka thread ends at once."""

    async def run(self) -> None:
        raise ValueError("broken")

    def stop(self) -> None:
        pass


class Beside:
    """A task that runs beside the stages; a test can end the task."""

    def __init__(self) -> None:
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        self._ended.set_exception(ValueError("what the stages go by is old"))

    @property
    def alive(self) -> bool:
        return not self._ended.done()

    def reasons(self) -> list[str]:
        return ["it has ended"] if self._ended.done() else []

    async def ended(self) -> None:
        await asyncio.shield(self._ended)


class Draining:
    """A stage that drains for a while once it is stopped."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self.drained = False

    async def run(self) -> None:
        await self._stopping.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        self.drained = True

    def stop(self) -> None:
        self._stopping.set()


@pytest.fixture(autouse=True)
def keep_collecting_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "workers.roles.supervision.collect_garbage_seldom", lambda: None
    )  # replaced, because the real function would change the test process's garbage collector


async def test_when_one_stage_dies_the_others_are_drained_before_its_error_is_raised() -> None:
    broken: Any = Broken()
    other: Any = Draining()
    with pytest.raises(ValueError, match="broken"):
        await run_stages([broken, other], asyncio.Event())
    assert other.drained


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, AccessDenied, r"refuses access to the topic jobs.*ACLs"),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, AccessDenied, r"refuses access to the topic jobs.*ACLs"),
        (KafkaError._TIMED_OUT, BrokerAway, r"Kafka at host:1 does not answer \(_TIMED_OUT\)"),
    ],
)
def test_a_broker_that_refuses_is_distinguished_from_one_that_is_away(
    code: int, kind: type[ProcessError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        raise unanswered(KafkaSettings(bootstrap_servers="host:1"), KafkaError(code), " to the topic jobs")


async def test_stages_are_drained_when_a_side_task_ends_and_its_error_is_raised() -> None:
    stage: Any = Draining()
    beside, sound = Beside(), Beside()
    asyncio.get_running_loop().call_later(0.01, beside.end)
    with pytest.raises(ValueError, match="old"):
        await run_stages([stage], asyncio.Event(), [sound, beside])
    assert stage.drained
    assert readiness_of([], [sound, beside]).reasons == ("it has ended",)
    assert not alive([], [sound, beside])
    assert alive([], [sound])


async def test_an_engine_that_is_lost_ends_the_process_once_the_stage_is_drained() -> None:
    stage: Any = Draining()
    watch = EngineWatch(HandClock())
    running = asyncio.create_task(run_stages([stage], asyncio.Event(), [watch]))
    watch.asking = 1
    watch.failed(EngineUnavailable("the server answered 503"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not running.done()
    watch.failed(EngineLost("loading it failed 5 times in a row"))
    with pytest.raises(EngineLost, match="5 times in a row"):
        await running
    watch.asking = 0
    assert stage.drained


async def test_a_signal_drains_the_stages_and_is_no_error() -> None:
    stage: Any = Draining()
    with stop_signal() as stop:
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)
        await run_stages([stage], stop, [Beside()])
    assert stage.drained


async def test_a_front_answers_its_running_requests_before_the_tasks_beside_it_end() -> None:
    order: list[str] = []

    class Answering(Beside):
        def __init__(self, name: str, turns: int) -> None:
            super().__init__()
            self._name, self._turns = name, turns

        async def ended(self) -> None:
            try:
                await super().ended()
            finally:
                for _ in range(self._turns):
                    await asyncio.sleep(0)
                order.append(self._name)

    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, stop.set)
    await run_stages([], stop, [Answering("view", 0)], [Answering("door", 10)])
    assert order == ["door", "view"]


async def test_a_signal_ends_the_steps_before_serving() -> None:
    ended = False

    async def preparing() -> str:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended = True
        return "never"

    async def prepared() -> str:
        return "ready"

    with stop_signal() as stop:
        assert await unless_stopped(prepared(), stop) == "ready"
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)
        assert await unless_stopped(preparing(), stop) is None
    assert ended


async def test_a_stuck_event_loop_is_noticed_and_counts_as_alive_once_it_runs_again() -> None:
    clock = HandClock()
    beat = LoopBeat(clock)
    beating = asyncio.create_task(beat.ended())
    await asyncio.sleep(0)
    clock.now += 59.0
    assert alive([], [beat])
    clock.now += 2.0  # the task has not run meanwhile, as when a handler blocks the loop
    assert not alive([], [beat])
    beating.cancel()
    again = asyncio.create_task(beat.ended())
    await asyncio.sleep(0)
    assert alive([], [beat])
    again.cancel()


# -- last resort -----------------------------------------------------------------------------------------------------
TOPICS = Topics("fleet.")
FAILURE = Failure("handler_defect", "the worker can neither handle the record nor give it up (KeyError)", 1)
LARGEST_BYTES = 1_000_000
"""The size of the largest record that librdkafka accepts by default."""
PRODUCER = Producer({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
KNOWN_NAMES = st.sampled_from(
    [names.TENANT, names.JOB_ID, names.WEBHOOK_ID, names.TRACEPARENT, names.CALLBACK_URL, names.DEFERRED, names.LEFT]
)
HEADER_NAMES = st.one_of(KNOWN_NAMES, st.text(max_size=8), st.just("\ud800"), st.just("a\0b"))
HEADERS = st.lists(st.tuples(HEADER_NAMES, st.none() | st.binary(max_size=40)), max_size=6)
MANY: list[Header] = [("", b"")] * 200_000
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text(max_size=5) | st.none(),
        "job_id": st.text(max_size=5) | st.integers(),
        "custom_id": st.text(max_size=5) | st.lists(st.none(), max_size=1),
        "callback_url": st.text(max_size=9) | st.just("https://[2001:db8::1::2]/hook") | st.just("https://a.example/h"),
    },
)
VALUES = st.one_of(
    st.binary(max_size=60),
    BODIES.map(lambda body: json.dumps(body).encode()),
    st.sampled_from([b"", b"[" * 100_000, b"x" * MAX_LETTER_BYTES, b"x" * 3_000_000]),
)
RECORDS = st.builds(
    Record,
    st.sampled_from([TOPICS.requests(), TOPICS.requests(bulk=True), TOPICS.results, "another"]),
    st.integers(0, 5),
    st.integers(0, 2**62),
    VALUES,
    st.none() | st.binary(max_size=20) | st.just(b"k" * 990_000),
    st.none() | HEADERS | st.just(MANY) | st.just([(names.TENANT, b"")] * 100_000),
    st.integers(-1, 2**62),
    st.none() | st.just("have a name that is not UTF-8"),
)


def sent(outputs: Sequence[Output]) -> None:
    """Pass the outputs to a real producer, which raises an error for a record that no broker would accept."""
    for output in outputs:
        size = len(output.value or b"") + len(output.key or b"") + size_of(output.headers or ())
        assert size <= LARGEST_BYTES
        PRODUCER.produce(output.topic, output.value, output.key, headers=list(output.headers or ()))
    PRODUCER.purge()
    PRODUCER.poll(0)


def outputs_for_a_job(record: Record) -> Sequence[Output]:
    ids = {TOPICS.requests(): "topic-uuid"}
    return last_resort.for_jobs(TOPICS, ids, HandClock(), Metrics())(record, FAILURE)


@example(Record(TOPICS.requests(), 0, 0, b'{"prompt":"x","callback_url":"https://[2001:db8::1::2]/hook"}'))
@settings(max_examples=drawn(30))
@given(RECORDS)
def test_a_job_has_one_failed_result_and_one_letter_that_can_be_told_apart_whatever_the_record_is(
    record: Record,
) -> None:
    result, letter = outputs_for_a_job(record)
    sent([result, letter])
    assert (result.topic, letter.topic) == (TOPICS.results, TOPICS.dead_letters)
    read = read_result(result.value)
    assert (read.outcome, read.error and read.error.code) == (Outcome.FAILED, "handler_defect")
    said, written = dict(result.headers or ()), dict(letter.headers or ())
    assert [said[name] for name in (names.TENANT, names.JOB_ID, names.WEBHOOK_ID)] == [
        written[name] for name in (names.TENANT, names.JOB_ID, names.WEBHOOK_ID)
    ]
    assert said[names.JOB_ID] == read.job_id.encode() == result.key
    assert written[names.REASON] == b"handler_defect"
    assert letter.value in (record.value, None)


@settings(max_examples=drawn(30))
@given(RECORDS)
def test_a_callback_has_one_letter_whatever_the_record_is(record: Record) -> None:
    (letter,) = last_resort.for_callbacks(TOPICS, Metrics())(record, FAILURE)
    sent([letter])
    written = dict(letter.headers or ())
    assert written[names.REASON] == b"handler_defect"
    assert written[names.SOURCE_OFFSET] == str(record.offset).encode()
    assert not written.keys() & set(names.WAITING_HEADERS)


JOB = {"prompt": "hello", "custom_id": "mine", "callback_url": "https://a.example/hook"}


def test_the_result_has_the_identity_and_the_callback_that_the_jobs_other_results_would_have() -> None:
    headers: list[Header] = [(names.TENANT, b"acme"), ("x", b"1")]
    record = Record(TOPICS.requests(), 3, 7, json.dumps(JOB).encode(), b"key", headers)
    result, letter = outputs_for_a_job(record)
    job = read_job(record.value, headers, Origin("topic-uuid", 3, 7), 0)
    assert dict(result.headers or ()) == {
        names.TENANT: b"acme",
        names.JOB_ID: job.job_id.encode(),
        names.WEBHOOK_ID: job.webhook_id.encode(),
        names.CALLBACK_URL: b"https://a.example/hook",
    }
    assert read_result(result.value).custom_id == "mine"
    stored = Stored(
        letter.topic,
        StoredPlace(0, 0),
        0,
        letter.key,
        letter.value,
        [(name, value or b"") for name, value in letter.headers or ()],
    )
    assert kind_of(stored, TOPICS) == "job"
    assert (letter.value, letter.key, dict(letter.headers or ())["x"]) == (record.value, b"key", b"1")


def test_a_job_that_cannot_be_read_is_named_only_by_its_place() -> None:
    record = Record(TOPICS.requests(), 3, 7, json.dumps(JOB).encode(), b"key", [(names.TENANT, b"acme")])
    with patch("workers.roles.last_resort.read_address", side_effect=RecursionError):
        result, letter = outputs_for_a_job(record)
    place = Origin("topic-uuid", 3, 7)
    assert dict(result.headers or ()) == {
        names.TENANT: b"default",
        names.JOB_ID: f"job_{place.digest}".encode(),
        names.WEBHOOK_ID: place.webhook_id(record.value).encode(),
    }
    assert dict(letter.headers or ())[names.SAID_TENANT] == b"acme"


# -- memory limit ----------------------------------------------------------------------------------------------------
GIB = 1024 * MIB
UNIFIED, MIXED = "0::/a/b\n", "4:cpu,cpuacct:/a\n2:memory:/a/b\n0::/a\n"


def system(root: Path, groups: str, limits: dict[str, str]) -> Path:
    """Write these files below a root."""
    for name, content in {"proc/self/cgroup": groups, **limits}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "limit"),
    [
        (UNIFIED, {"sys/fs/cgroup/a/b/memory.max": f"{GIB}\n"}, GIB),
        (UNIFIED, {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": f"{GIB}\n"}, GIB),
        (UNIFIED, {"sys/fs/cgroup/memory.max": f"{GIB}\n"}, GIB),  # in a container, the process's own group is the root
        (MIXED, {"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        (MIXED, {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n"}, GIB),
        (MIXED, {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        (UNIFIED, {"sys/fs/cgroup/a/b/memory.max": "max\n"}, None),
        ("", {}, None),
        ("nonsense\n::\n", {}, None),
    ],
)
def test_the_smallest_cgroup_limit_counts_or_else_the_memory_of_the_machine(
    groups: str, limits: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    found = memory_limit_bytes(system(tmp_path, groups, limits))
    assert found == (limit or memory_limit_bytes(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("limit", "reserved", "window"),
    [
        (GIB, 0, 192 * MIB),
        (512 * MIB, 0, 64 * MIB),
        (128 * MIB, 0, SMALLEST_WINDOW),
        (2 * GIB, 0, LARGEST_WINDOW),
        (1664 * MIB, 1152 * MIB, 64 * MIB),
    ],
)
def test_a_window_takes_a_quarter_of_the_free_memory(limit: int, reserved: int, window: int, tmp_path: Path) -> None:
    root = system(tmp_path, UNIFIED, {"sys/fs/cgroup/memory.max": str(limit)})
    assert window_bytes(None, reserved=reserved, root=root) == window
    assert window_bytes(7, reserved=reserved, root=root) == 7


SINCE = 1_000
WHOLE = {"replica": "w1", "models": ["echo"], "at": 1}
NAMES = st.from_regex(r"\A[\x21-\x7e]{1,256}\Z")
KEYS = (st.none() | st.just(b"w1") | st.binary(max_size=9)).filter(lambda key: key != b"w2")
THINGS = (
    st.none()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.lists(st.text(max_size=3) | st.none(), max_size=3)
)
NOISE = st.binary(max_size=60) | st.dictionaries(
    st.sampled_from([*WHOLE, "lane", "more", "adapters", "answer_seconds"]), THINGS
).map(lambda changed: json.dumps(WHOLE | changed).encode())


def stored(value: bytes | None, key: bytes | None = b"w1", at_ms: int = SINCE) -> Stored:
    return Stored("fleet_workers", StoredPlace(0, 0), at_ms, key, value, [])


def said(replica: str = "w1", *models: str, at: int = 0) -> bytes:
    return write_announcement(announcement(replica, None, models, at))


@given(KEYS, NOISE)
def test_a_record_of_any_bytes_is_an_announcement_or_says_that_it_is_none(key: bytes | None, value: bytes) -> None:
    try:
        read = read_announcement(key, value)
    except InvalidAnnouncement:
        return
    assert key == worker_key(read.replica)


@given(st.lists(st.tuples(KEYS, st.none() | NOISE)))
def test_records_of_any_bytes_hide_no_worker_that_announces_itself(
    noise: list[tuple[bytes | None, bytes | None]],
) -> None:
    records = [stored(value, key) for key, value in noise]

    found = live_workers([*records, stored(said("w2", "big"), b"w2"), *records], SINCE)

    assert [worker.models for worker in found if worker.replica == "w2"] == [("big",)]


@given(st.lists(NAMES | st.text(max_size=300), max_size=20), st.sampled_from([0, MAX_MODELS - 5]))
def test_an_announcement_can_be_read_whatever_its_models_are_called_and_however_many_there_are(
    names: list[str], before: int
) -> None:
    made = announcement("w1", "gpu", [*(f"m{number}" for number in range(before)), *names], 7)

    assert read_announcement(b"w1", write_announcement(made)) == made
    possible = {name for name in names if re.fullmatch(r"[\x21-\x7e]{1,256}", name)}
    assert made.more or possible <= set(made.models)
    assert len(made.models) <= MAX_MODELS
    tuned = announcement("w1", "gpu", [], 7, adapters=[*(f"m{number}" for number in range(before)), *names])
    assert read_announcement(b"w1", write_announcement(tuned)) == tuned
    assert (tuned.adapters, tuned.more) == (made.models, made.more)


@given(st.none() | st.floats(0, 1e12))
def test_an_announcement_can_be_read_however_long_the_worker_s_answers_take(seconds: float | None) -> None:
    made = announcement("w1", None, ["echo"], 7, answer_seconds=seconds)

    assert read_announcement(b"w1", write_announcement(made)).answer_seconds == made.answer_seconds
    assert made.answer_seconds == (seconds if seconds is None else min(seconds, LONGEST_ANSWER_SECONDS))


@given(st.lists(st.floats(0, 1e9), max_size=2 * KEPT), st.randoms())
def test_a_hundredth_of_the_last_answers_took_longer_than_their_99th_percentile(
    earlier: list[float], chance: Random
) -> None:
    times, last = AnswerTimes(), [float(number) for number in range(1, KEPT + 1)]
    assert times.p99() is None
    for seconds in earlier:
        times.add(seconds)
    assert times.p99() in earlier or not earlier

    chance.shuffle(last)
    for seconds in last:
        times.add(seconds)
    assert times.p99() == 0.99 * KEPT


def test_of_few_answers_the_longest_counts() -> None:
    times = AnswerTimes()
    for seconds in (3.0, 7.0, 5.0):
        times.add(seconds)

    assert times.p99() == 7.0


def test_a_worker_counts_by_the_time_of_its_last_record_until_it_withdraws() -> None:
    records = [
        stored(said("w1", "old", at=2**40), at_ms=SINCE - 1),
        stored(said("w2", "new"), b"w2"),
        stored(said("w2", "newer"), b"w2"),
        stored(said("w3", "ended"), b"w3"),
        stored(None, b"w3"),
        stored(said("w4", "of another"), b"w5"),
    ]

    assert [(worker.replica, worker.models) for worker in live_workers(records, SINCE)] == [("w2", ("newer",))]


@given(st.lists(NAMES, max_size=3), st.dictionaries(NAMES, st.sampled_from([None, "gpu"]), max_size=3), NAMES)
def test_a_worker_announces_only_models_that_it_routes_and_never_the_path_of_a_folder(
    served: list[str], models: dict[str, str | None], asked: str
) -> None:
    registry = Registry((*served, "/private/place"), None, models)

    def is_routed(name: str) -> bool:
        try:
            registry.route(name, None)
        except UnknownModel:
            return False
        return True

    assert all(map(is_routed, registry.announced))
    assert {*served[:1], *models} <= set(registry.announced)
    assert {name for name in served if "/" not in name} <= set(registry.announced)
    assert is_routed(asked) or asked not in registry.announced
    assert not served or "/private/place" in (*served, *models) or "/private/place" not in registry.announced


async def test_a_worker_whose_broker_is_away_is_neither_ended_nor_unready_nor_kept_from_ending() -> None:
    nowhere = KafkaSettings(bootstrap_servers="127.0.0.1:1")
    announcer = Announcer(nowhere, "w1", None, lambda: ["echo"], list, AnswerTimes().p99, SystemClock())
    await announcer.close()  # the announcer has not announced anything yet
    running = asyncio.create_task(announcer.ended())
    await asyncio.wait([running], timeout=1.5)

    assert (running.done(), announcer.alive, announcer.reasons()) == (False, True, [])
    running.cancel()
    async with asyncio.timeout(60):
        await announcer.close()


def warnings(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    announced: Announced | Exception | None,
    *models: str | None,
    checking: bool = True,
    adapter: str | None = None,
) -> list[str]:
    def answer(settings: KafkaSettings) -> Announced | None:
        if isinstance(announced, Exception):
            raise announced
        return announced

    monkeypatch.setattr(workers, "announced_models", answer)
    jobs = [(number, Job(prompt="q", model_id=model, adapter=adapter)) for number, model in enumerate(models, 1)]
    warn_of_unserved(jobs, KafkaSettings(), checking=checking)
    return [line.removeprefix("postback: ") for line in capsys.readouterr().err.splitlines()]


def test_each_model_that_no_worker_announces_is_named_once_with_its_lines_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["gpt-4o-mini", None, "echo", *["gpt-4o-mini"] * 3, "<b>" + "x" * 200]

    first, second = warnings(monkeypatch, capsys, Announced(("small", "echo"), more=False), *models)

    assert first == (
        'lines 1, 4, 5 and 1 more: model: no worker announces "gpt-4o-mini"; those that run now announce "small", '
        '"echo": send with --model any or one of these, or have the operator add an alias to POSTBACK_WORKER__MODELS '
        "or the registry"
    )
    assert second.startswith(f'line 7: model: no worker announces "?b?{"x" * 61}…"; ')


@pytest.mark.parametrize(
    ("adapters", "expected"),
    [
        (("law", "art"), None),
        (("art",), 'lines 1, 2: adapter: no worker announces "law"; those that run now announce "art": name one of'),
        ((), 'lines 1, 2: adapter: no worker announces "law"; those that run now announce none: name one of'),
    ],
)
def test_an_adapter_that_no_worker_announces_is_named_with_its_lines_and_the_fix(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    adapters: tuple[str, ...],
    expected: str | None,
) -> None:
    announced = Announced(("echo",), more=False, adapters=adapters)
    said = warnings(monkeypatch, capsys, announced, "echo", None, adapter="law")
    assert [line[: len(expected or "")] for line in said] == ([expected] if expected is not None else [])
    unchecked = warnings(monkeypatch, capsys, announced, "echo", None, adapter="law", checking=False)
    assert unchecked == said


@pytest.mark.parametrize(
    ("announced", "why"),
    [
        (None, "no worker of the shared lanes has announced itself within three minutes"),
        (Announced(("echo",), more=True), "a worker has more models or adapters than it announces"),
        (BrokerUnreachable("k:9092"), "no Kafka broker answers at k:9092: "),
    ],
)
def test_if_models_cannot_be_checked_a_check_says_why_and_a_submission_is_silent(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    announced: Announced | Exception | None,
    why: str,
) -> None:
    [line] = warnings(monkeypatch, capsys, announced, "gpt-4o-mini")

    assert line.startswith(f"models were not checked: {why}")
    assert warnings(monkeypatch, capsys, announced, "gpt-4o-mini", checking=False) == []
    assert warnings(monkeypatch, capsys, announced, None) == []


def test_only_the_workers_that_judge_a_submitted_job_count(monkeypatch: pytest.MonkeyPatch) -> None:
    of_an_engine = write_announcement(announcement("w2", "gpu", ["big"], 1))
    found: list[Stored] = [stored(of_an_engine, b"w2", at_ms=10**15)]

    class Reader:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> Reader:
            return self

        def __exit__(self, *_: object) -> None: ...
        def ranges(self, *_: object) -> None: ...
        def read(self, _: object) -> list[Stored]:
            return found

    monkeypatch.setattr(workers, "Scanner", Reader)
    assert workers.announced_models(KafkaSettings(), SetClock()) is None
    found.append(stored(said("w1", "echo"), at_ms=10**15))
    assert workers.announced_models(KafkaSettings(), SetClock()) == Announced(("echo",), more=False)

    tuned = {"w1": (None, ["law"]), "w2": ("gpu", ["art", "law"])}
    for replica, (lane, adapters) in tuned.items():
        value = write_announcement(announcement(replica, lane, ["echo"], 1, adapters=adapters))
        found.append(stored(value, worker_key(replica), at_ms=10**15))
    assert workers.announced_models(KafkaSettings(), SetClock()) == Announced(("echo",), False, ("law", "art"))


def test_an_announcement_says_what_the_published_schema_says() -> None:
    assert json.loads(said("w1", "echo", at=3)) == {
        "replica": "w1",
        "models": ["echo"],
        "adapters": [],
        "more": False,
        "at": 3,
    }
    assert WorkerAnnouncement.model_validate(WHOLE).lane is None


# -- Allowed lanes of a worker.


@pytest.mark.parametrize("lane", ["batch", "shadow", "a.b", ""])
def test_a_lane_that_is_another_topic_is_refused_where_it_is_read_and_where_jobs_are_sent(lane: str) -> None:
    """`model_requests.batch` is the shared bulk lane, so a lane `batch` would get the bulk jobs of the whole fleet."""
    with pytest.raises(ValidationError, match="lane"):
        WorkerSettings(lane=lane)
    with pytest.raises(ValidationError, match="models"):
        WorkerSettings(models={"m": lane})


def test_any_other_name_can_be_a_lane_and_no_name_means_the_shared_lane() -> None:
    assert WorkerSettings(lane="gpu-1", models={"m": "batches", "n": None}).lane == "gpu-1"


# -- the operator's contact in the user agent --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contact", "header"),
    [
        (None, "Postback/0.1"),
        ("ops@example.com", "Postback/0.1 (ops@example.com)"),
        ("https://example.com/bot?x=1", "Postback/0.1 (https://example.com/bot?x=1)"),
    ],
)
def test_the_contact_is_part_of_how_we_name_ourselves(contact: str | None, header: str) -> None:
    assert EnrichmentSettings(contact=contact).named == header


@pytest.mark.parametrize(
    "contact", ["nobody", "a b@example.com", "ftp://example.com", "x@y\r\nHost: z", "(x@y)", "ü@x.y"]
)
def test_a_text_that_is_no_address_is_no_contact(contact: str) -> None:
    with pytest.raises(ValidationError):
        EnrichmentSettings(contact=contact)


# -- Models that read the input of others have bounded errors; an integration test measures the memory of


OPERATORS_FILES: Final = (
    "settings",
    "keyring",
    "profile",
    "rules",
    "grounding",
    "certificates",
    "exporter",
    "families",
    "inside",
    "loading",
)
"""Modules and packages with models of the operator's own files and environment."""


def test_every_model_that_is_not_of_the_operators_files_is_bounded() -> None:
    """Every new model of a topic, a socket or a page needs the base class with bounded errors."""
    unbounded = [
        model.__qualname__
        for model in models()
        if not issubclass(model, BoundedModel | EngineSection | RoomSettings | Constants)
        and not {*model.__module__.split(".")} & {*OPERATORS_FILES}
    ]
    assert unbounded == []


# -- memory ----------------------------------------------------------------------------------------------------------
ARENAS_OF_16_THREADS = """
import ctypes, threading
from tempfile import TemporaryFile
from workers.system.tuning import share_arenas

share_arenas()
together = threading.Barrier(17)

def hold():
    held = bytes(100_000)  # too large for Python's own allocator, and too small for mmap
    together.wait()
    together.wait()

for _ in range(16):
    threading.Thread(target=hold).start()
together.wait()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
with TemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fdopen(file.fileno(), b"w"))
    libc.malloc_info(0, stream)
    libc.fflush(stream)
    file.seek(0)
    print(file.read().count(b"<heap nr="))
together.wait()
"""


def test_the_threads_of_a_role_share_two_arenas_of_glibc() -> None:
    done = subprocess.run([sys.executable, "-c", ARENAS_OF_16_THREADS], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"
