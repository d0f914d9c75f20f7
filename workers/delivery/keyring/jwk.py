"""A public key as a JWK."""

from __future__ import annotations

import hashlib
import json

from workers.delivery.keyring.material import base64url


def jwk(public: bytes) -> dict[str, str]:
    """One key; `kid` is the thumbprint of its required members in lexical order (RFC 7638)."""
    required = {"crv": "Ed25519", "kty": "OKP", "x": base64url(public)}
    thumbprint = hashlib.sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {**required, "kid": base64url(thumbprint), "use": "sig", "alg": "EdDSA"}
