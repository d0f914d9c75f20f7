"""vLLM in this process: `AsyncLLM`, whose engine core and workers are processes of their own.

vLLM is imported when the engine starts, which takes half a minute and much memory; a program that starts this engine
needs a main guard, since vLLM spawns. When the engine's processes die, every request in flight raises EngineDied, the
engine is loaded again, and requests that come meanwhile wait for it. Where loading fails it is tried a few times more;
then all requests raise EngineLost.

What vLLM 0.32 does, and why something here looks as it does: `abort()` raises nothing, the generation ends with
`finish_reason` abort; lower priorities run first, and only under the priority policy; `max_tokens` defaults to 16.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import multiprocessing
import os
import platform
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.engines.base import (
    Completion,
    EngineDied,
    EngineError,
    EngineFailed,
    EngineLoad,
    EngineLost,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
    RequestRejected,
)
from workers.engines.finish import finish_reason, is_failure
from workers.engines.guardian import Guardian
from workers.engines.load_failures import known_reason, reason
from workers.engines.loading import load_again, short
from workers.engines.prompts import plain_text, prompt_room
from workers.engines.schema_limits import check_schema
from workers.engines.settings import VllmSettings

SHUTDOWN_SECONDS = 2.0
"""How long vLLM's processes may take to end by themselves; their memory is freed by a SIGKILL too."""

log = get_logger()

