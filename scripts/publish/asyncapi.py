"""The AsyncAPI 3.0 document of a fleet: its channels, messages, headers and operations. Source: asyncapi.com, 3.0.0."""

from __future__ import annotations

from typing import Any

from schemas import openai, signature, topics
from schemas.job import DEFAULT_TENANT, MAX_JOB_BYTES
from schemas.result import MAX_RESULT_BYTES
from schemas.topics import Topics

_PARTITIONS = 12
_DIGITS = {"type": "string", "pattern": "^[0-9]+$"}
_TEXT = {"type": "string"}

HEADERS: dict[str, dict[str, Any]] = {
    topics.TENANT: {
        "type": "string",
        "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$",
        "default": DEFAULT_TENANT,
        "description": "The tenant that owns the job; this tenant's keys sign its result.",
    },
    topics.DEADLINE: {
        **_DIGITS,
        "description": "Unix milliseconds after which the job expires; without it, the TTL counts.",
    },
    topics.PRIORITY: {"type": "string", "pattern": "^[0-9]$", "description": "0 to 9, higher first."},
    topics.IDEMPOTENCY_KEY: {
        **_TEXT,
        "description": "The client's name for this submission, 1 to 256 characters of printable ASCII without spaces. "
        "Only the name's form is checked: two records with one key are two jobs.",
    },
    topics.TRACEPARENT: {**_TEXT, "description": "W3C Trace Context; an unreadable value starts a new trace."},
    topics.SCHEMA: {**_TEXT, "description": "Version of the job's schema: 1."},
    topics.JOB_ID: {**_TEXT, "description": "The job's identifier, stamped once and carried from then on."},
    topics.TENANT_SIGNATURE: {
        "type": "string",
        "pattern": "^v1,[A-Za-z0-9+/]{43}=$",
        "description": "HMAC-SHA256 of the fleet's secret over tenant, job id and value: workers with "
        "`POSTBACK_WORKER__TRUST=signed` take no job without it.",
    },
    topics.WEBHOOK_ID: {
        "type": "string",
        "pattern": "^msg_[0-9a-f]{32}$",
        "description": "The event's identifier: the same on every attempt, derived from the job's first place and "
        "from its value. On a job, the identifier counts only beside the `job-origin` from which it is derived.",
    },
    topics.JOB_ORIGIN: {
        **_TEXT,
        "description": "The job's first place, as `topic UUID:partition:offset`; written when a worker moves the job.",
    },
    topics.SCREENING: {
        **_TEXT,
        "description": "Findings of the gateway's input filter, as a JSON list. The result has them in `screening`.",
    },
    topics.DELTAS: {
        "type": "string",
        "const": "1",
        "description": "A client of the gateway waits for the answer piece by piece. Only the gateway writes the "
        "header, and workers read it; on another producer's job it has no effect.",
    },
    topics.SAID_TENANT: {**_TEXT, "description": "The `tenant` that a rejected record stated."},
    topics.SAID_JOB_ID: {**_TEXT, "description": "The `job-id` that a rejected record stated."},
    topics.CALLBACK_URL: {
        "type": "string",
        "format": "uri",
        "description": "The callback; without it, the result is only stored.",
    },
    topics.ATTEMPT: {**_DIGITS, "description": "Callback attempts made before this record was written."},
    topics.LANE: {**_TEXT, "description": "On a job that waits for its `not_before`: the lane to which it returns."},
    topics.NOT_BEFORE: {**_DIGITS, "description": "Unix milliseconds at which the next attempt, or the job, is due."},
    topics.LEFT: {**_DIGITS, "description": "Milliseconds until that time, from this record's writing on."},
    topics.WAITED: {**_DIGITS, "description": "Milliseconds of all waits so far."},
    topics.WRITTEN: {
        **_DIGITS,
        "description": "Unix milliseconds at which the record was written, by its writer's clock.",
    },
    topics.RESULT_AT: {**_DIGITS, "description": "Unix milliseconds at which the result was written or put back."},
    topics.WEBHOOK_ENDPOINT: {**_TEXT, "description": "The webhook endpoint of a ready event."},
    topics.WEBHOOK_ENDPOINT_VERSIONS: {
        **_TEXT,
        "description": "Versions of the endpoint's secret that sign, newest first, separated by commas.",
    },
    topics.WEBHOOK_HTTP_HEADER: {**_TEXT, "description": "An HTTP header of the endpoint's own, `name: value`."},
    topics.WEBHOOK_RATE_LIMIT: {**_TEXT, "description": "The most callbacks a second that the endpoint takes."},
    topics.REASON: {**_TEXT, "description": "The reason for giving up the record, as a stable code."},
    topics.REASON_DETAIL: {**_TEXT, "description": "The reason in a sentence for people."},
    topics.SOURCE_TOPIC: {**_TEXT, "description": "The record's source topic."},
    topics.SOURCE_PARTITION: {**_DIGITS, "description": "The record's partition in the source topic."},
    topics.SOURCE_OFFSET: {**_DIGITS, "description": "The record's offset in the source topic."},
    topics.ABRIDGED: {
        **_TEXT,
        "description": "Present if the record was too large for a dead letter; the source topic holds all of it.",
    },
    topics.ATTEMPTS: {**_DIGITS, "description": "Number of tries of the record."},
    topics.DEFERRED: {**_DIGITS, "description": "Number of deferrals without a try."},
    topics.DEFERRED_REASON: {**_TEXT, "description": "The reason of the last deferral, as a stable code."},
    topics.FORWARDED: {**_DIGITS, "description": "Number of moves to another engine's lane."},
}
"""Every header that a record of the fleet may carry."""

