"""Pages of public keys for consumers, so that a rotation reaches them by itself.

The pages are JWK sets (RFC 7517, section 5) of ed25519 keys (RFC 8037) at well-known paths (RFC 8615): one for each
tenant, and the fleet's. Each holds every key that signs now: during a rotation the old and the new one.

Strangers may request any tenant's set. Every valid name has one of the same form, in use or not, so that answers reveal
no tenants. Making a set costs less than the request around it.
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
"""Time for which a reader may cache the set. A leaked key is trusted for that much longer; a rotation has a day."""

_FILE = re.compile(rf"({TENANT_PATTERN})\.json")


def tenant_jwks_page(keyring: Keyring, clock: Clock, name: str) -> HealthPage | None:
    """The keys that verify one tenant's events now, for `TENANT.json`; None for any other name.

    If the keyring's file is broken, the keys that were read before stay.
    """
    asked = _FILE.fullmatch(name)
    if asked is None:
        return None
    now = clock.time()
    keyring.follow(now)
    return _page(keyring.jwks(asked[1], now))


def fleet_jwks_page(keyring: Keyring, clock: Clock, _: str) -> HealthPage:
    """The keys that verify every tenant's events now: in format 2 none, once a migration's overlap is over.

    An empty set, unlike a missing page, makes a reader drop its cached keys and refuse every event.
    """
    now = clock.time()
    keyring.follow(now)
    return _page(keyring.fleet_jwks(now))


def _page(keys: JwkSet) -> HealthPage:
    return HealthPage(JWKS_TYPE, json.dumps(keys).encode(), MAX_AGE_SECONDS)