# vLLM's names for what a job calls otherwise; anything else that it refuses is the prompt's fault.
_FIELDS = {"max_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "seed": "seed", "stop": "stop"}


class VllmEngine:
    """Implements `Engine`."""

    name = "vllm"

    def __init__(self, settings: VllmSettings, metrics: Metrics) -> None:
        if settings.model is None:
            raise ValueError("the vllm engine needs a model: a directory or a name on the Hugging Face hub")
        self._model = settings.model
        folder = Path(settings.model)
        # A consumer of results has no use for where the operator keeps a model.
        self.models = (folder.resolve().name, settings.model) if folder.is_dir() else (settings.model,)
        self._settings = settings
        self._metrics = metrics
        self._guardian = Guardian()
        self._llm: Any = None
        self._context_tokens = settings.max_model_len
        self._loading: asyncio.Task[None] | None = None
        self._in_flight: dict[str, asyncio.Future[None]] = {}
        self._closing = asyncio.Event()
        self._is_started = False
        self._lost: str | None = None
        self._adapters = {name: (number, path) for number, (name, path) in enumerate(settings.adapters.items(), 1)}
        # One thread: a tokenizer may not be used by two at once.
        self._tokenizing = ThreadPoolExecutor(1, "tokenize")

    @property
    def context_tokens(self) -> int | None:
        """The `max_model_len` that vLLM settled on when it last loaded the model."""
        return self._context_tokens

    async def start(self) -> None:
        """Import vLLM and load the model, from some seconds to minutes. Raises EngineError, and is closed then."""
        self._guardian.start()
        try:
            await asyncio.shield(self._begin_loading())  # a thread cannot be cancelled; `close` makes it fail instead
        except EngineError:
            await self.close()
            raise
        except Exception as error:
            await self.close()
            raise self._refused(error) from error
        except BaseException:
            await self.close()
            raise

    async def generate(self, request: GenerationRequest) -> Completion:
        """Answer one request. Raises EngineError; cancelling aborts."""
        lora = self._adapter(request.adapter)
        aborted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._in_flight[request.request_id] = aborted
        try:
            llm = await self._ready(aborted)
            tokens = await self._tokenized(llm, request) if llm is not None else []
            if aborted.done():
                return Completion("", "abort", len(tokens), 0)
            return await self._generated(llm, request, tokens, lora)
        finally:
            del self._in_flight[request.request_id]

    async def abort(self, request_id: str) -> None:
        """End a request's generation, or its waiting for an engine that is loading. Unknown ids are ignored."""
        aborted = self._in_flight.get(request_id)
        if aborted is None or aborted.done():
            return
        aborted.set_result(None)
        if self._llm is not None:
            await self._llm.abort(request_id)

    def load(self) -> EngineLoad:
        """How many requests vLLM generates and how many wait in it, counted here."""
        count = len(self._in_flight)
        running = min(count, self._settings.max_num_seqs)
        return EngineLoad(running=running, waiting=count - running)

    async def close(self) -> None:
        """End the engine's processes, also those of an engine that is still loading. May be called twice."""
        self._closing.set()
        while (loading := self._loading) is not None:
            await asyncio.to_thread(self._guardian.end_engine)
            await asyncio.wait({loading}, timeout=1.0)
        await asyncio.to_thread(self._discard)
        await asyncio.to_thread(self._guardian.close)
        self._tokenizing.shutdown(wait=False)

    # -- loading -------------------------------------------------------------------------------------------------

    async def _ready(self, aborted: asyncio.Future[None]) -> Any:
        """The engine that is alive, or None where the request is aborted before there is one."""
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
        """Load the engine once for all who ask."""
        if self._loading is None:
            load = self._load_again() if self._is_started else self._load()
            self._loading = asyncio.create_task(load, name="vllm-load")
            self._loading.add_done_callback(self._load_ended)
        return self._loading

    async def _load(self) -> None:
        await asyncio.to_thread(self._build)
        self._context_tokens = self._llm.model_config.max_model_len
        await _warm(self._llm)
        self._is_started = True
        log.info("The engine is ready.", action="engine-ready", model=self._model)

    async def _load_again(self) -> None:
        log.error("The engine's process died; the engine is loaded again.", action="engine-restart")
        self._metrics.engine_restarts.inc()
        await load_again(self._load_afresh, self._closing)

    async def _load_afresh(self) -> None:
        """What is left of the one that died, or of one that was half loaded, would keep the memory that this needs."""
        await asyncio.to_thread(self._discard)
        await self._load()

    def _refused(self, error: Exception) -> EngineRefused:
        """Why it does not start; with its stack in the log where nothing better is known."""
        known = known_reason(self._model, error)
        if known is None:
            log.error("The engine could not be loaded.", action="engine-load-failed", exc_info=error)
        return EngineRefused(known or f"vLLM could not load the model {self._model}: {reason(error)}")

    def _load_ended(self, loading: asyncio.Task[None]) -> None:
        self._loading = None
        error = None if loading.cancelled() else loading.exception()
        if isinstance(error, EngineLost):
            self._lost = str(error)

    def _build(self) -> None:
        """Make the AsyncLLM. Blocks while it loads; vLLM finds no event loop in this thread and starts its tasks later.

        It is not returned, since what a thread returned is kept with the thread, and an engine that is not let go of
        tries to end once more when the interpreter does.
        """
        _prepare_environment(self._model)
        # What vLLM and torch deprecate among themselves is no news for an operator, neither here nor in the processes.
        with self._guardian.marked_environment(PYTHONWARNINGS="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            if self._closing.is_set():
                raise EngineUnavailable("the engine was closed while it was loading")
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._arguments()))

    def _arguments(self) -> dict[str, Any]:
        from vllm.platforms import current_platform

        on_cpu, settings = current_platform.is_cpu(), self._settings
        eager = settings.enforce_eager
        arguments: dict[str, Any] = {
            "model": self._model,
            "dtype": "float32" if settings.dtype == "auto" and on_cpu and not _cpu_has_bfloat16() else settings.dtype,
            # -1: the longest that fits into memory
            "max_model_len": settings.max_model_len if settings.max_model_len is not None else -1,
            "max_num_seqs": settings.max_num_seqs,
            "enforce_eager": on_cpu if eager is None else eager,
            "scheduling_policy": "priority",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "enable_lora": bool(self._adapters),
            # Compact JSON: where any white space is allowed, some models write nothing else until max_tokens.
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        }
        if not on_cpu:
            arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
        elif _cpu_has_amx():
            arguments["worker_cls"] = "workers.engines.cpu_worker.AmxWorker"
        return arguments | settings.extra

    def _discard(self) -> None:
        """End what is left of the engine, so that its memory is free for the next one. Blocks."""
        llm, self._llm = self._llm, None
        logging.getLogger("vllm").setLevel(logging.CRITICAL)  # it takes its own ending for a failure
        if llm is not None:
            llm.shutdown(timeout=SHUTDOWN_SECONDS)
        self._guardian.end_engine()
        multiprocessing.active_children()  # asks for the status of those that were killed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a socket context that vLLM leaves open is closed by this
            gc.collect()  # vLLM's objects refer to each other, and would end their engine a second time at exit

    # -- generating ----------------------------------------------------------------------------------------------

    async def _generated(self, llm: Any, request: GenerationRequest, tokens: list[int], lora: Any) -> Completion:
        from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMServerError
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        output: Any = None
        try:
            params = self._sampling(request)
            outputs = llm.generate(
                tokens_input(tokens), params, request.request_id, lora_request=lora, priority=-request.priority
            )
            async for output in outputs:  # noqa: B007 - there is one, the final one
                pass
        except EngineDeadError as error:
            if not self._closing.is_set():
                self._begin_loading()  # now, rather than when the next request comes
            raise EngineDied("the engine's process ended with this request in flight") from error
        except VLLMClientError as error:
            raise _rejected(request, error) from error
        except GracefulHTTPError as error:
            raise EngineUnavailable(f"the engine takes no more now: {type(error).__name__}") from error
        except VLLMServerError as error:
            raise EngineFailed(f"the engine failed: {type(error).__name__}") from error
        if output is None:
            return Completion("", "abort", len(tokens), 0)
        if is_failure(output.outputs[0].finish_reason):
            raise _ended_by_an_error(request, len(output.outputs[0].token_ids))
        return _completion(output, len(tokens))

    def _sampling(self, request: GenerationRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=[*request.stop, *self._settings.stop],
            logprobs=0 if self._settings.log_probabilities else None,  # 0: of the chosen token only
            flat_logprobs=True,  # a third less CPU here than a dictionary for each token
            structured_outputs=_structure(request),
            output_kind=RequestOutputKind.FINAL_ONLY,  # an abort yields it too, with the tokens so far
        )

    def _adapter(self, name: str | None) -> Any:
        if name is None:
            return None
        if name not in self._adapters:
            raise RequestRejected("adapter", "this engine has no adapter of this name")
        from vllm.lora.request import LoRARequest

        number, path = self._adapters[name]
        return LoRARequest(name, number, path)

    # -- the prompt ----------------------------------------------------------------------------------------------

    async def _tokenized(self, llm: Any, request: GenerationRequest) -> list[int]:
        """The prompt as tokens, cut at its start where it is too long: the question stands at the end.

        Raises PromptTooLong where it may not be cut.
        """
        room = prompt_room(request, llm.model_config.max_model_len)
        encode: Callable[[Any, GenerationRequest], list[int]] = _chat_tokens if request.messages else _plain_tokens
        loop = asyncio.get_running_loop()
        tokenizer = llm.get_tokenizer()
        tokens = await loop.run_in_executor(self._tokenizing, encode, tokenizer, request)
        if request.is_whole and room is not None and len(tokens) > room:
            raise PromptTooLong(room / len(tokens))
        return _cut(tokens, room, tokenizer.bos_token_id)


