"""Jobs through real workers on a real broker: deadlines, lanes, signatures, registries, defects, sizes, orders."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from cli.devkit.receiver import Behaviour
from cli.operations.topics import create_topics
from schemas import topics as names
from schemas.codec import write_result
from schemas.event import event_body
from schemas.outcome import Outcome
from schemas.result import MAX_RESULT_BYTES, Result
from schemas.settings import KafkaSettings
from schemas.signature import verify
from schemas.topics import WEBHOOK_ID
from tests.fleet_here import FleetHere, running_here
from tests.messages import headers_of, value_of
from tests.postback_command import environment_of, postback_here
from tests.product import CLOCK, Fleet, Product, Role, eventually
from workers.delivery.deliver import DeliveryHandler
from workers.inference import announcer
from workers.inference.handler import InferenceHandler
from workers.stage.record import Record

pytestmark = pytest.mark.broker

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
IN_THE_PAST = 1_700_000_000_000
"""Unix milliseconds."""


def job(name: str, prompt: str | None = "What is the capital of France?", **fields: Any) -> dict[str, Any]:
    said = {"job_id": name, "prompt": prompt, **fields}
    return {field: value for field, value in said.items() if value is not None}


def as_bytes(*jobs: dict[str, Any]) -> list[bytes]:
    return [json.dumps(one).encode() for one in jobs]


def test_a_job_is_answered_within_its_time_and_limits_or_says_why_not(fleet_here: FleetHere) -> None:
    fleet_here.callbacks.up()
    url = {"callback_url": fleet_here.callbacks.url}
    worker = fleet_here.worker("w1", "--engine", "echo", "--with-delivery")
    traced = as_bytes(job("traced", metadata={"for": "me"}, custom_id="mine", **url))
    fleet_here.put(traced, [("traceparent", TRACE.encode())])
    fleet_here.wait_for_callbacks(1, 60)  # the worker has its partitions now, so later jobs start at once
    fleet_here.put(as_bytes(job("late", ttl_seconds=60, **url)), timestamp_ms=IN_THE_PAST)
    fleet_here.put(as_bytes(job("overdue", **url)), [("deadline", str(IN_THE_PAST).encode())])
    nowhere = ["http://10.0.0.1/"]
    fleet_here.submit(
        [
            job("cut-off", "[[sleep 60]] and then", ttl_seconds=2, **url),
            job("too-long", '"' * 250_000, response_format={"type": "json_object"}, **url),
            job("stored"),
            job("chat", None, messages=[{"role": "user", "content": "Who wrote it?"}], **url),
            job("needs-sources", sources={"urls": nowhere, "required": True}, **url),
            job("without-sources", sources={"urls": nowhere}, **url),
        ]
    )
    fleet_here.wait_for_callbacks(8, 60)
    fleet_here.wait_until_nothing_is_left()

    expected = {
        **dict.fromkeys(("late", "overdue", "cut-off"), "expired"),
        **dict.fromkeys(("too-long", "needs-sources"), "failed"),
        **dict.fromkeys(("traced", "chat", "stored", "without-sources"), "succeeded"),
    }
    assert fleet_here.outcomes() == expected
    data = {name: one[0].event for name, one in fleet_here.callbacks.events.items()}
    assert {name: event["type"] for name, event in data.items()} == {
        name: f"inference.{outcome}" for name, outcome in expected.items() if name != "stored"
    }
    errors = {name: event["data"]["error"]["code"] for name, event in data.items() if "error" in event["data"]}
    assert errors == {
        **dict.fromkeys(("late", "overdue", "cut-off"), "expired"),
        "too-long": "result_too_large",
        "needs-sources": "no_sources",
    }
    assert data["without-sources"]["data"]["notes"] != []
    answer = data["traced"]["data"]
    assert (answer["metadata"], answer["custom_id"], answer["engine"]) == ({"for": "me"}, "mine", "echo")
    assert answer["text"] == "What is the capital of France?"
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12}
    carried = {name: one[0].headers.get("traceparent") for name, one in fleet_here.callbacks.events.items()}
    assert carried == {**dict.fromkeys(carried, None), "traced": TRACE}

    metrics = worker.metrics()
    counted = {name: metrics.get(f"postback_jobs_total{{{name}}}") for name in ("succeeded", "failed", "expired")}
    assert counted == {"succeeded": 4, "failed": 2, "expired": 3}
    assert metrics["postback_job_seconds_count{queued}"] == 9
    assert metrics["postback_job_seconds_count{enrich}"] >= 1
    assert metrics["postback_job_seconds_count{infer}"] == 6
    assert metrics["postback_job_seconds_sum{infer}"] > 0
    assert metrics["postback_job_seconds_count{settle}"] >= 1
    assert metrics["postback_job_seconds_count{deliver}"] == metrics["postback_callbacks_total{delivered}"] == 8
    assert metrics["postback_in_flight"] == 0
    assert metrics["postback_tokens_total{prompt}"] >= 6
    assert metrics["postback_tokens_total{completion}"] >= 6
    assert "postback_tokens_total{wasted}" in metrics
    backlog = {name: value for name, value in metrics.items() if name.startswith("postback_backlog_records")}
    topics = {name.partition(",")[2].rstrip("}") for name in backlog}
    assert topics >= {fleet_here.kafka.topics.requests(), fleet_here.kafka.topics.results}
    eventually(lambda: _backlog(worker.metrics()) == 0, 10, "the backlog does not return to 0")


def _backlog(metrics: dict[str, float]) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("postback_backlog_records"))


# -- several engines -----------------------------------------------------------------------------------------------


@pytest.fixture
def lanes(fleet: KafkaSettings, tmp_path: Path, clean_processes: None) -> Iterator[FleetHere]:
    """A fleet with a lane for an engine called `gpu`."""
    create_topics(fleet, engines=["gpu"])
    with running_here(fleet, tmp_path) as started:
        yield started


def test_a_job_for_another_engine_goes_to_its_lane_with_its_identity_and_a_circle_ends(lanes: Product) -> None:
    lanes.callbacks.up()
    shared = {"POSTBACK_WORKER__MODELS": json.dumps({"big": "gpu", "lost": "gpu"})}
    gpu = {"POSTBACK_WORKER__LANE": "gpu", "POSTBACK_WORKER__MODELS": json.dumps({"small": None, "lost": None})}
    big = lanes.worker("w2", "--engine", "echo", "--model", "big", **gpu)
    # Until the next worker starts, this worker may own all partitions.
    eventually(lambda: big.ready()[0], 30, "the worker of the lane is not ready")
    small = lanes.worker("w1", "--engine", "echo", "--model", "small", **shared)
    lanes.deliver("d1")
    url = {"callback_url": lanes.callbacks.url}
    names = [f"{model}-{number}" for model in ("big", "small", "lost") for number in range(8)]
    lanes.submit(job(name, model_id=name.partition("-")[0], ttl_seconds=600, **url) for name in names)
    lanes.put(as_bytes(job("traced-big", model_id="big", **url)), [("traceparent", TRACE.encode()), ("x-own", b"kept")])
    strays = [job(f"stray-{number}", model_id="small", **url) for number in range(4)]
    lanes.submit(strays, lanes.kafka.topics.requests("gpu"))
    unnamed = [{"prompt": "Who am I?", "model_id": "big", **url} for _ in range(4)]
    lanes.submit(unnamed)
    lanes.wait_for_callbacks(len(names) + 1 + 4 + 4, 60)
    lanes.wait_until_nothing_is_left()

    kinds = [(re.split("[-_]", name)[0], outcome) for name, outcome in lanes.outcomes().items()]
    assert Counter(kinds) == {
        ("big", "succeeded"): 8,
        ("small", "succeeded"): 8,
        ("lost", "rejected"): 8,
        ("traced", "succeeded"): 1,
        ("stray", "succeeded"): 4,
        ("job", "succeeded"): 4,
    }
    assert big.metrics()["postback_jobs_total{succeeded}"] == 8 + 1 + 4
    assert small.metrics()["postback_jobs_total{succeeded}"] == 8 + 4
    forwarded = lanes.read(lanes.kafka.topics.requests("gpu"))
    first = [headers for headers in map(headers_of, forwarded) if headers.get("forwarded") == b"1"]
    assert len(first) == 8 + 8 + 1 + 4
    webhook_ids = {headers["job-id"].decode(): headers["webhook-id"].decode() for headers in first}
    events = lanes.callbacks.events
    assert {name: events[name][0].webhook_id for name in webhook_ids} == webhook_ids
    assert len({one[0].webhook_id for one in events.values()}) == len(events)
    [own] = [headers for headers in first if headers["job-id"] == b"traced-big"]
    assert (own["x-own"], own["traceparent"]) == (b"kept", TRACE.encode())
    assert events["traced-big"][0].headers["traceparent"] == TRACE
    details = {letter["reason-detail"] for letter in lanes.dead_letters()}
    assert details == {
        "model_id: the workers' model registries contradict each other: the job was forwarded in a circle"
    }


# -- before it serves ----------------------------------------------------------------------------------------------


def test_a_worker_that_waits_for_its_engine_has_not_started_and_stops_when_asked(fleet_here: FleetHere) -> None:
    nowhere = {"POSTBACK_ENGINE__OPENAI__BASE_URL": "http://127.0.0.1:9/v1"}
    worker = fleet_here.worker("w1", "--engine", "openai", "--model", "far-away", **nowhere)
    assert worker.ready() == (False, ["the process is starting"])
    assert not worker.alive()
    eventually(lambda: "engine-wait" in worker.said(), 30, "the engine is not waited for")
    assert worker.terminate() == 0


def test_a_worker_without_its_topics_ends_with_one_line_that_says_what_to_do(fleet_here: FleetHere) -> None:
    worker = fleet_here.worker("w1", "--engine", "echo", POSTBACK_WORKER__LANE="nowhere")
    assert worker.ended(60) == 1
    missing = fleet_here.kafka.topics.requests("nowhere")
    assert f"the topic {missing} does not exist; `postback topics create` makes it" == worker.lines()[-1]["message"]


def test_delivery_without_a_keyring_ends_with_one_line_that_says_what_to_do(fleet_here: FleetHere) -> None:
    delivery = fleet_here.deliver("d1", POSTBACK_KEYRING=str(fleet_here.folder / "none.json"))
    assert delivery.ended(60) == 1
    assert "none.json" in delivery.said()
    assert "Traceback" not in delivery.said()


@contextmanager
def breaking(marks: dict[type[DeliveryHandler | InferenceHandler], bytes]) -> Iterator[None]:
    """Make handlers raise an error for each record with their mark, which the echo engine puts into the result."""

    def broken_at(mark: bytes, whole: Callable[..., Any]) -> Callable[..., Any]:
        def broken(self: object, record: Record, *more: Any) -> Any:
            if mark in record.value:
                raise KeyError(record.value)
            return whole(self, record, *more)

        return broken

    with pytest.MonkeyPatch.context() as patch:
        for handler, mark in marks.items():
            for name in ("handle", "give_up"):
                patch.setattr(handler, name, broken_at(mark, getattr(handler, name)))
        yield


def test_the_fleet_goes_on_despite_defects_of_handlers_and_a_redrive_after_an_upgrade_answers_the_records(
    fleet_here: FleetHere,
) -> None:
    fleet_here.callbacks.up()
    others = [f"other-{number}" for number in range(20)]
    jobs = {
        "inference": "please break-inference",
        "delivery": "please break-delivery",
        **dict.fromkeys(others, "hello"),
    }
    url = fleet_here.callbacks.url
    fleet_here.submit({"job_id": name, "prompt": prompt, "callback_url": url} for name, prompt in jobs.items())
    with breaking({InferenceHandler: b"break-inference", DeliveryHandler: b"break-delivery"}):
        worker = fleet_here.worker("w1", "--engine", "echo", "--with-delivery")
        fleet_here.wait_for_callbacks(len(others) + 1, 60)
        fleet_here.wait_until_nothing_is_left()

        assert fleet_here.outcomes() == {name: "failed" if name == "inference" else "succeeded" for name in jobs}
        assert set(fleet_here.callbacks.events) == {"inference", *others}
        (failed,) = fleet_here.callbacks.events["inference"]
        assert failed.event["data"]["error"]["code"] == "handler_defect"
        metrics = worker.metrics()
        assert (
            metrics["postback_handler_defects_total{handle}"] == metrics["postback_handler_defects_total{give_up}"] == 2
        )
        assert metrics["postback_dead_letters_total{handler_defect}"] == 2
        eventually(lambda: worker.ready() == (True, []), 60, worker.said)
        assert worker.terminate() == 0
        assert (worker.said().count("give-up-raised"), worker.said().count("please")) == (2, 0)

    letters = {letter["job_id"]: letter for letter in dead_letters(fleet_here, "list", "--json")}
    kinds = {name: (letter["kind"], letter["reason"], letter["obstacle"]) for name, letter in letters.items()}
    assert kinds == {
        "inference": ("job", "handler_defect", None),
        "delivery": ("callback", "handler_defect", None),
    }
    (shown,) = dead_letters(fleet_here, "show", letters["inference"]["id"], "--json")
    assert shown["value"]["prompt"] == "please break-inference"

    fleet_here.worker("w2", "--engine", "echo", "--with-delivery")
    done = dead_letters(fleet_here, "redrive", "--reason", "handler_defect", "--yes", "--json")
    assert (done["redriven"], done["held"]) == (2, {})
    events = fleet_here.callbacks.events
    eventually(lambda: len(fleet_here.callbacks.events["inference"]) == 2, 60, lambda: f"{len(events)} were called")
    eventually(lambda: "delivery" in fleet_here.callbacks.events, 60, "the callback was not delivered")
    answered = fleet_here.callbacks.events["inference"]
    assert [one.event["type"] for one in answered] == ["inference.failed", "inference.succeeded"]
    written = [message for message in fleet_here.read(fleet_here.kafka.topics.results) if message.key() == b"inference"]
    assert {headers_of(message)[WEBHOOK_ID].decode() for message in written} == {answered[0].webhook_id}
    assert len(written) == 2


def dead_letters(fleet_here: FleetHere, *arguments: str) -> Any:
    """The JSON that `postback dead-letters` prints with these arguments."""
    done = postback_here("dead-letters", *arguments, env=environment_of(fleet_here.kafka))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SECRET = "s" * 32


def test_a_stranger_with_access_to_the_topic_gets_no_callback_signed_for_a_tenant(
    fleet_here: FleetHere, tmp_path: Path
) -> None:
    file = tmp_path / "trust"
    file.write_text(f"{SECRET}\n")
    fleet_here.callbacks.tenants = ["acme", "default"]
    fleet_here.callbacks.up()
    trust = {"POSTBACK_TRUST__SECRET_FILE": str(file)}
    fleet_here.worker("w", "--engine", "echo", "--with-delivery", POSTBACK_WORKER__TRUST="signed", **trust)

    forged = {"job_id": "forged", "prompt": "Hello", "callback_url": fleet_here.callbacks.url}
    fleet_here.put([json.dumps(forged).encode()], [("tenant", b"acme"), ("tenant-signature", b"v1,none")])
    lines = [
        {"job_id": "signed", "prompt": "Hello", "callback_url": fleet_here.callbacks.url},
        {"job_id": "unserved", "prompt": "Hello", "model_id": "nothing"},
    ]
    env = environment_of(fleet_here.kafka, POSTBACK_ENV="development", **trust)
    given = "\n".join(map(json.dumps, lines)).encode()
    sent = postback_here("submit", "-", "--tenant", "acme", env=env, given=given)
    assert sent.returncode == 0, sent.stderr
    fleet_here.wait_for_results(3, 60)
    fleet_here.wait_for_callbacks(1, 30)

    again = postback_here("dead-letters", "redrive", "--tenant", "acme", "--yes", env=env)
    assert again.returncode == 0, again.stderr
    eventually(lambda: len(fleet_here.dead_letters()) == 3, 30, "the job that was put back is not rejected again")

    letters = sorted(
        (each["tenant"], each["job-id"] == "unserved", each["reason"]) for each in fleet_here.dead_letters()
    )
    assert letters == [("acme", True, "rejected"), ("acme", True, "rejected"), ("default", False, "untrusted")]
    assert {each["job_id"] for each in fleet_here.results()} & {"forged", "signed", "unserved"} == {
        "signed",
        "unserved",
    }
    assert list(fleet_here.callbacks.events) == ["signed"]
    assert [one.problem for one in fleet_here.callbacks.received if not one.verified] == []


TENANT, JOB, WEBHOOK = "t" * 63, "j" * 256, "m" * 256
LONGEST_URL = 2048
ATTEMPTS = 3
"""The number of attempts that a test's fleet makes before a dead letter."""


