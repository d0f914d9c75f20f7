"""How long the group's coordinator has been silent, by librdkafka's statistics of its connection.

A frozen broker keeps its connections open, so the client sees no error before a request times out. An idle client sends
so few requests that this took over a minute. Statistics cost no request and block no thread.
"""

from __future__ import annotations

import json
import math

STATISTICS_MS = 2_000
_COORDINATOR = "GroupCoordinator"
_MICROSECONDS = 1e6


class Coordinator:
    """The broker that keeps the group. Every member sends it heartbeats, so it is asked all the time.

    Times are those of librdkafka's own clock. Its STATISTICS.md gives `ts` and `rxidle` in microseconds; `rxidle` is
    -1 where no byte has come on the present connection.
    """

    def __init__(self) -> None:
        self._heard_at: float | None = None
        self._looked_at = 0.0

    @property
    def silent_seconds(self) -> float:
        """How long it had been silent when statistics came last; infinite while no broker can be reached."""
        return 0.0 if self._heard_at is None else self._looked_at - self._heard_at

    def statistics(self, text: str) -> None:
        """Take in one report; this is the client's `stats_cb`."""
        found = json.loads(text)
        self._looked_at = found["ts"] / _MICROSECONDS
        if self._heard_at is None:
            self._heard_at = self._looked_at
        broker = found["brokers"].get(_COORDINATOR)
        if broker is None or broker["state"] != "UP" or broker["rxidle"] < 0:
            return
        # A broker that was asked nothing owes no answer: the time between two heartbeats is the group's to choose.
        silent = broker["rxidle"] / _MICROSECONDS if broker["waitresp_cnt"] else 0.0
        self._heard_at = self._looked_at - silent

    def away(self) -> None:
        """Note that no broker can be reached, the coordinator included."""
        self._heard_at = -math.inf
