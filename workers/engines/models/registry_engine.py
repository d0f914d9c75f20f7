"""The engine of a worker with a registry: it passes each request to the model that the request names."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.address import AddressEngine
from workers.engines.base import (
    Completion,
    Engine,
    EngineAway,
    EngineError,
    EngineLoad,
    EngineRefused,
    GenerationRequest,
)
from workers.engines.models.registry_file import ModelRegistry, RegistryModel
from workers.engines.models.served_model import ServedModel
from workers.engines.registry import create_of

SUM_SECONDS = 0.5
"""Pause between two sums of the loads of models without requests: a server may start or learn a limit meanwhile."""


class RegistryEngine(Engine):
    """The engine of the models of one lane. Raises ValueError if the lane has no model."""

    def __init__(self, registry: ModelRegistry, lane: str | None, clock: Clock, metrics: Metrics) -> None:
        self._lane = lane
        self._served = {
            name: ServedModel(model, _engines(model, clock, metrics), clock, metrics)
            for name, model in registry.of_lane(lane).items()
        }
        if not self._served:
            raise ValueError(f"the registry has no model of lane {lane or 'shared'}")
        kinds = {model.model.engine.kind for model in self._served.values()}
        self.name = next(iter(kinds)) if len(kinds) == 1 else "several"
        self._use(registry)
        self._asked: Counter[ServedModel] = Counter()
        """The number of requests of each model that has requests now."""
        self._clock = clock
        self._used: frozenset[ServedModel] = frozenset()
        """The models that got a request lately. Only the event loop changes the set, and other threads read it."""
        self._used_since = -math.inf
        self._rest: tuple[frozenset[ServedModel], float, EngineLoad] = (self._used, -math.inf, EngineLoad(0, 0, 0))
        """The load of the models that are not in this set, and the time of this sum."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of all models' LoRA adapters."""
        return tuple(dict.fromkeys(name for served in self._served.values() for name in served.adapters))

    @property
    def context_tokens(self) -> int | None:
        """The smallest window of the models, so that a job with sources fits into each of them."""
        windows = [served.context_tokens for served in self._served.values()]
        return min((tokens for tokens in windows if tokens is not None), default=None)

    def takes_images(self, model_id: str | None) -> bool:
        """True if the model that answers a request of this name reads images."""
        return self._model(model_id).takes_images

    async def change(self, registry: ModelRegistry) -> None:
        """Apply a changed file as a whole or not at all.

        Aliases, defaults, prices, limits, escalations, weights and adapters may change. New weights wait until the
        engine's running requests have ended. Raises EngineRefused if only a restarted worker can use the file, and
        EngineAway if the file has to be tried again later.
        """
        models = registry.of_lane(self._lane)
        if {*models} != {*self._served}:
            raise EngineRefused("the file has other models")
        if {*registry.lanes().values()} - {*self.registry.lanes().values()}:
            raise EngineRefused("the file has a new lane")
        changed = {name: model for name, model in models.items() if not _same_engine(model, self._served[name].model)}
        # Ask all engines before changing one, because the file is applied as a whole or not at all. The change itself
        # concerns one engine, because only vLLM can change and a worker has at most one vLLM model.
        for name, model in models.items():
            with _naming(name):
                if name in changed:
                    self._served[name].require_change(model)
                else:
                    self._served[name].require_adapter(model)
        for name, model in changed.items():
            with _naming(name):
                await self._served[name].change_model(model)
        for name, model in models.items():
            self._served[name].change(model)
        self._served = {name: self._served[name] for name in models}
        self._use(registry)

    async def start(self) -> None:
        """Start all models at once. Raises EngineError if a model cannot start."""
        ended = await asyncio.gather(*(served.start() for served in self._served.values()), return_exceptions=True)
        error = next((each for each in ended if each is not None), None)
        if error is not None:
            await self.close()
            raise error

    async def generate(self, request: GenerationRequest) -> Completion:
        """Answer one request with the model that it names, else with the default model. Raises EngineError."""
        served = self._model(request.model_id)
        self._asked[served] += 1
        if served not in self._used:
            now = self._clock.monotonic()
            if now - self._used_since >= SUM_SECONDS:
                self._used, self._used_since = frozenset(self._asked), now
            self._used |= {served}
        try:
            return await served.generate(request)
        finally:
            self._asked[served] -= 1
            if not self._asked[served]:
                del self._asked[served]

    def load(self) -> EngineLoad:
        """Return the running requests of all models together, and the shortest queue among the busy models.

        The shortest queue is returned so that the worker takes jobs for a fast model while requests wait for a slow
        one. Models without requests are counted once in SUM_SECONDS, because the stage asks hundreds of times a second.
        """
        now, used = self._clock.monotonic(), self._used
        others, summed_at, rest = self._rest
        if others is not used or now - summed_at >= SUM_SECONDS:
            rest = _together([each.load() for each in self._served.values() if each not in used])
            self._rest = used, now, rest
        return _together([rest, *(each.load() for each in used)])

    async def close(self) -> None:
        """End all engines."""
        for served in self._served.values():
            await served.close()

    def _model(self, model_id: str | None) -> ServedModel:
        """Return the model of this name, else the default one."""
        served = self._names.get(model_id) if model_id is not None else None
        return served or next(iter(self._served.values()))

    def _use(self, registry: ModelRegistry) -> None:
        """Route requests by this registry's names. The first name is that of the default model."""
        self.registry = registry
        self._names = {name: served for served in self._served.values() for name in served.model.names}
        self.models = tuple(self._names)


def _together(loads: Sequence[EngineLoad]) -> EngineLoad:
    busy = [load.waiting for load in loads if load.running or load.waiting]
    running, free = sum(load.running for load in loads), sum(load.free for load in loads)
    away = next((load.away for load in loads if load.away is not None), None)
    return EngineLoad(running, min(busy, default=0), free, away)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn an engine's error at new settings into EngineRefused or EngineAway with the model's name."""
    try:
        yield
    except EngineAway as away:
        raise EngineAway(f"{name}: {away}") from None
    except EngineError as error:
        raise EngineRefused(f"the engine's settings of {name} have changed ({error})") from None


def _engines(model: RegistryModel, clock: Clock, metrics: Metrics) -> list[AddressEngine]:
    return [create_of(model.engine.kind, section, metrics, clock) for section in model.sections]


def _same_engine(one: RegistryModel, other: RegistryModel) -> bool:
    def engine(model: RegistryModel) -> tuple[Any, ...]:
        return model.engine.kind, model.engine.addresses, model.sections

    return engine(one) == engine(other)
