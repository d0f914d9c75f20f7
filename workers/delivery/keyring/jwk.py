"""A public key as a JWK (RFC 7517; RFC 8037 for ed25519)."""

from __future__ import annotations

import hashlib
import json

from workers.delivery.keyring.material import base64url


def jwk(public: bytes, owner: str = "") -> dict[str, str]:
    """Return the JWK of a 32-byte key. The `kid` is `owner` followed by the key's thumbprint (RFC 7638).

    Readers cache keys by `kid`. Under a new master or in a new keyring, a key of the same version has another
    thumbprint, and so another `kid`.
    """
    # RFC 7638, section 3, hashes the required members in lexical order, without spaces.
    required = {"crv": "Ed25519", "kty": "OKP", "x": base64url(public)}
    thumbprint = hashlib.sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {**required, "kid": owner + base64url(thumbprint), "use": "sig", "alg": "EdDSA"}
