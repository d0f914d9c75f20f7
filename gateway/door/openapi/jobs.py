"""Operations on single jobs: jobs, responses, completions, events, models."""

from __future__ import annotations

from typing import get_args

from gateway.access import Scope
from gateway.door.openapi import kinds
from gateway.door.openapi.operation import IDEMPOTENCY, PAGING, Operation, Parameter
from schemas.outcome import Outcome
from schemas.topics import Lane

_LANE = {"enum": list(get_args(Lane))}
_AWAITED = (
    "The request waits for the answer. When its time is over, the job is cancelled and the status is 504. "
    "A job that did not succeed is an error with its code. When the gateway stops, the status is 503: "
    "a repeat with the same `Idempotency-Key` gets the answer of the same job."
)
_TIME = "as Unix seconds, ISO 8601, or a duration before now such as `-2h`"

OPERATIONS = (
    Operation(
        "POST",
        "/v1/jobs",
        "createJobs",
        "Submit one job, or an array of jobs",
        Scope.SUBMIT,
        "AcceptedJobs",
        202,
        "An array is accepted whole or not at all. Unknown fields are refused, and a problem names its job's index.",
        (
            IDEMPOTENCY,
            Parameter(
                "lane",
                "`bulk` jobs wait behind `default` ones; `spare` jobs run while no other waits.",
                _LANE,
            ),
            Parameter("x-postback-lane", "The lane, if the query names none.", _LANE, "header"),
        ),
        "JobOrJobs",
    ),
    Operation(
        "GET",
        "/v1/jobs",
        "listJobs",
        "List jobs, without their results",
        Scope.READ,
        "JobList",
        about="`metadata.KEY=VALUE` chooses jobs with this metadata; up to eight keys may be given.",
        parameters=(
            *PAGING,
            Parameter("status", "Only jobs in this state.", {"enum": ["queued", "cancelling", *map(str, Outcome)]}),
            Parameter("batch", "Only lines of this batch that have a result."),
            Parameter("model", "Only jobs of this model."),
            Parameter("created_after", f"Only jobs created after this time, {_TIME}."),
            Parameter("created_before", f"Only jobs created before this time, {_TIME}."),
        ),
    ),
    Operation("GET", "/v1/jobs/{job_id}", "getJob", "Read a job with its result", Scope.READ, "JobWithResult"),
    Operation(
        "POST",
        "/v1/jobs/{job_id}/cancel",
        "cancelJob",
        "Cancel a job",
        Scope.CANCEL,
        "JobObject",
        about="A job that has ended is a 409. A result that is older than the cancellation remains.",
    ),
    Operation(
        "POST",
        "/v1/responses",
        "createResponse",
        "Create a response",
        Scope.SUBMIT,
        "ResponseObject",
        about=f"With `background` the answer comes at once, as `queued`. Without `background`: {_AWAITED}",
        parameters=(IDEMPOTENCY,),
        body="ResponseRequest",
    ),
    Operation("GET", "/v1/responses/{response_id}", "getResponse", "Read a response", Scope.READ, "ResponseObject"),
    Operation(
        "POST",
        "/v1/responses/{response_id}/cancel",
        "cancelResponse",
        "Cancel a response",
        Scope.CANCEL,
        "ResponseObject",
        about="A response whose end is not known yet is `in_progress`, and `postback.status` is `cancelling`.",
    ),
    Operation(
        "DELETE",
        "/v1/responses/{response_id}",
        "deleteResponse",
        "Delete a finished response with its answer and input",
        Scope.CANCEL,
        "Deleted",
    ),
    Operation(
        "GET",
        "/v1/responses/{response_id}/input_items",
        "listInputItems",
        "List a response's input",
        Scope.READ,
        "ItemList",
        parameters=PAGING,
    ),
    Operation(
        "POST",
        "/v1/chat/completions",
        "createChatCompletion",
        "Answer a chat",
        Scope.SUBMIT,
        "ChatCompletion",
        about=_AWAITED,
        parameters=(IDEMPOTENCY,),
        body="ChatRequest",
    ),
    Operation(
        "POST",
        "/v1/completions",
        "createCompletion",
        "Continue a text",
        Scope.SUBMIT,
        "TextCompletion",
        about=_AWAITED,
        parameters=(IDEMPOTENCY,),
        body="CompletionRequest",
    ),
    *kinds.operations(_AWAITED),
    Operation("GET", "/v1/models", "listModels", "List the tenant's models", Scope.READ, "ModelList"),
    Operation("GET", "/v1/models/{model}", "getModel", "Read one model", Scope.READ, "ModelObject"),
    Operation(
        "GET",
        "/v1/events",
        "streamEvents",
        "Stream the tenant's events",
        Scope.READ,
        about="Server-sent events. `id` is the event's number, `data` is the body of the webhook.",
        parameters=(
            Parameter("after", "Begin after this event; 0 begins with the oldest one.", {"type": "integer"}),
            Parameter("types", "Only these types, separated by commas; `batch.*` means all below `batch.`."),
            Parameter("Last-Event-ID", "As `after`, sent by browsers that connect again.", place="header"),
        ),
        answer_type="text/event-stream",
    ),
)
