"""Log actions of delivery; `telemetry/actions.py` lists all."""

from __future__ import annotations

from telemetry.action import Action

_REDRIVE = "`postback dead-letters redrive`"

DELIVERY = {
    "delivery-window": Action(
        "info", "The line states the maximum number of bytes of results that the process holds at once."
    ),
    "callback-delivered": Action("debug", "A callback was answered with 2xx."),
    "callback-failed": Action("info", "An attempt failed; the callback waits in a tier for its next attempt."),
    "callback-given-up": Action(
        "warning",
        "A callback failed for good; it becomes a dead letter with the reason.",
        f"Tell the consumer; once the endpoint works again, {_REDRIVE}.",
    ),
    "callback-kept": Action(
        "info",
        "The callback's endpoint is disabled; the callback becomes a dead letter without an attempt.",
        f"`postback endpoints enable`, then {_REDRIVE}.",
    ),
    "result-unusable": Action(
        "warning",
        "A record of `model_results` or of a tier is no result with a callback; it becomes a dead letter.",
        "Look for another program that writes to these topics.",
    ),
    "breaker-changed": Action("info", "An origin gets no calls for a time, or one probe, or all calls again."),
    "inference.endpoint.disabled": Action(
        "warning",
        "An endpoint answered 410 or failed for days; its callbacks become dead letters.",
        "Tell the consumer; then `postback endpoints enable` and `postback replay`.",
    ),
    "inference.endpoint.not-disabled": Action(
        "warning",
        "A tenant has the maximum number of disabled endpoints; another failing endpoint stays enabled.",
        "`postback endpoints list` shows the disabled endpoints; enable those that are in use again.",
    ),
    "endpoint-record-unreadable": Action(
        "warning",
        "A record of `callback_endpoints` cannot be read; it is skipped.",
        "Look for another program that writes to `callback_endpoints`.",
    ),
    "resources-exhausted": Action(
        "error",
        "The process can open no more connections; callbacks are deferred, and no attempt is counted.",
        "Raise the limit of open files, or add processes.",
    ),
    "keyring-reloaded": Action("info", "The keyring's file changed; the new keys are in use."),
    "keyring-reload-failed": Action(
        "error",
        "The keyring's file changed and cannot be read; the keys in memory go on signing.",
        "Correct the file: the line names the problem.",
    ),
    "certificates-reload-failed": Action(
        "error",
        "A file of certificates changed and cannot be read; the certificates in memory stay in use.",
        "Correct the file: the line names the problem.",
    ),
}
