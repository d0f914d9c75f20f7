from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

VECTORS = json.loads((Path(__file__).parent / "data" / "webhook_vectors.json").read_text())
SYMMETRIC, ASYMMETRIC = VECTORS["symmetric"], VECTORS["asymmetric"]
ID, TIMESTAMP, BODY = VECTORS["id"], VECTORS["timestamp"], VECTORS["body"].encode()
SECRET, SIGNING_KEY, PUBLIC_KEY = SYMMETRIC["secret"], ASYMMETRIC["private"], ASYMMETRIC["public"]


def signed(signature: str) -> dict[str, str]:
    return {"webhook-id": ID, "webhook-timestamp": str(TIMESTAMP), "webhook-signature": signature}


def test_the_known_symmetric_signature_is_made() -> None:
    assert Signer([SECRET]).sign(ID, TIMESTAMP, BODY) == SYMMETRIC["signature"]


def test_the_known_asymmetric_signature_is_made() -> None:
    assert Signer([], [SIGNING_KEY]).sign(ID, TIMESTAMP, BODY) == ASYMMETRIC["signature"]
    assert public_key_of(SIGNING_KEY) == PUBLIC_KEY


def test_the_known_signatures_are_verified() -> None:
    verify(signed(SYMMETRIC["signature"]), BODY, [SECRET], [], TIMESTAMP)
    verify(signed(ASYMMETRIC["signature"]), BODY, [], [PUBLIC_KEY], TIMESTAMP)


def test_all_signatures_stand_in_one_header_with_one_space_between() -> None:
    second = generate_secret()
    header = Signer([SECRET, second], [SIGNING_KEY]).headers(ID, TIMESTAMP, BODY)["webhook-signature"]

    assert [entry.partition(",")[0] for entry in header.split(" ")] == ["v1", "v1", "v1a"]
    assert header.startswith(SYMMETRIC["signature"] + " ")
    assert header.endswith(" " + ASYMMETRIC["signature"])


def test_one_matching_signature_among_unknown_and_broken_ones_is_enough() -> None:
    header = f"v2,abc v1 v1,!!! v1a,AAAA  v1,é {SYMMETRIC['signature']}"

    verify(signed(header), BODY, [generate_secret(), SECRET], [PUBLIC_KEY], TIMESTAMP)


def test_header_names_may_be_in_any_case() -> None:
    headers = {name.title(): value for name, value in signed(SYMMETRIC["signature"]).items()}

    verify(headers, BODY, [SECRET], [], TIMESTAMP)


@pytest.mark.parametrize("drift", [-300, 300])
def test_a_clock_may_be_off_by_exactly_the_tolerance(drift: int) -> None:
    verify(signed(SYMMETRIC["signature"]), BODY, [SECRET], [], TIMESTAMP + drift)


@pytest.mark.parametrize("drift", [-300.5, 300.5])
def test_an_older_or_newer_request_is_refused(drift: float) -> None:
    with pytest.raises(TimestampOutsideTolerance):
        verify(signed(SYMMETRIC["signature"]), BODY, [SECRET], [], TIMESTAMP + drift)


@pytest.mark.parametrize("timestamp", ["soon", "1614265330.5", "-1614265330", " 1614265330", "٣", "9" * 400])
def test_a_timestamp_that_is_no_number_of_seconds_is_refused(timestamp: str) -> None:
    with pytest.raises(MalformedTimestamp):
        verify(
            {**signed(SYMMETRIC["signature"]), "webhook-timestamp": timestamp}, BODY, [SECRET], [PUBLIC_KEY], TIMESTAMP
        )


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_each_of_the_three_headers_is_required(name: str) -> None:
    headers = signed(SYMMETRIC["signature"])
    del headers[name]
    with pytest.raises(MissingHeader, match=name):
        verify(headers, BODY, [SECRET], [PUBLIC_KEY], TIMESTAMP)


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "msg_other"},
        {"webhook-timestamp": str(TIMESTAMP + 1)},
        {"webhook-signature": SYMMETRIC["signature"].replace("v1,", "v1a,")},
        {"webhook-signature": ASYMMETRIC["signature"].replace("v1a,", "v1,")},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1," + base64.b64encode(b"x" * 32).decode()},
    ],
)
def test_a_signature_for_other_content_or_of_another_kind_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(NoMatchingSignature):
        verify({**signed(SYMMETRIC["signature"]), **change}, BODY, [SECRET], [PUBLIC_KEY], TIMESTAMP)


def test_a_changed_body_is_refused() -> None:
    for signature in (SYMMETRIC["signature"], ASYMMETRIC["signature"]):
        with pytest.raises(NoMatchingSignature):
            verify(signed(signature), BODY + b" ", [SECRET], [PUBLIC_KEY], TIMESTAMP)


def test_without_keys_nothing_is_trusted() -> None:
    with pytest.raises(NoMatchingSignature):
        verify(signed(SYMMETRIC["signature"]), BODY, [], [], TIMESTAMP)


def test_generated_keys_sign_and_verify() -> None:
    secret, signing_key = generate_secret(), generate_signing_key()
    headers = Signer([secret], [signing_key]).headers(ID, TIMESTAMP, BODY)

    verify(headers, BODY, [secret], [], TIMESTAMP)
    verify(headers, BODY, [], [public_key_of(signing_key)], TIMESTAMP)
    assert generate_secret() != secret
    assert generate_signing_key() != signing_key


def key(prefix: str, data: bytes) -> str:
    return prefix + base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        SIGNING_KEY,
        "whsec_Zz*not base64",
        "whsec_Zz\u00e9",
        key("whsec_", b"Z" * 23),
        key("whsec_", b"Z" * 65),
    ],
)
def test_a_text_that_is_no_secret_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(MalformedKey) as raised:
        Signer([secret])

    assert secret.removeprefix("whsec_") not in str(raised.value) or not secret
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize("size", [24, 64])
def test_secrets_of_24_to_64_bytes_are_taken(size: int) -> None:
    secret = key("whsec_", b"Z" * size)

    verify(Signer([secret]).headers(ID, TIMESTAMP, BODY), BODY, [secret], [], TIMESTAMP)


@pytest.mark.parametrize("signing_key", [SECRET, PUBLIC_KEY, key("whsk_", b"Z" * 32), key("whsk_", b"Z" * 64)])
def test_a_text_that_is_no_signing_key_or_has_the_wrong_public_half_is_refused(signing_key: str) -> None:
    with pytest.raises(MalformedKey):
        Signer([], [signing_key])


@pytest.mark.parametrize("public_key", [SECRET, SIGNING_KEY, key("whpk_", b"Z" * 31)])
def test_a_text_that_is_no_public_key_is_refused(public_key: str) -> None:
    with pytest.raises(MalformedKey):
        verify(signed(ASYMMETRIC["signature"]), BODY, [], [public_key], TIMESTAMP)


def test_a_signer_without_keys_is_refused_since_it_would_send_an_empty_header() -> None:
    with pytest.raises(MalformedKey):
        Signer([])


TEXT = st.text("v1a,=+/. 09é\u0000\ud800", max_size=40)


@given(TEXT, TEXT | st.integers(0, 10**15).map(str), TEXT, st.binary(max_size=20))
def test_a_hostile_request_is_refused_with_our_own_error_only(
    webhook_id: str, timestamp: str, signature: str, body: bytes
) -> None:
    headers = {"webhook-id": webhook_id, "webhook-timestamp": timestamp, "webhook-signature": signature}
    with pytest.raises(WebhookError):
        verify(headers, body, [SECRET], [PUBLIC_KEY], TIMESTAMP, tolerance_seconds=1e12)
