"""Settings of access, from `POSTBACK_ACCESS__…` variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from gateway.access.oidc.settings import OidcSettings
from gateway.access.tenant_settings import TenantSettings
from schemas.settings import Constants, RoomSettings


class AccessConstants(Constants):
    """Rates that protect the door, and the pace of writes."""

    failures_per_minute: int = 60
    """The maximum number of requests per minute with a refused credential, from one IPv4 address or one /64 of IPv6.

    Above this rate, refused credentials get status 429. Valid credentials of the same address are still admitted.
    """
    key_cache_seconds: float = 5.0
    """Seconds for which keys and tenants' settings are cached. For at most this time, a gateway still accepts a revoked
    key, and uses a tenant's former settings."""
    stranger_requests_per_second: int = 50
    """The maximum number of requests per second for pages without a credential, such as `/docs` and the sign-in.

    They are counted for each IPv4 address or /64 of IPv6.
    """
    last_used_seconds: float = 300.0
    """Shortest time between two writes of a key's last use into the store."""


class AccessSettings(AccessConstants, RoomSettings, env_prefix="POSTBACK_ACCESS__", env_nested_delimiter="__"):
    """Credentials of the gateway's clients, and their limits."""

    pepper_file: Path | None = None
    """The file of the pepper, the secret with which the digests of API keys are made.

    By default the file lies beside an SQLite database, with `.pepper` added to the name; with another database, this
    setting is required. A missing file is made if the store has no key yet. Back the file up with the store: without
    it, every API key is refused.
    """
    oidc: OidcSettings = Field(default_factory=OidcSettings)
    requests_per_second: int | None = Field(default=None, ge=1, le=1_000_000)
    """The maximum number of admitted requests per second of the whole door; by default as many as the machine takes.

    Further requests get status 429. Requests without a valid credential are not counted here.
    """
    redis_url: SecretStr | None = None
    """Redis in which several gateways count their requests together; without it, each gateway counts in its memory."""
    tenant_defaults: TenantSettings = Field(default_factory=TenantSettings)
    """Settings, as JSON, of tenants that have none of their own (`postback tenants put`)."""
