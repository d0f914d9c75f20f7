"""Shares the engine fairly between tenants, by tokens, and moves jobs that would wait for long to the bulk lane.

A waiting job costs its prompt's tokens, estimated from the bytes of its record without parsing the JSON, plus its
tenant's mean tokens per answer. When the engine has answered, the real tokens replace the estimate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from schemas import topics as names
from schemas.codec import InvalidJob
from schemas.images import IMAGE_TOKENS
from schemas.job import DEFAULT_TENANT, DEFAULT_TTL_SECONDS, MAX_JOB_BYTES
from schemas.topics import Topics
from telemetry.metrics import Metrics
from workers.engines.base import Completion
from workers.inference.admission import Admission, is_bulk_lane, is_spare_lane
from workers.inference.outputs import Outputs, moved
from workers.inference.routing import times_in
from workers.inference.settings import WorkerSettings
from workers.stage.record import Output, Record
from workers.stage.sharing import Place

BYTES_A_TOKEN: Final = 4
"""The estimated bytes per token of text."""
PAYLOAD_TOKENS: Final = MAX_JOB_BYTES / BYTES_A_TOKEN
"""The estimated tokens of a question at `payload_url`: as many as the largest record has.

Such questions are larger than a record, and few models read more tokens.
"""
_IMAGE: Final = re.compile(rb'"image_url"\s*:')
"""Matches once for each image of a chat or of a request to /v1/responses."""
_CARRIED: Final = re.compile(rb'url"\s*:\s*"data:image\\?/[a-z]{3,4};base64,[A-Za-z0-9+/=\\]*"')
"""Matches an image that the job carries, in `url` or `image_url`. Some JSON writers put a backslash before a slash.

The pattern begins with a word: a pattern that began with a quote took 50 ms of the Kafka thread for a record of
quotes."""


def prompt_tokens(value: bytes) -> float:
    """Return the estimate; an image counts as IMAGE_TOKENS, whatever its bytes, and a payload as PAYLOAD_TOKENS."""
    if b'"payload_url"' in value:
        return PAYLOAD_TOKENS
    if b'"image_url"' not in value:
        return len(value) / BYTES_A_TOKEN
    images = sum(1 for _ in _IMAGE.finditer(value))
    carried = sum(found.end() - found.start() for found in _CARRIED.finditer(value))
    return (len(value) - carried) / BYTES_A_TOKEN + images * IMAGE_TOKENS


MEAN_WEIGHT = 0.05
"""The weight of the newest answer in a tenant's mean, so that the mean covers about the last 20 answers."""
MOST_TENANTS = 10_000
"""Cap on the tenants whose means are kept."""

_NO_TENANT = DEFAULT_TENANT.encode()
_USUAL_TTL_MS = round(1000 * DEFAULT_TTL_SECONDS)
_TTL = re.compile(rb'"ttl_seconds"\s*:\s*([0-9]{1,9})')
_ESCAPED = re.compile(rb"\\u00(?:5[fF]|[67])")
"""Matches a JSON escape of `_` or a small ASCII letter, which a field's name may contain."""
_TIME = re.compile(rb"[0-9]{1,15}")
_PRIORITY = re.compile(rb'"priority"\s*:\s*([0-9])\s*[,}]')
_DEADLINE_BITS = 50
"""A deadline in Unix milliseconds has at most 15 digits, so it fits below a priority."""


class AnswerTokens:
    """The mean tokens of each tenant's answers: an exponentially weighted mean that begins at 0.

    A guess above the first real answers would harm a tenant that comes while these answers are generated. The tenant
    would begin at the level of the guess, and wait until the others' real tokens reach that level.
    The event loop adds answers, and the Kafka thread reads the means.
    """

    def __init__(self) -> None:
        self._all = 0.0
        self._means: dict[bytes, float] = {}

    def mean(self, tenant: bytes) -> float:
        """Return the tenant's mean, or the mean of all answers if the tenant has no answers."""
        return self._means.get(tenant, self._all)

    def add(self, tenant: bytes, tokens: int) -> None:
        """Add an answer of this many tokens."""
        before = self._means.pop(tenant, self._all)
        self._means[tenant] = before + MEAN_WEIGHT * (tokens - before)
        self._all += MEAN_WEIGHT * (tokens - self._all)
        if len(self._means) > MOST_TENANTS:
            del self._means[next(iter(self._means))]


