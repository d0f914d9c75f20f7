"""Signatures of events and of jobs' tenants, the event's body, and the vector of docs/WEBHOOKS.md."""

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
from hypothesis import assume, given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from schemas import topics
from schemas.codec import InvalidResult, write_result
from schemas.event import Event, event_body
from schemas.job import TENANT_PATTERN
from schemas.outcome import Outcome
from schemas.result import Result, ResultError
from schemas.settings import FleetSettings, SettingsRefused
from schemas.signature import (
    MalformedKey,
    MalformedTimestamp,
    MissingHeader,
    NoMatchingSignature,
    Signer,
    TimestampOutsideTolerance,
    WebhookError,
    generate_secret,
    generate_signing_key,
    public_key_of,
    verify,
)
from schemas.trust import MalformedSecrets, TrustSecrets, signature_of, tenant_headers

VECTORS = json.loads((Path(__file__).parent / "data" / "webhook_vectors.json").read_text())
SYMMETRIC, ASYMMETRIC = VECTORS["symmetric"], VECTORS["asymmetric"]
ID, TIMESTAMP, BODY = VECTORS["id"], VECTORS["timestamp"], VECTORS["body"].encode()
SECRET, SIGNING_KEY, PUBLIC_KEY = SYMMETRIC["secret"], ASYMMETRIC["private"], ASYMMETRIC["public"]


def key(prefix: str, data: bytes) -> str:
    return prefix + base64.b64encode(data).decode()


def signed(signature: str) -> dict[str, str]:
    return {"webhook-id": ID, "webhook-timestamp": str(TIMESTAMP), "webhook-signature": signature}


def test_the_known_signatures_are_made_and_verified() -> None:
    assert Signer([SECRET]).sign(ID, TIMESTAMP, BODY) == SYMMETRIC["signature"]
    assert Signer([], [SIGNING_KEY]).sign(ID, TIMESTAMP, BODY) == ASYMMETRIC["signature"]
    assert public_key_of(SIGNING_KEY) == PUBLIC_KEY
    verify(signed(SYMMETRIC["signature"]), BODY, [SECRET], [], TIMESTAMP)
    verify(signed(ASYMMETRIC["signature"]), BODY, [], [PUBLIC_KEY], TIMESTAMP)


def test_all_signatures_stand_in_one_header_and_one_that_matches_is_enough() -> None:
    header = Signer([SECRET, generate_secret()], [SIGNING_KEY]).headers(ID, TIMESTAMP, BODY)["webhook-signature"]
    among_others = f"v2,abc v1 v1,!!! v1a,AAAA  v1,é {SYMMETRIC['signature']}"

    assert [entry.partition(",")[0] for entry in header.split(" ")] == ["v1", "v1", "v1a"]
    assert header.startswith(SYMMETRIC["signature"] + " ")
    assert header.endswith(" " + ASYMMETRIC["signature"])
    verify(signed(among_others), BODY, [generate_secret(), SECRET], [PUBLIC_KEY], TIMESTAMP)
    titled = {name.title(): value for name, value in signed(SYMMETRIC["signature"]).items()}
    verify(titled, BODY, [SECRET], [], TIMESTAMP)
    secret, signing_key = generate_secret(), generate_signing_key()
    generated = Signer([secret], [signing_key]).headers(ID, TIMESTAMP, BODY)
    verify(generated, BODY, [secret], [], TIMESTAMP)
    verify(generated, BODY, [], [public_key_of(signing_key)], TIMESTAMP)
    assert (generate_secret() != secret, generate_signing_key() != signing_key) == (True, True)


def test_a_clock_may_be_off_by_exactly_the_tolerance() -> None:
    for drift in (-300, 300):
        verify(signed(SYMMETRIC["signature"]), BODY, [SECRET], [], TIMESTAMP + drift)
        with pytest.raises(TimestampOutsideTolerance):
            verify(signed(SYMMETRIC["signature"]), BODY, [SECRET], [], TIMESTAMP + drift * (1 + 1 / 600))


