"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("label", sa.String(256), nullable=True),
        sa.Column("created_at", _BIG, nullable=False),
        sa.Column("expires_at", _BIG, nullable=True),
        sa.Column("revoked_at", _BIG, nullable=True),
        sa.Column("last_used_at", _BIG, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_index(op.f("ix_api_keys_tenant"), "api_keys", ["tenant"], unique=False)
    op.create_table(
        "batches",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("input_file_id", sa.String(64), nullable=False),
        sa.Column("output_file_id", sa.String(64), nullable=True),
        sa.Column("error_file_id", sa.String(64), nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("completed", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("errors", sa.JSON(), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.Column("created_at", _BIG, nullable=False),
        sa.Column("expires_at", _BIG, nullable=False),
        sa.Column("in_progress_at", _BIG, nullable=True),
        sa.Column("finalizing_at", _BIG, nullable=True),
        sa.Column("completed_at", _BIG, nullable=True),
        sa.Column("failed_at", _BIG, nullable=True),
        sa.Column("expired_at", _BIG, nullable=True),
        sa.Column("cancelling_at", _BIG, nullable=True),
        sa.Column("cancelled_at", _BIG, nullable=True),
        sa.Column("output_expires_seconds", sa.Integer(), nullable=True),
        sa.Column("claimed_until", _BIG, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=True),
        sa.Column("reserved_lines", sa.Integer(), nullable=True),
        sa.Column("reserved_tokens", _BIG, nullable=True),
        sa.Column("submitted_by", sa.String(128), nullable=True),
        sa.Column("model", sa.String(256), nullable=True),
        sa.Column("usage", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index("ix_batches_input_file_id", "batches", ["input_file_id"], unique=False)
    op.create_index(op.f("ix_batches_status"), "batches", ["status"], unique=False)
    op.create_index("ix_batches_tenant_id", "batches", ["tenant", "id"], unique=False)
    op.create_table(
        "console_sessions",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("credential", sa.String(128), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", _BIG, nullable=False),
        sa.Column("expires_at", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_console_sessions")),
    )
    op.create_index("ix_console_sessions_credential", "console_sessions", ["tenant", "credential"], unique=False)
    op.create_index(op.f("ix_console_sessions_expires_at"), "console_sessions", ["expires_at"], unique=False)
    op.create_table(
        "events",
        sa.Column("number", _BIG, autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("object_id", sa.String(256), nullable=False),
        sa.Column("at", _BIG, nullable=False),
        sa.Column("webhook_id", sa.String(128), nullable=True),
        sa.Column("data", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_events")),
    )
    op.create_index("ix_events_tenant_number", "events", ["tenant", "number"], unique=False)
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("filename", sa.String(512), nullable=False),
        sa.Column("bytes", _BIG, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", _BIG, nullable=False),
        sa.Column("stored_at", _BIG, nullable=True),
        sa.Column("expires_at", _BIG, nullable=True),
        sa.Column("deleted_at", _BIG, nullable=True),
        sa.Column("submitted_by", sa.String(128), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
    )
    op.create_index("ix_files_tenant_id", "files", ["tenant", "id"], unique=False)
    op.create_table(
        "idempotency",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("key", sa.String(256), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_created_at"), "idempotency", ["created_at"], unique=False)
    op.create_table(
        "job_attempts",
        sa.Column("topic_partition", sa.Integer(), nullable=False),
        sa.Column("topic_offset", _BIG, nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("job_id", sa.String(256), nullable=False),
        sa.Column("webhook_id", sa.String(128), nullable=False),
        sa.Column("at", _BIG, nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("topic_partition", "topic_offset", name=op.f("pk_job_attempts")),
    )
    op.create_index("ix_job_attempts_at", "job_attempts", ["at"], unique=False)
    op.create_index("ix_job_attempts_tenant_at", "job_attempts", ["tenant", "at"], unique=False)
    op.create_index("ix_job_attempts_job", "job_attempts", ["tenant", "job_id"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("job_id", sa.String(256), nullable=False),
        sa.Column("batch_id", sa.String(64), nullable=True),
        sa.Column("line", sa.Integer(), nullable=True),
        sa.Column("url", sa.String(64), nullable=False),
        sa.Column("custom_id", sa.String(512), nullable=True),
        sa.Column("model_id", sa.String(256), nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created_at", _BIG, nullable=False),
        sa.Column("finished_at", _BIG, nullable=True),
        sa.Column("submitted_by", sa.String(128), nullable=True),
        sa.Column("reserved_tokens", _BIG, nullable=True),
        sa.Column("prompt_sha256", sa.String(64), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.Column("request", sa.LargeBinary(), nullable=True),
        sa.Column("deleted_at", _BIG, nullable=True),
        sa.PrimaryKeyConstraint("tenant", "job_id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_batch_line", "jobs", ["batch_id", "line"], unique=False)
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"], unique=False)
    op.create_index("ix_jobs_tenant_finished", "jobs", ["tenant", "finished_at", "status"], unique=False)
    op.create_index(
        "ix_jobs_tenant_custom_id",
        "jobs",
        ["tenant", "custom_id", "created_at"],
        unique=False,
        sqlite_where=sa.text("custom_id IS NOT NULL"),
        postgresql_where=sa.text("custom_id IS NOT NULL"),
    )
    op.create_index("ix_jobs_tenant_created", "jobs", ["tenant", "created_at", "job_id"], unique=False)
    op.create_table(
        "meta",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_meta")),
    )
    op.create_table(
        "outbox",
        sa.Column("number", _BIG, autoincrement=True, nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("topic", sa.String(249), nullable=False),
        sa.Column("shard", sa.String(63), nullable=True),
        sa.Column("record_key", sa.LargeBinary(), nullable=True),
        sa.Column("headers", sa.LargeBinary(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_outbox")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "quotas",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("queued_lines", _BIG, nullable=False),
        sa.Column("queued_tokens", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_quotas")),
    )
    op.create_table(
        "tenants",
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("created_at", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_tenants")),
    )
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("upload_id", sa.String(64), nullable=False),
        sa.Column("bytes", _BIG, nullable=False),
        sa.Column("created_at", _BIG, nullable=False),
        sa.Column("stored_at", _BIG, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload_parts")),
    )
    op.create_index(op.f("ix_upload_parts_upload_id"), "upload_parts", ["upload_id"], unique=False)
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("filename", sa.String(512), nullable=False),
        sa.Column("bytes", _BIG, nullable=False),
        sa.Column("created_at", _BIG, nullable=False),
        sa.Column("expires_at", _BIG, nullable=False),
        sa.Column("file_expires_seconds", sa.Integer(), nullable=True),
        sa.Column("file_id", sa.String(64), nullable=True),
        sa.Column("part_ids_sha256", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"], unique=False)
    op.create_index("ix_uploads_tenant_status", "uploads", ["tenant", "status"], unique=False)
    op.create_table(
        "view_offsets",
        sa.Column("topic", sa.String(249), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("topic_id", sa.String(64), nullable=False),
        sa.Column("next_offset", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition", name=op.f("pk_view_offsets")),
    )
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("secret_version", sa.Integer(), nullable=False),
        sa.Column("previous_until", _BIG, nullable=True),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", _BIG, nullable=False),
        sa.Column("updated_at", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
    )
    op.create_index(op.f("ix_webhook_endpoints_tenant"), "webhook_endpoints", ["tenant"], unique=False)
    op.create_table(
        "writers",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("transaction", _BIG, nullable=False),
        sa.Column("at", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_writers")),
    )
