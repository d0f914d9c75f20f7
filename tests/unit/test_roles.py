"""The roles: topics, the ready line, the process, its last resort, and its memory limit."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from confluent_kafka import KafkaError, Producer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cli.operations.dead_letters import kind_of
from producers.scan import Stored, StoredPlace
from schemas import topics as names
from schemas.codec import Origin, read_job, read_result
from schemas.outcome import Outcome
from schemas.settings import FleetSettings, KafkaSettings
from schemas.topics import Topics
from telemetry.hand_clock import HandClock
from telemetry.health import READY, Readiness
from telemetry.metrics import Metrics
from tests.drawn import drawn
from workers.engines.base import EngineLost, EngineUnavailable
from workers.inference.engine_watch import EngineWatch
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
