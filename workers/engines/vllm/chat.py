"""Requests as vLLM's own `ChatCompletionRequest`: rendered, tokenised and read by the code of vLLM's server.

A raw prompt, and any prompt of a model without a chat template, goes to the model unchanged.

vLLM's serving objects are not used, since they make pydantic objects for each token and decode each token.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import cache, partial
from typing import Any, Final

from schemas.tools import MAX_TOOL_CALLS, ToolCall
from workers.engines.base import (
    NO_IMAGES,
    GenerationRequest,
    PromptTooLong,
    RequestRejected,
    arguments_of,
    numbered_call,
    prompt_room,
    require_texts,
)
from workers.engines.body import FIELDS, Body, passed, plain_text, text_of
from workers.engines.families import Family
from workers.engines.vllm.loading import short
from workers.engines.vllm.settings import VllmSettings

_WHOLE_OUTPUT: Final = "openai"
"""The parser of gpt-oss.

This parser reads a whole output with reasoning and channels, rather than the answer's text.
"""
_SHORT_CHARS = 8_000
"""A prompt of at most so many characters is rendered at once: a thread would take longer to begin."""
_OF_SEVERAL = 1.0
"""The temperature of a request for several answers that sets none. vLLM refuses several answers at temperature 0."""


class VllmChat:
    """One request in vLLM's form. `asked` is its `ChatCompletionRequest`, and `tokens` the prompt, cut to its room."""

    def __init__(self, request: GenerationRequest, asked: Any, tokens: list[int], make_parser: Any = None) -> None:
        self.request = request
        self.tokens = tokens
        self.may_call = make_parser is not None
        """True if the answer may be a call."""
        self._asked = asked
        self._make_parser = make_parser

    @property
    def demands_call(self) -> bool:
        """True if the answer has to be a call, which a grammar enforces."""
        return self.may_call and self._asked.tool_choice != "auto" and self._asked.structured_outputs is not None

    def params(self, defaults: Mapping[str, Any], *, marks_are_special: bool, decodes_at_end: bool) -> Any:
        """Return the `SamplingParams`. `defaults` come from the model's `generation_config.json`.

        `marks_are_special` keeps the marks around reasoning in the text. With `decodes_at_end`, vLLM decodes only
        answers whose stop texts, log-probabilities or stream need the text of each token; see `decoding`.
        """
        asked, own = self._asked, {"temperature": 0.0, **defaults}
        if self.request.n > 1:
            own["temperature"] = own["temperature"] or _OF_SEVERAL
        params = asked.to_sampling_params(self.request.max_tokens, own)
        params.flat_logprobs = True  # a flat list takes a third less CPU time than a dictionary for each token
        params.detokenize = bool(params.stop) or self.request.top_logprobs is not None or not decodes_at_end
        if self.request.on_delta is not None:
            params.detokenize, params.output_kind = True, type(params.output_kind).CUMULATIVE
        params.skip_special_tokens = asked.skip_special_tokens and not marks_are_special
        return params

    def calls(self, text: str, ids: Sequence[int]) -> tuple[str, list[ToolCall]]:
        """Return the answer's text without its calls, and the calls. A text that cannot be parsed has no calls."""
        try:
            _, content, found = self._make_parser().parse(
                text, self._asked, enable_auto_tools=True, model_output_token_ids=[*ids]
            )
            return content or "", calls_of(found or ())
        except Exception:  # the parser may raise any error, since the model may write any text
            return text, []


