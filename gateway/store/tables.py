"""The store's tables.

Times are Unix milliseconds; ids are the gateway's own; JSON columns hold no prompts and no secrets.

Rows of `jobs`, `batch_segments`, `job_attempts`, `events` and `view_offsets` are rebuilt from Kafka by
`postback store rebuild`. All other tables are the store's own, and belong in a backup.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

from gateway.store.dialects import Name

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

BigInt = BigInteger().with_variant(Integer, "sqlite")  # SQLite generates row numbers only for an INTEGER column

meta = Table(
    "meta",
    metadata,
    Column("name", Name(64), primary_key=True),
    Column("value", Text, nullable=False),
)
"""Single values: the store's UUID, the schema's number, the outbox's counter, the events' counter."""

tenants = Table(
    "tenants",
    metadata,
    Column("tenant", Name(63), primary_key=True),
    Column("settings", JSON, nullable=False),
    Column("created_at", BigInt, nullable=False),
)
"""Settings of a tenant: allowed models and callback domains, rates, quotas."""

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Name(64), primary_key=True),
    Column("tenant", Name(63), nullable=False, index=True),
    Column("digest", LargeBinary, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("label", Name(256)),
    Column("created_at", BigInt, nullable=False),
    Column("expires_at", BigInt),
    Column("revoked_at", BigInt),
    Column("last_used_at", BigInt),
)
"""HMAC-SHA256 digests of API keys, never the keys."""

console_sessions = Table(
    "console_sessions",
    metadata,
    Column("digest", Name(64), primary_key=True),
    Column("tenant", Name(63), nullable=False),
    Column("credential", Name(128), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created_at", BigInt, nullable=False),
    Column("expires_at", BigInt, nullable=False, index=True),
    Index("ix_console_sessions_credential", "tenant", "credential"),
)
"""Browsers that are signed in at the console page. `digest` is the SHA-256 of the cookie's token."""

_NAMED = text("custom_id IS NOT NULL")
_KEPT = text("request IS NOT NULL")

jobs = Table(
    "jobs",
    metadata,
    Column("tenant", Name(63), primary_key=True),
    Column("job_id", Name(256), primary_key=True),
    Column("url", Name(64), nullable=False),
    Column("custom_id", Name(512)),
    Column("model_id", Name(256)),
    Column("status", Name(16), nullable=False),
    Column("created_at", BigInt, nullable=False),
    Column("not_before", BigInt),
    Column("finished_at", BigInt),
    Column("submitted_by", Name(128)),
    Column("reserved_tokens", BigInt),
    Column("prompt_sha256", Name(64)),
    Column("metadata", JSON, nullable=False),
    Column("result", LargeBinary),
    Column("request", LargeBinary),
    Column("deleted_at", BigInt),
    Index("ix_jobs_tenant_created", "tenant", "created_at", "job_id"),
    Index("ix_jobs_finished_at", "finished_at"),
    Index("ix_jobs_tenant_finished", "tenant", "finished_at", "status"),
    Index(
        "ix_jobs_tenant_kept",
        *("tenant", "url", "created_at", "job_id"),
        sqlite_where=_KEPT,
        postgresql_where=_KEPT,
    ),
    Index(
        "ix_jobs_tenant_custom_id",
        "tenant",
        "custom_id",
        "created_at",
        sqlite_where=_NAMED,
        postgresql_where=_NAMED,
    ),
)
"""One row for each job that is no line of a batch.

`status` is `queued`, `cancelling` or an outcome; `result` holds the bytes of the result's record.

`request` holds the members of a body of `/v1/responses`, or of a stored chat completion, that are shown again. A
deleted response or completion has a `deleted_at`, and neither result nor request.
`url` is the API by which the job came in: `/v1/jobs`, `/v1/responses`, `/v1/chat/completions`, `kafka`.
"""

