"""Jobs for a release, and the check that each was answered once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from tests.kubernetes.programs import WAIT_SECONDS
from tests.product import Product, eventually
from tests.repeating import repeating

_TTL_SECONDS = 3600


class Jobs:
    """Sends jobs with unique ids. Only one thread may submit at a time."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self.ids: list[str] = []

    def submit(self, count: int, verb: str = "Explain", lane: str | None = None) -> list[str]:
        """Submit jobs, spread over the lane's partitions, and return their ids. Each prompt begins with the verb."""
        ids = [f"job-{len(self.ids) + number}" for number in range(count)]
        url = self._product.callbacks.url
        self._product.submit(
            (
                {"job_id": each, "prompt": f"{verb} {each}.", "callback_url": url, "ttl_seconds": _TTL_SECONDS}
                for each in ids
            ),
            self._product.kafka.topics.requests(lane),
        )
        self.ids += ids
        return ids

    def keep_coming(self) -> AbstractContextManager[None]:
        """Submit jobs, a few at a time, until the block ends."""
        return repeating(0.5, lambda: self.submit(4))

    def are_called_back(self, ids: list[str], said: Callable[[], str]) -> None:
        """Wait until each of these jobs is called back."""
        wanted = set(ids)
        eventually(
            lambda: set(self._product.callbacks.events) >= wanted,
            WAIT_SECONDS,
            lambda: f"not called back: {sorted(wanted - set(self._product.callbacks.events))}\n{said()}",
        )

    def all_are_answered(self, said: Callable[[], str]) -> None:
        """Wait until each job is called back, and assert one result and one event for each."""
        self.are_called_back(self.ids, said)
        self._product.assert_each_is_answered_once_and_called_back(self.ids)