def test_each_of_the_three_headers_is_required_and_the_timestamp_is_a_number_of_seconds() -> None:
    headers = signed(SYMMETRIC["signature"])
    for timestamp in ("soon", "1614265330.5", "-1614265330", " 1614265330", "٣", "9" * 400):
        with pytest.raises(MalformedTimestamp):
            verify({**headers, "webhook-timestamp": timestamp}, BODY, [SECRET], [PUBLIC_KEY], TIMESTAMP)
    for absent in headers:
        others = {name: value for name, value in headers.items() if name != absent}
        with pytest.raises(MissingHeader, match=absent):
            verify(others, BODY, [SECRET], [PUBLIC_KEY], TIMESTAMP)


def test_a_signature_for_other_content_or_of_another_kind_or_without_keys_is_refused() -> None:
    symmetric, asymmetric = SYMMETRIC["signature"], ASYMMETRIC["signature"]
    both = ([SECRET], [PUBLIC_KEY])
    wrong = (symmetric.replace("v1,", "v1a,"), asymmetric.replace("v1a,", "v1,"), "v1,")
    refused: list[tuple[dict[str, str], bytes, tuple[list[str], list[str]]]] = [
        ({"webhook-id": "msg_other"}, BODY, both),
        ({"webhook-timestamp": str(TIMESTAMP + 1)}, BODY, both),
        *(({"webhook-signature": each}, BODY, both) for each in (*wrong, key("v1,", b"x" * 32))),
        *(({"webhook-signature": each}, BODY + b" ", both) for each in (symmetric, asymmetric)),
        ({}, BODY, ([], [])),
    ]
    for change, body, keys in refused:
        with pytest.raises(NoMatchingSignature):
            verify({**signed(symmetric), **change}, body, *keys, TIMESTAMP)


def test_secrets_of_24_to_64_bytes_are_taken_and_any_other_text_is_refused_and_not_shown() -> None:
    for secret in (key("whsec_", b"Z" * size) for size in (24, 64)):
        verify(Signer([secret]).headers(ID, TIMESTAMP, BODY), BODY, [secret], [], TIMESTAMP)
    wrong = ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", SIGNING_KEY, "whsec_Zz*not base64", "whsec_Zz\u00e9")
    for secret in ("", *wrong, key("whsec_", b"Z" * 23), key("whsec_", b"Z" * 65)):
        with pytest.raises(MalformedKey) as raised:
            Signer([secret])
        assert secret.removeprefix("whsec_") not in str(raised.value) or not secret
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_a_text_that_is_no_key_or_has_the_wrong_public_half_is_refused() -> None:
    for signing_key in (SECRET, PUBLIC_KEY, key("whsk_", b"Z" * 32), key("whsk_", b"Z" * 64)):
        with pytest.raises(MalformedKey):
            Signer([], [signing_key])
    for public_key in (SECRET, SIGNING_KEY, key("whpk_", b"Z" * 31)):
        with pytest.raises(MalformedKey):
            verify(signed(ASYMMETRIC["signature"]), BODY, [], [public_key], TIMESTAMP)
    with pytest.raises(MalformedKey):  # a signer without keys would send an empty header
        Signer([])


TEXT = st.text("v1a,=+/. 09é\u0000\ud800", max_size=40)


@given(TEXT, TEXT | st.integers(0, 10**15).map(str), TEXT, st.binary(max_size=20))
def test_a_hostile_request_is_refused_with_our_own_error_only(
    webhook_id: str, timestamp: str, signature: str, body: bytes
) -> None:
    headers = {"webhook-id": webhook_id, "webhook-timestamp": timestamp, "webhook-signature": signature}
    with pytest.raises(WebhookError):
        verify(headers, body, [SECRET], [PUBLIC_KEY], TIMESTAMP, tolerance_seconds=1e12)


# -- the vector of docs/WEBHOOKS.md ------------------------------------------------------------------------------------


