"""OpenAI's Python package unwraps our webhook, and its models parse the bodies of our Batch output lines."""

from __future__ import annotations

import time
from typing import Any

import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from schemas.event import event_body
from schemas.openai import CHAT_COMPLETIONS, COMPLETIONS, RESPONSES
from schemas.openai_answers import output_line
from schemas.outcome import Outcome
from schemas.result import Result, Usage
from schemas.signature import Signer, generate_secret, generate_signing_key

RESULT = Result(
    job_id="job_1",
    custom_id="row 1",
    model_id="small",
    outcome=Outcome.SUCCEEDED,
    text="Because.",
    usage=Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5),
    finish_reason="stop",
    created_at=1_700_000_000,
)
WEBHOOK_ID = "msg_" + "0a" * 16
BODY = event_body(RESULT, WEBHOOK_ID, "acme")


def body(url: str) -> Any:
    return output_line(RESULT, url)["response"]["body"]


def test_their_client_unwraps_our_webhook() -> None:
    secret = generate_secret()
    headers = Signer([secret], [generate_signing_key()]).headers(WEBHOOK_ID, int(time.time()), BODY)
    with OpenAI(api_key="unused", webhook_secret=secret) as client:
        event: Any = client.webhooks.unwrap(BODY, headers)
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(BODY + b" ", headers)

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
