"""The packages `standardwebhooks` and `openai` of Python accept our events; OpenAI's models parse our Batch output."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from standardwebhooks import Webhook, WebhookVerificationError

from schemas.event import Event, event_body
from schemas.openai import CHAT_COMPLETIONS, COMPLETIONS, RESPONSES
from schemas.openai_answers import output_line
from schemas.outcome import Outcome
from schemas.result import Result, Usage
from schemas.signature import (
    NoMatchingSignature,
    Signer,
    TimestampOutsideTolerance,
    generate_secret,
    generate_signing_key,
    verify,
)

RESULT = Result(job_id="job_1", outcome=Outcome.SUCCEEDED, text="Ω “blue”", created_at=1_700_000_000)
WEBHOOK_ID = "msg_" + "0a" * 16
BODY = event_body(RESULT, WEBHOOK_ID, "acme")


def now() -> int:
    return int(time.time())


def test_their_verifier_accepts_our_event_with_both_kinds_of_signature() -> None:
    secret = generate_secret()
    headers = Signer([secret], [generate_signing_key()]).headers(WEBHOOK_ID, now(), BODY)

    event = Event.model_validate(Webhook(secret).verify(BODY, headers))

    assert (event.id, event.data.text) == (WEBHOOK_ID, "Ω “blue”")


def test_their_verifier_accepts_the_old_and_the_new_secret_while_they_rotate() -> None:
    old, new = generate_secret(), generate_secret()
    headers = Signer([new, old]).headers(WEBHOOK_ID, now(), BODY)

    assert Webhook(old).verify(BODY, headers) == Webhook(new).verify(BODY, headers)


@pytest.mark.parametrize("drift", [-301, 302])
def test_both_verifiers_refuse_a_signature_of_another_time(drift: int) -> None:
    secret, moment = generate_secret(), now()
    headers = Signer([secret]).headers(WEBHOOK_ID, moment + drift, BODY)

    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY, headers)
    with pytest.raises(TimestampOutsideTolerance):
        verify(headers, BODY, [secret], [], moment)


def test_both_verifiers_refuse_another_secret_and_another_body() -> None:
    secret, moment = generate_secret(), now()
    headers = Signer([secret]).headers(WEBHOOK_ID, moment, BODY)

    for wrong_secret, wrong_body in [(generate_secret(), BODY), (secret, BODY + b" ")]:
        with pytest.raises(WebhookVerificationError):
            Webhook(wrong_secret).verify(wrong_body, headers)
        with pytest.raises(NoMatchingSignature):
            verify(headers, wrong_body, [wrong_secret], [], moment)


def test_we_verify_signatures_of_their_package() -> None:
    secret, moment = generate_secret(), now()
    signature = Webhook(secret).sign(WEBHOOK_ID, datetime.fromtimestamp(moment, UTC), BODY.decode())
    headers = {"webhook-id": WEBHOOK_ID, "webhook-timestamp": str(moment), "webhook-signature": signature}

    verify(headers, BODY, [secret], [], moment)
    assert signature == Signer([secret]).sign(WEBHOOK_ID, moment, BODY)


# -- OpenAI's package ----------------------------------------------------------------------------------------------

ANSWERED = Result(
    job_id="job_1",
    custom_id="row 1",
    model_id="small",
    outcome=Outcome.SUCCEEDED,
    text="Because.",
    usage=Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5),
    finish_reason="stop",
    created_at=1_700_000_000,
)
ANSWERED_BODY = event_body(ANSWERED, WEBHOOK_ID, "acme")


def body(url: str) -> Any:
    return output_line(ANSWERED, url)["response"]["body"]


def test_their_client_unwraps_our_webhook() -> None:
    secret = generate_secret()
    headers = Signer([secret], [generate_signing_key()]).headers(WEBHOOK_ID, int(time.time()), ANSWERED_BODY)
    with OpenAI(api_key="unused", webhook_secret=secret) as client:
        event: Any = client.webhooks.unwrap(ANSWERED_BODY, headers)
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(ANSWERED_BODY + b" ", headers)

    assert (event.id, event.object, event.created_at) == (WEBHOOK_ID, "event", 1_700_000_000)
    assert (event.type, event.tenant, event.data.id) == ("inference.succeeded", "acme", "job_1")


def test_their_models_read_the_answers_of_our_output_lines() -> None:
    chat = ChatCompletion.model_validate(body(CHAT_COMPLETIONS))
    completion = Completion.model_validate(body(COMPLETIONS))
    response = Response.model_validate(body(RESPONSES))

    assert chat.choices[0].message.content == completion.choices[0].text == response.output_text == "Because."
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 2
    assert response.usage is not None
    assert response.usage.output_tokens == 2
    assert response.status == "completed"
