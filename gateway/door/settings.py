"""Settings of the door, from `POSTBACK_GATEWAY__…` variables."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal

from pydantic import Field

from schemas.settings import Constants, RoomSettings

Network = IPv4Network | IPv6Network


class GatewayConstants(Constants):
    """Patience with slow clients, and bounds on one request."""

    head_seconds: float = 10.0
    """Seconds that a TLS handshake may take, and that the request line and header fields of one request may take."""
    transfer_seconds: float = 10.0
    """Seconds in which a client must send or take a minimum of bytes, else the connection ends."""
    transfer_bytes_per_second: int = 1024
    """The least speed of a body or an answer; the connection of a slower client ends."""
    keep_alive_seconds: float = 60.0
    """Seconds for which a connection without a request stays open."""
    linger_seconds: float = 30.0
    """Seconds for which the door reads on after it refused a request's body, so that the client sees the answer."""
    head_bytes: int = 64 * 1024
    """The maximum number of bytes of a request's header fields; a request with more gets status 431."""
    url_bytes: int = 8 * 1024
    """The maximum number of bytes of a request's URL; a request with more gets status 414."""
    body_bytes: int = 16 * 1024 * 1024
    """The maximum number of bytes of a JSON body; a request with more gets status 413.

    Uploaded files have limits of their own.
    """
    bodies_bytes: int = 256 * 1024 * 1024
    """The maximum number of bytes of JSON bodies that all requests hold together; a request beyond gets status 503."""
    jobs_per_request: int = 1000
    """The maximum number of jobs in one request to `/v1/jobs`. For more jobs, use a batch."""
    cancel_seconds: float = 2.0
    """Seconds that a request to cancel a response waits for the response's end."""
    event_streams: int = 32
    """The maximum number of open requests to `/v1/events` of one tenant."""
    heartbeat_seconds: float = 15.0
    """Seconds without an event after which `/v1/events` sends a comment, so that proxies keep the connection open."""


class GatewaySettings(GatewayConstants, RoomSettings, env_prefix="POSTBACK_GATEWAY__", env_nested_delimiter="__"):
    """The gateway's HTTP server: its patience with slow clients, and the limits of one connection and of all."""

    plain_http: bool = False
    """True if a mesh's sidecar or an ingress speaks TLS in front of the door: the door then serves plain HTTP, at any
    address. Let only that proxy reach its port, since requests carry keys and prompts."""
    audit_file: Path | None = None
    """The file to which audit lines are appended; by default standard output.

    Commands that change keys, tenants, jobs or dead letters append their lines to the file too; if this setting is
    absent, they write no audit lines.
    """
    client_certificates: Literal["optional", "required"] = "optional"
    """With `--client-ca`: `optional` also admits clients without a certificate, by an API key or a token."""
    stop_seconds: float = Field(default=10.0, ge=0, le=600)
    """Seconds that requests in flight may still take after SIGTERM; requests that need longer get status 503."""

    connections: int = Field(default=2000, ge=1, le=100_000)
    """The maximum number of open connections. Further connections are closed at once."""
    connections_per_address: int = Field(default=500, ge=1, le=100_000)
    """The maximum number of open connections of one client: an IPv4 address, or the first 64 bits of an IPv6 address.

    Connections of trusted proxies are not counted, unless the PROXY protocol names their client."""
    trusted_proxies: tuple[Network, ...] = ()
    """Networks of the proxies and load balancers before the door, as JSON: `["10.0.0.0/8"]`.

    The door believes their `X-Forwarded-For`, and counts rates and connections by the address of the client behind
    them. Without this setting, all clients behind a proxy have the proxy's address.
    """
    proxy_protocol: bool = False
    """True if the trusted proxies begin each connection with the PROXY protocol, version 1 or 2."""
    await_seconds: float = Field(default=120.0, gt=0, le=3600)
    """Seconds that a request waits for its answer: `/v1/chat/completions`, `/v1/completions`, `/v1/responses` without
    `background`, and the endpoints for texts such as `/v1/embeddings`. Then the job is cancelled, and the request gets
    status 504."""
    prometheus_url: str | None = Field(default=None, pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$", max_length=2048)
    """The URL of the fleet's Prometheus, whose alerts the console's page of the fleet shows, such as
    `http://prometheus:9090`."""
    session_seconds: int = Field(default=8 * 3600, ge=60, le=30 * 86_400)
    """Seconds after which a browser has to sign in at the console page again."""
