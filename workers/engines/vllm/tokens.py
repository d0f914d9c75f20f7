"""Tokens of a request's prompt, by the model's tokenizer and chat template."""

from __future__ import annotations

from typing import Any

from workers.engines.base import GenerationRequest, RequestRejected
from workers.engines.prompts import plain_text
from workers.engines.vllm.loading import short


def prompt_tokens(tokenizer: Any, request: GenerationRequest) -> list[int]:
    """Return the tokens of the uncut prompt. Raises RequestRejected if the chat template refuses the messages."""
    return _chat_tokens(tokenizer, request) if request.messages else _plain_tokens(tokenizer, request)


def cut_at_start(tokens: list[int], room: int | None, bos: int | None) -> list[int]:
    """Return the last `room` tokens. If the first token is `bos`, it stays first."""
    if room is None or len(tokens) <= room:
        return tokens
    if bos is not None and tokens[0] == bos and room > 1:
        return [bos, *tokens[len(tokens) - room + 1 :]]
    return tokens[len(tokens) - room :]


def _plain_tokens(tokenizer: Any, request: GenerationRequest) -> list[int]:
    """Return the text's tokens with the tokenizer's own prefix, such as `<bos>`. A doubled `<bos>` is removed."""
    text = request.prompt if request.prompt is not None else plain_text(request.messages or ())
    tokens: list[int] = tokenizer(text)["input_ids"]
    bos = tokenizer.bos_token_id
    return tokens[1:] if bos is not None and tokens[:2] == [bos, bos] else tokens


def _chat_tokens(tokenizer: Any, request: GenerationRequest) -> list[int]:
    """Return the messages' tokens by the model's chat template, or as plain text if the model has no template."""
    if not getattr(tokenizer, "chat_template", None):
        return _plain_tokens(tokenizer, request)
    messages = [{"role": message.role, "content": message.text} for message in request.messages or ()]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # the template is the model's own program and may raise anything
        raise RequestRejected("messages", f"the model's chat template refuses them: {short(str(error))}") from error
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens
