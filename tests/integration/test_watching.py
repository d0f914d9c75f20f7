"""Commands that watch a fleet on a real broker: `postback top`, `tail` and `topics backlog`."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from cli.operate.endpoint_deliveries import timeline
from cli.operate.top import TokenRates
from cli.operate.top_view import view
from cli.operations.deliveries import CallbackStep, read_step
from cli.operations.top import Frame, RecentEvents
from cli.operations.topics import create_topics
from producers.scan import Stored, StoredPlace
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from schemas.worker import announcement, worker_key, write_announcement
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock
from tests.fleet_here import FleetHere
from tests.http_handler import Answering, handling
from tests.postback_command import POSTBACK, environment_of, line_of, postback_here, started
from tests.product import eventually
from workers.stage.progress import Progress

pytestmark = pytest.mark.broker


def announce(fleet: KafkaSettings) -> None:
    from confluent_kafka import Producer

    producer = Producer(fleet.client_config())
    said = announcement("gpu-1", None, ["gemma[red]"], int(SystemClock().time() * 1000), "1.2.3")
    producer.produce(fleet.topics.workers, write_announcement(said), worker_key("gpu-1"), 0)
    assert producer.flush(20) == 0


def test_one_frame_shows_lanes_workers_and_the_failures_of_the_last_minute(fleet: KafkaSettings) -> None:
    put(
        fleet,
        (fleet.topics.requests(), b'{"prompt": "Why?"}', {}),
        result(fleet, "a-1", Outcome.SUCCEEDED, "small", "acme"),
        attempt(fleet, "a-1", "acme", status=None, error="connect_failed", at=round(SystemClock().time() * 1000)),
        letter(fleet, "a-2"),
    )
    announce(fleet)
    done = postback_here("top", "--once", "--metrics", "http://127.0.0.1:9/metrics", env=environment_of(fleet))
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.split()
    assert done.stdout.startswith("1 jobs and 1 callbacks wait; 0.0 jobs/s; 1 workers; 1 dead letters; 0 endpoints")
    assert words[words.index("gpu-1") :][:4] == ["gpu-1", "(shared)", "1.2.3", "gemma[red]"]
    lines = [line.split() for line in done.stdout.splitlines()]
    for row in (["settled", "succeeded", "1"], ["attempt", "connect_failed", "1"], ["dead", "letter", "timeout", "1"]):
        assert row in lines, done.stdout
    assert "http://127.0.0.1:9  does not answer with metrics" in done.stdout


def test_the_live_screen_is_drawn_and_ctrl_c_ends_it_with_0(fleet: KafkaSettings) -> None:
    master, screen = os.openpty()
    env = environment_of(fleet, TERM="xterm", COLUMNS="120", LINES="40")
    process = subprocess.Popen([POSTBACK, "top", "--interval", "0.5"], env=env, stdout=screen, stderr=screen)
    os.close(screen)
    try:
        drawn = b""
        while b"callbacks wait" not in drawn:
            drawn += os.read(master, 4096)
        process.send_signal(signal.SIGINT)
        with io.FileIO(master) as rest:
            try:
                while rest.read(4096):
                    pass
            except OSError:
                pass  # the terminal ended together with the process
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_a_real_workers_jobs_and_tokens_per_second_are_shown(fleet_here: FleetHere) -> None:
    worker = fleet_here.worker("w1")
    eventually(lambda: bool(fleet_here.read(fleet_here.kafka.topics.workers)), 120, worker.said)
    master, screen = os.openpty()
    env = environment_of(fleet_here.kafka, TERM="xterm", COLUMNS="160", LINES="40")
    metrics = f"http://127.0.0.1:{worker.port}/metrics"
    command = [str(POSTBACK), "top", "--interval", "0.5", "--metrics", metrics]
    process = subprocess.Popen(command, env=env, stdout=screen, stderr=screen)
    os.close(screen)
    try:
        drawn, frames = "", 0
        while not all(re.search(rf"(?<![\d.])(?!0+(?:\.0+)? )[\d.]+ {unit}/s", drawn) for unit in ("jobs", "tokens")):
            drawn += os.read(master, 65536).decode(errors="replace")
            # Submit jobs after each frame, so that the next frame finds more answers.
            if drawn.count("callbacks wait") > frames:
                frames = drawn.count("callbacks wait")
                fleet_here.submit([{"prompt": "How many words are here?"}] * 20)
    finally:
        process.kill()
        process.wait()
        os.close(master)


class MetricsPage(Answering):
    """Metrics of a role that counts 100 tokens between two readings."""

    total = 0

    def do_GET(self) -> None:
        MetricsPage.total += 100
        body = (
            "# TYPE postback_tokens_total counter\n"
            f'postback_tokens_total{{kind="completion"}} {MetricsPage.total}\n'
            'postback_tokens_total{kind="wasted"} 7\n'
        ).encode()
        self.answer(200, body if self.path == "/metrics" else b"\xff" * len(body))


@pytest.fixture
def role() -> Iterator[str]:
    with handling(MetricsPage) as url:
        yield url


def test_tokens_per_second_are_shown_from_the_second_reading_on(role: str) -> None:
    tokens = TokenRates()
    assert tokens.lines([f"{role}/metrics"], 10.0) == {role: "100 tokens"}
    assert tokens.lines([f"{role}/metrics"], 14.0) == {role: "200 tokens, 25 tokens/s"}
    for wrong in (f"{role}/noise", "file:///etc/passwd", "http://[", "http://a:x/", "http://a b/", ""):
        assert list(TokenRates().lines([wrong], 1.0).values()) == ["does not answer with metrics"]


def step(at_ms: int, error: str) -> CallbackStep:
    return CallbackStep(at_ms, "attempt", "acme", "job-1", None, {"error": error})


def test_events_count_for_a_minute_and_the_number_of_names_is_bounded() -> None:
    clock = HandClock()
    recent, now_ms = RecentEvents(clock), int(clock.time() * 1000)
    recent.add(step(now_ms, "timeout"))
    recent.add(step(2**62, "timeout"))  # a wrong clock stated this time
    assert recent.counts() == {("attempt", "timeout"): 2}
    for number in range(1000):
        recent.add(step(now_ms, f"{number} " * 100))
    counted = recent.counts()
    assert len(counted) <= 101
    assert counted["attempt", "others"] > 800
    assert max(len(name) for _, name in counted) <= 60
    clock.sleep(60)
    assert recent.counts() == Counter()


@given(st.lists(st.text(max_size=200), max_size=5), st.text(max_size=100))
@settings(max_examples=30)
def test_no_name_moves_the_cursor_or_is_read_as_markup(names: list[str], metric: str) -> None:
    figures = {
        "jobs": 1,
        "callbacks": 0,
        "dead_letters": 0,
        "disabled_endpoints": 0,
        "lanes": [
            {
                "lane": name,
                "jobs": 1,
                "oldest_job_seconds": 1.5,
                "tightest_deadline_seconds": None,
                "workers": 0,
                "wanted_replicas": 1,
            }
            for name in names
        ],
    }
    frame = Frame(figures, (), Counter({("dead_letter", name): 1 for name in names}))
    screen = io.StringIO()
    Console(file=screen, width=400).print(view(frame, {"role": metric}))
    obeyed = ("Cc", "Cf", "Zl", "Zp")
    assert not any(unicodedata.category(one) in obeyed for one in screen.getvalue().replace("\n", ""))


# -- tail: events as they come, filters, hostile records, Ctrl-C ---------------------------------------------------

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n\u202e\x7f"
Record = tuple[str, bytes, dict[str, str]]


def put(fleet: KafkaSettings, *records: Record) -> None:
    producer = Producer(fleet.client_config())
    for topic, value, headers in records:
        producer.produce(topic, value, headers=[(name, said.encode()) for name, said in headers.items()])
        assert producer.flush(20) == 0  # sends each record in its own batch, so that the records' times are in order


def result(fleet: KafkaSettings, job_id: str, outcome: Outcome, model: str, tenant: str) -> Record:
    made = Result(job_id=job_id, outcome=outcome, text="my answer", model_id=model, created_at=1)
    url = {"callback-url": "https://hooks.example/in?token=s3cret"}
    return fleet.topics.results, write_result(made), {"job-id": job_id, "tenant": tenant, **url}


def attempt(fleet: KafkaSettings, job_id: str, tenant: str, **facts: object) -> Record:
    said = {"tenant": tenant, "job_id": job_id, "webhook_id": "msg_1", "at": 1, "attempt": 1, "status": 200}
    return fleet.topics.attempts, json.dumps({**said, "duration_ms": 3, "bytes": 0, **facts}).encode(), {}


def letter(fleet: KafkaSettings, job_id: str, **headers: str) -> Record:
    return fleet.topics.dead_letters, b"{}", {"job-id": job_id, "reason": "timeout", **headers}


def tailed(fleet: KafkaSettings, *options: str) -> list[Mapping[str, object]]:
    done = postback_here("tail", "--since", "-1h", "--json", *options, env=environment_of(fleet))
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_events_are_filtered_by_tenant_job_model_and_outcome_and_show_no_answer(fleet: KafkaSettings) -> None:
    put(
        fleet,
        result(fleet, "a-1", Outcome.SUCCEEDED, "small", "acme"),
        result(fleet, "a-2", Outcome.FAILED, "big", "acme"),
        result(fleet, "b-1", Outcome.SUCCEEDED, "big", "other"),
        attempt(fleet, "a-2", "acme"),  # the attempt states an earlier time than the result
        attempt(fleet, "c-1", "late", at=2**62),
        letter(fleet, "b-2", tenant="other"),
        (fleet.topics.attempts, b"\xff no JSON", {}),
    )
    everything = tailed(fleet, "--limit", "6")
    assert sorted(str(each["job_id"]) for each in everything) == ["a-1", "a-2", "a-2", "b-1", "b-2", "c-1"]
    assert "my answer" not in str(everything)
    assert "s3cret" not in str(everything)
    filters: dict[tuple[str, ...], list[tuple[str, str]]] = {
        ("--tenant", "other"): [("settled", "b-1"), ("dead_letter", "b-2")],
        ("--job", "a-"): [("settled", "a-1"), ("settled", "a-2"), ("attempt", "a-2")],
        ("--model", "small"): [("settled", "a-1")],
        ("--outcome", "failed"): [("settled", "a-2"), ("attempt", "a-2")],
        ("--outcome", "succeeded", "--model", "big"): [("settled", "b-1")],
    }
    for options, wanted in filters.items():
        found = tailed(fleet, *options, "--limit", str(len(wanted)))
        assert sorted((str(each["what"]), str(each["job_id"])) for each in found) == sorted(wanted), options


def test_a_line_comes_for_each_event_as_it_is_written_and_ctrl_c_ends_with_0(fleet: KafkaSettings) -> None:
    process = started("tail", "--since", "-1h", env=environment_of(fleet))
    try:
        put(fleet, result(fleet, "job-1", Outcome.SUCCEEDED, "small", "acme"))
        first = line_of(process.stdout)
        put(fleet, letter(fleet, f"job-2{HOSTILE}", **{"reason-detail": HOSTILE}))
        second = line_of(process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1] == ""
    finally:
        process.kill()
    assert process.returncode == 0
    assert "acme/job-1  settled: succeeded, to be called back at https://hooks.example" in first
    assert "default/job-2\\u001b]0;owned" in second
    assert all(character.isprintable() for character in first + second)


TEXTS = st.text(max_size=60)


@given(
    st.sampled_from(["model_results", "callback_attempts", "dead_letters"]),
    st.one_of(st.binary(max_size=80), st.dictionaries(TEXTS, TEXTS).map(lambda said: json.dumps(said).encode())),
    st.dictionaries(st.sampled_from(["job-id", "tenant", "reason", "reason-detail", "callback-url"]), TEXTS),
    st.integers(-(2**63), 2**63 - 1),
)
def test_no_record_moves_the_cursor_or_ends_the_command(
    topic: str, value: bytes, headers: dict[str, str], at_ms: int
) -> None:
    pairs = [(name, said.encode("utf-8", "surrogatepass")) for name, said in headers.items()]
    step = read_step(Stored(topic, StoredPlace(0, 1), at_ms, b"key", value, pairs), KafkaSettings())
    if step is not None:
        [line] = timeline([step], named=True)
        assert not any(unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp") for one in line)


# -- backlog: waiting records, counted from Kafka alone ------------------------------------------------------------


def told(fleet: KafkaSettings) -> dict[str, Any]:
    done = postback_here("topics", "backlog", "--json", env=environment_of(fleet))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def commit(fleet: KafkaSettings, group: str, topic: str, progress: Progress) -> None:
    """Commit progress as a stage does, without a stage."""
    consumer = Consumer({**fleet.client_config(), "group.id": f"{fleet.topic_prefix}{group}"})
    place = TopicPartition(topic, 0, progress.base, metadata=progress.encode())
    consumer.commit(offsets=[place], asynchronous=False)
    consumer.close()


def test_waiting_records_are_shown_without_any_process_until_they_are_done(fleet_here: FleetHere) -> None:
    fleet_here.kafka = fleet_here.kafka.model_copy(update={"partitions": 4})
    create_topics(fleet_here.kafka, engines=("big",))
    names = fleet_here.kafka.topics
    fleet_here.submit({"job_id": f"job_{number}", "prompt": "Why?"} for number in range(10))
    fleet_here.submit([{"prompt": "Why?"}] * 3, topic=names.requests("big", bulk=True))

    before = told(fleet_here.kafka)
    assert (before["jobs"], before["callbacks"], before["total"]) == (13, 0, 13)
    waiting = {each["topic"]: each["backlog"] for each in before["topics"] if each["backlog"]}
    assert waiting == {names.requests(): 10, names.requests("big", bulk=True): 3}

    worker = fleet_here.worker("w1")
    fleet_here.wait_for_results(10, 60)
    fleet_here.wait_until_nothing_is_left()
    assert worker.terminate() == 0
    after = told(fleet_here.kafka)
    assert after["jobs"] == 3
    assert after["callbacks"] >= 10
    lines = postback_here("topics", "backlog", env=environment_of(fleet_here.kafka)).stdout.splitlines()
    assert lines[0].split() == ["topic", "group", "committed", "end", "backlog"]
    assert [names.requests("big", bulk=True), "inference", "0", "3", "3"] in [line.split() for line in lines]
    assert lines[-1] == f"{after['total']} in all: 3 jobs, {after['callbacks']} results and callbacks"


def test_done_records_above_the_base_do_not_wait(fleet_here: FleetHere) -> None:
    names = fleet_here.kafka.topics
    fleet_here.submit({"prompt": "Why?"} for _ in range(24))  # six jobs go to each of four partitions
    commit(fleet_here.kafka, "inference", names.requests(), Progress(base=1, done=0b1010, open=True))

    [lane] = [each for each in told(fleet_here.kafka)["topics"] if each["topic"] == names.requests()]
    assert lane["partitions"][0] == {"partition": 0, "committed": 1, "end": 6, "backlog": 3}
    assert (lane["committed"], lane["end"], lane["backlog"]) == (1, 24, 21)
