"""The record that puts a dead letter back, made without Kafka."""

from __future__ import annotations

from dataclasses import replace

import pytest

from operators.dead_letters import Letter, _Partitions, kind_of, returning
from producers.scan import Stored, StoredPlace
from schemas.settings import KafkaSettings
from telemetry.hand_clock import SetClock

KAFKA = KafkaSettings()
CLOCK = SetClock(1_700_000_000.0)


def letter(value: bytes | None = b"{}", **headers: str) -> Letter:
    """A job's dead letter; header names have `_` for `-`."""
    named = {"source-topic": "model_requests", **{name.replace("_", "-"): text for name, text in headers.items()}}
    said = [(name, text.encode()) for name, text in named.items()]
    return Letter(Stored("dead_letters", StoredPlace(0, 7), 1_700_000_000_000, None, value, said), "job", None)


@pytest.mark.parametrize(
    ("given", "obstacle"),
    [
        (letter(), None),
        (letter(b""), "empty"),
        (letter(None), "empty"),
        (letter(None, abridged="1"), "too_large"),
        (letter(b"x" * 1_000_000), "too_large"),
        (replace(letter(), expired=True), "expired"),
        (replace(letter(), lane_gone=True), "lane_gone"),
        (replace(letter(), cancelled=True), "cancelled"),
    ],
)
def test_a_letter_that_cannot_be_put_back_says_why(given: Letter, obstacle: str | None) -> None:
    assert given.obstacle == obstacle


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("model_requests", "job"),
        ("model_requests.batch", "job"),
        ("model_requests.big", "job"),
        ("model_requests.big.batch", "job"),
        ("model_requests.shadow", "other"),
        ("model_requests_of_somebody_else", "other"),
        ("another.model_requests", "other"),
        ("model_results", "callback"),
        ("callback_retries.5s", "callback"),
    ],
)
def test_a_letters_kind_follows_from_its_source_topic(source: str, kind: str) -> None:
    assert kind_of(letter(source_topic=source).record, KAFKA.topics) == kind


def test_a_redriven_job_has_its_stated_headers_and_is_judged_by_them_again() -> None:
    """If a job with an invalid tenant were put back as the tenant `default`, its answer would belong to that tenant."""
    given = letter(tenant="default", said_tenant="a b", job_id="a", said_job_id="b", webhook_id="msg_1", reason="why")
    back = returning(given, KAFKA, 0, _Partitions(KAFKA, CLOCK), as_new_event=False)
    assert sorted(back.headers) == [("job-id", b"b"), ("tenant", b"a b"), ("webhook-id", b"msg_1")]