PAGE = (Path(__file__).parents[2] / "docs" / "WEBHOOKS.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## A test vector\n")[2].partition("\n## ")[0]
ROWS = dict(re.findall(r"^\| `?(.+?)`? \| `(.+)` \|$", SECTION, re.MULTILINE))
[TOLD_TEXT] = re.findall(r"^```json\n(.+)\n```$", SECTION, re.MULTILINE)
TOLD = TOLD_TEXT.encode()
CONTENT = f"{ROWS['webhook-id']}.{ROWS['webhook-timestamp']}.".encode() + TOLD
V1, V1A = ROWS["signature by the secret"], ROWS["signature by the key pair"]
AT = datetime.fromtimestamp(int(ROWS["webhook-timestamp"]), UTC)
HEADERS = {name: ROWS[name] for name in ("webhook-id", "webhook-timestamp")}


def decoded(text: str, prefix: str) -> bytes:
    assert text.startswith(prefix)
    return base64.b64decode(text.removeprefix(prefix), validate=True)


def test_the_body_has_as_many_bytes_as_the_page_says_and_is_the_event_of_a_result() -> None:
    assert f"The body has {len(TOLD)} bytes" in SECTION
    result = Result(
        job_id="job_1", outcome=Outcome.SUCCEEDED, text="Grüße ☃", finish_reason="stop", created_at=1_764_022_104
    )
    assert event_body(result, ROWS["webhook-id"], "acme") == TOLD


def test_the_signature_by_the_secret_is_the_hmac_of_the_content() -> None:
    digest = hmac.new(decoded(ROWS["secret"], "whsec_"), CONTENT, hashlib.sha256).digest()
    assert f"v1,{base64.b64encode(digest).decode()}" == V1
    assert Signer([ROWS["secret"]]).sign(ROWS["webhook-id"], int(ROWS["webhook-timestamp"]), TOLD) == V1
    # The library's `verify` would refuse the old timestamp, so the signature that its `sign` makes is compared.
    assert Webhook(ROWS["secret"]).sign(ROWS["webhook-id"], AT, TOLD_TEXT) == V1


def test_the_signature_by_the_key_pair_fits_the_public_key_in_both_forms() -> None:
    public = decoded(ROWS["public key"], "whpk_")
    Ed25519PublicKey.from_public_bytes(public).verify(decoded(V1A, "v1a,"), CONTENT)
    jwk = json.loads(ROWS["public key as a JWK"])
    assert (jwk["kty"], jwk["crv"]) == ("OKP", "Ed25519")
    assert base64.urlsafe_b64decode(jwk["x"] + "=") == public
    for signature in (V1, V1A, f"{V1} {V1A}"):
        headers = {**HEADERS, "webhook-signature": signature}
        verify(headers, TOLD, [ROWS["secret"]], [ROWS["public key"]], now=int(ROWS["webhook-timestamp"]))


# -- the event ---------------------------------------------------------------------------------------------------------


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


def test_the_body_is_the_same_from_the_model_and_from_stored_bytes_of_any_layout() -> None:
    stored = write_result(RESULT)
    spaced = b" " + json.dumps(json.loads(stored), indent=1).encode() + b"\n"
    newer = stored[:-1] + b',"novelty":1}'

    for each in (stored, spaced):
        assert event_body(each, "msg_1", "acme") == event_body(RESULT, "msg_1", "acme")
    assert json.loads(event_body(newer, "msg_1", "acme"))["data"]["novelty"] == 1
    with pytest.raises(InvalidResult):
        event_body(b'{"job_id":1}', "msg_1", "acme")


def test_every_outcome_has_an_event_that_a_reader_understands() -> None:
    for outcome in Outcome:
        error = None if outcome is Outcome.SUCCEEDED else ResultError(code="code", message="message")
        result = Result(job_id="job_1", outcome=outcome, error=error, created_at=1)
        event = Event.model_validate_json(event_body(result, "msg_1", "acme"))
        assert (event.id, event.object, event.type) == ("msg_1", "event", f"inference.{outcome}")
        assert (event.tenant, event.data.id) == ("acme", "job_1")
        assert event.data.model_dump(exclude={"id"}) == result.model_dump()


# -- the signature of a job's tenant -----------------------------------------------------------------------------------


OLD, NEW = "o" * 32, "n" * 32
SECRETS = TrustSecrets.parse(NEW)
TENANTS = st.from_regex(TENANT_PATTERN, fullmatch=True)
JOB_IDS = st.from_regex(r"[\x21-\x7e]{1,256}", fullmatch=True)


