"""Header fields of every response, including responses that no application made."""

from __future__ import annotations

import secrets

REQUEST_ID = "x-request-id"

SECURITY: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
"""Default fields, which keep browsers and caches from misusing a response (OWASP REST Security Cheat Sheet).

Fields that a route sets take precedence.
"""


def new_request_id() -> str:
    """Return an id for a request. A client's `x-request-id` is never used: it could be another client's."""
    return f"req_{secrets.token_hex(12)}"