PRODUCER_HEADERS = (
    *(topics.TENANT, topics.DEADLINE, topics.PRIORITY, topics.IDEMPOTENCY_KEY, topics.TRACEPARENT, topics.SCHEMA),
)
"""The headers that a producer may set on a job; workers write the others."""

_JOB_HEADERS = (
    *PRODUCER_HEADERS,
    *(topics.TENANT_SIGNATURE, topics.JOB_ID, topics.WEBHOOK_ID, topics.JOB_ORIGIN, topics.SCREENING, topics.DELTAS),
    *(topics.DEFERRED, topics.FORWARDED, topics.ATTEMPTS),
)
_LATER_HEADERS = (*_JOB_HEADERS, topics.LANE, topics.NOT_BEFORE, topics.LEFT, topics.WRITTEN)
_RESULT_HEADERS = (topics.TENANT, topics.WEBHOOK_ID, topics.JOB_ID, topics.CALLBACK_URL, topics.TRACEPARENT)
_EVENT_HEADERS = (
    *_RESULT_HEADERS,
    *(topics.WEBHOOK_ENDPOINT, topics.WEBHOOK_ENDPOINT_VERSIONS, topics.WEBHOOK_HTTP_HEADER),
    topics.WEBHOOK_RATE_LIMIT,
)
_RETRY_HEADERS = (*_RESULT_HEADERS, *topics.WAITING_HEADERS)
_WEBHOOK_HEADERS = (signature.ID_HEADER, signature.TIMESTAMP_HEADER, signature.SIGNATURE_HEADER)
_DEAD_HEADERS = (
    *(topics.REASON, topics.REASON_DETAIL, topics.ATTEMPTS, topics.ABRIDGED),
    *(topics.SOURCE_TOPIC, topics.SOURCE_PARTITION, topics.SOURCE_OFFSET),
    *(topics.SAID_TENANT, topics.SAID_JOB_ID, topics.JOB_ORIGIN, topics.TENANT_SIGNATURE),
)

