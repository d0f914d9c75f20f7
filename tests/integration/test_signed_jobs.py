"""A worker that accepts only signed jobs: an operator's job is answered, and a stranger's job calls no tenant back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.postback_command import environment_of, postback
from tests.product import Product, eventually

pytestmark = pytest.mark.broker

SECRET = "s" * 32


def test_a_stranger_with_access_to_the_topic_gets_no_callback_signed_for_a_tenant(
    product: Product, tmp_path: Path
) -> None:
    file = tmp_path / "trust"
    file.write_text(f"{SECRET}\n")
    product.callbacks.tenants = ["acme", "default"]
    product.callbacks.up()
    trust = {"POSTBACK_TRUST__SECRET_FILE": str(file)}
    product.worker("w", "--engine", "echo", "--with-delivery", POSTBACK_WORKER__TRUST="signed", **trust)

    forged = {"job_id": "forged", "prompt": "Hello", "callback_url": product.callbacks.url}
    product.put([json.dumps(forged).encode()], [("tenant", b"acme"), ("tenant-signature", b"v1,none")])
    lines = [
        {"job_id": "signed", "prompt": "Hello", "callback_url": product.callbacks.url},
        {"job_id": "unserved", "prompt": "Hello", "model_id": "nothing"},
    ]
    env = environment_of(product.kafka, POSTBACK_ENV="development", **trust)
    given = "\n".join(map(json.dumps, lines)).encode()
    sent = postback("submit", "-", "--tenant", "acme", env=env, given=given)
    assert sent.returncode == 0, sent.stderr
    product.wait_for_results(3, 60)
    product.wait_for_callbacks(1, 30)

    again = postback("dead-letters", "redrive", "--tenant", "acme", "--yes", env=env)
    assert again.returncode == 0, again.stderr
    eventually(lambda: len(product.dead_letters()) == 3, 30, "the job that was put back is not rejected again")

    letters = sorted((each["tenant"], each["job-id"] == "unserved", each["reason"]) for each in product.dead_letters())
    assert letters == [("acme", True, "rejected"), ("acme", True, "rejected"), ("default", False, "untrusted")]
    assert {each["job_id"] for each in product.results()} & {"forged", "signed", "unserved"} == {"signed", "unserved"}
    assert list(product.callbacks.events) == ["signed"]
    assert [one.problem for one in product.callbacks.received if not one.verified] == []
