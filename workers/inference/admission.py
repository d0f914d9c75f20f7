"""Admission of jobs: read a record, check the job's callback URL, and find the engine that has the job's model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial

from schemas import topics as names
from schemas.codec import InvalidJob, Origin, ReceivedJob, read_job
from schemas.topics import Topics
from schemas.trust import TrustSecrets
from workers.egress import EgressPolicy, EgressRefused, check_url
from workers.inference.belief import require_signature
from workers.inference.job_identity import invalid_job
from workers.inference.outputs import moved
from workers.inference.registry import Forward, Registry, UnknownModel
from workers.inference.rollout.rollouts import Rollouts
from workers.inference.unserved import UnservedModel
from workers.stage.record import Output, Record, size_of

MAX_HEADER_BYTES = 64 * 1024
"""Limit on the bytes of a job's headers and key together.

The worker copies headers and key to a moved job and to a dead letter. Without the limit, headers that arrived
compressed could exceed the next topic's record limit.
"""
_CHECKED_URLS = 4096
_BULK, _SPARE = ".batch", ".spare"


class Admission:
    """Reads the jobs in the lanes' records. `topic_ids` maps lanes to the topic UUIDs from which job ids are derived.

    Each job needs a signature by one of the secrets in `trust`; if `trust` is None, jobs need no signature. `rollouts`
    replace a job's alias by the model behind the alias.
    """

    def __init__(
        self,
        registry: Registry,
        callback_policy: EgressPolicy,
        topics: Topics,
        topic_ids: Mapping[str, str],
        trust: TrustSecrets | None,
        rollouts: Rollouts,
    ) -> None:
        self._registry = registry
        self._rollouts = rollouts
        self._trust = trust
        # Cache the results of checks, which depend on the URL's text alone. Uncached checks take a quarter of an echo
        # job's time.
        self._check_callback = lru_cache(maxsize=_CHECKED_URLS)(partial(check_url, policy=callback_policy))
        self._topics = topics
        self._topic_ids = topic_ids

    def admitted(self, record: Record) -> ReceivedJob:
        """Return the job in a record. Raises InvalidJob, also for a callback URL that the egress policy refuses."""
        received = self.read(record)
        if received.job.callback_url is not None:
            try:
                self._check_callback(received.job.callback_url)
            except EgressRefused as refused:
                raise invalid_job(received, "callback_url", str(refused), callback=False) from None
        return received

    def read(self, record: Record) -> ReceivedJob:
        """Return the job in a record, without the egress policy's check of its callback URL.

        Raises InvalidJob for a record that is no valid job, and UntrustedJob for a record without a required signature.
        """
        place = Origin(self._topic_ids.get(record.topic, record.topic), record.partition, record.offset)
        try:
            received = read_job(record.value, record.headers, place, record.timestamp_ms)
        except InvalidJob as invalid:
            require_signature(self._trust, record, invalid, place)
            raise
        require_signature(self._trust, record, received, place)
        if record.unreadable is not None:
            raise invalid_job(received, "headers", record.unreadable)
        if record.headers and size_of(record.headers) + len(record.key or b"") > MAX_HEADER_BYTES:
            raise invalid_job(received, "headers", f"are larger than {MAX_HEADER_BYTES} bytes, the key included")
        return self._rollouts.routed(received, record.header(names.FORWARDED)) if self._rollouts.are_any else received

    def is_served(self, received: ReceivedJob) -> bool:
        """True if an engine of this fleet has the job's model now."""
        return self._registry.knows(received.job.model_id)

    def forwarded(self, record: Record, received: ReceivedJob) -> Output | None:
        """Return the record that moves the job to another engine's lane; None if this worker's engine has the model.

        Raises UnservedModel for an unknown model.
        """
        try:
            where = self._registry.route(received.job.model_id, record.header(names.FORWARDED))
        except UnknownModel as unknown:
            raise UnservedModel(received, invalid_job(received, "model_id", str(unknown))) from None
        if not isinstance(where, Forward):
            return None
        spare = is_spare_lane(record.topic)
        lane = self._topics.requests(where.lane, bulk=is_bulk_lane(record.topic), spare=spare)
        return moved(record, received, lane, (names.FORWARDED, str(where.times).encode()))


def is_bulk_lane(topic: str) -> bool:
    """True if the topic is a bulk lane, either the shared one or an engine's own."""
    return topic.endswith(_BULK)


def is_spare_lane(topic: str) -> bool:
    """True if the topic is a spare lane, either the shared one or an engine's own."""
    return topic.endswith(_SPARE)