class TenantSharing:
    """Implements the stage's `Sharing`: each tenant is a party, and deferred jobs go to the bulk lane."""

    def __init__(
        self, admission: Admission, outputs: Outputs, topics: Topics, settings: WorkerSettings, metrics: Metrics
    ) -> None:
        self._admission = admission
        self._outputs = outputs
        self._bulk_lane = topics.requests(settings.lane, bulk=True)
        self._bulk_share = settings.bulk_share
        self._weights = {tenant.encode(): weight for tenant, weight in settings.tenant_weights.items()}
        self._answers = AnswerTokens()
        self._deferred = metrics.deferred

    @property
    def later_share(self) -> float:
        """Least share of the window's freed places that goes to the bulk lane."""
        return self._bulk_share

    def assess(self, record: Record) -> None:
        """Set the job's tenant, and its estimated tokens, divided by its tenant's weight.

        The JSON is not parsed: patterns find its `priority`, `ttl_seconds`, and the names of fields to fetch. Jobs are
        ordered by falling priority, and then by deadline.
        """
        value, said = record.value, dict(record.headers or ())
        tenant = record.party = said.get(names.TENANT) or _NO_TENANT  # admission checks the header
        is_fetching = b'"image_url"' in value or b'"payload_url"' in value or b'"sources"' in value
        tokens = prompt_tokens(value) if is_fetching else len(value) / BYTES_A_TOKEN
        record.cost = max(1.0, tokens + self._answers.mean(tenant)) / self._weights.get(tenant, 1.0)
        record.urgency = _deadline_ms(record, said) - (_priority(value, said) << _DEADLINE_BITS)
        is_escaped = b"\\u00" in value and _ESCAPED.search(value) is not None
        record.outside = tenant if is_fetching or is_escaped else None

    def answered(self, record: Record, completion: Completion) -> None:
        """Count an answer's real tokens instead of the estimate. If two models answered, both are counted."""
        if completion.finish_reason != "abort":
            self._answers.add(record.party or _NO_TENANT, completion.completion_tokens)
        self.spend(record, completion.prompt_tokens + completion.completion_tokens)

    def spend(self, record: Record, tokens: int) -> None:
        """Count tokens that the engine has used for a job: for an answer, or for a side request such as a rewriting."""
        record.spent = (record.spent or 0.0) + tokens / self._weights.get(record.party or _NO_TENANT, 1.0)

    def place(self, topic: str) -> Place:
        """Return the `Place` in which a lane's jobs wait."""
        if is_spare_lane(topic):
            return Place.SPARE
        return Place.LATER if is_bulk_lane(topic) else Place.FIRST

    def defer(self, record: Record) -> Sequence[Output]:
        """Return the job's record for the bulk lane, with the job's identity and deadline.

        An invalid job gets its rejection at once, another engine's job moves to that engine's lane, and a job that
        starts later waits in a tier, from which it returns to its present lane.
        """
        try:
            received = self._admission.admitted(record)
            if (later := self._admission.put_off(record, received)) is not None:
                return [later]
            forwarded = self._admission.forwarded(record, received) if self._admission.is_served(received) else None
        except InvalidJob as invalid:
            return self._outputs.rejected(record, invalid)
        if forwarded is not None:
            return [forwarded]
        self._deferred.inc()
        times = times_in(record.header(names.DEFERRED)) + 1
        return [moved(record, received, self._bulk_lane, (names.DEFERRED, str(times).encode()))]


def _deadline_ms(record: Record, said: dict[str, bytes | None]) -> int:
    stated = said.get(names.DEADLINE)
    if stated is not None and _TIME.fullmatch(stated):
        return int(stated)
    found = _TTL.search(record.value) if b'"ttl_seconds"' in record.value else None
    return record.timestamp_ms + (_USUAL_TTL_MS if found is None else 1000 * int(found[1]))


def _priority(value: bytes, said: dict[str, bytes | None]) -> int:
    """Return the priority that the header states, or else the body; 0 if neither does. Admission checks it."""
    if names.PRIORITY in said:
        stated = said[names.PRIORITY]
        return int(stated) if stated is not None and stated.isdigit() and len(stated) == 1 else 0
    found = _PRIORITY.search(value) if b'"priority"' in value else None
    return 0 if found is None else int(found[1])
