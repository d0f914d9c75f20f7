"""The headers of a job's record: the form of each, and the problems of malformed headers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from schemas import topics
from schemas.job import TENANT_PATTERN
from schemas.problems import Problem

Headers = Sequence[tuple[str, bytes | None]]
"""Kafka record headers. If a name occurs more than once, its last value is used."""


class _HeaderRule(NamedTuple):
    pattern: re.Pattern[str]
    reason: str | None
    """The problem to report. If the reason is None, a value that does not match is treated as absent."""


def _rule(pattern: str, reason: str | None) -> _HeaderRule:
    return _HeaderRule(re.compile(pattern), reason)


PLACE = r"[A-Za-z0-9._+/-]{1,249}:[0-9]{1,10}:[0-9]{1,19}"
"""An origin as text: the topic's UUID, partition and offset.

librdkafka writes a UUID as 22 characters of base64 with `+` and `/` (RFC 4648, section 4); Kafka's tools write `-` and
`_`.
"""
_NOT_AN_IDENTIFIER = "is not 1 to 256 characters of printable ASCII without spaces"
_HEADER_RULES = {
    topics.TENANT: _rule(
        TENANT_PATTERN, "is not a tenant: 1 to 63 letters, digits, `_` or `-`, a letter or digit first"
    ),
    topics.DEADLINE: _rule(r"[0-9]{1,15}", "is not a time in Unix milliseconds"),
    topics.PRIORITY: _rule(r"[0-9]", "is not a number from 0 to 9"),
    topics.IDEMPOTENCY_KEY: _rule(r"[\x21-\x7e]{1,256}", _NOT_AN_IDENTIFIER),
    topics.SCHEMA: _rule(r"1(\.[0-9]{1,4})?", "is not a known version of the job's schema: only version 1 is known"),
    topics.JOB_ID: _rule(r"[\x21-\x7e]{1,256}", _NOT_AN_IDENTIFIER),
    # Any producer can write headers, so these two are used only if the `webhook-id` is derived from the `job-origin`.
    topics.WEBHOOK_ID: _rule(r"msg_[0-9a-f]{32}", None),
    topics.JOB_ORIGIN: _rule(PLACE, None),
    # W3C Trace Context, section 3.2.2.3: a traceparent that cannot be parsed restarts the trace.
    topics.TRACEPARENT: _rule(
        r"(?!ff)(?!00-.{52}-)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[\x20-\x7e]{0,256})?",
        None,
    ),
    topics.SCREENING: _rule(r"[\x20-\x7e]{1,16384}", None),
}


def read_headers(headers: Headers) -> tuple[dict[str, str], tuple[Problem, ...]]:
    """Return the job headers with usable values, by name, and the problems of the others."""
    said: dict[str, str] = {}
    problems: list[Problem] = []
    for name, data in dict(headers).items():
        rule = _HEADER_RULES.get(name)
        if rule is None or data is None:
            continue
        text = data.decode("latin-1")
        if rule.pattern.fullmatch(text):
            said[name] = text
        elif rule.reason is not None:
            problems.append(Problem(f"headers.{name}", rule.reason))
    return said, tuple(problems)
