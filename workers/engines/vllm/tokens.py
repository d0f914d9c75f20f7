"""Tokens of a request's prompt, by the model's tokenizer and chat template, and the text of an answer's tokens.

A plain prompt becomes one user message if the model has a chat template, as at a server that speaks OpenAI's protocol.
A raw prompt, and any prompt of a model without a template, goes to the model unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from schemas.job import Message
from schemas.tools import ToolCall
from workers.engines.base import NO_IMAGES, GenerationRequest, RequestRejected, require_texts
from workers.engines.prompts import arguments_of, plain_text
from workers.engines.vllm.loading import short


class Prompts:
    """Makes the prompts of one loaded model. `renderer` is vLLM's renderer of that model."""

    def __init__(self, renderer: Any) -> None:
        from vllm.renderers.hf import HfRenderer, resolve_chat_template

        self._renderer = renderer
        self._tokenizer = renderer.get_tokenizer()
        self.decoding = Decoding(self._tokenizer)
        """Decodes the answers to the prompts."""
        self._is_in_code = not isinstance(renderer, HfRenderer)
        """True for a chat template that is code of vLLM, such as DeepSeek V3.2's."""
        self._template = None if self._is_in_code else _found(resolve_chat_template, renderer)

    def tokens(self, request: GenerationRequest) -> list[int]:
        """Return the tokens of the uncut prompt. Raises RequestRejected if the chat template refuses the messages.

        Raises RequestRejected for images too, because the engine reads only texts.
        """
        require_texts(request, NO_IMAGES)
        messages = request.messages
        if messages is None and not request.is_raw:
            messages = (Message(role="user", content=request.prompt or ""),)
        if request.tools and not (self._is_in_code or "tools" in (self._template or "")):
            raise RequestRejected("tools", "the model's chat template has no place for tools")
        if messages is None or not (self._is_in_code or self._template):
            return self._plain(request.prompt if request.prompt is not None else plain_text(messages or ()))
        said = _messages(messages)
        try:
            prompt = self._rendered(said, _template_options(request))
        except Exception as error:  # any error, because the template is a program that comes with the model
            field = "messages" if request.messages is not None else "prompt"
            raise RequestRejected(field, f"the model's chat template refuses it: {short(str(error))}") from error
        return prompt if isinstance(prompt, list) else self._encoded(prompt, add_special_tokens=False)

    def _rendered(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> str | list[int]:
        """Return the prompt's text, or its tokens if the template is code of vLLM."""
        if not self._is_in_code:
            text: str = self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=True, **options
            )
            return text
        from vllm.renderers.params import ChatParams

        params = ChatParams(chat_template_kwargs={"add_generation_prompt": True, **options})
        prompt = self._renderer.render_messages(messages, params)[1]
        tokens: list[int] | None = prompt.get("prompt_token_ids")
        return tokens if tokens is not None else str(prompt["prompt"])

    def _plain(self, text: str) -> list[int]:
        """Return the text's tokens, after the tokenizer's prefix such as `<bos>`. A doubled `<bos>` is removed."""
        tokens = self._encoded(text, add_special_tokens=True)
        bos = self._tokenizer.bos_token_id
        return tokens[1:] if bos is not None and tokens[:2] == [bos, bos] else tokens

    def _encoded(self, text: str, *, add_special_tokens: bool) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return tokens

    def cut(self, tokens: list[int], room: int | None) -> list[int]:
        """Return the last `room` tokens. A `<bos>` at the start is kept."""
        return cut_at_start(tokens, room, self._tokenizer.bos_token_id)


def cut_at_start(tokens: Sequence[int], room: int | None, bos: int | None) -> list[int]:
    """Return the last `room` tokens. If the first token is `bos`, it stays first."""
    if room is None or len(tokens) <= room:
        return [*tokens]
    if bos is not None and tokens[0] == bos and room > 1:
        return [bos, *tokens[len(tokens) - room + 1 :]]
    return [*tokens[len(tokens) - room :]]


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as chat templates take them: arguments are objects, and a tool's answer names the function."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    said = []
    for message in messages:
        one: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.tool_calls is not None:
            one["tool_calls"] = [_called(call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            one |= {"tool_call_id": message.tool_call_id, "name": names.get(message.tool_call_id, "")}
        said.append(one)
    return said


def _called(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": arguments_of(call)}
    return {"id": call.id, "type": "function", "function": function}


def _template_options(request: GenerationRequest) -> dict[str, Any]:
    """Return the variables of chat templates for tools and for reasoning.

    A template ignores variables that it does not use.
    """
    options: dict[str, Any] = {}
    if request.tools and request.tool_choice != "none":
        options["tools"] = [tool.model_dump(exclude_none=True) for tool in request.tools]
    asked = request.reasoning
    if asked is None:
        return options
    options |= {"enable_thinking": asked.is_wanted, "thinking": asked.is_wanted}
    return options | ({"reasoning_effort": asked.effort} if asked.effort and asked.is_wanted else {})


def _found(resolve: Any, renderer: Any) -> str | None:
    """Return the model's chat template: its processor's, its tokenizer's, or vLLM's template for models without one."""
    template: str | None = resolve(renderer.get_tokenizer(), None, None, model_config=renderer.model_config)
    return template


# -- The text of an answer --
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
