"""An excerpt of an endpoint's answer: a setting keeps it in the attempt's record, and it is never in a log."""

from __future__ import annotations

import logging
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from console.deliveries import timeline
from operators.deliveries import read_step
from producers.scan import Stored, StoredPlace
from schemas.settings import KafkaSettings
from schemas.topics import Topics
from tests.integration.delivery_handler.records import Consumer, Maker, attempt_of, headers_of, result_record
from workers.delivery import outputs
from workers.delivery.exchange import CallbackAnswer
from workers.delivery.post import FailedDelivery, FailureReason, excerpt_of
from workers.delivery.settings import DeliverySettings

FLEET = KafkaSettings(topic_prefix="t.")
TOPICS = Topics("t.")
BODY = "schöner Fehler: \x1b[31mno such column\n".encode() * 100
KEEPING = DeliverySettings(answer_excerpt_bytes=1024)


@pytest.fixture
def answering(consumer: Consumer) -> Consumer:
    """The consumer, whose answers have a body."""
    consumer.body = BODY
    return consumer


@pytest.mark.parametrize("status", [200, 422, 503])
async def test_the_beginning_of_the_answer_is_in_the_attempts_record_and_in_no_log(
    make: Maker, answering: Consumer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    answering.statuses = [status]
    written = await make(KEEPING).handle(result_record(answering.url))
    kept: Any = attempt_of(written)["answer"]
    assert (attempt_of(written)["status"], len(kept.encode())) == (status, 1024)
    assert BODY.startswith(kept.encode())
    others = [output for output in written if output.topic != TOPICS.attempts]
    assert "no such column" not in repr([headers_of(output) for output in others])
    assert "no such column" not in caplog.text


async def test_without_the_setting_the_record_has_no_field_for_it(make: Maker, answering: Consumer) -> None:
    assert "answer" not in attempt_of(await make().handle(result_record(answering.url)))


async def test_a_short_limit_cuts_no_character_in_two(make: Maker, answering: Consumer) -> None:
    handler = make(DeliverySettings(answer_excerpt_bytes=4))  # a cut after four bytes would be inside the ö
    assert attempt_of(await handler.handle(result_record(answering.url)))["answer"] == "sch"


@given(st.binary(min_size=1, max_size=1024))
def test_any_bytes_of_an_answer_are_one_line_of_the_timeline(body: bytes) -> None:
    excerpt = excerpt_of(CallbackAnswer(status=500, excerpt=bytearray(body)))
    pending = outputs.read_pending(result_record("https://hooks.example/in"))
    assert pending is not None
    outcome = FailedDelivery(FailureReason.SERVER_ERROR, 0.001, 500, answer_excerpt=excerpt)
    written = outputs.attempt(pending, TOPICS, outcome, 1, 2)
    assert from_json(written.value or b"").get("answer") == excerpt
    step = read_step(Stored(TOPICS.attempts, StoredPlace(0, 0), 1, written.key, written.value, []), FLEET)
    assert step is not None
    [line] = timeline([step])
    assert len(line.splitlines()) == 1
    assert {unicodedata.category(character) for character in line}.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    assert " attempt 1 of 10 failed: server_error, status 500, 1.0 ms, 2 bytes" in line
    assert "excerpt" not in repr(outcome)