class Chats:
    """Makes the requests of one loaded model. `parser` is vLLM's class for the calls of the model's family, if any.

    `executor` has one thread, since vLLM's tokenizers serve only one thread beside the event loop's.
    """

    def __init__(
        self, model_config: Any, renderer: Any, settings: VllmSettings, executor: Executor, parser: Any = None
    ) -> None:
        from vllm.renderers.hf import HfRenderer, resolve_chat_template
        from vllm.utils.mistral import is_mistral_tokenizer

        self._model_config = model_config
        self._renderer = renderer
        self._settings = settings
        self._executor = executor
        self._parser = parser
        self._tokenizer = renderer.get_tokenizer()
        self._is_mistral = is_mistral_tokenizer(self._tokenizer)
        self._is_in_code = not isinstance(renderer, HfRenderer)
        """True for a chat template that is code of vLLM, such as DeepSeek V3.2's."""
        self._template: str | None = None
        if not self._is_in_code:
            self._template = resolve_chat_template(self._tokenizer, None, None, model_config=model_config)

    async def chat(self, request: GenerationRequest) -> VllmChat:
        """Return the request in vLLM's form.

        A prompt that is too long loses its start, since the question is at the end. Raises PromptTooLong if the prompt
        may not be cut, and RequestRejected for a request that the model, its template or vLLM refuses.
        """
        require_texts(request, NO_IMAGES)
        room = prompt_room(request, self._model_config.max_model_len)
        has_tools = "tools" in request.body
        may_call = has_tools and request.tool_choice != "none"
        if may_call and self._parser is None:
            reason = "vLLM in the worker has no parser for this model's calls; see POSTBACK_ENGINE__VLLM__TOOL_PARSER"
            raise RequestRejected("tools", reason)
        if has_tools and not (self._is_in_code or "tools" in (self._template or "")):
            raise RequestRejected("tools", "the model's chat template has no place for tools")
        _check_schemas(request.body, may_call=may_call)
        asked = vllm_request(request, self._settings, may_call=may_call)
        if sum(len(text_of(each)) for each in request.messages) + len(request.body.get("prompt", "")) <= _SHORT_CHARS:
            tokens = self._tokens(request, asked)
        else:
            tokens = await asyncio.get_running_loop().run_in_executor(self._executor, self._tokens, request, asked)
        if request.is_whole and room is not None and len(tokens) > room:
            raise PromptTooLong(room / len(tokens))
        cut = cut_at_start(tokens, room, self._tokenizer.bos_token_id)
        if not may_call:
            return VllmChat(request, asked, cut)
        make = partial(
            self._parser, self._tokenizer, asked.tools, chat_template_kwargs={}, model_config=self._model_config
        )
        try:
            return VllmChat(request, make().adjust_request(asked), cut, make)
        except Exception as error:  # any error, because each family's parser raises errors of its own
            raise RequestRejected("tools", f"vLLM refuses them: {short(str(error))}") from error

    def _tokens(self, request: GenerationRequest, asked: Any) -> list[int]:
        """Return the tokens of the uncut prompt. Raises RequestRejected if the chat template refuses the messages.

        A template of the tokenizer is rendered here, in a third of the time of vLLM's renderer. A doubled `<bos>` of a
        plain text is removed.
        """
        if request.is_raw or not (self._is_in_code or self._template):
            text = request.body["prompt"] if request.is_raw else plain_text(request.messages)
            tokens, bos = self._encoded(text, add_special_tokens=True), self._tokenizer.bos_token_id
            return tokens[1:] if bos is not None and tokens[:2] == [bos, bos] else tokens
        messages = _messages(request)
        tools = [tool.model_dump(exclude_none=True) for tool in asked.tools] if asked.tools else None
        try:
            if self._is_in_code:
                return self._rendered(messages, asked, tools)
            options = {"reasoning_effort": asked.reasoning_effort} if asked.reasoning_effort is not None else {}
            text = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
                tools=tools,
                **options | (asked.chat_template_kwargs or {}),
            )
        except Exception as error:  # any error, because the template is a program that comes with the model
            reason = f"the model's chat template refuses it: {short(str(error))}"
            raise RequestRejected(request.asked_in, reason) from error
        return self._encoded(text, add_special_tokens=False)

    def _rendered(self, messages: list[Body], asked: Any, tools: list[Body] | None) -> list[int]:
        """Return the tokens of a chat whose template is code of vLLM."""
        params = asked.build_chat_params(None, "auto").with_defaults({"tools": tools, "tokenize": self._is_mistral})
        _, [prompt] = self._renderer.render_chat([messages], params, asked.build_tok_params(None))
        return [*prompt["prompt_token_ids"]]

    def _encoded(self, text: str, *, add_special_tokens: bool) -> list[int]:
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return tokens


def vllm_request(request: GenerationRequest, settings: VllmSettings, *, may_call: bool = False) -> Any:
    """Return the request's options and messages as vLLM's `ChatCompletionRequest`. Raises RequestRejected."""
    body = passed("vllm", request.body, *(name for name in FIELDS if name != "max_tokens"))
    if not may_call:
        body = {name: value for name, value in body.items() if name not in _OF_TOOLS}
    elif "tool_choice" not in body:
        body["tool_choice"] = "auto"
    body["stop"] = [*body.get("stop", ()), *settings.stop]
    if settings.log_probabilities:
        body = {"logprobs": True, "top_logprobs": 0} | body
    if body.get("reasoning_effort") == "none":
        del body["reasoning_effort"]
    if request.reasons is not None:
        body["chat_template_kwargs"] = {"enable_thinking": request.reasons, "thinking": request.reasons}
    try:
        # only a parser of calls reads the messages there
        return _request_class().model_validate({**body, "messages": request.messages if may_call else []})
    except ValueError as error:
        raise RequestRejected("tools" if may_call else request.asked_in, f"vLLM refuses it: {_why(error)}") from error


_OF_TOOLS: Final = ("tools", "tool_choice", "parallel_tool_calls")


