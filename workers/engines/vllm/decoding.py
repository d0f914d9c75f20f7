"""The text of an answer's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Stands for bytes that are no whole character."""
_CONTEXT = 8
"""Tokens of the prompt's end that are decoded before an answer."""
_CUT_TOKENS = 3
"""The largest number of tokens of a character that is cut off.

A character has up to four bytes, and a token at least one.
"""
_PIECE = 64
"""Decoding step by step ends after this many tokens that form no whole character.

The time of the steps grows with the square of the number of such tokens.
"""


class Decoding:
    """Decodes the answers of one loaded model, each once from all of its tokens.

    vLLM decodes each token as it comes, since streams and stop texts need the text at once. A job waits for its whole
    answer, so one decode at the end gives the same text for a fraction of the CPU time. vLLM still decodes answers with
    stop texts or with log-probabilities of tokens, and answers of tokenizers that are not of the `tokenizers` library.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers.decoders import ByteLevel
        from vllm.v1.engine.detokenizer import uses_fast_detokenizer

        self.is_possible: bool = uses_fast_detokenizer(tokenizer)
        """False for a tokenizer that is not of the `tokenizers` library. vLLM then decodes every answer."""
        self._tokenizer = tokenizer
        self._backend: Any = tokenizer._tokenizer if self.is_possible else None
        self._is_byte_level = isinstance(getattr(self._backend, "decoder", None), ByteLevel)

    def write_texts(self, output: Any, prompt: Sequence[int], params: Any) -> None:
        """Write the texts into the answers of vLLM's output; does nothing if vLLM decoded them.

        As in vLLM, the token that ended an answer is no part of its text.
        """
        if params.detokenize:
            return
        for answer in output.outputs:
            ids = answer.token_ids[:-1] if answer.finish_reason == "stop" else answer.token_ids
            answer.text = self.text(ids, prompt, params)

    def text(self, ids: Sequence[int], prompt: Sequence[int], params: Any) -> str:
        """Return the text of an answer's tokens after this prompt, as vLLM gives it.

        A character that is cut off at the end is left out. The text differs from vLLM's in two cases: vLLM also leaves
        out a long run of tokens at the end that form no character, and repeats a prompt that ends with U+FFFD.
        """
        skips = params.skip_special_tokens
        context, before = self._context(prompt, skips)
        text = self._decoded([*context, *ids], skips)[len(before) :]
        if _REPLACEMENT not in text:
            return text
        if not self._is_byte_level:
            return self._by_steps(ids, context, params)
        if not text.endswith(_REPLACEMENT):
            return text
        for missing in range(1, min(_CUT_TOKENS, len(ids)) + 1):
            shorter = self._decoded([*context, *ids[: len(ids) - missing]], skips)[len(before) :]
            if not shorter.endswith(_REPLACEMENT):
                return shorter
        return text

    def _context(self, prompt: Sequence[int], skips: bool) -> tuple[list[int], str]:
        """Return the prompt's last tokens and their text.

        Decoders of the SentencePiece kind remove the space before the first word. With a word of the prompt as the
        first word, the answer keeps its space.
        """
        size = _CONTEXT
        while True:
            tail = [*prompt[-size:]]
            text = self._decoded(tail, skips)
            is_cut = text.endswith(_REPLACEMENT)
            if text and not is_cut:
                return tail, text
            if size >= len(prompt):
                return ([], "") if is_cut else (tail, text)
            size *= 4

    def _by_steps(self, ids: Sequence[int], context: Sequence[int], params: Any) -> str:
        """Return the text, decoded step by step by vLLM's own code.

        The steps are needed if tokens are single bytes, because one byte too many would spoil all neighbouring
        characters that are spelled in bytes.
        """
        from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

        asked: Any = SimpleNamespace(request_id="", prompt_token_ids=[*context], sampling_params=params)
        steps = FastIncrementalDetokenizer(self._tokenizer, asked)
        for start in range(0, len(ids), _PIECE):
            before = len(steps.output_text)
            steps.update([*ids[start : start + _PIECE]], stop_terminated=False)
            if start + _PIECE <= len(ids) and len(steps.output_text) == before:
                return self._decoded(ids, params.skip_special_tokens)
        text: str = steps.output_text
        return text

    def _decoded(self, ids: Sequence[int], skips: bool) -> str:
        text: str = self._backend.decode(ids, skip_special_tokens=skips)
        return text
