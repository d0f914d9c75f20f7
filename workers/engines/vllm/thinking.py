"""The reasoning of the model in vLLM: its marks, the number of its tokens, and its bounds.

vLLM has a reasoning parser for each family. With a parser, vLLM applies the grammar of a JSON answer only after the
reasoning, and can bound the tokens of reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self, cast

from telemetry.logs import get_logger
from workers.engines.base import GenerationRequest, RequestRejected
from workers.engines.families import Family, ReasoningMarks, marks_in
from workers.engines.reasoning import Growth, Parted, parted

_PROMPT_END = 32
"""The number of tokens at the prompt's end among which the opening mark is searched for."""

log = get_logger()


class Thinking:
    """The reasoning of one loaded model. `parser` names vLLM's parser, None if the tokenizer lacks the marks."""

    def __init__(self, marks: ReasoningMarks, tokenizer: Any, parser: str | None) -> None:
        self.parser = parser
        self._marks = marks
        self._tokenizer = tokenizer
        self._closing: list[int] = tokenizer.encode(marks.closing, add_special_tokens=False)
        special = tokenizer.all_special_tokens
        self.is_special = any(
            mark in token or token in mark for token in special for mark in (marks.opening, marks.closing)
        )
        """True if vLLM would leave the marks out of the text, as special tokens."""
        self._specials = re.compile("|".join(map(re.escape, special)) if special and self.is_special else r"(?!)")

    @classmethod
    def of(cls, family: Family | None, model_config: Any) -> Self | None:
        """Return the reasoning of the family's model; None if neither the family nor the chat template has marks."""
        from vllm.reasoning import ReasoningParserManager
        from vllm.tokenizers import cached_tokenizer_from_config

        tokenizer = cached_tokenizer_from_config(model_config)
        marks = family.reasoning if family is not None else None
        marks = marks or marks_in(_chat_template(tokenizer, model_config))
        if marks is None:
            return None
        try:
            ReasoningParserManager.get_reasoning_parser(marks.parser)(tokenizer)
        except Exception as error:  # some models of a family, such as distilled ones, lack the marks
            log.info(
                "The model's tokenizer lacks the marks of its reasoning; leaving the reasoning without a bound.",
                action="reasoning-marks-missing",
                family=family.name if family is not None else "unknown",
                error=type(error).__name__,
            )
            return cls(marks, tokenizer, None)
        return cls(marks, tokenizer, marks.parser)

    def arguments(self, arguments: Any) -> Any:
        """Return vLLM's `AsyncEngineArgs` with the family's parser, unless the operator's settings name one."""
        from vllm.config import StructuredOutputsConfig

        if self.parser is None or arguments.reasoning_parser:
            return arguments
        structured = arguments.structured_outputs_config
        if isinstance(structured, dict):  # vLLM cannot write the parser's name into a dictionary
            structured = StructuredOutputsConfig(**structured)
        return replace(arguments, reasoning_parser=self.parser, structured_outputs_config=structured)

    def is_open(self, prompt: Sequence[int]) -> bool:
        """True if the prompt ends inside the reasoning, because the chat template wrote the opening mark."""
        end: str = self._tokenizer.decode([*prompt[-_PROMPT_END:]])
        return end.rstrip().endswith(self._marks.opening)

    def shown(self, text: str) -> str:
        """Return a text without the special tokens that vLLM was asked to keep for the sake of the marks."""
        return self._specials.sub("", text)

    def parted(self, output: str, *, is_open: bool, keeps_special_tokens: bool = False) -> Parted:
        """Separate the reasoning from the answer, and remove special tokens from both, as vLLM does in plain output.

        With `keeps_special_tokens`, the answer keeps its special tokens, such as the marks around calls.
        """
        whole = parted(output, self._marks, is_open=is_open)
        if not self.is_special:
            return whole
        reasoning = whole.reasoning.removesuffix(self._marks.trailer) if whole.reasoning is not None else None
        shown = self._specials.sub("", reasoning).strip() if reasoning is not None else None
        return Parted(whole.text if keeps_special_tokens else self.shown(whole.text), shown, whole.end)

    def growth(self, request: GenerationRequest, prompt: Sequence[int]) -> Growth:
        """Return the answer in the output for this prompt, of which nothing was read yet."""
        return Growth(self._marks, reasons=request.reasons, is_open=self.is_open(prompt))

    def tokens(self, output: str, ids: Sequence[int], whole: Parted) -> int:
        """Return the number of tokens of the reasoning, including its closing mark."""
        if whole.end == len(output) and not output.endswith(self._marks.closing):
            return len(ids) if whole.reasoning is not None else 0
        size = len(self._closing)
        for start in range(len(ids) - size, -1, -1):
            if [*ids[start : start + size]] == self._closing:
                return start + size
        encoded: list[int] = self._tokenizer.encode(output[: whole.end], add_special_tokens=False)
        return min(len(encoded), len(ids))


def _chat_template(tokenizer: Any, model_config: Any) -> str | None:
    """Return the model's chat template; None if it has none, or if its template is code of vLLM or of Mistral."""
    from transformers import PreTrainedTokenizerBase
    from vllm.renderers.hf import resolve_chat_template

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    return resolve_chat_template(cast("Any", tokenizer), None, None, model_config=model_config)


def require_reasoning(request: GenerationRequest, thinking: Thinking | None) -> None:
    """Raise RequestRejected if the request asks for reasoning, or for a bound, that the model does not support."""
    if not request.reasons:
        return
    if thinking is None:
        raise RequestRejected("reasoning", "this model does not reason, or its family is not known")
    if thinking.parser is None and "thinking_token_budget" in request.body:
        raise RequestRejected("reasoning.max_tokens", "the reasoning of this model cannot be bounded")
