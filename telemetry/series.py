"""Kinds of metrics whose series begin at a chosen moment, and long lists of label values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric

DEAD_LETTER_REASONS = (
    "rejected",
    "untrusted",
    "screened",
    "engine_error",
    "worker_killed",
    "internal_error",
    "handler_defect",
    "callback_exhausted",
    "callback_refused",
    "endpoint_gone",
    "endpoint_disabled",
    "unusable_result",
    "unusable_batch_range",
)
CALLBACK_RESULTS = (
    "delivered",
    "refused",
    "address_refused",
    "gone",
    "throttled",
    "redirected",
    "client_error",
    "server_error",
    "timeout",
    "dns_failed",
    "connect_failed",
    "tls_failed",
    "connection_closed",
    "bad_response",
)
SAMPLE_RESULTS = (
    "copied",
    "reported",
    "compared",
    "same_meaning",
    "skipped",
    "unanswered",
    "too_large",
    "stale",
    "unreadable",
)


class ClosedCounter(Counter):
    """A counter whose last label has known values.

    Prometheus's `rate` and `increase` miss the event that creates a series. A process that counts these events
    therefore calls `begin` at its start.
    """

    values: tuple[str, ...] = ()
    """The values of the last label."""

    @classmethod
    def of(
        cls, name: str, documentation: str, labels: Sequence[str], values: Sequence[str], registry: CollectorRegistry
    ) -> Self:
        """Return the counter, without series. `values` are those of the last label."""
        made = cls(name, documentation, labels, registry=registry)
        made.values = tuple(values)
        return made

    def begin(self, *others: str) -> dict[str, Self]:
        """Create a series of 0 for each value, and return the series by value.

        `others` are the values of the labels before the last one.
        """
        return {value: self.labels(*others, value) for value in self.values}


class KnownGauge(Gauge):
    """A gauge without labels that has no sample before its first `set`.

    Gauge itself begins with 0. After a restart, the change from 0 to the first reading would look like an increase.
    """

    _is_known = False

    def set(self, value: float) -> None:
        """Set the value, which is known from now on."""
        super().set(value)
        self._is_known = True

    def collect(self) -> Iterable[Metric]:
        """Return the metric, without a sample before the first `set`."""
        return super().collect() if self._is_known else self.describe()
