"""Pages of public keys for consumers, so that they get new keys after a rotation.

The pages are JWK sets (RFC 7517, section 5) of ed25519 keys (RFC 8037) at well-known paths (RFC 8615): one for each
tenant. Each set holds every key that signs now: during a rotation, the old and the new key.

Strangers may request any tenant's set. Every valid tenant name has a set of the same form, even an unused name, so that
answers do not reveal tenants. Making a set costs less than handling the request, so even requests for unused
names cost little.
"""

from __future__ import annotations

import json
import re

from schemas.job import TENANT_PATTERN
from telemetry.clock import Clock
from telemetry.health import HealthPage
from workers.delivery.keyring import Keyring

JWKS_FOLDER = "/.well-known/jwks/"
JWKS_TYPE = "application/jwk-set+json"
"""Media type (RFC 7517, section 8.5.2)."""

MAX_AGE_SECONDS = 300
"""Seconds for which a reader may cache a set, and so trust a leaked key; far less than a rotation's overlap of a
day."""

_FILE = re.compile(rf"({TENANT_PATTERN})\.json")


def tenant_jwks_page(keyring: Keyring, clock: Clock, name: str) -> HealthPage | None:
    """Return the page `TENANT.json`, the keys that verify the tenant's events now; None if `name` has another form.

    If the keyring's file is broken, the page has the keys that were read before.
    """
    asked = _FILE.fullmatch(name)
    if asked is None:
        return None
    now = clock.time()
    keyring.follow(now)
    return HealthPage(JWKS_TYPE, json.dumps(keyring.jwks(asked[1], now)).encode(), MAX_AGE_SECONDS)