def signature(secrets: TrustSecrets, tenant: str, job_id: str, value: bytes) -> bytes:
    found = signature_of(secrets.signed(tenant, job_id, value))
    assert found is not None
    return found


def test_the_signature_is_a_mac_over_tenant_job_id_and_the_hash_of_the_value() -> None:
    parts = [b"postback tenant-signature v1", b"acme", b"job_1", hashlib.sha256(b"{}").digest()]
    expected = base64.b64encode(hmac.digest(NEW.encode(), b"\0".join(parts), "sha256"))
    assert dict(SECRETS.signed("acme", "job_1", b"{}")) == {
        topics.TENANT: b"acme",
        topics.JOB_ID: b"job_1",
        topics.TENANT_SIGNATURE: b"v1," + expected,
    }
    # Without secrets, the tenant is unsigned. The last signature of a record counts, as its last tenant does.
    assert dict(tenant_headers(None, "acme", "job_1", b"{}")) == {topics.TENANT: b"acme", topics.JOB_ID: b"job_1"}
    assert tenant_headers(SECRETS, "acme", "job_1", b"{}") == SECRETS.signed("acme", "job_1", b"{}")
    assert signature_of([(topics.TENANT_SIGNATURE, b"first"), (topics.TENANT_SIGNATURE, b"last")]) == b"last"
    assert signature_of(None) is None


@given(
    signed=st.tuples(TENANTS, JOB_IDS, st.binary(max_size=50)),
    stated=st.tuples(TENANTS, JOB_IDS, st.none() | st.binary(max_size=50)),
    noise=st.none() | st.binary(max_size=200),
)
def test_a_signature_counts_for_its_tenant_job_and_value_only(
    signed: tuple[str, str, bytes], stated: tuple[str, str, bytes | None], noise: bytes | None
) -> None:
    made = signature(SECRETS, *signed)
    (tenant, job_id, value), (other, other_id, other_value) = signed, stated
    assume(tenant != other and job_id != other_id and value != other_value)
    assert SECRETS.is_signed(*signed, made)
    assert not SECRETS.is_signed(other, job_id, value, made)
    assert not SECRETS.is_signed(tenant, other_id, value, made)
    assert not SECRETS.is_signed(tenant, job_id, other_value, made)
    assert not SECRETS.is_signed(*signed, noise)


def test_both_secrets_verify_while_one_replaces_the_other() -> None:
    old, both = TrustSecrets.parse(OLD), TrustSecrets.parse(f"{NEW}\n{OLD}\n")
    job = ("acme", "job_1", b"{}")
    assert both.is_signed(*job, signature(old, *job))
    assert signature(both, *job) == signature(SECRETS, *job)
    assert not SECRETS.is_signed(*job, signature(old, *job))


@given(text=st.text(max_size=300))
def test_any_text_of_secrets_is_read_or_refused(text: str) -> None:
    try:
        secrets = TrustSecrets.parse(text)
    except MalformedSecrets as malformed:
        assert "secret" in str(malformed)
    else:
        assert repr(secrets) == "TrustSecrets()"


def test_the_file_of_secrets_is_read_when_it_is_asked_for_and_refused_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secrets"
    monkeypatch.setenv("POSTBACK_TRUST__SECRET_FILE", str(file))
    trust = FleetSettings().trust  # delivery starts without the file, since it never reads the secrets
    with pytest.raises(SettingsRefused, match="cannot be read"):
        _ = trust.secrets
    for content in ("", "short\n", f"{NEW}\nshort", "\n".join([NEW] * 5), "\xff" * 40):
        file.write_bytes(content.encode("latin-1"))
        with pytest.raises(SettingsRefused, match="POSTBACK_TRUST__SECRET_FILE") as refused:
            _ = FleetSettings().trust.secrets
        assert "short" not in str(refused.value)
    file.write_text(f"{NEW}\r\n\n  {OLD}  \n")
    assert trust.secrets == TrustSecrets((NEW.encode(), OLD.encode()))
    assert FleetSettings(trust={"secret_file": None}).trust.secrets is None