async def _warm(llm: Any) -> None:
    """Generate one token: the first request takes many seconds on some machines, and no job shall wait for that."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    async for _ in llm.generate(tokens_input([1]), SamplingParams(max_tokens=1, logprobs=0), "warm-up"):
        pass


def _plain_tokens(tokenizer: Any, request: GenerationRequest) -> list[int]:
    """With what the tokenizer puts before a text, `<bos>` for one; not doubled where the text has it already."""
    text = request.prompt if request.prompt is not None else plain_text(request.messages or ())
    tokens: list[int] = tokenizer(text)["input_ids"]
    bos = tokenizer.bos_token_id
    return tokens[1:] if bos is not None and tokens[:2] == [bos, bos] else tokens


def _chat_tokens(tokenizer: Any, request: GenerationRequest) -> list[int]:
    """By the model's chat template, which has the special tokens in it; as plain text where the model has none."""
    if not getattr(tokenizer, "chat_template", None):
        return _plain_tokens(tokenizer, request)
    messages = [{"role": message.role, "content": message.text} for message in request.messages or ()]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the model's, and refuses orders of roles in its own words
        raise RequestRejected("messages", f"the model's chat template refuses them: {short(str(error))}") from error
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def _cut(tokens: list[int], room: int | None, bos: int | None) -> list[int]:
    if room is None or len(tokens) <= room:
        return tokens
    if bos is not None and tokens[0] == bos and room > 1:
        return [bos, *tokens[len(tokens) - room + 1 :]]
    return tokens[len(tokens) - room :]


def _structure(request: GenerationRequest) -> Any:
    if request.response_format is None or request.response_format.type == "text":
        return None
    from vllm.sampling_params import StructuredOutputsParams

    if request.response_format.json_schema is None:
        return StructuredOutputsParams(json_object=True)
    schema = request.response_format.json_schema.schema_
    check_schema(schema)
    return StructuredOutputsParams(json=schema)


def _completion(output: Any, prompt_tokens: int) -> Completion:
    answer = output.outputs[0]
    count = len(answer.token_ids)
    confidence = None
    if answer.cumulative_logprob is not None and count:
        confidence = min(1.0, math.exp(answer.cumulative_logprob / count))
    return Completion(answer.text, finish_reason(answer.finish_reason), prompt_tokens, count, confidence)


def _ended_by_an_error(request: GenerationRequest, tokens: int) -> EngineError:
    """Where an answer is held to a form, it is that no token may come next: the form's fault, each time anew."""
    if request.response_format is not None and request.response_format.type != "text":
        return RequestRejected("response_format", "no answer can go on in the form that this asks for")
    return EngineFailed("the engine failed at this request", wasted_tokens=tokens)


def _rejected(request: GenerationRequest, error: Exception) -> RequestRejected:
    """The refusal, by the field that it is about. Its first argument is the reason without the refused value."""
    field = _FIELDS.get(getattr(error, "parameter", None) or "")
    if field is None:
        field = (
            "response_format" if request.response_format is not None else "messages" if request.messages else "prompt"
        )
    return RequestRejected(field, short(str(error.args[0]) if error.args else type(error).__name__))


def _cpu_has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16 itself; without, float32 is many times faster."""
    if platform.machine() != "x86_64":
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _cpu_has_amx() -> bool:
    import torch

    return bool(torch.cpu._is_amx_tile_supported())


def _prepare_environment(model: str) -> None:
    """Variables that vLLM reads when it is imported, and that its processes inherit.

    With its own log handlers off, what it logs here ends in ours, and warnings of its processes go to standard error.
    """
    logging.getLogger("vllm").setLevel(logging.WARNING)
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # a fork of a process with threads and sockets may hang
    defaults = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_CONFIGURE_LOGGING": "0",
    }
    if Path(model).is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
