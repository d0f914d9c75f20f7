"""The official `standardwebhooks` package verifies our signatures, and we verify its signatures."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from schemas.event import Event, event_body
from schemas.outcome import Outcome
from schemas.result import Result
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
