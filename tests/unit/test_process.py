"""The order in which the stages of one process end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from confluent_kafka import KafkaError

from schemas.settings import KafkaSettings
from workers.process import AccessRefused, BrokerAway, ProcessError, run_stages, unanswered


class Broken:
    """A stage whose Kafka thread ends at once."""

    async def run(self) -> None:
        raise ValueError("broken")

    def stop(self) -> None:
        pass


class Draining:
    """A stage that drains for a while once it is stopped."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self.drained = False

    async def run(self) -> None:
        await self._stopping.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        self.drained = True

    def stop(self) -> None:
        self._stopping.set()


async def test_when_one_stage_dies_the_others_are_drained_before_its_error_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.process.collect_garbage_seldom", lambda: None)  # it is the test process's too
    broken: Any = Broken()
    other: Any = Draining()
    with pytest.raises(ValueError, match="broken"):
        await run_stages([broken, other])
    assert other.drained


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, AccessRefused, r"refuses access to the topic jobs.*ACLs"),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, AccessRefused, r"refuses access to the topic jobs.*ACLs"),
        (KafkaError._TIMED_OUT, BrokerAway, r"Kafka at host:1 does not answer \(_TIMED_OUT\)"),
    ],
)
def test_a_broker_that_refuses_is_told_from_one_that_is_away(code: int, kind: type[ProcessError], said: str) -> None:
    with pytest.raises(kind, match=said):
        raise unanswered(KafkaSettings(bootstrap_servers="host:1"), KafkaError(code), " to the topic jobs")
