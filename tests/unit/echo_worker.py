"""A worker's handler with the echo engine and a real enricher, record by record, without Kafka."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from schemas.codec import read_result
from schemas.result import Result
from schemas.trust import TrustSecrets
from telemetry.metrics import Metrics
from tests.handlers import CLOCK, TOPICS, inference_handler
from tests.messages import in_text
from tests.readers_here import readers_here
from workers.egress import EgressPolicy, Guard
from workers.engines.base import Completion, GenerationRequest
from workers.engines.echo import EchoEngine, EchoSettings
from workers.enrichment.enrich import Enricher
from workers.enrichment.settings import EnrichmentSettings
from workers.inference.settings import WorkerSettings
from workers.stage.record import Output, Record

if TYPE_CHECKING:
    from workers.screening.screen import Screen

TOPIC_ID = "topic-uuid"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HOOK = "https://example.com/hook?token=secret"


def record(
    body: dict[str, Any] | bytes | None = None, *headers: tuple[str, bytes], offset: int = 7, **fields: Any
) -> Record:
    """A job's record of `model_requests`; `fields` are added to a plain job."""
    job = body if body is not None else {"prompt": "What is the capital of France?", "callback_url": HOOK, **fields}
    value = job if isinstance(job, bytes) else json.dumps(job).encode()
    return Record(TOPICS.requests(), 3, offset, value, b"key", list(headers), int(CLOCK.time() * 1000))


PATIENT = EnrichmentSettings(budget_seconds=120, member_seconds=60)
"""Settings with long timeouts, since a reader's process takes seconds to start on a busy machine."""


class Worker:
    """A worker's handler and its parts."""

    def __init__(
        self,
        settings: WorkerSettings,
        models: dict[str, str | None],
        callbacks: EgressPolicy,
        trust: TrustSecrets | None,
        screen: Screen | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.engine = EchoEngine(EchoSettings(), self.metrics)
        self.enricher = Enricher(PATIENT, Guard(EgressPolicy()), CLOCK, self.metrics)
        self.handler = inference_handler(
            self.engine,
            self.enricher,
            self.metrics,
            settings=settings,
            lanes=models,
            callbacks=callbacks,
            topic_id=TOPIC_ID,
            trust=trust,
            screen=screen,
        )

    def answers_by(self, answer: Callable[[GenerationRequest], Completion]) -> None:
        """Let the engine give the answers of this function."""

        async def generate(request: GenerationRequest) -> Completion:
            return answer(request)

        self.engine.generate = generate  # type: ignore[method-assign] # until the worker ends

    async def outputs(self, given: Record) -> Sequence[Output]:
        return await self.handler.handle(given)

    async def result(self, given: Record) -> Result:
        """The result of a record whose only output is that result."""
        [output] = await self.outputs(given)
        assert (output.topic, output.partition) == (TOPICS.results, None)
        result = read_result(output.value)
        assert output.key == result.job_id.encode()
        return result

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def assessed(worker: Worker, given: Record) -> Record:
    """The record as a stage holds it once it is queued."""
    worker.handler.sharing.assess(given)
    return given


@asynccontextmanager
async def working(
    models: dict[str, str | None] | None = None,
    callbacks: EgressPolicy | None = None,
    trust: TrustSecrets | None = None,
    screen: Screen | None = None,
    **settings: Any,
) -> AsyncIterator[Worker]:
    worker = Worker(
        WorkerSettings(**{"model_wait_seconds": 0, **settings}),
        models or {},
        callbacks or EgressPolicy(),
        trust,
        screen,
    )
    await worker.engine.start()
    await worker.enricher.start()
    try:
        with readers_here():
            yield worker
    finally:
        await worker.enricher.close()
        await worker.engine.close()


def headers_of(output: Output) -> dict[str, str]:
    return in_text(output.headers)
