"""Fair sharing of the stage's window between tenants; jobs beyond a tenant's share move to the bulk lane."""

from __future__ import annotations

from collections.abc import Sequence

from schemas import topics as names
from schemas.codec import InvalidJob
from schemas.job import DEFAULT_TENANT
from schemas.topics import Topics
from telemetry.metrics import Metrics
from workers.inference.admission import Admission, is_bulk_lane
from workers.inference.outputs import Outputs, moved
from workers.inference.registry import times_in
from workers.inference.settings import WorkerSettings
from workers.inference.unserved import UnservedModel
from workers.stage.record import Headers, Output, Record

_NO_TENANT = DEFAULT_TENANT.encode()


class TenantSharing:
    """Implements the stage's `Sharing`: each tenant is a party, and the bulk lane takes deferred jobs."""

    def __init__(
        self, admission: Admission, outputs: Outputs, topics: Topics, settings: WorkerSettings, metrics: Metrics
    ) -> None:
        self._admission = admission
        self._outputs = outputs
        self._bulk_lane = topics.requests(settings.lane, bulk=True)
        self._bulk_share = settings.bulk_share
        self._deferred = metrics.deferred

    @property
    def later_share(self) -> float:
        """Least share of the window's freed places that goes to the bulk lane."""
        return self._bulk_share

    def party(self, headers: Headers | None) -> bytes:
        """Return the tenant that the header names, else the default one. The header is checked when the job is read."""
        for name, value in reversed(headers or ()):
            if name == names.TENANT:
                return value or _NO_TENANT
        return _NO_TENANT

    def is_later(self, topic: str) -> bool:
        """True if the topic is a bulk lane."""
        return is_bulk_lane(topic)

    def defer(self, record: Record) -> Sequence[Output]:
        """Return the job's record for the bulk lane, with the job's identity and deadline.

        An invalid job gets its rejection at once, and another engine's job moves to that engine's lane.
        """
        try:
            received = self._admission.admitted(record)
            forwarded = self._admission.forwarded(record, received)
        except InvalidJob as invalid:
            return self._outputs.rejected(record, invalid)
        except UnservedModel:
            forwarded = None  # its model may be served by the time of its turn
        if forwarded is not None:
            return [forwarded]
        self._deferred.inc()
        times = times_in(record.header(names.DEFERRED)) + 1
        return [moved(record, received, self._bulk_lane, (names.DEFERRED, str(times).encode()))]
