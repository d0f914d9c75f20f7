"""The time since the group's coordinator last answered, from librdkafka's statistics of the connection.

A frozen broker keeps its connections open, so the client sees no error before a request times out. An idle client sends
few requests: without statistics, the client saw the error only after more than a minute. Statistics cost no request and
block no thread.
"""

from __future__ import annotations

import json
import math

STATISTICS_MS = 2_000
_COORDINATOR = "GroupCoordinator"
_MICROSECONDS = 1e6


class Coordinator:
    """The broker that manages the group. Every member sends heartbeats to this broker, so requests are frequent.

    Times come from librdkafka's own clock. librdkafka's STATISTICS.md gives `ts` and `rxidle` in microseconds; `rxidle`
    is -1 if no byte has arrived on the present connection.
    """

    def __init__(self) -> None:
        self._heard_at: float | None = None
        self._looked_at = 0.0

    @property
    def silent_seconds(self) -> float:
        """Seconds from the coordinator's last answer to the last report; infinite if no broker can be reached."""
        return 0.0 if self._heard_at is None else self._looked_at - self._heard_at

    def statistics(self, text: str) -> None:
        """Read one statistics report; the client calls this method as its `stats_cb`."""
        found = json.loads(text)
        self._looked_at = found["ts"] / _MICROSECONDS
        if self._heard_at is None:
            self._heard_at = self._looked_at
        broker = found["brokers"].get(_COORDINATOR)
        if broker is None or broker["state"] != "UP" or broker["rxidle"] < 0:
            return
        # Ignore silence unless a request is unanswered, because a healthy broker is also silent between two heartbeats.
        silent = broker["rxidle"] / _MICROSECONDS if broker["waitresp_cnt"] else 0.0
        self._heard_at = self._looked_at - silent

    def away(self) -> None:
        """Note that no broker can be reached, the coordinator included."""
        self._heard_at = -math.inf
