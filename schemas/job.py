"""A job: a producer's record on `model_requests`. Only one of QUESTIONS, such as `prompt`, is required."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator
from pydantic_core import to_json

from schemas.bounded import WireModel
from schemas.identifiers import DEFAULT_TENANT as DEFAULT_TENANT
from schemas.identifiers import TENANT_PATTERN as TENANT_PATTERN
from schemas.identifiers import CustomId as CustomId
from schemas.identifiers import Identifier as Identifier
from schemas.identifiers import Tenant as Tenant
from schemas.images import MAX_IMAGES
from schemas.kinds import BY_REFERENCE, KINDS, MAX_CLASSIFIED, MAX_EMBEDDED, QUESTIONS, JobKind, Rerank, Score, SomeText
from schemas.messages import ImagePart as ImagePart
from schemas.messages import ImageUrl as ImageUrl
from schemas.messages import Message as Message
from schemas.messages import TextPart as TextPart
from schemas.messages import images_in as images_in
from schemas.sources import MAX_DOCUMENTS as MAX_DOCUMENTS
from schemas.sources import MAX_PARAMETER_CHARS as MAX_PARAMETER_CHARS
from schemas.sources import MAX_QUERY_CHARS as MAX_QUERY_CHARS
from schemas.sources import Base64 as Base64
from schemas.sources import Day as Day
from schemas.sources import Domain as Domain
from schemas.sources import Language as Language
from schemas.sources import MediaType as MediaType
from schemas.sources import Search as Search
from schemas.sources import SourceDocument as SourceDocument
from schemas.sources import Sources as Sources
from schemas.tools import MAX_TOOLS, NamedTool, Tool, ToolChoice, require_json
from schemas.urls import PayloadUrl
from schemas.urls import Url as Url

MAX_JOB_BYTES = 512 * 1024
"""The largest value, in bytes, of a job's record that a worker accepts."""

MAX_DIMENSIONS = 16_384
MAX_METADATA_CHARS = 2048
"""The maximum number of characters of a value of `metadata`."""

DEFAULT_MAX_TOKENS = 512
MAX_TOKENS = 131_072
"""The maximum number of tokens that an answer may have, and that all answers of a job may have together."""
MAX_CHOICES = 16
"""The maximum number of answers of one job."""
MAX_TOP_LOGPROBS = 20
"""The maximum number of alternatives of each token, as in OpenAI's API and by default in vLLM."""
DEFAULT_TTL_SECONDS = 24 * 3600.0
LONGEST_TTL_SECONDS = 6 * 24 * 3600.0
"""One day less than the retention of lanes (`schemas.topics.LANES_KEPT_MS`), so that Kafka still has a job when it
expires. Longer retention of lanes would not allow a longer TTL: by default a broker forgets the progress of a group
without members after seven days, and older jobs would then be answered again."""

Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=MAX_METADATA_CHARS)],
    ],
    Field(max_length=32),
]
FIRST_SECONDS, LAST_SECONDS = 1_000_000_000, 10_000_000_000
"""Bounds of a time in Unix seconds, the years 2001 and 2286: a time in milliseconds is outside."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$")]
"""A SHA-256 (FIPS 180-4) as 64 hexadecimal digits."""


class JsonSchemaFormat(WireModel):
    """The `json_schema` member of OpenAI's response format."""

    name: str = "answer"
    """The schema's name."""
    schema_: dict[str, Any] = Field(alias="schema")
    """The JSON Schema that the answer follows."""
    strict: bool = True
    """OpenAI's flag, passed on to a server. vLLM in the worker always enforces the schema."""

    _is_json = field_validator("schema_")(require_json)


