"""The signature of a job's tenant, and the file of its secrets."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from schemas import topics
from schemas.job import TENANT_PATTERN
from schemas.settings import FleetSettings, SettingsRefused
from schemas.trust import MalformedSecrets, TrustSecrets, signature_of, tenant_headers

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


@given(tenant=TENANTS, job_id=JOB_IDS, value=st.binary(max_size=200))
def test_a_signed_job_is_believed(tenant: str, job_id: str, value: bytes) -> None:
    assert SECRETS.is_signed(tenant, job_id, value, signature(SECRETS, tenant, job_id, value))


@given(
    signed=st.tuples(TENANTS, JOB_IDS, st.binary(max_size=50)),
    stated=st.tuples(TENANTS, JOB_IDS, st.none() | st.binary(max_size=50)),
)
def test_a_signature_counts_for_no_other_tenant_job_or_value(
    signed: tuple[str, str, bytes], stated: tuple[str, str, bytes | None]
) -> None:
    made = signature(SECRETS, *signed)
    (tenant, job_id, value), (other, other_id, other_value) = signed, stated
    assume(tenant != other and job_id != other_id and value != other_value)
    assert not SECRETS.is_signed(other, job_id, value, made)
    assert not SECRETS.is_signed(tenant, other_id, value, made)
    assert not SECRETS.is_signed(tenant, job_id, other_value, made)


@given(noise=st.none() | st.binary(max_size=200))
def test_no_noise_is_a_signature(noise: bytes | None) -> None:
    assert not SECRETS.is_signed("acme", "job_1", b"{}", noise)


def test_the_last_signature_of_a_record_counts_as_its_last_tenant_does() -> None:
    headers = [(topics.TENANT_SIGNATURE, b"first"), (topics.TENANT_SIGNATURE, b"last")]
    assert signature_of(headers) == b"last"
    assert signature_of(None) is None


def test_both_secrets_verify_while_one_replaces_the_other() -> None:
    old, both = TrustSecrets.parse(OLD), TrustSecrets.parse(f"{NEW}\n{OLD}\n")
    job = ("acme", "job_1", b"{}")
    assert both.is_signed(*job, signature(old, *job))
    assert signature(both, *job) == signature(SECRETS, *job)
    assert not SECRETS.is_signed(*job, signature(old, *job))


def test_a_fleet_without_secrets_states_the_tenant_unsigned() -> None:
    assert dict(tenant_headers(None, "acme", "job_1", b"{}")) == {topics.TENANT: b"acme", topics.JOB_ID: b"job_1"}
    assert tenant_headers(SECRETS, "acme", "job_1", b"{}") == SECRETS.signed("acme", "job_1", b"{}")


@given(text=st.text(max_size=300))
def test_any_text_of_secrets_is_read_or_refused(text: str) -> None:
    try:
        secrets = TrustSecrets.parse(text)
    except MalformedSecrets as malformed:
        assert "secret" in str(malformed)
    else:
        assert repr(secrets) == "TrustSecrets()"


@pytest.mark.parametrize("content", ["", "short\n", f"{NEW}\nshort", "\n".join([NEW] * 5), "\xff" * 40])
def test_a_file_of_unusable_secrets_is_refused_by_its_variable(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secrets"
    file.write_bytes(content.encode("latin-1"))
    monkeypatch.setenv("POSTBACK_TRUST__SECRET_FILE", str(file))
    with pytest.raises(SettingsRefused, match="POSTBACK_TRUST__SECRET_FILE") as refused:
        _ = FleetSettings().trust.secrets
    assert "short" not in str(refused.value)


def test_the_file_of_secrets_is_read_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secrets"
    monkeypatch.setenv("POSTBACK_TRUST__SECRET_FILE", str(file))
    trust = FleetSettings().trust  # delivery starts without the file, since it never reads the secrets
    with pytest.raises(SettingsRefused, match="cannot be read"):
        _ = trust.secrets
    file.write_text(f"{NEW}\r\n\n  {OLD}  \n")
    assert trust.secrets == TrustSecrets((NEW.encode(), OLD.encode()))
    assert FleetSettings(trust={"secret_file": None}).trust.secrets is None
