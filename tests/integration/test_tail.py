"""`postback tail` on a real broker: events as they come, filters, hostile records, Ctrl-C."""

from __future__ import annotations

import json
import signal
import unicodedata
from collections.abc import Mapping

import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from cli.operations.deliveries import read_step
from cli.take.deliveries import timeline
from producers.scan import Stored, StoredPlace
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from tests.postback_command import environment_of, line_of, postback_here, started

pytestmark = pytest.mark.broker

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