batch_segments = Table(
    "batch_segments",
    metadata,
    Column("batch_id", Name(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("tenant", Name(63), nullable=False),
    Column("first_line", Integer, nullable=False),
    Column("last_line", Integer, nullable=False),
    Column("first_at", BigInt, nullable=False),
    Column("last_at", BigInt, nullable=False),
    Column("outcomes", JSON, nullable=False),
    Column("line_index", LargeBinary, nullable=False),
    Column("results", LargeBinary, nullable=False),
    Column("output_lines", LargeBinary, nullable=False),
    Index("ix_batch_segments_last_at", "last_at"),
    Index("ix_batch_segments_tenant_last", "tenant", "last_at"),
    Index("ix_batch_segments_tenant_first", "tenant", "first_at"),
)
"""Answered lines of batches: a row for each page of results, written in the transaction that moves the view's offsets.

`results` has the results' records, and `output_lines` the lines of the batch's output and error file, one after the
other. `line_index` is JSON: an entry for each line, in the order of the records; see `gateway.view.segments`."""

job_attempts = Table(
    "job_attempts",
    metadata,
    Column("topic_partition", Integer, primary_key=True),
    Column("topic_offset", BigInt, primary_key=True),
    Column("tenant", Name(63), nullable=False),
    Column("job_id", Name(256), nullable=False),
    Column("webhook_id", Name(128), nullable=False),
    Column("at", BigInt, nullable=False),
    Column("details", JSON, nullable=False),
    Index("ix_job_attempts_job", "tenant", "job_id"),
    Index("ix_job_attempts_at", "at"),
    Index("ix_job_attempts_tenant_at", "tenant", "at"),
)
"""One row for each callback attempt, from `callback_attempts`."""

events = Table(
    "events",
    metadata,
    Column("number", BigInt, primary_key=True, autoincrement=False),
    Column("tenant", Name(63), nullable=False),
    Column("type", Name(64), nullable=False),
    Column("object_id", Name(256), nullable=False),
    Column("at", BigInt, nullable=False),
    Column("webhook_id", Name(128)),
    Column("data", LargeBinary),
    Index("ix_events_tenant_number", "tenant", "number"),
)
"""Events for `GET /v1/events`, numbered in the order of their commits.

Where `data` is null, the event's data are the result in the job's row. Readers skip an event without data if its result
was removed, or was replaced by a result of another outcome.

A row of the type `lines` stands for the events of several answered lines of the batch `object_id`, of which the last
has the `number`. Its `data` is JSON: the segment of the first line, and a list of lines and outcomes.
"""

files = Table(
    "files",
    metadata,
    Column("id", Name(64), primary_key=True),
    Column("tenant", Name(63), nullable=False),
    Column("purpose", Name(32), nullable=False),
    Column("filename", Name(512), nullable=False),
    Column("bytes", BigInt, nullable=False),
    Column("sha256", Name(64), nullable=False),
    Column("created_at", BigInt, nullable=False),
    Column("stored_at", BigInt),
    Column("expires_at", BigInt),
    Column("deleted_at", BigInt),
    Column("submitted_by", Name(128)),
    Column("upload_id", Name(64), index=True),
    Index("ix_files_tenant_id", "tenant", "id"),
    Index("ix_files_tenant_filename", "tenant", "filename"),
)
"""Metadata of files; their contents are blobs, named by the id. Ids sort by their time of creation.

The row is written before the first byte of the blob, and is removed after the blob: no blob is without a row. A row
without `stored_at` is a write that is under way or was cut off. A row with `deleted_at` waits for the removal of its
blob. A row with an `upload_id` is a part of that upload, and no file that a tenant sees."""

uploads = Table(
    "uploads",
    metadata,
    Column("id", Name(64), primary_key=True),
    Column("tenant", Name(63), nullable=False),
    Column("status", Name(16), nullable=False),
    Column("purpose", Name(32), nullable=False),
    Column("filename", Name(512), nullable=False),
    Column("bytes", BigInt, nullable=False),
    Column("created_at", BigInt, nullable=False),
    Column("expires_at", BigInt, nullable=False),
    Column("file_expires_seconds", Integer),
    Column("file_id", Name(64)),
    Column("part_ids_sha256", Name(64)),
    Index("ix_uploads_tenant_status", "tenant", "status"),
    Index("ix_uploads_expires_at", "expires_at"),
)
"""Files that arrive in parts. `status` is `pending`, `completed`, `cancelled` or `expired`.

A completed upload has the `file_id` of its file, and the hash of the ordered list of its parts' ids."""

batches = Table(
    "batches",
    metadata,
    Column("id", Name(64), primary_key=True),
    Column("tenant", Name(63), nullable=False),
    Column("endpoint", Name(64), nullable=False),
    Column("input_file_id", Name(64), nullable=False),
    Column("output_file_id", Name(64)),
    Column("error_file_id", Name(64)),
    Column("status", Name(16), nullable=False, index=True),
    Column("total", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("errors", JSON),
    Column("metadata", JSON),
    Column("created_at", BigInt, nullable=False),
    Column("expires_at", BigInt, nullable=False),
    Column("in_progress_at", BigInt),
    Column("finalizing_at", BigInt),
    Column("completed_at", BigInt),
    Column("failed_at", BigInt),
    Column("expired_at", BigInt),
    Column("cancelling_at", BigInt),
    Column("cancelled_at", BigInt),
    Column("output_expires_seconds", Integer),
    Column("claimed_until", BigInt, nullable=False),
    Column("traceparent", Name(64)),
    Column("reserved_lines", Integer),
    Column("reserved_tokens", BigInt),
    Column("submitted_by", Name(128)),
    Column("model", Name(256)),
    Column("usage", JSON),
    Column("answered", LargeBinary),
    Column("segments", Integer),
    Index("ix_batches_tenant_id", "tenant", "id"),
    Index("ix_batches_input_file_id", "input_file_id"),
    Index("ix_batches_output_file_id", "output_file_id"),
    Index("ix_batches_error_file_id", "error_file_id"),
)
"""One row for each batch, with the fields of OpenAI's Batch object. Ids sort by their time of creation.

`answered` has a bit for each line with a result, the first line in the lowest bit of the first byte;
`segments` is the number of the batch's next segment, which no earlier one had.
A process that validates or finalises a batch renews `claimed_until`, so that other processes leave the batch alone.
"""

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", Name(64), primary_key=True),
    Column("tenant", Name(63), nullable=False, index=True),
    Column("name", Name(256), nullable=False),
    Column("url", Name(2048), nullable=False),
    Column("event_types", JSON, nullable=False),
    Column("headers", JSON, nullable=False),
    Column("rate_limit", Integer),
    Column("secret_version", Integer, nullable=False),
    Column("previous_until", BigInt),
    Column("enabled", Boolean, nullable=False),
    Column("created_at", BigInt, nullable=False),
    Column("updated_at", BigInt, nullable=False),
)
"""A tenant's own callbacks. Secrets are derived from the keyring by id and version, and never stored.

Until `previous_until`, the version before `secret_version` signs, too. `headers` may hold the consumer's credentials.
"""

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", Name(63), primary_key=True),
    Column("key", Name(256), primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("status", Integer, nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("created_at", BigInt, nullable=False, index=True),
)
"""Answers to requests with an `Idempotency-Key`. A repeated request gets the stored answer."""

left_requests = Table(
    "left_requests",
    metadata,
    Column("tenant", Name(63), primary_key=True),
    Column("object_id", Name(256), primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("status", Integer, nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("created_at", BigInt, nullable=False, index=True),
    Index("ix_left_requests_digest", "tenant", "digest"),
)
"""Accepted requests whose clients left before the answer, and which no repeat has joined. See `gateway.door.retries`.

`object_id` is the job's or the batch's id; `digest` is a hash of credential, method, path and body."""

outbox = Table(
    "outbox",
    metadata,
    Column("number", BigInt, primary_key=True, autoincrement=True),
    Column("size", Integer, nullable=False),
    Column("topic", Name(249), nullable=False),
    Column("shard", Name(63)),
    Column("record_key", LargeBinary),
    Column("headers", LargeBinary, nullable=False),
    Column("value", LargeBinary),
    sqlite_autoincrement=True,
)
"""Records that are accepted, and not yet known to be on Kafka.

Numbers are in the order of the commits, and no number is given twice, also after a row was deleted. A row with a
tenant as its `shard` goes to one of the tenant's partitions; the key chooses the partition of any other record. The
column `size`, the record's size in bytes, comes before the value, so that a sum of sizes reads no values."""

quotas = Table(
    "quotas",
    metadata,
    Column("tenant", Name(63), primary_key=True),
    Column("queued_lines", BigInt, nullable=False),
    Column("queued_tokens", BigInt, nullable=False),
)
"""For each tenant, the amount of accepted work that is not settled yet."""

view_offsets = Table(
    "view_offsets",
    metadata,
    Column("topic", Name(249), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("topic_id", Name(64), nullable=False),
    Column("next_offset", BigInt, nullable=False),
)
"""Each partition's next offset for the view, written in the transaction of the rows below that offset."""

writers = Table(
    "writers",
    metadata,
    Column("id", Name(32), primary_key=True),
    Column("transaction", BigInt, nullable=False),
    Column("at", BigInt, nullable=False),
)
"""The last transaction of each gateway process, on PostgreSQL. A process whose COMMIT was not answered reads its own
row here.
"""
