"""Secrets of webhook endpoints, and their test events."""

from __future__ import annotations

import secrets

from gateway.webhooks.endpoints import EndpointRow, versions
from gateway.webhooks.fan_out import object_event
from telemetry.clock import Clock
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster, PostOutcome


class Sending:
    """Derives the secrets of webhook endpoints from the keyring, and sends test events through the egress guard."""

    def __init__(self, keyring: Keyring, poster: Poster, clock: Clock) -> None:
        self._keyring = keyring
        self._poster = poster
        self._clock = clock

    def secret(self, row: EndpointRow) -> str:
        """Return the endpoint's current secret, `whsec_…`."""
        now = self._clock.time()
        self._keyring.follow(now)
        return self._keyring.endpoint_secret(row.tenant, row.id, row.secret_version, now)

    async def test(self, row: EndpointRow, kind: str) -> PostOutcome:
        """POST a sample event of this type, signed as a real event is. Raises Exhausted."""
        now = self._clock.time()
        sample = f"{kind.split('.')[0]}_test_{secrets.token_hex(8)}"
        event = object_event(row.tenant, kind, sample, sample, int(now * 1000))
        signer = self._keyring.endpoint_signer(row.tenant, row.id, versions(row, int(now * 1000)), now)
        headers = {**signer.headers(event.webhook_id, int(now), event.body), **row.headers}
        return await self._poster.post(row.url, event.body, headers, row.tenant)