_INFO = {
    "title": "Postback",
    "version": "1.0.0",
    "description": "Asynchronous LLM inference over Kafka: a job goes in, a signed result comes out, exactly once.",
    "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
}
_SERVERS = {
    "kafka": {
        "host": "{bootstrap}",
        "protocol": "kafka",
        "description": "The fleet's brokers. Without ACLs, every client that may write here is trusted.",
        "variables": {"bootstrap": {"default": "127.0.0.1:9092"}},
    },
    "consumer": {
        "host": "{host}",
        "protocol": "https",
        "description": "The host that a job names in `callback_url`.",
        "variables": {"host": {"default": "consumer.example"}},
    },
}


_BATCH_LINE = {
    "type": "object",
    "title": "A line of an OpenAI Batch",
    "required": ["custom_id", "url", "body"],
    "properties": {
        "custom_id": {"type": "string", "minLength": 1, "maxLength": 512},
        "method": {"type": "string", "const": "POST"},
        "url": {"type": "string", "enum": list(openai.URLS)},
        "body": {
            "type": "object",
            "properties": {
                "metadata": {
                    "type": "object",
                    "properties": {openai.CALLBACK_KEY: {"type": "string", "format": "uri"}},
                }
            },
        },
    },
}


def document() -> dict[str, Any]:
    """Return the document, ready to be written as YAML.

    The document's payloads refer to the JSON Schemas in the same folder.
    """
    return {
        "asyncapi": "3.0.0",
        "info": _INFO,
        "defaultContentType": "application/json",
        "servers": _SERVERS,
        "channels": _channels(),
        "operations": _operations(),
        "components": {"messages": _messages(), "schemas": {"batchLine": _BATCH_LINE}},
    }


def _messages() -> dict[str, Any]:
    job = {"payload": {"anyOf": [{"$ref": "./job.json"}, _ref("components", "schemas", "batchLine")]}}
    return {
        "job": {**_message("A job, or a line of an OpenAI Batch", _JOB_HEADERS), **job},
        "waitingJob": {**_message("A job that waits for its `not_before`", _LATER_HEADERS), **job},
        "result": _message("The result of one job", _RESULT_HEADERS, "result.json"),
        "waitingResult": _message("A result whose callback failed", _RETRY_HEADERS, "result.json"),
        "readyEvent": _message("An event for a webhook endpoint", _EVENT_HEADERS),
        "deadLetter": {
            **_message("A job or a result that was given up, unchanged", _DEAD_HEADERS),
            "payload": {
                "description": "The record's own value and headers, of any content; the value may not be JSON."
            },
        },
        "redriven": _message("A dead letter that was put back", ()),
        "attempt": _message("One POST to a callback and its outcome", ()),
        "endpoint": _message("The state of a callback's endpoint", (), "endpoint.json"),
        "control": _message("A cancellation", (), "control.json"),
        "worker": _message("The models that a worker answers for", (), "worker.json"),
        "batch": _message("Lines of an OpenAI Batch, to become jobs", ()),
        "rollout": _message("A rollout of a candidate model, or a step that it has reached", ()),
        "comparison": _message("One job of a rollout: two answers compared, or one answer's facts", ()),
        "sample": _message("A job, its grounded prompt and its result, for a candidate model", ()),
        "event": {
            **_message("The signed webhook", (), "event.json"),
            "headers": _object(dict.fromkeys(_WEBHOOK_HEADERS, _TEXT), required=_WEBHOOK_HEADERS),
        },
    }


def _message(title: str, headers: tuple[str, ...], payload: str | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"title": title, "contentType": "application/json"}
    if headers:
        message["headers"] = _object({name: HEADERS[name] for name in headers})
    message["payload"] = {"$ref": f"./{payload}"} if payload else {"type": "object"}
    return message


