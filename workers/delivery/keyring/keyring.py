"""The keyring: keys from a file for signing and verifying, and an operator's changes to the file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from schemas.signature import PUBLIC_KEY_PREFIX, SECRET_PREFIX, SIGNING_KEY_PREFIX, Signer, secret_bytes
from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.delivery.keyring.content import KeyringData, base64_of
from workers.delivery.keyring.file import (
    KeyringError,
    KeyringExists,
    KeyringRefused,
    read,
    stamp_of,
    write,
    writing,
)

OVERLAP_SECONDS = 24 * 3600.0
"""Default seconds for which an old key signs beside the new key."""
_LOOK_SECONDS = 1.0
"""Seconds between checks of the file for changes."""
MOST_SIGNERS = 10_000
"""Limit on cached signers. A full cache is emptied, because a signer is made in 0.2 ms."""

JwkSet = dict[str, list[dict[str, str]]]

log = get_logger()


@dataclass(frozen=True, slots=True)
class _LoadedKeyring:
    """The file's content at one time, with the signers made from it.

    A reload replaces the whole object. A thread that makes a signer from older keys stores the signer in the older
    object, and never among signers of newer keys.
    """

    data: KeyringData
    stamp: tuple[int, ...]
    signers: dict[str, tuple[Signer, float]] = field(default_factory=dict)
    """Each signer with the Unix second from which it is stale, by its tenant or webhook endpoint."""


@dataclass(frozen=True, slots=True, repr=False)
class KeyEnds:
    """Keys with the Unix second at which each stops signing, newest first; infinity if a key has no end."""

    secrets: dict[str, float]
    """The tenant's shared secrets, `whsec_…`."""
    public_keys: dict[str, float]
    """The tenant's public keys, `whpk_…`."""


def jwk(public: bytes, owner: str) -> dict[str, str]:
    """Return the JWK of a 32-byte key. The `kid` is `owner` followed by the key's thumbprint (RFC 7638).

    Readers cache keys by `kid`. Under a new master or in a new keyring, a key of the same version has another
    thumbprint, and so another `kid`.
    """
    # RFC 7638, section 3, hashes the required members in lexical order, without spaces.
    required = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(public)}
    thumbprint = hashlib.sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {**required, "kid": owner + _base64url(thumbprint), "use": "sig", "alg": "EdDSA"}


