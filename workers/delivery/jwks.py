"""Pages of public keys for consumers, so that they get new keys after a rotation.

The pages are JWK sets (RFC 7517, section 5) of ed25519 keys (RFC 8037) at well-known paths (RFC 8615): one for each
tenant, and one for the fleet. Each set holds every key that signs now: during a rotation, the old and the new key.

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
from workers.delivery.keyring import JwkSet, Keyring

FLEET_JWKS_PATH = "/.well-known/jwks.json"
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
    return _page(keyring.jwks(asked[1], now))


def fleet_jwks_page(keyring: Keyring, clock: Clock, _: str) -> HealthPage:
    """Return the page of the keys that verify every tenant's events now.

    In format 2 the set is empty after a migration's overlap. An empty set, unlike a missing page, makes a reader drop
    its cached keys and refuse every event.
    """
    now = clock.time()
    keyring.follow(now)
    return _page(keyring.fleet_jwks(now))


def _page(keys: JwkSet) -> HealthPage:
    return HealthPage(JWKS_TYPE, json.dumps(keys).encode(), MAX_AGE_SECONDS)
