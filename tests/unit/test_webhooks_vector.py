"""The test vector of docs/WEBHOOKS.md, recomputed without our own code and with it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from standardwebhooks import Webhook

from schemas.event import event_body
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.signature import Signer, verify

PAGE = (Path(__file__).parents[2] / "docs" / "WEBHOOKS.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## A test vector\n")[2].partition("\n## ")[0]
ROWS = dict(re.findall(r"^\| `?(.+?)`? \| `(.+)` \|$", SECTION, re.MULTILINE))
[TEXT] = re.findall(r"^```json\n(.+)\n```$", SECTION, re.MULTILINE)
BODY = TEXT.encode()
CONTENT = f"{ROWS['webhook-id']}.{ROWS['webhook-timestamp']}.".encode() + BODY
V1, V1A = ROWS["signature by the secret"], ROWS["signature by the key pair"]
AT = datetime.fromtimestamp(int(ROWS["webhook-timestamp"]), UTC)
HEADERS = {name: ROWS[name] for name in ("webhook-id", "webhook-timestamp")}


def decoded(text: str, prefix: str) -> bytes:
    assert text.startswith(prefix)
    return base64.b64decode(text.removeprefix(prefix), validate=True)


def test_the_body_has_as_many_bytes_as_the_page_says_and_is_the_event_of_a_result() -> None:
    assert f"The body has {len(BODY)} bytes" in SECTION
    result = Result(
        job_id="job_1", outcome=Outcome.SUCCEEDED, text="Grüße ☃", finish_reason="stop", created_at=1_764_022_104
    )
    assert event_body(result, ROWS["webhook-id"], "acme") == BODY


def test_the_signature_by_the_secret_is_the_hmac_of_the_content() -> None:
    digest = hmac.new(decoded(ROWS["secret"], "whsec_"), CONTENT, hashlib.sha256).digest()
    assert f"v1,{base64.b64encode(digest).decode()}" == V1
    assert Signer([ROWS["secret"]]).sign(ROWS["webhook-id"], int(ROWS["webhook-timestamp"]), BODY) == V1
    # The library's `verify` would refuse the old timestamp, so the signature that its `sign` makes is compared.
    assert Webhook(ROWS["secret"]).sign(ROWS["webhook-id"], AT, TEXT) == V1


def test_the_signature_by_the_key_pair_fits_the_public_key_in_both_forms() -> None:
    public = decoded(ROWS["public key"], "whpk_")
    Ed25519PublicKey.from_public_bytes(public).verify(decoded(V1A, "v1a,"), CONTENT)
    jwk = json.loads(ROWS["public key as a JWK"])
    assert (jwk["kty"], jwk["crv"]) == ("OKP", "Ed25519")
    assert base64.urlsafe_b64decode(jwk["x"] + "=") == public


@pytest.mark.parametrize("signature", [V1, V1A, f"{V1} {V1A}"])
def test_the_headers_verify_at_the_time_of_the_vector(signature: str) -> None:
    keys = [ROWS["secret"]], [ROWS["public key"]]
    verify({**HEADERS, "webhook-signature": signature}, BODY, *keys, now=int(ROWS["webhook-timestamp"]))
