"""Loads a worker's engine without Kafka, lets each of its models answer once, and ends it."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

from telemetry.clock import Clock, SystemClock
from telemetry.metrics import Metrics
from workers.engines.base import Engine, EngineError, EngineFailed, EngineUnavailable, RequestRejected, first_requests
from workers.engines.models.registry_engine import RegistryEngine
from workers.roles.model_registry import engine_of

_PROMPT = "Answer with the word yes."
_MAX_TOKENS = 16
"""The smallest limit on output tokens that OpenAI's Responses API accepts."""


async def check_engine(name: str | None, model: str | None, tell: Callable[[str], None]) -> None:
    """Load the engine and ask each model once. `tell` is called with one line for the load and one for each answer.

    Raises RegistryRefused, SettingsRefused, and the EngineError of an engine that does not load or does not answer.
    """
    clock = SystemClock()
    engine = engine_of(name, model, clock, Metrics())
    try:
        began = clock.monotonic()
        await engine.start()
        tell(f"{engine.name}: loaded in {clock.monotonic() - began:.1f} s")
        for asked in _models(engine):
            tell(await _answered(engine, asked, clock))
    finally:
        await engine.close()


def _models(engine: Engine) -> list[str | None]:
    """Return each model once, without its aliases. None stands for the model of an engine without a registry."""
    if isinstance(engine, RegistryEngine):
        return [name for name in engine.registry.models if name in engine.models]
    return [None]


async def _answered(engine: Engine, model: str | None, clock: Clock) -> str:
    """Ask a model, and return a line about its answer. Raises EngineError.

    A model that does not generate text gets a text to embed, score or classify.
    """
    name = model or next(iter(engine.models), engine.name)
    refusals: list[EngineError] = []
    for request in first_requests(uuid4().hex, _PROMPT, _MAX_TOKENS, model_id=model):
        began = clock.monotonic()
        try:
            completion = await engine.generate(request)
        except EngineFailed:
            raise
        except (RequestRejected, EngineUnavailable) as refused:
            refusals.append(refused)
            continue
        if completion.finish_reason not in ("stop", "length"):
            raise EngineFailed(f"{name} gave no answer; the engine's finish reason is {completion.finish_reason}")
        kind = request.pooling.kind.answer if request.pooling is not None else None
        said = f"gave {kind}" if kind is not None else f"answered {completion.completion_tokens} tokens"
        return f"{name}: {said} in {clock.monotonic() - began:.2f} s"
    raise refusals[0]
