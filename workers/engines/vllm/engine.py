"""vLLM's `AsyncLLM` in this process; its engine core and workers are separate processes.

The engine imports vLLM only when it starts, since the import takes half a minute and much memory. A program that starts
this engine needs a main guard, since vLLM spawns processes. When the engine's processes die, every request in flight
raises EngineDied, and the engine is loaded again; new requests wait for the load. After a few failed loads all requests
raise EngineLost. The processes of a hung engine are killed, and the engine is loaded again likewise.

Facts about vLLM 0.32 that shape this module: `abort()` raises nothing, and the generation ends with `finish_reason`
abort. `max_tokens` defaults to 16.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.engines.address import AddressEngine
from workers.engines.base import (
    Completion,
    EngineError,
    EngineLoad,
    EngineLost,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    require_question,
)
from workers.engines.places import Places
from workers.engines.settings import EngineSection
from workers.engines.vllm.adapters import Adapters
from workers.engines.vllm.answers import answer_teller, as_engine_errors, completion_of, grammar_is_first
from workers.engines.vllm.arguments import engine_arguments, forget_inspections, prepare_environment
from workers.engines.vllm.chat import Chats, VllmChat, call_parser
from workers.engines.vllm.decoding import Decoding
from workers.engines.vllm.figures import counted_llm
from workers.engines.vllm.guardian import Guardian
from workers.engines.vllm.loading import LOOKS, WARM_UP_SECONDS, load_again, refused, silence, warm
from workers.engines.vllm.pooling import PoolingModel
from workers.engines.vllm.process_log import ProcessLog, shutdown_unlogged
from workers.engines.vllm.settings import VllmSettings
from workers.engines.vllm.thinking import Thinking, require_reasoning
from workers.engines.vllm.weights import change

SHUTDOWN_SECONDS = 2.0
"""Seconds for vLLM's processes to end by themselves. After that, a SIGKILL ends them and frees their memory too."""

log = get_logger()


