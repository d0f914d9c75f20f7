"""Settings of delivery, read from `POSTBACK_DELIVERY__…`."""

from __future__ import annotations

from pydantic import Field, FilePath
from pydantic_settings import BaseSettings, SettingsConfigDict

MAX_ANSWER_EXCERPT_BYTES = 1024


class DeliverySettings(BaseSettings):
    """How callbacks are sent. The waits between attempts are the fleet's, in `POSTBACK_KAFKA__TIER_DELAYS_SECONDS`."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_DELIVERY__",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    deadline_seconds: float = Field(default=20.0, gt=0, le=25)
    """For one attempt as a whole. Shorter than a stage may take to drain (30 s), or those of a stop are cut."""
    drain_seconds: float = Field(default=30.0, gt=25, le=600)
    """How long attempts under way are awaited when the process stops: longer than the longest deadline, less than the
    grace period. Where a partition goes to another process, five seconds."""
    response_cap_bytes: int = Field(default=64 * 1024, ge=0, le=16 * 1024 * 1024)
    """How much of a response's body is read, and thrown away, to keep the connection; a longer one is cut off."""
    answer_excerpt_bytes: int = Field(default=0, ge=0, le=MAX_ANSWER_EXCERPT_BYTES)
    """Bytes of a response's body that `callback_attempts` keeps for `postback deliveries`; 0 keeps none. The body is
    the endpoint's own text and may hold personal data."""
    keep_alive_seconds: float = Field(default=4.0, gt=0, le=300)
    """How long an idle connection is kept: just less than the 5 s after which Node, uvicorn and Apache close theirs."""
    ca_file: FilePath | None = None
    """Certificates (PEM) of authorities that are trusted besides the system's. It is read again when it is replaced."""
    client_certificates: dict[str, FilePath] = Field(default_factory=dict)
    """Which file a tenant's endpoints are shown (mutual TLS): its certificate, the chain, and the key without a
    passphrase, in PEM. As JSON: `{"acme": "/etc/postback/acme.pem"}`. A file that is replaced is read again. It has to
    belong to this process's user or to root, closed to others; the group may read a file of root's."""
    destination_concurrency: int = Field(default=64, ge=1, le=10_000)
    """Attempts at once per tenant and origin, in this process."""
    destination_queue_records: int = Field(default=2048, ge=0, le=10_000)
    """Records per tenant and origin that may wait here for one of those; what is beyond is deferred at once. So many
    that an origin which answers is kept busy until what was deferred comes back from the smallest tier."""
    destination_wait_seconds: float = Field(default=4.0, gt=0, le=4)
    """How long records wait there before they are deferred too."""
    window_records: int = Field(default=4096, ge=1, le=8192)
    """Records that are handled at once; what a tenant and a destination may have of them shrinks with what is left."""
    window_bytes: int | None = Field(default=None, ge=16 * 1024 * 1024)
    """Bytes of results that are taken and not settled; those that are handled have half of them at most. What waits in
    a tier for its time has a quarter as many besides. Absent, a quarter of what the container's limit of memory leaves
    beside 256 MiB, from 16 to 256 MiB; in a worker that delivers too, its readers' share is left out."""
    breaker_failures: int = Field(default=20, ge=1, le=10_000)
    """Failures in a row after which a tenant's origin is left alone. An answer below 500, other than 429, is none."""
    breaker_failure_share: float = Field(default=0.5, gt=0, le=1)
    """The share of failures among the last 64 attempts after which it is left alone, too."""
    breaker_open_seconds: float = Field(default=5.0, gt=0, le=3600)
    """How long an origin is left alone the first time; twice as long after each probe that fails."""
    breaker_longest_seconds: float = Field(default=300.0, gt=0, le=86_400)
    """The longest of these times, and so how late it is noticed that an origin is back."""
    disable_after_seconds: float = Field(default=5 * 86_400.0, gt=0, le=366 * 86_400)
    """How long every attempt at an endpoint has to fail until it is disabled."""
    jitter: float = Field(default=0.1, ge=0, le=1)
    """How much longer than its tier a wait may be at random, as a share of it."""
