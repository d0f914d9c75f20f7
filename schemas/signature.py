"""Standard Webhooks signatures, both ways: HMAC-SHA256 (`v1`) and ed25519 (`v1a`) over `{id}.{timestamp}.{body}`.

Source: the Standard Webhooks specification, https://github.com/standard-webhooks/standard-webhooks, sections "Signature
scheme" and "Webhook headers". A key is a text, a prefix and base64: `whsec_` with a shared secret of 24 to 64 bytes,
`whsk_` with a signing key's seed and public key, or `whpk_` with a public key.

    WebhookError
    ├── MalformedKey            a text that is no key; the error never shows it
    └── VerificationError       the request is not to be trusted
        ├── MissingHeader
        ├── MalformedTimestamp
        ├── TimestampOutsideTolerance
        └── NoMatchingSignature
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets as random
from collections.abc import Iterable, Mapping
from typing import Final

from nacl.bindings import (
    crypto_sign,
    crypto_sign_BYTES,
    crypto_sign_keypair,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import BadSignatureError

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the prefix is public, the rest is not
SIGNING_KEY_PREFIX: Final = "whsk_"
PUBLIC_KEY_PREFIX: Final = "whpk_"

DEFAULT_TOLERANCE_SECONDS = 300.0

_ED25519_BYTES = 32
_TIMESTAMP = re.compile(r"[0-9]{1,15}")


class WebhookError(Exception):
    """A key or a signed request is unusable."""


class MalformedKey(WebhookError):  # noqa: N818
    """The text is not a key of the needed kind."""


class VerificationError(WebhookError):
    """The request is not to be trusted."""


class MissingHeader(VerificationError):  # noqa: N818
    """One of the three webhook headers is absent."""


class MalformedTimestamp(VerificationError):  # noqa: N818
    """The `webhook-timestamp` header is not a number of Unix seconds."""

    def __init__(self) -> None:
        super().__init__(type(self).__doc__)


class TimestampOutsideTolerance(VerificationError):  # noqa: N818
    """The request was signed too long ago, or in the future: perhaps a replay."""

    def __init__(self) -> None:
        super().__init__(type(self).__doc__)


class NoMatchingSignature(VerificationError):  # noqa: N818
    """None of the signatures was made with one of the keys for this content."""

    def __init__(self) -> None:
        super().__init__(type(self).__doc__)


class Signer:
    """Signs with all given secrets and signing keys, so that old and new keys can overlap. Raises MalformedKey."""

    def __init__(self, secrets: Iterable[str], signing_keys: Iterable[str] = ()) -> None:
        self._macs = tuple(_mac(text) for text in secrets)
        self._signing_keys = tuple(_signing_key(text) for text in signing_keys)
        if not self._macs and not self._signing_keys:
            raise MalformedKey("a signer needs at least one secret or signing key")

    def sign(self, webhook_id: str, timestamp: int, body: bytes) -> str:
        """Return the `webhook-signature` header of an attempt made at `timestamp` (Unix seconds)."""
        content = _signed_content(webhook_id, str(timestamp), body)
        signatures = [f"v1,{_encode(_digest(mac, content))}" for mac in self._macs]
        signatures += [f"v1a,{_encode(crypto_sign(content, key)[:crypto_sign_BYTES])}" for key in self._signing_keys]
        return " ".join(signatures)

    def headers(self, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """Return all three webhook headers of one attempt."""
        return {
            ID_HEADER: webhook_id,
            TIMESTAMP_HEADER: str(timestamp),
            SIGNATURE_HEADER: self.sign(webhook_id, timestamp, body),
        }


def verify(
    headers: Mapping[str, str],
    body: bytes,
    secrets: Iterable[str],
    public_keys: Iterable[str],
    now: float,
    tolerance_seconds: float = DEFAULT_TOLERANCE_SECONDS,
) -> None:
    """Check that one of the keys signed the request within the tolerance of `now` (Unix seconds).

    Raises VerificationError if none did.

    Header names may be in any case. Raises MalformedKey for malformed keys.
    """
    macs = [_mac(text) for text in secrets]
    known_keys = [_public_key(text) for text in public_keys]
    webhook_id, timestamp, signatures = _webhook_headers(headers)
    if not _TIMESTAMP.fullmatch(timestamp):
        raise MalformedTimestamp
    if abs(now - int(timestamp)) > tolerance_seconds:
        raise TimestampOutsideTolerance
    content = _signed_content(webhook_id, timestamp, body)
    for entry in signatures.split(" "):
        version, _, encoded = entry.partition(",")
        signature = _decode(encoded)
        if version == "v1" and any(hmac.compare_digest(_digest(mac, content), signature) for mac in macs):
            return
        if version == "v1a" and any(_was_signed(key, signature, content) for key in known_keys):
            return
    raise NoMatchingSignature


def generate_secret() -> str:
    """Return a new shared secret of 32 random bytes, as `whsec_…`."""
    return SECRET_PREFIX + _encode(random.token_bytes(32))


def generate_signing_key() -> str:
    """Return a new ed25519 signing key, as `whsk_…`."""
    _, key = crypto_sign_keypair()
    return SIGNING_KEY_PREFIX + _encode(key)


def public_key_of(signing_key: str) -> str:
    """Return the `whpk_…` key that verifies signatures of this `whsk_…` key. Raises MalformedKey."""
    return PUBLIC_KEY_PREFIX + _encode(_signing_key(signing_key)[_ED25519_BYTES:])


def _signed_content(webhook_id: str, timestamp: str, body: bytes) -> bytes:
    return f"{webhook_id}.{timestamp}.".encode("utf-8", "surrogatepass") + body


def _mac(secret: str) -> hmac.HMAC:
    """Return an HMAC with its key set.

    Copy the HMAC for each content, because setting the key costs as much as hashing a small body.
    """
    return hmac.new(secret_bytes(secret), digestmod=hashlib.sha256)


def _digest(keyed: hmac.HMAC, content: bytes) -> bytes:
    mac = keyed.copy()
    mac.update(content)
    return mac.digest()


def _was_signed(key: bytes, signature: bytes, content: bytes) -> bool:
    # libsodium reads signature and content as one text, and would complete a short signature from the content.
    if len(signature) != crypto_sign_BYTES:
        return False
    try:
        crypto_sign_open(signature + content, key)
    except BadSignatureError:
        return False
    return True


def _webhook_headers(headers: Mapping[str, str]) -> tuple[str, str, str]:
    lowered = {name.lower(): value for name, value in headers.items()}
    for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER):
        if not lowered.get(name):
            raise MissingHeader(f"the {name} header is missing")
    return lowered[ID_HEADER], lowered[TIMESTAMP_HEADER], lowered[SIGNATURE_HEADER]


def secret_bytes(text: str) -> bytes:
    """Return the 24 to 64 bytes of a `whsec_…` text. Raises MalformedKey, which never shows the text."""
    data = _key_bytes(text, SECRET_PREFIX)
    if not 24 <= len(data) <= 64:
        raise MalformedKey(f"a {SECRET_PREFIX} secret has 24 to 64 bytes")
    return data


def _signing_key(text: str) -> bytes:
    """Return seed and public key in libsodium's form."""
    data = _key_bytes(text, SIGNING_KEY_PREFIX)
    if len(data) != 2 * _ED25519_BYTES:
        raise MalformedKey(f"a {SIGNING_KEY_PREFIX} key has a seed and a public key of 32 bytes each")
    public, _ = crypto_sign_seed_keypair(data[:_ED25519_BYTES])
    if not hmac.compare_digest(public, data[_ED25519_BYTES:]):
        raise MalformedKey(f"a {SIGNING_KEY_PREFIX} key's public half does not belong to its seed")
    return data


def _public_key(text: str) -> bytes:
    data = _key_bytes(text, PUBLIC_KEY_PREFIX)
    if len(data) != _ED25519_BYTES:
        raise MalformedKey(f"a {PUBLIC_KEY_PREFIX} key has 32 bytes")
    return data


def _key_bytes(text: str, prefix: str) -> bytes:
    if not text.startswith(prefix):
        raise MalformedKey(f"a key of this kind starts with {prefix}")
    try:
        return base64.b64decode(text.removeprefix(prefix), validate=True)
    except ValueError:
        # The decoder's error is removed from the chain, so that tracebacks do not show the key.
        raise MalformedKey(f"the text after {prefix} is not base64") from None


def _decode(encoded: str) -> bytes:
    """Decode a signature. Return empty bytes, which match nothing, if the signature is not base64."""
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _encode(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()
