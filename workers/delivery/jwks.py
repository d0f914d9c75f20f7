"""The fleet's public keys where consumers look for them, so that a rotation reaches them by itself.

A JWK set (RFC 7517, section 5) of ed25519 keys (RFC 8037) at a well-known path (RFC 8615). It holds every key that
signs now: during a rotation the old and the new one.
"""

from __future__ import annotations

import json

from telemetry.clock import Clock
from telemetry.health import Page
from workers.delivery.keyring import Keyring

JWKS_PATH = "/.well-known/jwks.json"
JWKS_TYPE = "application/jwk-set+json"
"""RFC 7517, section 8.5.2."""

MAX_AGE_SECONDS = 300
"""How long a reader may keep the set. A key that leaked is believed for that much longer; a rotation has a day."""


def jwks_page(keyring: Keyring, clock: Clock) -> Page:
    """The keys as they are now; where the file broke, those that were read before."""
    now = clock.time()
    keyring.follow(now)
    return Page(JWKS_TYPE, json.dumps(keyring.jwks(now)).encode(), MAX_AGE_SECONDS)
