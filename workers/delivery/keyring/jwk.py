"""A public key as a JWK (RFC 7517; RFC 8037 for ed25519)."""

from __future__ import annotations

import hashlib
import json

from workers.delivery.keyring.material import base64url


def jwk(public: bytes, owner: str = "") -> dict[str, str]:
    """The JWK of a 32-byte key. Its `kid` is the owner's name, if there is one, and the key's thumbprint (RFC 7638).

    Readers cache keys by `kid`. The thumbprint tells keys of the same version apart, under a new master or in a new
    keyring.
    """
    # RFC 7638, section 3: the required members in lexical order, without spaces.
    required = {"crv": "Ed25519", "kty": "OKP", "x": base64url(public)}
    thumbprint = hashlib.sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {**required, "kid": owner + base64url(thumbprint), "use": "sig", "alg": "EdDSA"}
