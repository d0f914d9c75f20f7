"""A tenant's rules for the lines of one batch: its allow-lists, and the tokens that its quota counts."""

from __future__ import annotations

from sqlalchemy import Connection

from gateway.access.allowed import OF_A_LINE, check_job
from gateway.access.quotas import Work, has_quota, reserve, tokens_of
from gateway.access.tenant_settings import TenantSettings
from gateway.store.tables import batches
from schemas.codec import write_job
from schemas.job import Job


class LineAllowance:
    """Checks each line of a batch once, and adds up the tokens of all lines. Implements `checking.CheckJob`."""

    def __init__(self, settings: TenantSettings) -> None:
        self._settings = settings
        self._tokens = 0

    def __call__(self, job: Job) -> str | None:
        """Return the reason why the tenant may not run the job, as a sentence; None if the tenant may."""
        if has_quota(self._settings):
            self._tokens += tokens_of(len(write_job(job)), job.max_tokens)
        problems = check_job(self._settings, job, OF_A_LINE)
        return "; ".join(map(str, problems)) + "." if problems else None

    def reserve(self, connection: Connection, tenant: str, batch_id: str, lines: int) -> None:
        """Reserve the batch's lines, if the tenant has a quota, and note the reservation in the batch's row.

        Raises QuotaExceeded.
        """
        if not has_quota(self._settings):
            return
        reserve(connection, tenant, self._settings, Work(lines, self._tokens))
        kept = batches.update().where(batches.c.tenant == tenant, batches.c.id == batch_id)
        connection.execute(kept.values(reserved_lines=lines, reserved_tokens=self._tokens))
