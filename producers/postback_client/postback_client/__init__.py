"""Submit prompts to Postback, and receive the answers. `HttpClient` and `KafkaClient` have one interface.

`KafkaClient` is imported when it is first used, because it needs kafka-python: `pip install 'postback-client[kafka]'`.
`postback_client.wire` has the classes of a result's members.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from postback_client.batches import Batch as Batch
from postback_client.batches import LineCounts as LineCounts
from postback_client.callbacks import Callback as Callback
from postback_client.callbacks import verify as verify
from postback_client.client import PostbackClient as PostbackClient
from postback_client.errors import BatchStillRunning as BatchStillRunning
from postback_client.errors import CallbackRefused as CallbackRefused
from postback_client.errors import Conflict as Conflict
from postback_client.errors import Forbidden as Forbidden
from postback_client.errors import GatewayFailed as GatewayFailed
from postback_client.errors import GatewayRefused as GatewayRefused
from postback_client.errors import InvalidRequest as InvalidRequest
from postback_client.errors import KafkaFailed as KafkaFailed
from postback_client.errors import NotFound as NotFound
from postback_client.errors import NotTrusted as NotTrusted
from postback_client.errors import PostbackError as PostbackError
from postback_client.errors import RateLimited as RateLimited
from postback_client.errors import StillWaiting as StillWaiting
from postback_client.errors import SubmitFailed as SubmitFailed
from postback_client.errors import Unauthorized as Unauthorized
from postback_client.errors import Unreachable as Unreachable
from postback_client.errors import UnreadableAnswer as UnreadableAnswer
from postback_client.errors import UnusableJob as UnusableJob
from postback_client.errors import UnusableKey as UnusableKey
from postback_client.files import StoredFile as StoredFile
from postback_client.http_client import HttpClient as HttpClient
from postback_client.job import JobState as JobState
from postback_client.job import Lane as Lane
from postback_client.wire import Job as Job
from postback_client.wire import Result as Result

if TYPE_CHECKING:
    from postback_client.kafka_client import KafkaClient as KafkaClient


def __getattr__(name: str) -> Any:
    if name == "KafkaClient":
        from postback_client.kafka_client import KafkaClient

        return KafkaClient
    raise AttributeError(name)