def _base64url(value: bytes) -> str:
    """Encode as URL-safe base64 without padding, as in JWKs (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


class Keyring:
    """The keys in a file, reloaded when the file changes. Several threads may use a keyring at once.

    `now` is Unix seconds everywhere. `repr` shows only the path, never a key.
    """

    def __init__(self, path: Path, loaded: _LoadedKeyring, *, by_root: bool = False) -> None:
        self.path = path
        self._loaded = loaded
        self._by_root = by_root
        self._looked_at = float("-inf")
        self._problem: str | None = None

    def __repr__(self) -> str:
        return f"Keyring({str(self.path)!r})"

    @classmethod
    def create(cls, path: str | Path, clock: Clock) -> Self:
        """Make a file with new keys, mode 0600; never overwrite a file. Raises KeyringExists, KeyringUnreadable."""
        path = Path(path)
        with writing(path):
            if path.exists() or path.is_symlink():
                raise KeyringExists(path)
            write(path, KeyringData.generate(clock.time()))
        return cls.load(path, by_root=True)

    @classmethod
    def load(cls, path: str | Path, *, by_root: bool = False) -> Self:
        """Read a keyring. Raises KeyringMissing, KeyringUnreadable.

        `by_root` is for administration: root may read and rotate the keyring of delivery's user.
        """
        path = Path(path)
        return cls(path, _load(path, by_root), by_root=by_root)

    def refresh(self) -> bool:
        """Read the file again if it changed, and return True if so. After a KeyringError the old keys stay."""
        if stamp_of(self.path) == self._loaded.stamp:
            return False
        self._loaded = _load(self.path, self._by_root)
        return True

    def follow(self, now: float) -> None:
        """Refresh if the last check was at least a second ago.

        If the file is broken, log the problem and keep the old keys. Each problem is logged only once, because
        callbacks repeat the check.
        """
        if 0 <= now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        try:
            if self.refresh():
                log.info(
                    "The keyring changed; signing with the keys in the file now.",
                    action="keyring-reloaded",
                    masters=[master.number for master in self._loaded.data.signing_masters(now)],
                )
            self._problem = None
        except KeyringError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.error(
                    "The changed keyring cannot be read; signing with the keys that were read before.",
                    action="keyring-reload-failed",
                    problem=self._problem,
                )

    def key_ends(self, tenant: str, now: float) -> KeyEnds:
        """Return the keys that sign this tenant's events now, with the Unix second at which each stops signing."""
        data = self._loaded.data
        return KeyEnds(
            {SECRET_PREFIX + base64_of(secret): end for secret, end in data.secrets(tenant, now).items()},
            {PUBLIC_KEY_PREFIX + base64_of(key.public_bytes): key.until for key in data.derived_keys(tenant, now)},
        )

    def secrets(self, tenant: str, now: float) -> list[str]:
        """Return the tenant's secrets (`whsec_…`) that sign now: imported, then derived secrets, each newest first."""
        return list(self.key_ends(tenant, now).secrets)

    def public_keys(self, tenant: str, now: float) -> list[str]:
        """Return the public keys (`whpk_…`) that verify this tenant's events now, newest first."""
        return list(self.key_ends(tenant, now).public_keys)

    def signing_keys(self, tenant: str, now: float) -> list[str]:
        """Return the private keys (`whsk_…`: seed and public key) that sign this tenant's events now, newest first."""
        return _signing_keys(self._loaded.data, tenant, now)

    def jwks(self, tenant: str, now: float) -> JwkSet:
        """Return the public keys that verify this tenant's events now, newest first, as a JWK set (RFC 7517)."""
        keys = self._loaded.data.derived_keys(tenant, now)
        return {"keys": [jwk(key.public_bytes, f"{tenant}/{key.version}/") for key in keys]}

    def signer(self, tenant: str, now: float) -> Signer:
        """Call `follow`, then return a signer with all of the tenant's keys that sign now."""
        return self._signer(tenant, tenant, now, lambda data: data.secrets(tenant, now))

    def endpoint_secret(self, tenant: str, endpoint_id: str, version: int, now: float) -> str:
        """Return the secret (`whsec_…`) that signs for a tenant's webhook endpoint in this version of its secret."""
        return SECRET_PREFIX + base64_of(self._loaded.data.endpoint_secrets(tenant, endpoint_id, version, now)[0])

    def endpoint_signer(self, tenant: str, endpoint_id: str, versions: tuple[int, ...], now: float) -> Signer:
        """Call `follow`, then return a signer with the secrets of a tenant's endpoint and the tenant's key pairs."""

        def secrets(data: KeyringData) -> list[bytes]:
            of_versions = (data.endpoint_secrets(tenant, endpoint_id, version, now) for version in versions)
            return [secret for of_version in of_versions for secret in of_version]

        return self._signer(f"{tenant}/{endpoint_id}/{versions}", tenant, now, secrets)

    def rotate(self, tenant: str, now: float, overlap_seconds: float = OVERLAP_SECONDS) -> float:
        """Add a tenant's new keys, and retire the old keys and the tenant's imported secrets.

        Returns the Unix second at which the old keys stop signing; keys that are already retiring keep their earlier
        end. After a leak, an `overlap_seconds` of 0 leaves only the new keys in force. Raises KeyringError. Concurrent
        rotations run one after the other, and all of them take effect.
        """
        until = now + overlap_seconds
        self._change(lambda data: data.with_tenant_rotated(tenant, now, until))
        return until

    def rotate_master(self, now: float, overlap_seconds: float = OVERLAP_SECONDS) -> float:
        """Rotate the master secret of all tenants' derived keys, like `rotate`. Imported secrets keep signing."""
        until = now + overlap_seconds
        self._change(lambda data: data.with_master_rotated(now, until))
        return until

    def replace_all(self, now: float) -> None:
        """After a leak of the file, end all its keys and imported secrets at once, and begin with a new master.

        Raises KeyringError.
        """
        self._change(lambda data: data.with_all_replaced(now))

    def add_secret(self, tenant: str, secret: str, now: float) -> None:
        """Import another sender's `whsec_…`, which signs beside the tenant's derived keys until the next `rotate`.

        Raises MalformedKey; KeyringError; KeyringRefused if another tenant has the secret.
        """
        raw = secret_bytes(secret)

        def change(data: KeyringData) -> KeyringData:
            holder = data.holder_of(raw, tenant, now)
            if holder is not None:
                raise KeyringRefused(
                    f"tenant {holder} has this secret already: two tenants with one secret could forge each "
                    "other's events"
                )
            return data.with_imported(tenant, raw)

        self._change(change)

    def _change(self, change: Callable[[KeyringData], KeyringData]) -> None:
        """Read, change and write the file, under a lock against other writers."""
        with writing(self.path):
            write(self.path, change(read(self.path, by_root=self._by_root)))
        self.refresh()

    def _signer(self, name: str, tenant: str, now: float, secrets: Callable[[KeyringData], Iterable[bytes]]) -> Signer:
        """Call `follow`, then return the signer of this name, with these secrets and the tenant's key pairs."""
        self.follow(now)
        loaded = self._loaded
        signer, stale = loaded.signers.get(name, (None, 0.0))
        if signer is None or now >= stale:
            shared = [SECRET_PREFIX + base64_of(secret) for secret in secrets(loaded.data)]
            signer = Signer(shared, _signing_keys(loaded.data, tenant, now))
            if len(loaded.signers) >= MOST_SIGNERS:
                loaded.signers.clear()
            loaded.signers[name] = (signer, loaded.data.next_change(tenant, now))
        return signer


def _signing_keys(data: KeyringData, tenant: str, now: float) -> list[str]:
    return [SIGNING_KEY_PREFIX + base64_of(key.private_bytes) for key in data.derived_keys(tenant, now)]


def _load(path: Path, by_root: bool) -> _LoadedKeyring:
    """Read the file. The file's stamp is read first, so that the next check notices a change during the read."""
    stamp = stamp_of(path)
    return _LoadedKeyring(read(path, by_root=by_root), stamp)
