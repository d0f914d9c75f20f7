"""Questions by reference on a real worker and a real broker: over TLS from a server, and from a bucket."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from tests.http_handler import Answering, handling
from tests.integration.certificates import Authority
from tests.product import Product
from tests.s3_server import ACCESS, SECRET, s3_server
from tests.screening_rules import CARD, pii

pytestmark = [pytest.mark.broker, pytest.mark.timeout(1_200)]  # on a bare machine, the S3 server is built first

QUESTION = {"prompt": "Why is the sky blue? " * 40_000}
DOCUMENTS = {
    "/large": json.dumps(QUESTION).encode(),
    "/card": json.dumps({"messages": [{"role": "user", "content": f"pay {CARD}"}]}).encode(),
    "/broken": b'{"prompt": ',
}


@contextmanager
def serving(documents: Mapping[str, bytes], context: ssl.SSLContext) -> Iterator[str]:
    """An https server that has these documents at these paths; yields its origin."""

    class Handler(Answering):
        def do_GET(self) -> None:
            found = documents.get(self.path.partition("?")[0])
            self.answer(200 if found is not None else 404, found or b"")

    with handling(Handler, context) as origin:
        yield origin


def authority_in(folder: Path) -> Authority:
    folder.mkdir()
    return Authority.create(folder)


def rights(endpoint: str, authority: Authority, rules: Path) -> dict[str, str]:
    """The environment of a worker that may read from both places, and screens jobs."""
    return {
        "POSTBACK_EGRESS__ALLOW_FETCH": "127.0.0.1/32",
        "POSTBACK_PAYLOADS__S3": "s3://uploads/{tenant}/",
        "AWS_ENDPOINT_URL_S3": endpoint,
        "POSTBACK_SCREENING__RULES": str(rules),
        "SSL_CERT_FILE": str(authority.ca_file),
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def put(endpoint: str, key: str, document: bytes) -> None:
    names = {"aws_access_key_id": ACCESS, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    client = boto3.session.Session(**names).client("s3", endpoint_url=endpoint)
    client.put_object(Bucket="uploads", Key=key, Body=document)
    client.close()


def references(origin: str, strange: str) -> dict[str, str]:
    """Maps each job to the URL of its question. The server at `strange` has a certificate that no worker accepts."""
    return {
        "by-https": f"{origin}/large?token=t0ken",
        "by-s3": "s3://uploads/default/q.json",
        "redacted": f"{origin}/card",
        "broken": f"{origin}/broken?token=t0ken",
        "missing": f"{origin}/none?token=t0ken",
        "changed": f"{origin}/card",
        "another-tenants": "s3://uploads/acme/q.json",
        "strange": f"{strange}/large?token=t0ken",
        "inside": "https://10.1.2.3/q?token=t0ken",
        "away": "https://127.0.0.1:9/q?token=t0ken",
    }


def test_each_job_with_a_reference_is_answered_or_refused_once(product: Product, tmp_path: Path) -> None:
    authority, stranger = authority_in(tmp_path / "ours"), authority_in(tmp_path / "theirs")
    rules = tmp_path / "rules.toml"
    rules.write_text(f"[[rule]]\n{pii()}\n")
    product.callbacks.up()
    digest = hashlib.sha256(DOCUMENTS["/large"]).hexdigest()
    with (
        s3_server(tmp_path / "s3" / "data", "uploads") as endpoint,
        serving(DOCUMENTS, authority.server()) as origin,
        serving(DOCUMENTS, stranger.server()) as strange,
    ):
        for key in ("default/q.json", "acme/q.json"):
            put(endpoint, key, DOCUMENTS["/large"])
        worker = product.worker(
            "w1",
            "--engine",
            "echo",
            "--with-delivery",
            **rights(endpoint, authority, rules),
            POSTBACK_LOG_LEVEL="DEBUG",
        )
        urls = references(origin, strange)
        asked = {"callback_url": product.callbacks.url, "max_tokens": 5, "metadata": {"a": "b"}}
        jobs = [{"job_id": name, "payload_url": url, **asked} for name, url in urls.items()]
        for job in jobs:
            job |= {"payload_sha256": digest} if job["job_id"] in ("by-https", "by-s3", "changed") else {}
        product.submit(jobs)
        product.wait_for_callbacks(len(urls), 120)
        product.wait_until_nothing_is_left()

    product.assert_each_is_answered_once_and_called_back(urls)
    answered = dict.fromkeys(("by-https", "by-s3", "redacted"), "succeeded")
    refused = dict.fromkeys(("broken", "missing", "changed", "another-tenants", "inside"), "rejected")
    failed = {"away": "its server could not be reached", "strange": "its certificate was not accepted"}
    assert product.outcomes() == {**answered, **refused, **dict.fromkeys(failed, "failed")}
    data = {name: one[0].event["data"] for name, one in product.callbacks.events.items()}
    for name in ("by-https", "by-s3"):
        assert data[name]["usage"]["prompt_tokens"] > 100_000 and data[name]["metadata"] == {"a": "b"}
    assert data["redacted"]["text"] == "pay [redacted:card]"
    for name, reason in failed.items():
        assert data[name]["error"] == {"code": "no_payload", "message": f"payload_url: {reason}"}
    for name, reason in {
        "broken": "value: is not JSON",
        "missing": "its server answered 404",
        "changed": "its SHA-256 is not `payload_sha256`",
        "another-tenants": "the operator does not allow this tenant to read there",
        "inside": "the address is not public",
    }.items():
        error = data[name]["error"]
        assert error["code"] == "invalid_job" and error["message"].startswith(
            "payload_url: the payload cannot be used: "
        )
        assert reason in error["message"] and "t0ken" not in error["message"]
    assert len(product.dead_letters()) == len(refused)
    assert "t0ken" not in worker.said() and "q.json" not in worker.said()
    assert worker.lines()