class ResponseFormat(WireModel):
    """The answer's form: free text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    """Free text, any JSON object, or JSON by a schema."""
    json_schema: JsonSchemaFormat | None = None
    """The schema; required with type `json_schema`, and only there."""

    @model_validator(mode="after")
    def _schema_goes_with_its_type(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("`json_schema` is required with type json_schema, and only there")
        return self


class Reasoning(WireModel):
    """Bounds of a model's reasoning before its answer."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """The effort, in OpenAI's words; `none` asks for no reasoning. Some models know only some of the words."""
    max_tokens: int | None = Field(default=None, ge=0, le=MAX_TOKENS)
    """The maximum number of reasoning tokens. They count towards the job's `max_tokens` too.

    0 asks for no reasoning.
    """

    @property
    def is_wanted(self) -> bool:
        """False if the job asks for no reasoning."""
        return self.effort != "none" and self.max_tokens != 0


class Job(WireModel):
    """One prompt with its options, as the producer wrote it."""

    job_id: Identifier | None = None
    """The job's name within its tenant. If absent, the name is derived from the record's place in the topic."""
    model_id: Identifier | None = None
    """A model's name or alias. If absent, the worker uses its own model."""
    prompt: Annotated[str, StringConstraints(min_length=1)] | None = None
    """The question as one text. Set either `prompt` or `messages`. The text is one user message, unless `raw` is
    set."""
    raw: bool = False
    """If true, the model continues `prompt` as it stands. A model without a chat template always continues the
    prompt.
    """
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    """The question as a chat. Set either `messages` or `prompt`."""
    embed: list[SomeText] | None = Field(default=None, min_length=1, max_length=MAX_EMBEDDED)
    """Texts to be embedded, instead of a question. The model must be one that gives embeddings."""
    dimensions: int | None = Field(default=None, ge=1, le=MAX_DIMENSIONS)
    """How many numbers each embedding has, for models with several lengths. Allowed only with `embed`."""
    rerank: Rerank | None = None
    """Documents to be ranked for a query, instead of a question. The model must be one that ranks or embeds."""
    score: Score | None = None
    """Pairs of texts to be scored, instead of a question. The model must be one that ranks or embeds."""
    classify: list[SomeText] | None = Field(default=None, min_length=1, max_length=MAX_CLASSIFIED)
    """Texts to be labelled, instead of a question. The model must be one that classifies."""
    payload_url: PayloadUrl | None = None
    """The URL of a JSON document with the question, for a question that is too large for a record.

    The URL is an https URL, or `s3://BUCKET/KEY` if the operator lists the bucket. The document is an object with
    `prompt`, `messages`, `embed`, `rerank`, `score` or `classify`. It may have `sources`, `response_format`, and
    `tools` with their options. Each of these fields is in the record or in the document; all other fields stay in the
    record.
    """
    payload_sha256: Sha256 | None = None
    """The SHA-256 of the document's bytes, 64 hexadecimal digits. Allowed only with `payload_url`.

    If the document has another hash, the job is rejected.
    """
    context_window: int | None = Field(default=None, ge=16, le=10_000_000)
    """The maximum number of tokens of prompt and answer together; a longer prompt is cut at its start."""
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    """The randomness of sampling; 0 is greedy. Where absent, the profile's value is used, which is 0 in Postback's own
    profiles. If the profile has none, the model's own value is used: vLLM reads it from `generation_config.json`, or
    uses 0 if that file has none.
    """
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    """Nucleus sampling: each token is drawn from the likeliest tokens that together have this probability.

    If absent, the model's own value is used.
    """
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    """The least probability of a token that may be drawn, as a fraction of the likeliest token's probability.

    If absent, the model's own value is used. Only vLLM and servers that know the parameter take it.
    """
    stop: list[Annotated[str, StringConstraints(min_length=1, max_length=256)]] = Field(
        default_factory=list, max_length=4
    )
    """Texts that end the answer and are not part of it."""
    max_tokens: int = Field(default=DEFAULT_MAX_TOKENS, ge=1, le=MAX_TOKENS)
    """The maximum number of tokens that the answer may have."""
    seed: int | None = Field(default=None, ge=0, le=2**63 - 1)
    """The seed of random sampling."""
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    """The number of answers, which are the result's `choices`. More than one answer needs a temperature above 0.

    The product of `n`, `max_tokens` and 1 + `top_logprobs` is at most 131,072.
    """
    logprobs: bool = False
    """If true, the result has the log-probability of each token of the answer."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """The number of likeliest tokens that the result lists at each place of the answer. Allowed only with
    `logprobs`."""
    response_format: ResponseFormat | None = None
    """The answer's form. If absent, the answer is free text."""
    tools: list[Tool] | None = Field(default=None, min_length=1, max_length=MAX_TOOLS)
    """Functions that the model may call. The model's calls are the result's `tool_calls`; no worker runs them."""
    tool_choice: ToolChoice | None = None
    """`auto` (the model decides), `none`, `required` (at least one call) or one function by name.

    Allowed only with `tools`. If absent, the model decides.
    """
    parallel_tool_calls: bool | None = None
    """If false, the model makes one call at most; if absent, the model decides. Allowed only with `tools`."""
    reasoning: Reasoning | None = None
    """Bounds of the reasoning of a model that reasons; if absent, the model decides."""
    adapter: Identifier | None = None
    """The name of a LoRA adapter in the registry."""
    callback_url: Url | None = None
    """The URL to which the signed result is POSTed; if absent, the result is only stored."""
    sources: Sources | None = None
    """Sources that the worker reads before the model answers. If absent, the worker reads none."""
    priority: int = Field(default=0, ge=0, le=9)
    """Among a tenant's waiting jobs, those with the highest priority run first."""
    not_before: float | None = Field(default=None, ge=FIRST_SECONDS, le=LAST_SECONDS)
    """The time before which the job does not start, in Unix seconds. If absent, the job starts at once.

    The job starts up to five seconds later, or when a worker is free. `ttl_seconds` counts from this time, and the job
    must end within six days after it was sent.
    """
    ttl_seconds: float = Field(default=DEFAULT_TTL_SECONDS, gt=0, le=LONGEST_TTL_SECONDS)
    """Seconds after the record's timestamp, or after `not_before`, until the job ends as `expired`. At most six days,
    because lanes keep records for seven days."""
    metadata: Metadata = Field(default_factory=dict)
    """Returned unchanged in the result."""
    custom_id: CustomId | None = None
    """The producer's own name for the job, returned in the result."""

    @property
    def kind(self) -> JobKind | None:
        """The kind of a job with texts; None for a job with a question."""
        return next((kind for kind in KINDS if getattr(self, kind.field) is not None), None)

    @property
    def prompt_sha256(self) -> str:
        """SHA-256 of the question, 64 hexadecimal digits: of `prompt` in UTF-8, or of the messages' texts and images.

        Messages are hashed as JSON without spaces: an array with `[role, text, image URL, …]` for each message. The
        texts of another kind of job are hashed as the JSON of its field, without spaces and absent members. A question
        at `payload_url` has the hash `payload_sha256`, or else the hash of the URL.
        """
        if self.payload_url is not None:
            return (self.payload_sha256 or hashlib.sha256(self.payload_url.encode()).hexdigest()).lower()
        if self.prompt is not None:
            return hashlib.sha256(self.prompt.encode()).hexdigest()
        if self.kind is not None:
            return hashlib.sha256(to_json(getattr(self, self.kind.field), exclude_none=True)).hexdigest()
        said = [
            [message.role, message.text, *(image.url for image in message.images)] for message in self.messages or ()
        ]
        return hashlib.sha256(to_json(said)).hexdigest()

    @property
    def images(self) -> list[tuple[str, ImageUrl]]:
        """The images of the messages, each with its field, such as `messages.0.content.1`."""
        return images_in(self.messages or ())

    def begins_ms(self, now_ms: int) -> int:
        """Return the Unix milliseconds from which `ttl_seconds` counts: `not_before`, if that time comes after now."""
        return now_ms if self.not_before is None else max(now_ms, round(1000 * self.not_before))

    @property
    def is_plain(self) -> bool:
        """True if the job is a prompt with no field that goes with another one."""
        return self.prompt is not None and self.__pydantic_fields_set__ <= _PLAIN

    @property
    def _is_plain_chat(self) -> bool:
        """True if the job is a chat with no field that goes with another one."""
        is_chat = self.messages is not None and self.prompt is None
        return is_chat and self.__pydantic_fields_set__ - _PLAIN == _CHAT

    @property
    def is_final_as_generated(self) -> bool:
        """True if the answer's text is shown as the model writes it: nothing checks it, or takes parts out of it."""
        asks_text = self.kind is None and self.payload_url is None
        is_checked = self.sources is not None or self.response_format is not None or self.tools
        return asks_text and not is_checked and self.n == 1 and not self.logprobs

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.is_plain and not self._is_plain_chat:
            self._require_one_question()
            self._require_bounded_choices()
            self._require_a_chat_for_tools()
        if self.messages is not None and sum(len(message.images) for message in self.messages) > MAX_IMAGES:
            raise ValueError(f"`messages` has more than {MAX_IMAGES} images, the maximum of one job")
        return self

    def _require_one_question(self) -> None:
        asked = [name for name in QUESTIONS if getattr(self, name) is not None]
        if len(asked) != 1:
            raise ValueError(f"exactly one of {_NAMED} is required")
        if asked[0] == BY_REFERENCE:
            return  # `schemas.payload` checks the other fields together with the document's question
        if self.raw and self.prompt is None:
            raise ValueError(f"`raw` goes with `prompt` and not with `{asked[0]}`")
        for option, field in _OPTIONS:
            if field != asked[0] and getattr(self, option) is not None:
                raise ValueError(f"`{option}` goes with `{field}`")
        for name in OF_A_QUESTION if self.prompt is None and self.messages is None else ():
            if getattr(self, name) != _default_of(name):
                raise ValueError(f"`{name}` goes with `prompt` or `messages` and not with `{asked[0]}`")

    def _require_bounded_choices(self) -> None:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("`top_logprobs` goes with `logprobs`; set `logprobs` to true")
        if self.n > 1 and self.temperature == 0:
            raise ValueError("`n` above 1 needs a `temperature` above 0: greedy answers are all the same")
        if self.max_tokens > self.most_tokens:
            raise ValueError(
                f"`max_tokens` may be {self.most_tokens} at most with this `n` and `top_logprobs`; lower one of them"
            )

    def _require_a_chat_for_tools(self) -> None:
        for name in ("tool_choice", "parallel_tool_calls"):
            if self.tools is None and getattr(self, name) is not None:
                raise ValueError(f"`{name}` goes with `tools`")
        if self.tools is not None and self.raw:
            raise ValueError("`tools` goes with a chat and not with `raw`")
        names = [tool.function.name for tool in self.tools or ()]
        if len({*names}) < len(names):
            raise ValueError("`tools` has two functions with one name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("`tool_choice` names a function that `tools` does not have")

    @property
    def most_tokens(self) -> int:
        """The maximum number of tokens that each answer may have. This number falls as `n` or `top_logprobs` rises."""
        return MAX_TOKENS // (self.n * (1 + (self.top_logprobs or 0)))


_PLAIN = frozenset(
    (
        *("job_id", "model_id", "prompt", "context_window", "temperature", "top_p", "min_p", "stop", "max_tokens"),
        *("seed", "callback_url", "priority", "not_before", "ttl_seconds", "metadata", "custom_id"),
    )
)
"""The fields that go with a prompt whatever other fields say."""
_CHAT = {"messages"}
_OPTIONS = (*((option, kind.field) for kind in KINDS for option in kind.options), ("payload_sha256", BY_REFERENCE))
_NAMED = f"{', '.join(f'`{name}`' for name in QUESTIONS[:-1])} and `{QUESTIONS[-1]}`"
OF_A_QUESTION = ("sources", "response_format", "reasoning", "stop", "n", "logprobs", "tools")
"""Fields that would change the answer to a question. A job without a question may set none of these fields."""


@cache
def _default_of(name: str) -> Any:
    """Return a field's default.

    The default is cached, because each call of pydantic's `get_default` for a factory copies `sys.modules`.
    """
    return Job.model_fields[name].get_default(call_default_factory=True)