def largest_result() -> bytes:
    """The largest result, with letters of one to four bytes and characters that JSON has to escape."""
    result = Result(job_id=JOB, outcome=Outcome.SUCCEEDED, text="", created_at=1_700_000_000)
    text = 'Ω🪝ü"\\\n' * 60_000
    text += "x" * (MAX_RESULT_BYTES - len(write_result(result.model_copy(update={"text": text}))))
    value = write_result(result.model_copy(update={"text": text}))
    assert len(value) == MAX_RESULT_BYTES
    return value


def largest_job() -> dict[str, object]:
    """The largest job: each quotation mark takes two bytes in the job, and four in the echo worker's JSON answer."""
    return {"job_id": "answered", "prompt": '"' * 230_000, "response_format": {"type": "json_object"}}


def test_the_largest_event_passes_every_topic_and_is_the_same_on_each_attempt(fleet_here: FleetHere) -> None:
    kafka, callbacks, value = fleet_here.kafka, fleet_here.callbacks, largest_result()
    callbacks.tenants = (TENANT, "default")
    callbacks.up(Behaviour(status=204, fail_first=ATTEMPTS))
    url = f"{callbacks.url}&padding=".ljust(LONGEST_URL, "x")
    headers = {names.TENANT: TENANT, names.JOB_ID: JOB, names.WEBHOOK_ID: WEBHOOK, names.TRACEPARENT: TRACE}
    headers |= {names.CALLBACK_URL: url}
    fleet_here.worker("w1", "--engine", "echo", "--with-delivery")
    fleet_here.put([value], [(name, said.encode()) for name, said in headers.items()], topic=kafka.topics.results)
    fleet_here.submit([{**largest_job(), "callback_url": url}])

    eventually(lambda: len(fleet_here.dead_letters()) == 2, 60, lambda: f"there is {fleet_here.dead_letters()}")
    assert {letter["reason"] for letter in fleet_here.dead_letters()} == {"callback_exhausted"}
    letters = [record.value() for record in fleet_here.read(kafka.topics.dead_letters)]
    assert value in letters
    for tier in kafka.topics.tiers.values():
        assert {record.value() for record in fleet_here.read(tier)} == set(letters)
    done = postback_here("dead-letters", "redrive", "--json", "--yes", env=environment_of(kafka))
    assert (done.returncode, json.loads(done.stdout)["redriven"]) == (0, 2), done.stderr
    fleet_here.wait_until_nothing_is_left()

    [answered] = [value_of(record) for record in fleet_here.read(kafka.topics.results) if record.key() == b"answered"]
    assert MAX_RESULT_BYTES - 2_000 < len(answered) <= MAX_RESULT_BYTES
    assert {name: [one.status for one in got] for name, got in callbacks.events.items()} == {
        name: [503] * ATTEMPTS + [204] for name in (JOB, "answered")
    }
    for one in callbacks.events[JOB]:
        assert (one.webhook_id, one.headers[names.TRACEPARENT]) == (WEBHOOK, TRACE)
        assert one.body == event_body(value, WEBHOOK, TENANT)
        verify(one.headers, one.body, fleet_here.keyring.secrets(TENANT, CLOCK.time()), [], one.received_at)
    assert {one.body for one in callbacks.events["answered"]} == {
        event_body(answered, callbacks.events["answered"][0].webhook_id or "", "default")
    }
    said = fleet_here.attempts()
    assert {one["bytes"] for one in said} == {len(callbacks.events[name][0].body) for name in (JOB, "answered")}


