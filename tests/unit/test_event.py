from __future__ import annotations

import json

import pytest

from schemas.codec import InvalidResult, write_result
from schemas.event import Event, event_body
from schemas.outcome import Outcome
from schemas.result import Result, ResultError

RESULT = Result(
    job_id='job"1',
    custom_id="row 1",
    outcome=Outcome.SUCCEEDED,
    text='It is "blue" \u2028 Ω.',
    sources=["arxiv:2305.12345"],
    created_at=1_700_000_000,
)


def test_the_envelope_is_an_openai_event_around_the_result() -> None:
    body = json.loads(event_body(RESULT, "msg_1", "acme"))

    assert list(body) == ["id", "object", "created_at", "type", "tenant", "data"]
    assert body == {
        "id": "msg_1",
        "object": "event",
        "created_at": 1_700_000_000,
        "type": "inference.succeeded",
        "tenant": "acme",
        "data": {"id": 'job"1', **json.loads(write_result(RESULT))},
    }


def test_the_body_is_the_same_bytes_from_the_model_and_from_the_stored_result() -> None:
    assert event_body(write_result(RESULT), "msg_1", "acme") == event_body(RESULT, "msg_1", "acme")


def test_members_that_a_newer_worker_wrote_reach_the_consumer() -> None:
    stored = write_result(RESULT)[:-1] + b',"novelty":1}'

    assert json.loads(event_body(stored, "msg_1", "acme"))["data"]["novelty"] == 1


def test_stored_bytes_in_another_layout_still_make_a_valid_body() -> None:
    stored = b" " + json.dumps(json.loads(write_result(RESULT)), indent=1).encode() + b"\n"

    assert event_body(stored, "msg_1", "acme") == event_body(RESULT, "msg_1", "acme")


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_an_event_that_a_reader_understands(outcome: Outcome) -> None:
    error = None if outcome is Outcome.SUCCEEDED else ResultError(code="code", message="message")
    result = Result(job_id="job_1", outcome=outcome, error=error, created_at=1)
    event = Event.model_validate_json(event_body(result, "msg_1", "acme"))

    assert (event.id, event.object, event.type) == ("msg_1", "event", f"inference.{outcome}")
    assert event.tenant == "acme"
    assert event.data.model_dump(exclude={"id"}) == result.model_dump()
    assert event.data.id == "job_1"


def test_bytes_that_hold_no_result_make_no_event() -> None:
    with pytest.raises(InvalidResult):
        event_body(b'{"job_id":1}', "msg_1", "acme")