@cache
def _request_class() -> Any:
    """Return vLLM's class of requests, without its bound on the prompt, which `Chats` cuts. Imports vLLM."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.renderers import TokenizeParams

    class Request(ChatCompletionRequest):
        def build_tok_params(self, model_config: Any) -> TokenizeParams:
            return TokenizeParams(max_total_tokens=None, add_special_tokens=False)

    return Request


def _messages(request: GenerationRequest) -> list[Body]:
    """Return messages as chat templates take them: arguments are objects, and a tool's answer names the function.

    Raises RequestRejected for arguments that are no object.
    """
    names: dict[str, str] = {}
    said = []
    for message in request.messages:
        if "tool_calls" in message:
            names |= {call["id"]: call["function"]["name"] for call in message["tool_calls"]}
            message = {**message, "tool_calls": [*map(_called, message["tool_calls"])]}
        elif message["role"] == "tool":
            message = {**message, "name": names.get(message["tool_call_id"], "")}
        said.append(message)
    return said


def _called(call: Body) -> Body:
    return {**call, "function": {**call["function"], "arguments": arguments_of(call)}}


def _why(error: ValueError) -> str:
    """Return the reason without the refused value, which vLLM's and pydantic's errors may quote."""
    details = getattr(error, "errors", None)
    if details is None:
        return short(str(error.args[0]) if error.args else type(error).__name__)
    return short("; ".join(each["msg"] for each in details(include_url=False, include_input=False)))


def cut_at_start(tokens: Sequence[int], room: int | None, bos: int | None) -> list[int]:
    """Return the last `room` tokens. If the first token is `bos`, it stays first."""
    if room is None or len(tokens) <= room:
        return [*tokens]
    if bos is not None and tokens[0] == bos and room > 1:
        return [bos, *tokens[len(tokens) - room + 1 :]]
    return [*tokens[len(tokens) - room :]]


# -- Tools --
def call_parser(family: Family | None, name: str | None) -> Any:
    """Return vLLM's parser class of the operator's settings or of the family; None without one. Imports vLLM.

    Raises an error of vLLM for an unknown name.
    """
    from vllm.parser import ParserManager

    found = name or (family.tools if family is not None else None)
    if found in (None, _WHOLE_OUTPUT):
        return None
    return ParserManager.get_parser(tool_parser_name=found, enable_auto_tools=True)


def calls_of(found: Sequence[Any]) -> list[ToolCall]:
    """Return vLLM's calls as `ToolCall`s. Raises ValueError for a call that a result's reader would refuse."""
    return [_call(call, at) for at, call in enumerate(found[:MAX_TOOL_CALLS])]


def _call(call: Any, number: int) -> ToolCall:
    made = numbered_call(call.id, call.name, call.arguments, number)
    made.function.arguments.encode()  # raises ValueError for a lone surrogate, which JSON can spell but UTF-8 cannot
    return made


# -- Bounds on a JSON Schema: vLLM compiles the schema into a grammar, and the compilation cannot be interrupted --
# xgrammar's time grows with the cube of the number of an object's optional properties: 2 s for 1,000 and 24 s for 2,000
# (two loaded cores). A pattern with nested repetitions takes about 0.05 s. vLLM compiles one or a few schemas at a
# time, so every other job with a schema would wait.
MAX_SCHEMA_CHARS: Final = 64 * 1024
MAX_PROPERTIES: Final = 500
"""Limit on the properties of one object."""
MAX_PATTERNS: Final = 50
FIELD: Final = "response_format.json_schema.schema"


def _check_schemas(body: Body, *, may_call: bool) -> None:
    if "json_schema" in body.get("response_format", ()):
        check_schema(body["response_format"]["json_schema"]["schema"])
    for tool in body["tools"] if may_call else ():
        check_schema(tool["function"]["parameters"], "tools.function.parameters")


def check_schema(schema: dict[str, Any], field: str = FIELD) -> None:
    """Raise RequestRejected, with the field, for a schema that exceeds a bound."""
    size = len(json.dumps(schema, ensure_ascii=False))
    if size > MAX_SCHEMA_CHARS:
        raise RequestRejected(field, f"has {size} characters, and {MAX_SCHEMA_CHARS} are allowed")
    patterns = 0
    for part in _parts(schema):
        properties = part.get("properties")
        if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
            raise RequestRejected(
                field, f"has an object with {len(properties)} properties, and {MAX_PROPERTIES} are allowed"
            )
        patterns += isinstance(part.get("pattern"), str)
        pattern_properties = part.get("patternProperties")
        patterns += len(pattern_properties) if isinstance(pattern_properties, dict) else 0
    if patterns > MAX_PATTERNS:
        raise RequestRejected(field, f"has {patterns} patterns, and {MAX_PATTERNS} are allowed")


def _parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every object in the schema, at any depth."""
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
