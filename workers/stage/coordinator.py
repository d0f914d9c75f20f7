"""Whether the group's coordinator is heard, from what librdkafka's statistics say of its connection.

A broker that froze keeps its connections open: no error comes before a request times out, and the client asks so
seldom, where nothing is to be done, that this took over a minute. The statistics cost no request and block nobody.
"""

from __future__ import annotations

import json
import math

STATISTICS_MS = 2_000
_COORDINATOR = "GroupCoordinator"
_MICROSECONDS = 1e6


class Coordinator:
    """The broker that keeps the group: it is asked all the time, since each member sends heartbeats to it.

    Times are of librdkafka's own clock, as its statistics give them (its STATISTICS.md: `ts` and `rxidle` in
    microseconds, `rxidle` -1 where nothing came on the present connection).
    """

    def __init__(self) -> None:
        self._heard_at: float | None = None
        self._looked_at = 0.0

    @property
    def silent_seconds(self) -> float:
        """For how long it had been silent when statistics came last; infinite while no broker can be reached."""
        return 0.0 if self._heard_at is None else self._looked_at - self._heard_at

    def statistics(self, text: str) -> None:
        """The client's statistics callback."""
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
        """No broker can be reached, the coordinator neither."""
        self._heard_at = -math.inf
