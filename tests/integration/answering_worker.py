"""Answers jobs one by one without Kafka and readers' processes: a worker's handler with a real enricher and engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

from schemas.codec import read_result
from schemas.result import Result
from telemetry.metrics import Metrics
from tests.handlers import TOPICS, inference_handler
from tests.integration.raw_server import CLOCK, LOOPBACK, PATIENT
from tests.readers_here import readers_here
from workers.egress import Guard
from workers.engines.base import Engine
from workers.engines.echo import EchoEngine, EchoSettings
from workers.enrichment.answering.profile import Profiles
from workers.enrichment.enrich import Enricher
from workers.enrichment.settings import CacheSettings, EnrichmentSettings
from workers.stage.record import Output, Record


class AnsweringWorker:
    """An asynchronous context manager of a worker. The caller starts and closes an engine that it passes in.

    If `confined`, readers are processes with their limits, which hostile pages need.
    """

    def __init__(
        self,
        cache: CacheSettings | None = None,
        engine: Engine | None = None,
        enrichment: EnrichmentSettings = PATIENT,
        *,
        confined: bool = False,
    ) -> None:
        self.metrics = Metrics()
        profiles = Profiles.load(enrichment.profiles_folder)
        self._enricher = Enricher(enrichment, Guard(LOOPBACK), CLOCK, self.metrics, profiles=profiles, cache=cache)
        engine = engine or EchoEngine(EchoSettings(), self.metrics)
        self._handler = inference_handler(engine, self._enricher, self.metrics, topic_id="uuid")
        self.engine_watch = self._handler.engine_watch
        self._offset = 0
        self._confined = confined
        self._reading = ExitStack()

    async def __aenter__(self) -> Self:
        if not self._confined:
            self._reading.enter_context(readers_here())
        await self._enricher.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._enricher.close()
        self._reading.close()

    async def answer(self, question: str, *urls: str, profile: str = "default", **fields: Any) -> Result:
        """The one result of a job with these sources; `fields` are the job's other fields."""
        return read_result((await self.settled(question, *urls, profile=profile, **fields))[0].value)

    async def settled(self, question: str, *urls: str, profile: str = "default", **fields: Any) -> Sequence[Output]:
        """The result of a job with these sources, and its dead letter if it has one."""
        self._offset += 1
        job = {"prompt": question, "max_tokens": 4000, "sources": {"urls": list(urls), "profile": profile}, **fields}
        stamp = int(CLOCK.time() * 1000)
        record = Record(TOPICS.requests(), 0, self._offset, json.dumps(job).encode(), b"key", [], stamp)
        return await self._handler.handle(record)

    def tokens(self, kind: str) -> float:
        return self.metrics.registry.get_sample_value("postback_tokens_total", {"kind": kind}) or 0.0

    def cache_lookups(self, level: str, result: str) -> float:
        labels = {"level": level, "result": result}
        return self.metrics.registry.get_sample_value("postback_cache_lookups_total", labels) or 0.0
