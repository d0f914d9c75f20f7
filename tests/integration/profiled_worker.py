"""A worker's handler with search services and profiles; all is real, except Kafka and the readers' processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from schemas.codec import read_result
from schemas.control import ControlState, JobControl, job_key_bytes, write_control
from schemas.job import DEFAULT_TENANT
from schemas.result import Result
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from tests.handlers import CLOCK, TOPICS, inference_handler
from tests.readers_here import readers_here
from workers.egress import EgressPolicy, Guard
from workers.engines.base import Engine
from workers.engines.echo import EchoEngine, EchoSettings
from workers.enrichment.answering.judging import Judge, Verdict
from workers.enrichment.answering.profile import Profiles
from workers.enrichment.enrich import Enricher
from workers.enrichment.search.base import SearchProvider
from workers.enrichment.search.providers import providers
from workers.enrichment.search.service import Web
from workers.enrichment.settings import EnrichmentSettings, SearchSettings
from workers.inference.handler import InferenceHandler
from workers.stage.record import Record

LOOPBACK = EgressPolicy(allow=(ip_network("127.0.0.0/8"),))


class _Agrees:
    """A judge that supports each sentence that the rules leave open."""

    async def judge(self, sentence: str, premises: Sequence[str]) -> Verdict:
        return Verdict.SUPPORTED


AGREES = _Agrees()


class Worker:
    """A real handler, without Kafka."""

    def __init__(self, handler: InferenceHandler, metrics: Metrics) -> None:
        self._handler = handler
        self._metrics = metrics
        self.spent: float | None = None
        """The tokens of the last job that count towards its tenant's share."""

    async def result(
        self,
        sources: dict[str, Any],
        prompt: str | None = "Does aspirin lower the risk of stroke?",
        tenant: str = DEFAULT_TENANT,
        **more: Any,
    ) -> Result:
        job = json.dumps({"prompt": prompt, "sources": sources, **more}).encode()
        headers = [("tenant", tenant.encode())]
        record = Record(TOPICS.requests(), 0, 0, job, None, headers, int(CLOCK.time() * 1000))
        outputs = await self._handler.handle(record)
        self.spent = record.spent
        return read_result(outputs[0].value)

    def cancel(self, *jobs: str) -> None:
        """Cancel jobs, as records of `job_control` would."""
        for job in jobs:
            said = JobControl(
                tenant=DEFAULT_TENANT, job_id=job, state=ControlState.CANCELLED, at=int(CLOCK.time() * 1000)
            )
            self._handler.cancellations.apply(job_key_bytes(said.key), write_control(said))

    def tokens(self, kind: str) -> float | None:
        return self._metrics.registry.get_sample_value("postback_tokens_total", {"kind": kind})

    async def read(self, sources: int) -> None:
        """Wait until the jobs so far have read this many sources."""
        while self._metrics.registry.get_sample_value("postback_fetches_total", {"result": "read"}) != sources:
            await asyncio.sleep(0.01)

    def searches(self, result: str) -> float | None:
        return self._metrics.registry.get_sample_value("postback_searches_total", {"result": result})


@asynccontextmanager
async def working(
    engine: Engine | None = None,
    *,
    guard: EgressPolicy = LOOPBACK,
    folder: Path | None = None,
    budget: float = 120.0,
    per_second: float = 1000.0,
    fresh: float = 600.0,
    others: Mapping[str, SearchProvider] | None = None,
    inside: Path | None = None,
    entailment: str | None = None,
    seconds: float = 2.0,
    judge: Judge | None = AGREES,
    clock: Clock = CLOCK,
    **sections: str,
) -> AsyncIterator[Worker]:
    """A worker whose search providers are at these base URLs, and the operator's own sources in this folder.

    `clock` times searches and pages; jobs expire by the machine's clock.
    """
    metrics, connections = Metrics(), Web("Postback-tests/1", clock)
    search = {name: {"base_url": url, "per_second": per_second} for name, url in sections.items()}
    found = {**providers(SearchSettings.model_validate({**search, "providers": inside}), connections), **(others or {})}
    settings = EnrichmentSettings(
        robots=False,
        budget_seconds=budget,
        member_seconds=60.0,
        search_fresh_seconds=fresh,
        entailment=entailment,
        entailment_seconds=seconds,
    )
    enricher = Enricher(settings, Guard(guard), clock, metrics, found, Profiles.load(folder, found))
    enricher.judge = judge
    used = engine or EchoEngine(EchoSettings(), metrics)
    handler = inference_handler(used, enricher, metrics)
    with readers_here():
        await connections.start()
        await enricher.start()
        await used.start()
        try:
            yield Worker(handler, metrics)
        finally:
            await used.close()
            await enricher.close()
            await connections.close()
