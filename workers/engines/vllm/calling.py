"""Tools in vLLM: the family's parser finds the calls in an answer, and a grammar forces a demanded call.

The chat template describes the tools to the model (`tokens`). vLLM's own server uses the same parsers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Self

from schemas.tools import MAX_TOOL_CALLS, NamedTool, ToolCall
from workers.engines.base import GenerationRequest, RequestRejected, numbered_call
from workers.engines.families import Family
from workers.engines.vllm.loading import short

_WHOLE_OUTPUT: Final = "openai"
"""The parser of gpt-oss.

This parser reads a whole output with reasoning and channels, rather than the answer's text.
"""


class Calling:
    """The tools of one loaded model. `parser` is vLLM's parser class for the model's family, if vLLM has one."""

    def __init__(self, parser: Any, tokenizer: Any, model_config: Any = None) -> None:
        self._parser = parser
        self._tokenizer = tokenizer
        self._model_config = model_config

    @classmethod
    def of(cls, family: Family | None, model_config: Any, name: str | None = None) -> Self:
        """Return the tools of the family's model; `name` is the parser of the operator's settings."""
        from vllm.tokenizers import cached_tokenizer_from_config

        found = name or (family.tools if family is not None else None)
        tokenizer = cached_tokenizer_from_config(model_config)
        return cls(parser_named(found) if found not in (None, _WHOLE_OUTPUT) else None, tokenizer, model_config)

    def wanted(self, request: GenerationRequest) -> ToolsOfRequest | None:
        """Return the request's tools; None if it may call none. Raises RequestRejected if the model has no parser."""
        if not request.tools or request.tool_choice == "none":
            return None
        if self._parser is None:
            reason = "vLLM in the worker has no parser for this model's calls; see POSTBACK_ENGINE__VLLM__TOOL_PARSER"
            raise RequestRejected("tools", reason)
        return ToolsOfRequest(self._parser, self._tokenizer, self._model_config, request)


class ToolsOfRequest:
    """One request's tools in the form that vLLM's parsers take. Raises RequestRejected for tools that vLLM refuses."""

    def __init__(self, parser: Any, tokenizer: Any, model_config: Any, request: GenerationRequest) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        form, choice = request.response_format, request.tool_choice or "auto"
        asked = {
            "model": "",
            "messages": [{"role": "user", "content": ""}],
            "tools": [tool.model_dump(exclude_none=True) for tool in request.tools],
            "tool_choice": choice.model_dump() if isinstance(choice, NamedTool) else choice,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "response_format": form.model_dump(by_alias=True, exclude_none=True) if form is not None else None,
        }
        self._make = partial(parser, tokenizer, chat_template_kwargs={}, model_config=model_config)
        try:
            chat = ChatCompletionRequest.model_validate(asked)
            self._chat = self._make(tools=chat.tools).adjust_request(chat)
        except Exception as error:  # any error, because each family's parser raises errors of its own
            raise RequestRejected("tools", f"vLLM refuses them: {short(str(error))}") from error
        self.structure = self._chat.structured_outputs
        """The grammar of the calls as `StructuredOutputsParams`; None if the model may write any text."""
        self.keeps_special_tokens = not self._chat.skip_special_tokens
        """True if the marks around calls are special tokens, which vLLM would leave out of the text."""
        self.is_demanded = choice != "auto"
        """True if the answer has to be a call."""

    def calls(self, text: str, ids: Sequence[int]) -> tuple[str, list[ToolCall]]:
        """Return the answer's text without its calls, and the calls. A text that cannot be parsed has no calls."""
        try:
            _, content, found = self._make(tools=self._chat.tools).parse(
                text, self._chat, enable_auto_tools=True, model_output_token_ids=[*ids]
            )
            return content or "", calls_of(found or ())
        except Exception:  # the parser may raise any error, since the model may write any text
            return text, []


def parser_named(name: str) -> Any:
    """Return the parser of vLLM's server that has this name. Raises an error of vLLM for an unknown name."""
    from vllm.parser import ParserManager

    return ParserManager.get_parser(tool_parser_name=name, enable_auto_tools=True)


def calls_of(found: Sequence[Any]) -> list[ToolCall]:
    """Return vLLM's calls as `ToolCall`s. Raises ValueError for a call that a result's reader would refuse."""
    return [_call(call, at) for at, call in enumerate(found[:MAX_TOOL_CALLS])]


def _call(call: Any, number: int) -> ToolCall:
    made = numbered_call(call.id, call.name, call.arguments, number)
    made.function.arguments.encode()  # raises ValueError for a lone surrogate, which JSON can spell but UTF-8 cannot
    return made
