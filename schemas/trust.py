"""The signature of a job's tenant, which shows a worker that the job's headers are genuine.

With `POSTBACK_WORKER__TRUST=signed`, a worker accepts only jobs with a valid `tenant-signature`. The signature is
HMAC-SHA256 (RFC 2104) over the tenant, the job's id and the SHA-256 of the record's value. The value has the prompt and
the callback URL, so neither can be replaced in a signed job. Workers move a job with its value unchanged, and so the
signature stays valid in each lane and after a redrive.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas import topics

LEAST_SECRET_BYTES = 32
MOST_SECRETS = 4

_DOMAIN = b"postback tenant-signature v1"
"""Separates these MACs from any other use of the same secret."""
_VERSION = b"v1,"

Header = tuple[str, bytes]


class MalformedSecrets(ValueError):  # noqa: N818 - named after the secrets
    """The text is no list of secrets. The error's message shows no part of the text."""


@dataclass(frozen=True, slots=True)
class TrustSecrets:
    """The fleet's secrets for tenants' signatures. The first secret signs, and each secret verifies."""

    secrets: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> TrustSecrets:
        """Return the secrets in a text that has one secret on each line, the newest first. Raises MalformedSecrets."""
        secrets = tuple(line.strip().encode() for line in text.splitlines() if line.strip())
        if not 1 <= len(secrets) <= MOST_SECRETS:
            raise MalformedSecrets(f"has {len(secrets)} secrets; write 1 to {MOST_SECRETS}, one a line, newest first")
        if min(map(len, secrets)) < LEAST_SECRET_BYTES:
            raise MalformedSecrets(
                f"has a secret of fewer than {LEAST_SECRET_BYTES} characters; `openssl rand -hex 32` makes one"
            )
        return cls(secrets)

    def signed(self, tenant: str, job_id: str, value: bytes) -> list[Header]:
        """Return a job's headers `tenant`, `job-id` and `tenant-signature`, for the record with this value."""
        signature = _VERSION + base64.b64encode(_mac(self.secrets[0], tenant, job_id, hashlib.sha256(value).digest()))
        return [
            (topics.TENANT, tenant.encode()),
            (topics.JOB_ID, job_id.encode()),
            (topics.TENANT_SIGNATURE, signature),
        ]

    def is_signed(self, tenant: str, job_id: str, value: bytes | None, signature: bytes | None) -> bool:
        """True if one of the secrets signed this tenant, job id and value. Accepts any bytes. Never raises."""
        if value is None or signature is None:
            return False
        # The digests have equal lengths, so that their comparison takes constant time.
        stated = hashlib.sha256(signature).digest()
        digest = hashlib.sha256(value).digest()
        for secret in self.secrets:
            expected = _VERSION + base64.b64encode(_mac(secret, tenant, job_id, digest))
            if hmac.compare_digest(hashlib.sha256(expected).digest(), stated):
                return True
        return False


def tenant_headers(secrets: TrustSecrets | None, tenant: str, job_id: str, value: bytes) -> list[Header]:
    """Return a job's headers `tenant` and `job-id`, with the signature if the fleet has secrets."""
    if secrets is not None:
        return secrets.signed(tenant, job_id, value)
    return [(topics.TENANT, tenant.encode()), (topics.JOB_ID, job_id.encode())]


def signature_of(headers: Sequence[tuple[str, bytes | None]] | None) -> bytes | None:
    """Return the record's `tenant-signature`, the last one if there are several; None if there is none."""
    return dict(headers or ()).get(topics.TENANT_SIGNATURE)


def _mac(secret: bytes, tenant: str, job_id: str, digest: bytes) -> bytes:
    """Return the MAC; `digest` is the value's SHA-256.

    Tenants and job ids have no NUL byte, so the parts cannot run into one another.
    """
    parts = (_DOMAIN, tenant.encode(), job_id.encode(), digest)
    return hmac.digest(secret, b"\0".join(parts), hashlib.sha256)
