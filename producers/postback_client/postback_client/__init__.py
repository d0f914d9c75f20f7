"""Submit prompts to Postback, and receive the answers. `HttpClient` and `KafkaClient` have one interface.

`KafkaClient` is imported when it is first used, because it needs kafka-python: `pip install 'postback-client[kafka]'`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from postback_client.batches import Batch, LineCounts
from postback_client.callbacks import Callback, verify
from postback_client.client import PostbackClient
from postback_client.errors import (
    BatchStillRunning,
    CallbackRefused,
    Conflict,
    Forbidden,
    GatewayFailed,
    GatewayRefused,
    InvalidRequest,
    KafkaFailed,
    NotFound,
    NotTrusted,
    PostbackError,
    RateLimited,
    StillWaiting,
    SubmitFailed,
    Unauthorized,
    Unreachable,
    UnreadableAnswer,
    UnusableJob,
    UnusableKey,
)
from postback_client.files import StoredFile
from postback_client.http_client import HttpClient
from postback_client.job import Job, JobState, Lane
from postback_client.result import (
    CitedPlace,
    JobFailure,
    LackingSentence,
    RankedDocument,
    Result,
    SourceQuote,
    SupportOfAnswer,
    TextLabel,
    TokenUsage,
    UsedSource,
)

if TYPE_CHECKING:
    from postback_client.kafka_client import KafkaClient

__all__ = [
    "Batch",
    "BatchStillRunning",
    "Callback",
    "CallbackRefused",
    "CitedPlace",
    "Conflict",
    "Forbidden",
    "GatewayFailed",
    "GatewayRefused",
    "HttpClient",
    "InvalidRequest",
    "Job",
    "JobFailure",
    "JobState",
    "KafkaClient",
    "KafkaFailed",
    "LackingSentence",
    "Lane",
    "LineCounts",
    "NotFound",
    "NotTrusted",
    "PostbackClient",
    "PostbackError",
    "RankedDocument",
    "RateLimited",
    "Result",
    "SourceQuote",
    "StillWaiting",
    "StoredFile",
    "SubmitFailed",
    "SupportOfAnswer",
    "TextLabel",
    "TokenUsage",
    "Unauthorized",
    "Unreachable",
    "UnreadableAnswer",
    "UnusableJob",
    "UnusableKey",
    "UsedSource",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "KafkaClient":
        from postback_client.kafka_client import KafkaClient

        return KafkaClient
    raise AttributeError(name)