def _object(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _channels() -> dict[str, Any]:
    names = Topics()
    kinds = {
        names.requests(): ("job", f"Jobs, at most {MAX_JOB_BYTES} bytes each."),
        names.requests(bulk=True): ("job", "Jobs that can wait, and jobs beyond a tenant's share."),
        names.requests(spare=True): ("job", "Jobs that run only while no other job waits."),
        **dict.fromkeys(names.later.values(), ("waitingJob", "Jobs that wait for their `not_before`.")),
        names.results: ("result", f"One result per job, at most {MAX_RESULT_BYTES} bytes; its key is the job's id."),
        **dict.fromkeys(names.tiers.values(), ("waitingResult", "Callbacks that wait for their next attempt.")),
        names.events: ("readyEvent", "Events for tenants' webhook endpoints, as they are sent."),
        names.attempts: ("attempt", "One record per POST."),
        names.endpoints: ("endpoint", "Compacted: the states of endpoints, such as disabled."),
        names.control: ("control", "Compacted by tenant and job: cancellations, kept as long as a job can live."),
        names.workers: ("worker", "Compacted by replica: the models of each worker, written every minute."),
        names.dead_letters: ("deadLetter", "Records that were given up, with the reason in their headers."),
        names.redriven: ("redriven", "The dead letters that were put back; the key is a dead letter's place."),
        names.batch_requests: ("batch", "Batches to be expanded into jobs."),
        names.shadow: ("sample", "Samples that a candidate model answers again."),
        names.rollouts: ("rollout", "Compacted: rollouts of candidate models, and the steps that they have reached."),
        names.comparisons: ("comparison", "Observations of a rollout's jobs, for its decision and its report."),
    }
    specs = {spec.name: spec.config for spec in names.specs(_PARTITIONS)}
    channels = {topic: _topic(topic, *kind, specs[topic]) for topic, kind in kinds.items()}
    return {**channels, "callback": _callback_channel()}


def _topic(name: str, message: str, description: str, config: dict[str, str]) -> dict[str, Any]:
    return {
        "address": name,
        "description": description,
        "servers": [_ref("servers", "kafka")],
        "messages": {message: _ref("components", "messages", message)},
        "bindings": {"kafka": {"topic": name, "topicConfiguration": _configuration(config)}},
    }


_BOUND = frozenset({"cleanup.policy", "delete.retention.ms", "max.message.bytes", "retention.bytes", "retention.ms"})
"""The topic settings that the binding has fields for. The binding has no fields for codecs, timestamps and compaction
lag."""


def _configuration(config: dict[str, str]) -> dict[str, Any]:
    """Return a topic's settings in the form of the Kafka binding, version 0.5.0."""
    known = {name: value for name, value in config.items() if name in _BOUND}
    return {name: value.split(",") if name == "cleanup.policy" else int(value) for name, value in known.items()}


def _callback_channel() -> dict[str, Any]:
    return {
        "address": None,
        "description": "The job's `callback_url`. Standard Webhooks: v1 (HMAC-SHA256) and v1a (ed25519) signatures.",
        "servers": [_ref("servers", "consumer")],
        "messages": {"event": _ref("components", "messages", "event")},
    }


def _operations() -> dict[str, Any]:
    names = Topics()
    return {
        "takeJob": _operation("receive", names.requests(), "job", "Answer a job."),
        "takeBulkJob": _operation("receive", names.requests(bulk=True), "job", "Answer a job that can wait."),
        "takeSpareJob": _operation("receive", names.requests(spare=True), "job", "Answer a job while no other waits."),
        "settleResult": _operation("send", names.results, "result", "Settle a result with its job's progress."),
        "giveUp": _operation("send", names.dead_letters, "deadLetter", "Keep records that cannot be handled."),
        "callBack": {
            **_operation("send", "callback", "event", "POST a signed event until a 2xx answers."),
            "bindings": {"http": {"method": "POST", "bindingVersion": "0.3.0"}},
        },
    }


def _operation(action: str, channel: str, message: str, summary: str) -> dict[str, Any]:
    reference = _ref("channels", channel)
    return {
        "action": action,
        "summary": summary,
        "channel": reference,
        "messages": [{"$ref": f"{reference['$ref']}/messages/{message}"}],
    }


def _ref(*path: str) -> dict[str, str]:
    return {"$ref": "#/" + "/".join(path)}
