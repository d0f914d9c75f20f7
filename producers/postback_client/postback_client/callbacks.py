"""Verifies callbacks. Source: the Standard Webhooks specification, "Signature scheme" and "Webhook headers".

A signature is HMAC-SHA256 (`v1`, with a secret `whsec_…`) or ed25519 (`v1a`, with a public key `whpk_…`) over
`{webhook-id}.{webhook-timestamp}.{body}`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from postback_client.clock import MACHINE, ClientClock
from postback_client.errors import CallbackRefused, UnreadableAnswer, UnusableKey
from postback_client.shapes import parsed, read
from postback_client.wire import Result

TOLERANCE_SECONDS = 300.0

_ID, _TIMESTAMP, _SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
_SECRET, _PUBLIC_KEY = "whsec_", "whpk_"
_SECONDS = re.compile(r"[0-9]{1,15}")
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64

Matches = Callable[[bytes, bytes], bool]
"""A function of the signed content and a signature that returns True if the key made the signature."""


@dataclass(frozen=True, slots=True)
class Callback:
    """An event that was verified. `id` is the same on every attempt, so that repeats can be dropped."""

    id: str
    type: str
    """`inference.succeeded`, `batch.completed` or another type."""
    created_at: int
    """Unix seconds."""
    data: Mapping[str, Any]
    tenant: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def result(self) -> Result | None:
        """The result of a job, for types `inference.…`; None otherwise. Raises UnreadableAnswer."""
        return read(Result, self.data) if self.type.startswith("inference.") else None


def verify(
    headers: Mapping[str, str],
    body: bytes,
    *,
    secrets: Iterable[str] = (),
    public_keys: Iterable[str] = (),
    tenant: str | None = None,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    clock: ClientClock = MACHINE,
) -> Callback:
    """Return the callback if one of the keys signed these bytes within the tolerance.

    Pass the body as it was received, before any parsing. With `tenant`, events of other tenants are refused. Header
    names may be in any case. Raises CallbackRefused, or UnusableKey if one of the keys is not a key.
    """
    macs, verifiers = [_mac(text) for text in secrets], [_ed25519(text) for text in public_keys]
    webhook_id, timestamp, signatures = _headers(headers)
    if not _SECONDS.fullmatch(timestamp):
        raise CallbackRefused("malformed_timestamp", f"{_TIMESTAMP} is not a number of Unix seconds")
    if abs(clock.time() - int(timestamp)) > tolerance_seconds:
        raise CallbackRefused("timestamp_outside_tolerance", f"{_TIMESTAMP} is too old, or in the future")
    content = f"{webhook_id}.{timestamp}.".encode("utf-8", "surrogatepass") + body
    if not _any_matches(signatures, content, {"v1": macs, "v1a": verifiers}):
        raise CallbackRefused("no_matching_signature", "none of the keys made a signature of this content")
    return _callback(body, tenant)


def _any_matches(signatures: str, content: bytes, known: Mapping[str, list[Matches]]) -> bool:
    for entry in signatures.split(" "):
        version, _, encoded = entry.partition(",")
        signature = _decoded(encoded)
        if any(matches(content, signature) for matches in known.get(version, ())):
            return True
    return False


def _callback(body: bytes, tenant: str | None) -> Callback:
    try:
        callback = read(Callback, parsed(body))
    except UnreadableAnswer as error:
        raise CallbackRefused("malformed_event", f"the signed body is not an event: {error}") from None
    if tenant is not None and callback.tenant != tenant:
        raise CallbackRefused("other_tenant", "the event is another tenant's")
    return callback


def _headers(headers: Mapping[str, str]) -> tuple[str, str, str]:
    lowered = {name.lower(): value for name, value in headers.items()}
    for name in (_ID, _TIMESTAMP, _SIGNATURE):
        if not lowered.get(name):
            raise CallbackRefused("missing_header", f"the header {name} is missing")
    return lowered[_ID], lowered[_TIMESTAMP], lowered[_SIGNATURE]


def _mac(text: str) -> Matches:
    secret = _key_bytes(text, _SECRET)
    if not 24 <= len(secret) <= 64:
        raise UnusableKey(f"a {_SECRET} secret has 24 to 64 bytes")
    return lambda content, signature: hmac.compare_digest(hmac.digest(secret, content, hashlib.sha256), signature)


def _ed25519(text: str) -> Matches:
    """Return the check of signatures by this public key.

    The check needs libsodium, because the standard library has no ed25519.
    """
    key = _key_bytes(text, _PUBLIC_KEY)
    if len(key) != _KEY_BYTES:
        raise UnusableKey(f"a {_PUBLIC_KEY} key has {_KEY_BYTES} bytes")
    try:
        from nacl.bindings import crypto_sign_open
        from nacl.exceptions import BadSignatureError
    except ModuleNotFoundError:
        message = f"{_PUBLIC_KEY} keys need PyNaCl: pip install 'postback-client[ed25519]'"
        raise UnusableKey(message) from None

    def matches(content: bytes, signature: bytes) -> bool:
        # libsodium gets signature and content as one text, so it would take the missing bytes of a short signature from
        # the content.
        if len(signature) != _SIGNATURE_BYTES:
            return False
        try:
            crypto_sign_open(signature + content, key)
        except BadSignatureError:
            return False
        return True

    return matches


def _key_bytes(text: str, prefix: str) -> bytes:
    if not text.startswith(prefix):
        raise UnusableKey(f"a key of this kind starts with {prefix}")
    try:
        return base64.b64decode(text.removeprefix(prefix), validate=True)
    except ValueError:
        raise UnusableKey(f"the text after {prefix} is not base64") from None  # the decoder's error would show the key


def _decoded(encoded: str) -> bytes:
    """Decode a signature. Return empty bytes, which match nothing, if the signature is not base64."""
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError:
        return b""
