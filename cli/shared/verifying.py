"""The keys that `postback receive` verifies with: from a keyring, from `--secret`, or from a JWK set."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import aiohttp

from cli.devkit.receiver import Keys
from cli.shared.errors import say
from schemas.operator_error import OperatorError
from schemas.signature import PUBLIC_KEY_PREFIX
from telemetry.clock import SystemClock
from workers.delivery.keyring import Keyring, KeyringError
from workers.egress import bounded_connector

_LOOK_SECONDS = 60.0
"""Seconds between two reads of a JWK set, short enough because keys rotate with an overlap of hours."""
_FETCH = aiohttp.ClientTimeout(total=10.0)
_LARGEST_SET = 256 * 1024
"""The maximum number of bytes of a JWK set; one key has about 120."""
_KEY_BYTES = 32


class JwkSetUnusable(OperatorError):  # noqa: N818 - named after the fault
    """A JWK set cannot be read. The text names the source and the fault."""


class HeldKeys(ABC):
    """Keys that may change while callbacks come in."""

    @abstractmethod
    def current(self) -> Keys:
        """Return the keys that are valid now. Called at every request."""

    async def load(self) -> None:  # noqa: B027 - nothing to do for keys that are there already
        """Read the keys for the first time. Raises JwkSetUnusable."""

    async def follow(self) -> None:  # noqa: B027 - as above
        """Read the keys again at intervals, until cancelled."""


class KeyringKeys(HeldKeys):
    """A tenant's keys in a keyring. The constructor raises KeyringError."""

    def __init__(self, path: Path, tenant: str) -> None:
        self._tenant = tenant
        self._clock = SystemClock()
        self._keyring = Keyring.load(path)

    def current(self) -> Keys:
        """Return the keys that are valid now.

        Reads the file if it has changed, so that a rotation takes effect at once.
        """
        try:
            self._keyring.refresh()
        except KeyringError as error:
            say(f"{error}; the keys that were read before stay in use")
        keyring, tenant, now = self._keyring, self._tenant, self._clock.time()
        return Keys(keyring.secrets(tenant, now), keyring.public_keys(tenant, now), tenant)


class GivenKeys(HeldKeys):
    """Given secrets, and the Ed25519 keys of a JWK set (RFC 7517, RFC 8037) in a file or at a URL.

    They verify callbacks of one tenant, or of any tenant.
    """

    def __init__(self, secrets: list[str], jwks: str | None, tenant: str | None) -> None:
        self._secrets = secrets
        self._source = jwks
        self._public_keys: list[str] = []
        self._tenant = tenant

    def current(self) -> Keys:
        """Return the keys that are valid now."""
        return Keys(self._secrets, self._public_keys, self._tenant)

    async def load(self) -> None:
        """Read the set. Raises JwkSetUnusable."""
        if self._source is not None:
            self._public_keys = await _keys_at(self._source)
            if not self._public_keys and not self._secrets:
                say("the JWK set holds no Ed25519 key: every callback will be refused until the set holds one")

    async def follow(self) -> None:
        """Read the set again every minute. If it cannot be read, the earlier keys stay."""
        while self._source is not None:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                self._public_keys = await _keys_at(self._source)
            except JwkSetUnusable as error:
                say(f"{error}; the keys that were read before stay in use")


async def _keys_at(source: str) -> list[str]:
    """Return the keys of a JWK set as `whpk_…`. Raises JwkSetUnusable."""
    try:
        return _ed25519_keys(await _fetched(source) if "://" in source else await asyncio.to_thread(_read, source))
    except (OSError, aiohttp.ClientError, TimeoutError) as error:
        raise JwkSetUnusable(f"--jwks {source}: {_named(error)}") from None
    except (ValueError, RecursionError) as error:
        raise JwkSetUnusable(f"--jwks {source}: it holds no JWK set: {error}") from None


def _read(source: str) -> bytes:
    with Path(source).open("rb") as opened:
        return opened.read(_LARGEST_SET + 1)


async def _fetched(source: str) -> bytes:
    async with (
        aiohttp.ClientSession(connector=bounded_connector(), timeout=_FETCH) as session,
        session.get(source, raise_for_status=True) as response,
    ):
        text = b""
        async for chunk in response.content.iter_any():
            text += chunk
            if len(text) > _LARGEST_SET:
                break
        return text


def _named(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientResponseError):
        return f"the answer's status is {error.status}"
    return getattr(error, "strerror", None) or type(error).__name__


def _ed25519_keys(text: bytes) -> list[str]:
    """Return the set's Ed25519 keys as `whpk_…`, and skip other keys (RFC 7517, section 5). Raises ValueError."""
    if len(text) > _LARGEST_SET:
        raise ValueError(f"it has more than {_LARGEST_SET} bytes")
    try:
        held = json.loads(text)
    except ValueError:
        raise ValueError("it is not JSON") from None
    keys = held.get("keys") if isinstance(held, dict) else None
    if not isinstance(keys, list):
        raise ValueError("it has no list `keys`")
    return [key for one in keys if (key := _public_key(one)) is not None]


def _public_key(one: Any) -> str | None:
    if not isinstance(one, dict) or (one.get("kty"), one.get("crv")) != ("OKP", "Ed25519"):
        return None
    try:
        # Add the padding, which JWKs leave out.
        x = base64.b64decode(str(one.get("x")) + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return PUBLIC_KEY_PREFIX + base64.b64encode(x).decode() if len(x) == _KEY_BYTES else None
