"""Settings of delivery, read from `POSTBACK_DELIVERY__…`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, FilePath

from schemas.settings import Constants, RoomSettings
from telemetry.logs import origin_of
from workers.delivery.endpoint_events import MOST_A_SECOND

MAX_ANSWER_EXCERPT_BYTES = 1024


def _origin(text: str) -> str:
    if "://" not in text or origin_of(text) != text:
        raise ValueError("not an origin: write scheme and host in lower case, such as https://hooks.example.com")
    return text


Origin = Annotated[str, AfterValidator(_origin)]


class DeliveryConstants(Constants):
    """Times and bounds that WEBHOOKS.md promises to consumers, or that follow from measurements."""

    deadline_seconds: float = 20.0
    """Timeout of a whole attempt; shorter than `drain_seconds`, so that a stop does not cut attempts off."""
    response_cap_bytes: int = 64 * 1024
    """Bytes of a response's body that delivery reads and drops. A longer body ends the connection."""
    keep_alive_seconds: float = 4.0
    """Seconds to keep an idle connection: less than the 5 s after which Node, uvicorn and Apache close it."""
    destination_queue_records: int = 2048
    """Records per tenant and origin that may wait in this process for an attempt; further records are deferred at once.

    An origin that answers stays busy until deferred records return from the smallest tier.
    """
    destination_wait_seconds: float = 4.0
    """Seconds that a record may wait in the process for an attempt before the record is deferred."""
    breaker_failures: int = 20
    """Failures in a row that open the breaker of a tenant's origin.

    An answer below 500, except 429, is not a failure.
    """
    breaker_failure_share: float = 0.5
    """The breaker also opens if at least this share of the last 64 attempts failed."""
    breaker_open_seconds: float = 1.0
    """Seconds for which the breaker is open at first, so that a short fault delays little. Each failed probe doubles
    the time."""
    breaker_longest_seconds: float = 300.0
    """The maximum number of seconds for which the breaker stays open after failed probes.

    In the first ten minutes of an outage the breaker stays open for at most 30 seconds, and later for at most a
    twentieth of the outage so far.
    """
    jitter: float = 0.1
    """Largest random addition to a wait, as a share of the wait."""


class DeliverySettings(DeliveryConstants, RoomSettings, env_prefix="POSTBACK_DELIVERY__"):
    """Sending of callbacks. `POSTBACK_KAFKA__TIER_DELAYS_SECONDS` sets the fleet's waits between attempts."""

    drain_seconds: float = Field(default=30.0, gt=25, le=600)
    """Longest wait for running attempts when the process stops.

    Set it above `deadline_seconds` and below the pod's grace period. When a partition moves to another process, the
    wait is five seconds."""
    answer_excerpt_bytes: int = Field(default=0, ge=0, le=MAX_ANSWER_EXCERPT_BYTES)
    """Bytes of a response's body that `callback_attempts` keeps for `postback endpoints deliveries`; 0 keeps none. The
    body is the endpoint's own text and may hold personal data."""
    ca_file: FilePath | None = None
    """Certificates (PEM) of authorities to trust besides the system's authorities. A replaced file is read again."""
    client_certificates: dict[str, FilePath] = Field(default_factory=dict)
    """Client certificates for tenants' endpoints (mutual TLS), as JSON: `{"acme": "/etc/postback/acme.pem"}`. A file
    holds the certificate, its chain, and the key without a passphrase, in PEM; a replaced file is read again. The file
    must belong to this process's user or to root, and be closed to others; the group may read a file that root owns."""
    destination_concurrency: int = Field(default=64, ge=1, le=10_000)
    """Attempts that may run at the same time per tenant and origin, in this process."""
    origin_rate_limits: dict[Origin, Annotated[float, Field(gt=0, le=MOST_A_SECOND)]] = Field(default_factory=dict)
    """The most callbacks a second to an origin, as JSON: `{"https://hooks.example.com": 10}`. All tenants' callbacks to
    the origin count together, apart from those to a registered endpoint with a rate limit of its own.

    Each delivery process spaces its own callbacks: with three processes, an origin may get three times as many. A
    callback beyond the limit waits, and counts no failure."""
    window_records: int = Field(default=4096, ge=1, le=8192)
    """Records that may be handled at the same time. The fuller this window, the smaller the shares of tenants and
    destinations."""
    window_bytes: int | None = Field(default=None, ge=16 * 1024 * 1024)
    """Bytes of results that are taken and not settled; running attempts have at most half of these bytes.

    Records that wait for their tier's time may have a further eighth. If absent, 256 MiB are subtracted from the
    container's memory limit, and the value is a quarter of the rest, at least 16 and at most 256 MiB. If a worker also
    delivers callbacks, it also subtracts the memory of its processes that read and rank web pages."""
    disable_after_seconds: float = Field(default=5 * 86_400.0, gt=0, le=366 * 86_400)
    """Seconds after which an endpoint is disabled, if every attempt in this time failed."""
