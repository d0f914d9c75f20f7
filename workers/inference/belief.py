"""Decides which records' headers are trusted: all, or only those with a tenant that the fleet has signed."""

from __future__ import annotations

from schemas.codec import InvalidJob, Origin, ReceivedJob, UntrustedJob
from schemas.settings import SettingsRefused, TrustSettings
from schemas.trust import TrustSecrets, signature_of
from workers.inference.settings import WorkerSettings
from workers.stage.record import Record


def believed_secrets(settings: WorkerSettings, trust: TrustSettings) -> TrustSecrets | None:
    """Return the secrets that jobs may be signed with; None if jobs need no signature.

    Raises SettingsRefused.
    """
    if settings.trust == "any":
        return None
    secrets = trust.secrets
    if secrets is None:
        raise SettingsRefused(
            "POSTBACK_WORKER__TRUST: with `signed`, POSTBACK_TRUST__SECRET_FILE must name the file of the secrets"
        )
    return secrets


def require_signature(
    secrets: TrustSecrets | None, record: Record, whose: ReceivedJob | InvalidJob, place: Origin
) -> None:
    """Raise UntrustedJob if the record's tenant needs a signature, but was not signed with any of the secrets.

    The signature covers a job id only if the writer chose the id; an id derived from the record's place is not signed.
    """
    if secrets is None:
        return
    signature = signature_of(record.headers)
    if not secrets.is_signed(whose.tenant, whose.job_id, record.value, signature):
        raise UntrustedJob(record.value, place)
