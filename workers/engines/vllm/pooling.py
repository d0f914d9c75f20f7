"""Requests without a question in vLLM: embeddings, scores and classes of a model that vLLM runs as a pooling model.

vLLM's own processors make the prompts and read the outputs, so that its server and its offline classes give the same
numbers. An embedding model scores a pair by the cosine of the two embeddings; a cross-encoder reads both texts at once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Final, Self

from schemas.kinds import CLASSIFY, EMBED, KINDS, JobKind
from workers.engines.base import Completion, EngineFailed, EngineUnavailable, GenerationRequest, RequestRejected
from workers.engines.pooling import Pooled, PoolingInput

_PROCESSORS: Final = {EMBED.field: "embed", CLASSIFY.field: "classify"}
"""The names of vLLM's processors. The processor of the other kinds depends on the model's task."""


class PoolingModel:
    """One loaded model of vLLM's pooling runner. `tasks` are the engine's supported tasks."""

    def __init__(self, llm: Any, tasks: Any) -> None:
        from vllm.entrypoints.pooling.factories import init_pooling_io_processors
        from vllm.renderers.chat_utils import ChatTemplateConfig

        self._llm = llm
        self._config = llm.model_config
        self._task = self._config.get_pooling_task(tasks)
        self._processors = init_pooling_io_processors(tasks, llm.vllm_config, llm.renderer, ChatTemplateConfig())

    @classmethod
    async def of(cls, llm: Any) -> Self | None:
        """Return the loaded model; None for a model that generates text."""
        return cls(llm, await llm.get_supported_tasks()) if llm.model_config.runner_type == "pooling" else None

    async def warm(self) -> None:
        """Pool one token before the first job, because the first request takes many seconds on some machines."""
        from vllm import PoolingParams
        from vllm.inputs.engine import tokens_input

        async for _ in self._llm.encode(tokens_input([1]), PoolingParams(task=self._task), "warm-up"):
            pass

    async def pooled(self, request: GenerationRequest, lora: Any, executor: Executor) -> Completion:
        """Pool the request's texts concurrently; cancelling aborts all of them. `executor` makes their prompts.

        Raises RequestRejected for a question, and for a kind that the model does not support. vLLM raises its
        VLLMClientError for a text beyond the model's window.
        """
        asked = request.pooling
        if asked is None:
            raise RequestRejected(request.asked_in, f"this model answers no question; it gives {self._given}")
        processor = self._processor(asked.kind)
        if processor is None:
            raise RequestRejected(asked.kind.field, f"this model gives no {asked.kind.answer}; it gives {self._given}")
        if asked.dimensions is not None:
            self._require_dimensions(asked.dimensions)
        prompts = await asyncio.get_running_loop().run_in_executor(executor, _prompts, asked, processor)
        running = [
            asyncio.create_task(self._encoded(each, f"{request.request_id}-{number}", lora))
            for number, each in enumerate(prompts)
        ]
        try:
            outputs = await asyncio.gather(*running)
        finally:
            for each in running:
                each.cancel()
        return await asyncio.to_thread(self._completion, asked, processor, outputs)

    async def _encoded(self, prompt: Any, request_id: str, lora: Any) -> Any:
        output: Any = None
        outputs = self._llm.encode(prompt["prompts"], prompt["params"], request_id, lora_request=lora)
        async for output in outputs:  # noqa: B007 - the only output is the final one
            pass
        if output is None:
            raise EngineUnavailable("the engine aborted the request unasked")
        if output.error is not None:
            raise EngineFailed("the engine failed at this request")
        return output

    def _completion(self, asked: PoolingInput, processor: Any, outputs: Sequence[Any]) -> Completion:
        """Return the completion with the rows of numbers.

        Raises EngineFailed for NaN and infinity, which JSON does not have.
        """
        import torch
        from vllm.entrypoints.pooling.typing import OfflineOutputsContext

        tokens = sum(len(output.prompt_token_ids) for output in outputs)
        with torch.inference_mode():
            context = OfflineOutputsContext(outputs=[*outputs], n_queries=len(asked.queries))
            read = processor.post_process_offline(context)
            rows = tuple(tuple(each.outputs.data.float().flatten().tolist()) for each in read)
        if not all(row and all(map(math.isfinite, row)) for row in rows):
            raise EngineFailed("the model's numbers are not finite")
        labels = tuple(map(self._label, rows)) if asked.kind is CLASSIFY else ()
        return Completion("", "stop", tokens, 0, pooled=Pooled(rows, labels))

    def _label(self, row: Sequence[float]) -> str | None:
        names: Mapping[int, str] = getattr(self._config.hf_config, "id2label", None) or {}
        return names.get(row.index(max(row)))

    def _processor(self, kind: JobKind) -> Any:
        """Return vLLM's processor of this kind; None if the model does not support the kind."""
        from vllm.tasks import SCORE_TYPE_MAP

        name = _PROCESSORS.get(kind.field) or SCORE_TYPE_MAP.get(self._task)
        return self._processors.get(name) if name is not None else None

    @property
    def _given(self) -> str:
        """The answers that the model gives, as a phrase."""
        return ", ".join(kind.answer for kind in KINDS if self._processor(kind) is not None) or "none that jobs ask for"

    def _require_dimensions(self, wanted: int) -> None:
        """Raise RequestRejected for dimensions that the model lacks. vLLM's own error would show the model's path."""
        config = self._config
        if not config.is_matryoshka:
            raise RequestRejected("dimensions", "this model's embeddings have one length; remove the field")
        lengths = config.matryoshka_dimensions
        if wanted not in (lengths if lengths is not None else range(1, config.embedding_size + 1)):
            named = ", ".join(map(str, lengths)) if lengths is not None else f"1 to {config.embedding_size}"
            raise RequestRejected("dimensions", f"this model's embeddings have {named} numbers")


def _prompts(asked: PoolingInput, processor: Any) -> list[Any]:
    """Return the texts' prompts in the form that vLLM takes. Blocks."""
    from vllm import PoolingParams
    from vllm.entrypoints.pooling.scoring.typing import ScoringData
    from vllm.entrypoints.pooling.typing import OfflineEncodeInputsContext, OfflineScoringInputsContext

    common: dict[str, Any] = {"tokenization_kwargs": None, "lora_request": None, "priorities": None}
    context: Any
    if not asked.queries:
        task = processor.name
        params = PoolingParams(task=task, dimensions=asked.dimensions)
        context = OfflineEncodeInputsContext(pooling_task=task, prompts=[*asked.texts], pooling_params=params, **common)
    else:
        task = processor.pooling_task
        data, params = ScoringData(data_1=[*asked.queries], data_2=[*asked.texts]), PoolingParams(task=task)
        context = OfflineScoringInputsContext(
            pooling_task=task, scoring_data=data, chat_template=None, pooling_params=params, **common
        )
    factory, _ = processor.get_request_factory_offline(context)
    return [processor.render(each) for each in factory()]
