"""Stable codes for programs, each with its meaning: the codes of a result's error and of a dead letter's reason."""

from __future__ import annotations

ERROR_CODES: dict[str, str] = {
    "invalid_job": "The record is no valid job, or no engine serves its model. The message names each field.",
    "untrusted_job": "The workers take only jobs whose tenant is signed by the fleet, and the record's signature is "
    "missing or wrong.",
    "screened": "A rule of the operator's input filter rejects the job; `screening` names the rule.",
    "expired": "`ttl_seconds` passed before the answer was complete.",
    "cancelled": "The job was cancelled before the answer was complete.",
    "no_sources": "`sources.required` is true, and no source could be used.",
    "no_image": "A server did not send one of the job's images in time.",
    "no_payload": "The document at `payload_url` was not sent in time.",
    "unfinished": "The engine ended the answer early; `finish_reason` says how.",
    "not_json": "The answer is not the JSON that `response_format` asks for; perhaps `max_tokens` cut it off.",
    "invalid_output": "Two answers in a row broke the job's JSON Schema, or did not call its tools as the job asks; "
    "`text` and `tool_calls` have the second one.",
    "profile_unavailable": "The profile requires a check that the worker cannot make, such as `entailment`.",
    "unsupported": "The profile requires sources to support the answer, and they do not.",
    "result_too_large": "The result is larger than a result may be; lower `max_tokens` or send less metadata.",
    "engine_error": "The engine failed at the job five times while it answered others.",
    "worker_killed": "The job killed its worker three times while it ran alone.",
    "internal_error": "Postback has a defect: the handler failed at the job.",
    "handler_defect": "Postback has a defect: the handler failed at the job, and then failed to give the job up.",
}
"""The codes of `error` in a result."""

DEAD_LETTER_REASONS: dict[str, str] = {
    "rejected": "The record is no valid job.",
    "untrusted": "The record's tenant is not signed by the fleet. `said-tenant` has the tenant that the record stated.",
    "screened": ERROR_CODES["screened"],
    "engine_error": ERROR_CODES["engine_error"],
    "worker_killed": "The record killed its worker three times while it ran alone.",
    "internal_error": "Postback has a defect: the handler failed at the record.",
    "handler_defect": "Postback has a defect: the handler failed at the record, and then failed to give the record up.",
    "callback_exhausted": "Every attempt of the callback failed, or its origin was away for the time of all attempts.",
    "callback_refused": "The callback's URL may not be called.",
    "endpoint_gone": "The endpoint answered 410.",
    "endpoint_disabled": "The endpoint is disabled; the callback was not tried.",
    "unusable_result": "The record of `model_results` or of a tier is no result with a callback.",
    "unusable_batch_range": "The record of `batch_requests` cannot be expanded into jobs.",
}
"""The `reason` header of a dead letter."""

CLIENTS_MISTAKES = frozenset(
    {
        "rejected",
        "untrusted",
        "screened",
        "callback_exhausted",
        "callback_refused",
        "endpoint_gone",
        "endpoint_disabled",
    }
)
"""The reasons whose cause a client can remove, in its job or at its receiver; all others are the fleet's."""
