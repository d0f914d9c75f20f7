"""One model of the registry, behind one address or several: its rate limits and its prices."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from schemas.affinity import place_of
from schemas.images import IMAGE_TOKENS
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.engines.address import AddressEngine
from workers.engines.base import (
    Completion,
    EngineFailed,
    EngineLoad,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
    RequestRejected,
    ServedBy,
)
from workers.engines.body import parts_of, text_of
from workers.engines.models.entries import RateLimits
from workers.engines.models.registry_file import RegistryModel

_CHARS_PER_TOKEN = 4
"""A rough estimate, with which the rate limits count a request's tokens until the answer reports the real number."""
_START_AGAIN_SECONDS = 5.0

log = get_logger()


class ServedModel:
    """Answers requests for one model.

    Requests with the same prompt prefix go to one address, so that this address's cache has the prefix. If this address
    has many more requests per place than the others, the request goes to another address. A request without a shared
    prefix goes to the address with the fewest requests per place.
    """

    def __init__(self, model: RegistryModel, engines: Sequence[AddressEngine], clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        metrics.model_circuits.labels(model.name).set(0)
        self._requests = metrics.model_requests.begin(model.name)
        if model.entry.cost is not None:
            metrics.model_cost.labels(model.name, model.entry.cost.currency)  # makes the counter appear with 0
        names = model.engine.addresses or (model.engine.name,)
        self._addresses = dict(zip(engines, names, strict=True))
        """Maps each address's engine to the address."""
        self._up: list[AddressEngine] = []
        """The engines that have started."""
        for engine in engines:
            engine.changed = partial(self._tell, engine)
        self._starting: set[asyncio.Task[None]] = set()
        self._waiting = 0
        """The number of requests that wait for their turn."""
        self.model = model
        self._gate = RateGate(model.entry.limits, clock)

    def change(self, model: RegistryModel) -> None:
        """Use the limits and prices of a changed file. The engine's own settings must be unchanged."""
        if model.entry.limits != self.model.entry.limits:
            self._gate = RateGate(model.entry.limits, self._clock)
        for engine in self._addresses:
            engine.family = model.family
        self.model = model

    def require_change(self, model: RegistryModel) -> AddressEngine:
        """Return the engine if it can take the model of a changed file while it runs. Raises EngineRefused."""
        engine, *others = self._addresses
        if others or model.engine.kind != self.model.engine.kind or not engine.changes_model:
            raise EngineRefused("this engine takes new settings only at its start")
        return engine

    async def change_model(self, model: RegistryModel) -> None:
        """Give the engine the model of a changed file without a restart. Raises EngineError."""
        await self.require_change(model).change_model(model.sections[0])
        self.change(model)

    @property
    def context_tokens(self) -> int | None:
        """The smallest window of the addresses; None if no window is known."""
        windows = [engine.context_tokens for engine in self._addresses]
        return min((tokens for tokens in windows if tokens is not None), default=None)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the model's LoRA adapters."""
        return next(iter(self._addresses)).adapters

    def require_adapter(self, model: RegistryModel) -> None:
        """Raise EngineRefused if the engine cannot use the model's default adapter.

        Otherwise, all jobs for the default adapter would be rejected.
        """
        adapter = model.entry.adapter
        if adapter is not None and adapter not in self.adapters:
            raise EngineRefused(
                f"the model {model.name} cannot use its default adapter {adapter}; the log says why it was not loaded"
            )

    @property
    def takes_images(self) -> bool:
        """True if the model reads images."""
        return next(iter(self._addresses)).takes_images(None)

    async def start(self) -> None:
        """Start all addresses' engines, and return when one address can answer. Other addresses join later.

        Raises EngineError if no address can answer, or the model's default adapter cannot be used.
        """
        self._starting = {asyncio.create_task(self._bring_up(engine)) for engine in self._addresses}
        try:
            while not self._up:
                done, self._starting = await asyncio.wait(self._starting, return_when=asyncio.FIRST_COMPLETED)
                failures = [error for task in done if (error := task.exception()) is not None]
                refused = [error for error in failures if isinstance(error, EngineRefused)]
                if refused or (failures and not self._starting):
                    raise (refused or failures)[0]
            self.require_adapter(self.model)
        except BaseException:
            await self._stop_starting()
            raise
        for task in self._starting:
            task.add_done_callback(_report)

    async def _bring_up(self, engine: AddressEngine) -> None:
        """Start an address's engine. If another address already answers, try again without a time limit."""
        while True:
            try:
                await engine.start()
            except EngineUnavailable as away:
                if not self._up:
                    raise
                log.info("An engine's server does not answer yet; trying again.", action="engine-wait", error=str(away))
                await asyncio.sleep(_START_AGAIN_SECONDS)
            else:
                self._up.append(engine)
                return

    async def generate(self, request: GenerationRequest) -> Completion:
        """Wait for the request's turn by the rate limits, and then answer the request. Raises EngineError.

        A request without an adapter gets the model's default adapter.
        """
        if request.adapter is None and self.model.entry.adapter is not None:
            request = replace(request, adapter=self.model.entry.adapter)
        tokens = _estimate(request)
        if not await self._turn(request, tokens):
            self._gate.settle(tokens, 0)
            return Completion("", "abort", 0, 0)
        used = 0
        try:
            completion = await self._answered(request)
            used = completion.prompt_tokens + completion.completion_tokens
        finally:
            self._gate.settle(tokens, used or tokens)
        return self._priced(completion)

    def load(self) -> EngineLoad:
        """Return the sum of the addresses' loads; a request that waits for its turn counts as waiting."""
        loads = [engine.load() for engine in self._addresses]
        waiting = self._waiting + sum(load.waiting for load in loads)
        free = 0 if self._waiting else sum(load.free for load in loads)
        away = next((load.away for load in loads if load.away is not None), None)
        return EngineLoad(sum(load.running for load in loads), waiting, free, away)

    async def close(self) -> None:
        """End the engines of all addresses."""
        await self._stop_starting()
        for engine in self._addresses:
            await engine.close()

    # -- one request ---------------------------------------------------------------------------------------------

    async def _turn(self, request: GenerationRequest, tokens: int) -> bool:
        """Wait for the request's turn. Return False if the request is aborted during the wait."""
        seconds = self._gate.reserve(tokens)
        if not seconds:
            return True
        aborted = asyncio.Event()
        request.abort.stop = aborted.set
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await aborted.wait()
        except TimeoutError:
            return True
        except asyncio.CancelledError:
            self._gate.settle(tokens, 0)
            raise
        finally:
            self._waiting -= 1
        return False

    async def _answered(self, request: GenerationRequest) -> Completion:
        """Ask one address after the other until one answers. Raises EngineError."""
        away = EngineUnavailable(f"no address of model {self.model.name} has started yet")
        left = [*self._up]
        while left:
            # an address that is known to be away refuses at once, with the reason, and is asked last
            working = [each for each in left if not each.is_away] or left
            names = [self._addresses[each] for each in working]
            engine = working[place_of(request.prefix_key, names, _loads(working))]
            left.remove(engine)
            try:
                return await self._ask(engine, request)
            except EngineFailed:
                raise
            except EngineUnavailable as error:
                away = error
        raise away

    async def _ask(self, engine: AddressEngine, request: GenerationRequest) -> Completion:
        """Ask one address. Raises EngineError."""
        try:
            completion = await engine.generate(request)
        except (RequestRejected, PromptTooLong):
            self._requests["refused"].inc()
            raise
        except EngineUnavailable:
            self._requests["failed"].inc()
            raise
        if completion.finish_reason != "abort":
            self._requests["answered"].inc()
        return completion

    def _tell(self, engine: AddressEngine) -> None:
        """Log and count an address that is away, or answers again."""
        self._metrics.model_circuits.labels(self.model.name).set(sum(each.is_away for each in self._addresses))
        common = {"model": self.model.name, "address": self._addresses[engine]}
        if engine.is_away:
            log.warning(
                "An address failed repeatedly; sending no request to it until it answers a small one.",
                action="circuit-open",
                **common,
            )
        else:
            log.info("An address answers again; sending requests to it again.", action="circuit-closed", **common)

    def _priced(self, completion: Completion) -> Completion:
        cost = self.model.entry.cost
        price = cost.of(completion.prompt_tokens, completion.completion_tokens) if cost is not None else None
        if cost is not None and price is not None:
            self._metrics.model_cost.labels(self.model.name, cost.currency).inc(price)
        currency = cost.currency if cost is not None else None
        served = ServedBy(self.model.name, self.model.engine.kind, price, currency)
        return replace(completion, served_by=served)

    async def _stop_starting(self) -> None:
        tasks, self._starting = self._starting, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _loads(engines: Sequence[AddressEngine]) -> list[float]:
    """Return the requests of each address, scaled as if all addresses had the same number of places.

    Without the scaling, a server with few places would get as many requests as one with many.
    """
    loads = [engine.load() for engine in engines]
    places = [max(1, load.running + load.free) for load in loads]
    mean = sum(places) / len(places)
    return [(load.running + load.waiting) * mean / number for load, number in zip(loads, places, strict=True)]


def _estimate(request: GenerationRequest) -> int:
    if request.pooling is not None:
        return request.pooling.chars // _CHARS_PER_TOKEN
    chars: int = len(request.body.get("prompt", "")) + sum(len(text_of(message)) for message in request.messages)
    images = sum(part["type"] == "image_url" for message in request.messages for part in parts_of(message))
    tokens: int = chars // _CHARS_PER_TOKEN + images * IMAGE_TOKENS + request.n * request.max_tokens
    return tokens


def _report(task: asyncio.Task[None]) -> None:
    """Log an address that refuses the worker while another address answers."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error(
            "An address refused the worker; going on with the model's other addresses.",
            action="engine-address-refused",
            error=str(error),
        )


# -- Rate limits of one model: requests wait for their turn in the worker instead of being refused by a s --
_REQUEST_BURST_SECONDS = 1.0
_TOKEN_BURST_SECONDS = 6.0
"""After a pause, requests may at once use as much as the limit allows for this many seconds."""


class RateLimit:
    """One limit, by the generic cell rate algorithm (ITU-T I.371): a request's cost delays the next request's turn."""

    def __init__(self, per_second: float, burst_seconds: float, clock: Clock) -> None:
        self._per_second = per_second
        self._burst_seconds = burst_seconds
        self._clock = clock
        self._next_at = clock.monotonic() - burst_seconds

    def reserve(self, cost: float) -> float:
        """Take a turn, and return the seconds until the turn. Turns come in the order of the calls."""
        now = self._clock.monotonic()
        at = max(self._next_at, now - self._burst_seconds)
        self._next_at = at + cost / self._per_second
        return max(0.0, at - now)

    def settle(self, difference: float) -> None:
        """Correct the cost of an earlier turn by the `difference` of the turn's real and reserved cost."""
        self._next_at += difference / self._per_second


class RateGate:
    """The limits of one model; a missing limit lets every request pass."""

    def __init__(self, limits: RateLimits, clock: Clock) -> None:
        requests, tokens = limits.requests_per_second, limits.tokens_per_minute
        self._requests = RateLimit(requests, _REQUEST_BURST_SECONDS, clock) if requests else None
        self._tokens = RateLimit(tokens / 60, _TOKEN_BURST_SECONDS, clock) if tokens else None

    def reserve(self, tokens: int) -> float:
        """Take a turn for a request of about this many tokens, and return the seconds until the turn."""
        by_requests = self._requests.reserve(1) if self._requests is not None else 0.0
        by_tokens = self._tokens.reserve(tokens) if self._tokens is not None else 0.0
        return max(by_requests, by_tokens)

    def settle(self, reserved: int, used: int) -> None:
        """Replace a turn's `reserved` tokens by the `used` ones; `used` is 0 if the request was never sent."""
        if self._tokens is not None:
            self._tokens.settle(used - reserved)