FILE = """
[engines.here]
kind = "echo"
[models.small]
engine = "here"
aliases = ["gpt-4o-mini"]
cost = { prompt = 1, completion = 2 }
[models.other]
engine = "here"
"""


def test_a_worker_answers_for_each_model_of_its_registry_and_follows_the_files_aliases(
    fleet_here: FleetHere, tmp_path: Path
) -> None:
    file = tmp_path / "models.toml"
    file.write_text(FILE)
    worker = fleet_here.worker("w1", "--host", "127.0.0.1", POSTBACK_WORKER__REGISTRY=str(file))
    topic = fleet_here.kafka.topics.workers
    eventually(lambda: bool(fleet_here.read(topic)), 60, "the worker does not announce itself")
    assert json.loads(fleet_here.read(topic)[-1].value() or b"")["models"] == ["small", "gpt-4o-mini", "other"]

    def answered(job_id: str, model: str) -> dict[str, object]:
        fleet_here.submit([{"job_id": job_id, "prompt": "one two three", "model_id": model}])
        eventually(lambda: job_id in fleet_here.outcomes(), 60, f"no result of {job_id}")
        [result] = [each for each in fleet_here.results() if each["job_id"] == job_id]
        return {name: result.get(name) for name in ("model_id", "outcome", "usage")}

    usage = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    priced = {**usage, "cost": 9e-06, "currency": "USD"}
    assert answered("a", "gpt-4o-mini") == {"model_id": "gpt-4o-mini", "outcome": "succeeded", "usage": priced}
    assert answered("b", "other") == {"model_id": "other", "outcome": "succeeded", "usage": usage}
    assert answered("c", "new-name")["outcome"] == "rejected"

    file.write_text(FILE.replace('["gpt-4o-mini"]', '["new-name"]'))
    eventually(lambda: "registry-reloaded" in worker.said(), 60, "the worker does not read the file again")
    assert answered("d", "new-name")["outcome"] == "succeeded"
    assert answered("e", "gpt-4o-mini")["outcome"] == "rejected"
    assert worker.terminate() == 0


