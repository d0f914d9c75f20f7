"""Delivery processes that share the topic of endpoint states in memory, and the attempts that they report."""

from __future__ import annotations

import itertools

from schemas.endpoint import (
    EndpointState,
    key_bytes,
    read_endpoint,
    write_endpoint,
)
from telemetry.metrics import Metrics
from workers.delivery.endpoint_states import EndpointStates
from workers.delivery.outputs import PendingDelivery
from workers.delivery.post import Delivered, FailedDelivery, FailureReason
from workers.delivery.settings import DeliverySettings

URL = "https://a.example/hooks/path-token?key=query-token"
KEY = ("acme", URL)
NOW_MS = 1_700_000_000_000
MINUTE, DAY = 60_000, 86_400_000
OK = Delivered(200, 0.1)
DOWN = FailedDelivery(FailureReason.SERVER_ERROR, 0.1, 500)
GONE = FailedDelivery(FailureReason.GONE, 0.1, 410)
REFUSED = FailedDelivery(FailureReason.REFUSED, 0.1)
ASTRAY = FailedDelivery(FailureReason.ADDRESS_REFUSED, 0.1)
PENDING = PendingDelivery(URL, "https://a.example", "acme", "job_1", "msg_1", None, 0, 0, 0, None, None)
OTHER_EVENT = PENDING._replace(job_id="job_2", webhook_id="msg_2")


class Fleet:
    """Processes that share the topic: each process reads what all of them write."""

    def __init__(self, processes: int = 2) -> None:
        self.now_ms = NOW_MS
        self.metrics = [Metrics() for _ in range(processes)]
        self.processes = [EndpointStates(DeliverySettings(), metrics) for metrics in self.metrics]
        for states in self.processes:
            states.show()
        self.written: list[tuple[bytes, bytes | None]] = []
        self.events = itertools.cycle((PENDING, OTHER_EVENT))

    def attempt(
        self, outcome: Delivered | FailedDelivery, process: int = 0, pending: PendingDelivery | None = None
    ) -> None:
        """Report an attempt at this event, or alternately at one of two events if none is given."""
        pending = pending or next(self.events)
        for key, state in self.processes[process].learn(pending, outcome, self.now_ms):
            self.put(key_bytes(key), None if state is None else write_endpoint(state))

    def put(self, key: bytes, value: bytes | None) -> None:
        self.written.append((key, value))
        for states in self.processes:
            states.apply(key, value)

    def restart(self, process: int) -> None:
        self.processes[process] = EndpointStates(DeliverySettings(), self.metrics[process])
        for key, value in self.written:
            self.processes[process].apply(key, value)

    def fail_for(
        self, milliseconds: int, process: int = 0, every: int = 2 * MINUTE, pending: PendingDelivery | None = None
    ) -> None:
        end = self.now_ms + milliseconds
        while self.now_ms <= end:
            self.attempt(DOWN, process, pending)
            self.now_ms += every

    @property
    def kept(self) -> dict[bytes, bytes]:
        """The topic's records after compaction."""
        return {key: value for key, value in dict(self.written).items() if value is not None}

    @property
    def states(self) -> list[EndpointState | None]:
        return [read_endpoint(value).state if value is not None else None for _, value in self.written]

    @property
    def disabled(self) -> list[bool]:
        return [states.is_disabled(KEY) for states in self.processes]


def url_of_its_own(number: int, tenant: str = "acme") -> PendingDelivery:
    return PENDING._replace(tenant=tenant, url=f"https://a.example/job/{number}", webhook_id=f"msg_{number}")