class VllmEngine(AddressEngine):
    """The engine of one model that vLLM runs. It reads texts alone."""

    name = "vllm"
    changes_model = True

    def __init__(self, settings: VllmSettings, metrics: Metrics, guardian: Guardian | None = None) -> None:
        super().__init__()
        self._model = str(settings.model)
        self.models = settings.names
        self._settings = settings
        self._metrics = metrics
        self._guardian = guardian or Guardian()
        self._process_log = ProcessLog()
        self._llm: Any = None
        self._chats: Any = None
        self._decoding: Any = None
        self._pooling: PoolingModel | None = None
        """Set for a pooling model, which generates no text."""
        self._thinking: Thinking | None = None
        self._call_parser: Any = None
        self._defaults: Mapping[str, Any] = {}
        self._context_tokens = settings.context_tokens
        self._places = Places(settings.max_concurrency)
        self._loading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._answers = 0
        """The number of answers that all requests in flight ask for together. Each answer needs a place."""
        self._closing = asyncio.Event()
        self._is_started = False
        self._lost: str | None = None
        self._adapters = Adapters(settings.adapters)
        # Use one thread only, since two threads must not use a tokenizer at once.
        self._rendering = ThreadPoolExecutor(1, "render")
        # This lock is held while vLLM loads new weights, because vLLM answers no health call then.
        self._asking_health = asyncio.Lock()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the LoRA adapters that jobs may use now."""
        return self._adapters.names

    @property
    def context_tokens(self) -> int | None:
        """The `max_model_len` that vLLM chose when it last loaded the model."""
        return self._context_tokens

    async def start(self) -> None:
        """Import vLLM and load the model, which takes seconds to minutes.

        On failure, close the engine and raise EngineError.
        """
        self._guardian.start()
        self._process_log.start(self._guardian.folder)
        try:
            await asyncio.shield(self._begin_loading())  # the loading thread cannot be cancelled; `close` makes it fail
        except EngineError:
            await self.close()
            raise
        except Exception as error:
            await self.close()
            raise refused(self._model, error) from error
        except BaseException:
            await self.close()
            raise
        pause = self._settings.hung_seconds / LOOKS
        look = partial(self._look, self._settings.hung_seconds - pause)
        self._watching = asyncio.create_task(self.watch(pause, look), name="vllm-watch")

    async def complete(self, request: GenerationRequest) -> Completion:
        """Answer one request. Raises EngineError. Cancelling the call aborts the request."""
        aborted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request.abort.stop = partial(self._abort, request.request_id, aborted)
        self._answers += request.n
        try:
            llm = await self._ready(aborted)
            if llm is None:
                return Completion("", "abort", 0, 0)
            with self._adapters.in_use(request.adapter) as lora:
                return await self._answered(llm, request, lora, aborted)
        finally:
            request.abort.stop = None  # an abort that comes too late must not end another request of this id
            self._answers -= request.n

    def _abort(self, request_id: str, aborted: asyncio.Future[None]) -> None:
        """End a request's generation, or its wait for an engine that is loading."""
        if not aborted.done():
            aborted.set_result(None)
            if self._llm is not None:
                asyncio.ensure_future(self._llm.abort(request_id)).add_done_callback(_report)

    def load(self) -> EngineLoad:
        """Return how many answers vLLM generates and queues, by this engine's own count and vLLM's places."""
        places, count = self._places.number, self._answers
        running = min(count, places)
        return EngineLoad(running, waiting=count - running, free=places - running, away=self._away())

    async def change_model(self, section: EngineSection) -> None:
        """Give the engine other weights or adapters without a restart; see `AddressEngine`.

        If vLLM fails to load the weights, its processes are killed, and the former model is loaded again.
        """
        llm = self._llm if self._away() is None else None
        self._settings = await change(llm, self._settings, section, self._adapters, self._guardian, self._asking_health)
        self._model, self.models = str(self._settings.model), self._settings.names

    async def close(self) -> None:
        """End the engine's processes, even during a load. May be called twice."""
        await super().close()
        self._closing.set()
        self._adapters.close()
        if self._watching is not None:
            self._watching.cancel()
        while (loading := self._loading) is not None:
            await asyncio.to_thread(self._guardian.end_engine)
            await asyncio.wait({loading}, timeout=1.0)
        await asyncio.to_thread(self._discard)
        await asyncio.to_thread(self._process_log.close)
        await asyncio.to_thread(self._guardian.close)
        self._rendering.shutdown(wait=False)

    # -- health --------------------------------------------------------------------------------------------------

    def _away(self) -> str | None:
        """Return the reason why the engine generates nothing now; None if it works. Does no I/O.

        Other threads may call this while the event loop unloads the engine.
        """
        llm = self._llm
        if self._lost is not None:
            return self._lost
        if self._is_started and (self._loading is not None or llm is None or llm.errored):
            return "vLLM's process died or hung; loading the model again"
        return None

    async def _look(self, seconds: float) -> None:
        """Kill the engine if it answers no health call within `seconds`; load an engine that ended.

        No look bounds a load: `loading.py`, WARM_UP_SECONDS and vLLM itself do.
        """
        if (llm := self._llm) is None or self._loading is not None or self._lost is not None:
            return
        async with self._asking_health:
            silent = None if llm.errored else await silence(llm, seconds)
        if silent is not None:
            log.error(
                "The engine answers no health call; killing its processes.",
                action="engine-hung",
                bound_seconds=self._settings.hung_seconds,
                silent_seconds=round(silent, 1),
            )
            await asyncio.to_thread(self._guardian.end_engine)
        if llm.errored:
            self._begin_loading()

    # -- loading -------------------------------------------------------------------------------------------------

    async def _ready(self, aborted: asyncio.Future[None]) -> Any:
        """Return the loaded engine, after a load if necessary; None if the request is aborted before.

        Raises EngineError.
        """
        if self._llm is not None and not self._llm.errored:
            return self._llm
        if self._closing.is_set():
            raise EngineUnavailable("the engine is closed")
        if self._lost is not None:
            raise EngineLost(self._lost)
        loading = self._begin_loading()
        await asyncio.wait({loading, aborted}, return_when=asyncio.FIRST_COMPLETED)
        if aborted.done():
            return None
        error = None if loading.cancelled() else loading.exception()
        if isinstance(error, EngineLost):
            raise EngineLost(str(error))
        if error is not None or loading.cancelled():
            raise EngineUnavailable("the engine could not be loaded")
        return self._llm

    def _begin_loading(self) -> asyncio.Task[None]:
        """Start a load, or wait for the load in progress, because all requests need only one load."""
        if self._loading is None:
            load = self._load_again() if self._is_started else self._load()
            self._loading = asyncio.create_task(load, name="vllm-load")
            self._loading.add_done_callback(self._load_ended)
        return self._loading

    async def _load(self) -> None:
        await asyncio.to_thread(self._build)
        renderer, config = self._llm.renderer, self._llm.model_config
        self._chats = Chats(config, renderer, self._settings, self._rendering, self._call_parser)
        self._decoding = Decoding(renderer.get_tokenizer())
        self._defaults = await asyncio.to_thread(self._llm.model_config.get_diff_sampling_param)
        self._context_tokens = self._llm.model_config.max_model_len
        try:
            async with asyncio.timeout(WARM_UP_SECONDS):
                self._pooling = await PoolingModel.of(self._llm)
                await (self._pooling.warm() if self._pooling is not None else warm(self._llm))
                await self._adapters.add(self._llm)
        except TimeoutError:
            raise EngineRefused(f"vLLM gave no first token within {WARM_UP_SECONDS:.0f} s") from None
        self._is_started = True
        log.info("The engine is ready.", action="engine-ready", model=self._model)

    async def _load_again(self) -> None:
        log.error("The engine's process ended; loading the engine again.", action="engine-restart")
        self._metrics.engine_restarts.inc()
        await load_again(self._load_afresh, self._closing)

    async def _load_afresh(self) -> None:
        """Discard the dead or half-loaded engine first, so that its memory is free, and load a new engine."""
        await asyncio.to_thread(self._discard)
        await self._load()

    def _load_ended(self, loading: asyncio.Task[None]) -> None:
        self._loading = None
        error = None if loading.cancelled() else loading.exception()
        if isinstance(error, EngineLost):
            self._lost = str(error)

    def _build(self) -> None:
        """Make the AsyncLLM. Blocks during the load. The thread has no event loop, so vLLM starts its tasks later.

        The method does not return the engine, because the thread would keep the returned object alive, and at the
        interpreter's exit the object would try to end the engine again.
        """
        prepare_environment(self._model)
        # Hide warnings of deprecated torch functions, here and in vLLM's processes: an operator cannot act on them.
        with self._guardian.marked_environment(PYTHONWARNINGS="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.usage.usage_lib import UsageContext

            if self._closing.is_set():
                raise EngineUnavailable("the engine was closed while it was loading")
            forget_inspections()
            arguments = AsyncEngineArgs(**engine_arguments(self._settings, self._adapters.arguments(self._settings)))
            # Jobs wait for a whole answer and not for its first token, so vLLM may fill its batches as it does offline.
            usage = UsageContext.LLM_CLASS
            config = arguments.create_engine_config(usage)
            family = self._settings.model_family(config.model_config.architectures)
            self._thinking = Thinking.of(family, config.model_config)
            self._call_parser = call_parser(family, self._settings.tool_parser)
            if self._thinking is not None:
                arguments = self._thinking.arguments(arguments)
                config = arguments.create_engine_config(usage)
            metrics = None if arguments.disable_log_stats else self._metrics
            self._llm = counted_llm(config, usage, arguments, self._places, metrics)

    def _discard(self) -> None:
        """End the engine's remaining processes, so that its memory is free for the next engine. Blocks."""
        llm, self._llm = self._llm, None
        with shutdown_unlogged():
            if llm is not None:
                llm.shutdown(timeout=SHUTDOWN_SECONDS)
            self._guardian.end_engine()
        multiprocessing.active_children()  # reaps the killed processes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # suppress the warning about a socket context that vLLM leaves open
            gc.collect()  # else vLLM's objects, which form cycles, end their engine once more at exit

    # -- generating ----------------------------------------------------------------------------------------------

    async def _answered(
        self, llm: Any, request: GenerationRequest, lora: Any, aborted: asyncio.Future[None]
    ) -> Completion:
        if self._pooling is not None:
            return await self._pooled(self._pooling, request, lora, aborted)
        require_question(request)
        require_reasoning(request, self._thinking)
        with as_engine_errors(request, self._died):
            chat = await self._chats.chat(request)
            if aborted.done():
                return Completion("", "abort", len(chat.tokens), 0)
            return await self._generated(llm, chat, lora)

    async def _generated(self, llm: Any, chat: VllmChat, lora: Any) -> Completion:
        """Generate the answers of one request. Raises vLLM's errors and EngineError."""
        from vllm.inputs.engine import tokens_input

        output: Any = None
        thinking, decoding = self._thinking, self._decoding
        params = chat.params(
            self._defaults,
            marks_are_special=thinking is not None and thinking.is_special,
            decodes_at_end=decoding.is_possible,
        )
        is_grammar_first = thinking is not None and grammar_is_first(chat, thinking)
        outputs = llm.generate(
            tokens_input(chat.tokens),
            params,
            chat.request.request_id,
            lora_request=lora,
            reasoning_ended=True if is_grammar_first else None,
        )
        tell = answer_teller(chat, thinking)
        async for output in outputs:  # without `on_delta`, the only output is the final one
            if tell is not None and not output.finished:
                tell(output.outputs[0].text)
        if output is None:
            return Completion("", "abort", len(chat.tokens), 0)
        if all(one.finish_reason != "abort" for one in output.outputs):
            self._places.answered(chat.request.n)
        decoding.write_texts(output, chat.tokens, params)
        return completion_of(output, chat, thinking)

    async def _pooled(
        self, model: PoolingModel, request: GenerationRequest, lora: Any, aborted: asyncio.Future[None]
    ) -> Completion:
        """Answer a request to a pooling model; an abort ends all of its texts."""
        with as_engine_errors(request, self._died):
            pooling = asyncio.create_task(model.pooled(request, lora, self._rendering))
            either: set[asyncio.Future[Any]] = {pooling, aborted}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                return await pooling if pooling.done() else Completion("", "abort", 0, 0)
            finally:
                pooling.cancel()

    def _died(self) -> None:
        """Load the engine now, so that the next request waits less."""
        if not self._closing.is_set():
            self._begin_loading()


def _report(abort: asyncio.Future[None]) -> None:
    """Log an abort that failed. If the request fails too, its own error has the reason."""
    if not abort.cancelled() and abort.exception() is not None:
        log.warning(
            "An abort failed; leaving the request until the engine ends it.",
            action="abort-failed",
            error=type(abort.exception()).__qualname__,
        )
