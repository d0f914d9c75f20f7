"""The online services' common part: one path for generation, and texts that concern the operator's account."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.base import GenerationRequest
from workers.engines.openai_http.engine import HttpEngine
from workers.engines.openai_http.server import Api, ModelServer
from workers.engines.openai_http.settings import RemoteSettings as OnlineSettings

__all__ = ["OnlineApi", "OnlineSettings", "online_engine"]


class OnlineApi(Api):
    """A service that answers questions only, at one path."""

    generation_path: str
    account_texts: ClassVar[Sequence[str]] = (
        *("api key", "credit balance", "api usage limits", "billing", "user location"),
        "organization must be verified",
    )

    def paths(self, request: GenerationRequest) -> Sequence[str]:
        """Return the one path."""
        return (self.generation_path,)


def online_engine(
    name: str, model: str, settings: OnlineSettings, api: OnlineApi, metrics: Metrics, clock: Clock
) -> HttpEngine:
    """Make the engine of a worker; see `EngineModule`."""
    return HttpEngine(name, model, settings, ModelServer(name, model, settings, api, clock), metrics)