def test_a_worker_refuses_a_registry_with_mistakes_and_names_them(fleet_here: FleetHere, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(FILE.replace('"gpt-4o-mini"', '"other"'))
    worker = fleet_here.worker("w1", "--host", "127.0.0.1", POSTBACK_WORKER__REGISTRY=str(file))
    assert worker.ended(60) == 1
    assert (
        'line 8: models.other.aliases: "other" is given more than once as a name, by "small", "other"'
        in worker.lines()[-1]["message"]
    )


BATCH = "".join(
    json.dumps(
        {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": "Why?"}]},
        }
    )
    + "\n"
    for number, model in enumerate(["gpt-4o-mini", "echo", "alias", *["gpt-4o-mini"] * 4])
)


def submit(fleet: Fleet[Role], *arguments: str) -> list[str]:
    done = postback_here("submit", "-", *arguments, env=environment_of(fleet.kafka), given=BATCH)
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("postback: ") for line in done.stderr.splitlines()]


def test_a_check_warns_by_the_models_that_workers_announce_while_they_serve(
    fleet_here: FleetHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchecked = "models were not checked: no worker of the shared lanes has announced itself within three minutes"
    ready = "7 jobs can be sent; nothing was sent"
    topic = fleet_here.kafka.topics.workers
    assert submit(fleet_here, "--check") == [unchecked, ready]

    monkeypatch.setattr(announcer, "ANNOUNCE_SECONDS", 1.0)
    worker = fleet_here.worker("w1", POSTBACK_WORKER__MODELS='{"alias": null}')
    eventually(lambda: bool(fleet_here.read(topic)), 60, "the worker does not announce itself")
    announced = json.loads(fleet_here.read(topic)[-1].value() or b"")
    assert (announced["models"], announced["adapters"]) == (["echo", "alias", "default"], [])
    warned, *rest = submit(fleet_here, "--check")
    assert warned.startswith('lines 1, 4, 5 and 2 more: model: no worker announces "gpt-4o-mini"; those that run now ')
    assert 'announce "echo", "alias", "default": send with --model any' in warned
    assert rest == [ready]
    assert submit(fleet_here)[0] == warned
    assert submit(fleet_here, "--check", "--model", "any") == [ready]

    def times() -> list[float]:
        values = [json.loads(record.value() or b"") for record in fleet_here.read(topic)]
        return [value["answer_seconds"] for value in values if "answer_seconds" in value]

    eventually(lambda: bool(times()), 60, "the worker does not announce how long its answers take")
    assert 0 < times()[0] < 60

    assert worker.terminate() == 0
    last = fleet_here.read(topic)[-1]
    assert (last.key(), last.value()) == (b"w1", None)
    assert submit(fleet_here, "--check") == [unchecked, ready]


def test_a_worker_without_the_announcement_topic_ends_and_names_it(fleet_here: FleetHere) -> None:
    topic = fleet_here.kafka.topics.workers
    admin = AdminClient(fleet_here.kafka.client_config())
    admin.delete_topics([topic])[topic].result(20)
    # The broker confirms the deletion before it stops showing the topic.
    eventually(lambda: topic not in admin.list_topics(timeout=20).topics, 60, "the topic is still there")
    try:
        worker = fleet_here.worker("w1")
        assert worker.ended(60) == 1
        assert f"the topic {topic} does not exist; `postback topics create` makes it" in worker.said()
    finally:
        create_topics(fleet_here.kafka.model_copy(update={"partitions": 4}))


def test_a_job_is_cancelled_while_it_waits_and_while_it_runs_and_its_callback_says_so(fleet_here: FleetHere) -> None:
    fleet_here.callbacks.up()
    env, url = environment_of(fleet_here.kafka), fleet_here.callbacks.url
    jobs = {"waiting": "never", "running": "[[sleep 600]]", "done": "quick", "wanted": "after all"}
    fleet_here.submit({"job_id": name, "prompt": prompt, "callback_url": url} for name, prompt in jobs.items())
    assert postback_here("cancel", "waiting", "running", "--tenant", "somebody-else", env=env).returncode == 0
    cancelled = postback_here("cancel", "waiting", env=env)
    assert cancelled.stderr == "postback: 1 jobs are to be cancelled, unless they have a result already\n"
    assert postback_here("cancel", "wanted", env=env).returncode == 0
    taken_back = postback_here("cancel", "--undo", "wanted", env=env)
    assert taken_back.stderr == "postback: 1 cancellations are taken back; jobs of these ids are answered again\n"
    worker = fleet_here.worker("w1", "--engine", "echo", "--with-delivery")
    fleet_here.wait_for_results(3, 60)
    eventually(lambda: worker.metrics()["postback_in_flight"] == 1, 30, "the job does not run")
    assert postback_here("cancel", "running", "done", env=env).returncode == 0
    fleet_here.wait_for_callbacks(4, 60)

    outcomes = {"waiting": "cancelled", "running": "cancelled", "done": "succeeded", "wanted": "succeeded"}
    assert fleet_here.outcomes() == outcomes
    events = fleet_here.callbacks.events
    assert {job: {one.event["type"] for one in repeats} for job, repeats in events.items()} == {
        job: {f"inference.{outcome}"} for job, outcome in outcomes.items()
    }


def test_a_receipt_or_a_file_of_ids_cancels_all_jobs_that_were_accepted(fleet_here: FleetHere, tmp_path: Path) -> None:
    env, receipt = environment_of(fleet_here.kafka), tmp_path / "receipt.jsonl"
    given = b"".join(b'{"prompt": "never", "job_id": "j%d"}\n' % number for number in range(4))
    sent = postback_here("submit", "-", "--tenant", "acme", "--receipt", receipt, env=env, given=given)
    last = sent.stdout.splitlines()[3]
    lines = [json.loads(line) for line in receipt.read_text().splitlines()]
    lines[3]["accepted"] = False  # pretends that this job was too large for a record
    receipt.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    done = postback_here("cancel", "--ids", receipt, env=env)
    assert done.stderr == "postback: 3 jobs are to be cancelled, unless they have a result already\n"
    undone = postback_here("cancel", "--undo", "--ids", "-", "--tenant", "acme", env=env, given=b"j0\n")
    assert undone.stderr == "postback: 1 cancellations are taken back; jobs of these ids are answered again\n"
    fleet_here.worker("w1")
    fleet_here.wait_for_results(4, 60)
    assert fleet_here.outcomes() == {"j0": "succeeded", "j1": "cancelled", "j2": "cancelled", last: "succeeded"}


def test_cancelling_nothing_is_refused() -> None:
    done = postback_here("cancel", env=environment_of())
    assert (done.returncode, done.stderr) == (2, "postback: say which jobs: ID or --ids\n")


def test_a_text_that_is_no_id_is_refused() -> None:
    done = postback_here("cancel", "a job", env=environment_of())

    assert (done.returncode, done.stderr) == (
        2,
        "postback: ID: 1 to 256 characters of printable ASCII without spaces\n",
    )
