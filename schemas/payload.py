"""The document at a job's `payload_url`: a JSON object with the question, and the job with this question.

A document may be many times larger than a record, and anyone may have written it. An empty list of two bytes takes some
hundred bytes of memory when it is parsed. The document's values are therefore counted before the JSON is parsed. The
parser itself refuses nesting of 200 levels.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from pydantic import ValidationError

from schemas.job import Job
from schemas.kinds import ASKED, BY_REFERENCE
from schemas.problems import MAX_PROBLEMS, problems_of
from schemas.unknown import UnknownFields, taken_from

PAYLOAD_FIELDS: Final = (*ASKED, "tools", "tool_choice", "parallel_tool_calls", "sources", "response_format")
"""The fields that a document may have. All other fields, such as the model and the callback, stay in the record."""
MAX_VALUES: Final = 50_000
"""The maximum number of values of a document.

Members of objects and items of lists are counted, at all levels together.
"""

_DIGEST: Final = "payload_sha256"


class UnusablePayload(ValueError):  # noqa: N818 - named after the document, as UnusableLine is
    """The document cannot be used. The text names the fault and its place, and repeats nothing of the document."""


class AskedJob(NamedTuple):
    """A job with the question of its document, and the unknown fields of the document."""

    job: Job
    unknown: UnknownFields | None


def with_payload(job: Job, payload: bytes) -> AskedJob:
    """Return the job with the fields of its document instead of `payload_url`. Raises UnusablePayload.

    All rules of a job hold for the record's and the document's fields together.
    """
    if job.payload_sha256 is not None and hashlib.sha256(payload).hexdigest() != job.payload_sha256.lower():
        raise UnusablePayload(
            f"its SHA-256 is not `{_DIGEST}`; send the job again with the digest of the document as it is now"
        )
    if has_too_many_values(payload, MAX_VALUES):
        raise UnusablePayload(f"it has more than {MAX_VALUES} values; send fewer or longer texts")
    try:
        asked = Job.model_validate_json(payload, strict=True, extra="allow")
    except ValidationError as error:
        raise UnusablePayload(_described(error, "it")) from None
    unknown = taken_from(asked)
    stated, given = _stated(job), _stated(asked)
    _check_places(stated, given)
    own = job.model_fields_set & Job.model_fields.keys() - {BY_REFERENCE, _DIGEST}  # leaves out ignored members
    fields = {name: getattr(job, name) for name in own} | {name: getattr(asked, name) for name in given}
    try:
        return AskedJob(Job.model_validate(fields), unknown)
    except ValidationError as error:
        raise UnusablePayload(_described(error, "with the record's fields it")) from None


def _stated(job: Job) -> list[str]:
    """Return the names of the fields that are set to a value other than null, in the order of the schema."""
    return [name for name in Job.model_fields if name in job.model_fields_set and getattr(job, name) is not None]


def _check_places(stated: list[str], given: list[str]) -> None:
    """Check the document's fields.

    Raises UnusablePayload for a field that only a record may have, and for a field that the job's record has too.
    """
    if BY_REFERENCE in given:
        raise UnusablePayload(f"it has `{BY_REFERENCE}`, and a document cannot name another one")
    if misplaced := [name for name in given if name not in PAYLOAD_FIELDS]:
        raise UnusablePayload(f"it has {_names(misplaced)}; move this into the record")
    if twice := [name for name in given if name in stated]:
        raise UnusablePayload(f"it has {_names(twice)}, and so has the record; send this once")


def _names(fields: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in fields[:MAX_PROBLEMS])


def _described(error: ValidationError, what: str) -> str:
    return f"{what} has these problems: {'; '.join(map(str, problems_of(error)))}"


def has_too_many_values(payload: bytes, most: int) -> bool:
    """True if the JSON may have more than `most` values.

    Escapes are removed, and the rest is split at quotes. A regular expression would take 8 s for 8 MiB of short
    strings. If the text is not JSON, the count is right up to the place where the parser stops.
    """
    plain = payload.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 4 * most:  # each key and each value has two quotes
        return True
    bare = b"".join(plain.split(b'"')[::2])
    return bare.count(b",") + bare.count(b"[") + bare.count(b"{") > most
