"""The keyring: keys from a file for signing and verifying, and an operator's changes to the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from schemas.signature import PUBLIC_KEY_PREFIX, SECRET_PREFIX, SIGNING_KEY_PREFIX, Signer, secret_bytes
from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.delivery.keyring.data import KeyringData
from workers.delivery.keyring.errors import KeyringError, KeyringExists, KeyringFormatOld, KeyringRefused
from workers.delivery.keyring.file import read, stamp_of, write, writing
from workers.delivery.keyring.jwk import jwk
from workers.delivery.keyring.material import KEY_BYTES, base64_of, bytes_of
from workers.delivery.keyring.tenant_cache import TenantCache

OVERLAP_SECONDS = 24 * 3600.0
"""Default seconds for which an old key signs beside the new key."""
MIGRATION_OVERLAP_SECONDS = 7 * 24 * 3600.0
"""Seconds for which the fleet's key pair signs beside tenants' own pairs after a migration.

This time is longer than a rotation's overlap, because a migration makes consumers change a URL.
"""

_LOOK_SECONDS = 1.0
"""Seconds between checks of the file for changes."""
MOST_SIGNERS = 10_000
MOST_JWK_SETS = 1_000
"""Limit on cached JWK sets. Signers have another cache, so a stranger who requests many sets evicts no signer."""

JwkSet = dict[str, list[dict[str, str]]]

log = get_logger()


@dataclass(frozen=True, slots=True)
class _LoadedKeyring:
    """The file's content at one time, with the signers and JWK sets made from it.

    A reload replaces the whole object. A thread that makes a signer from older keys stores the signer in the older
    object, and never among signers of newer keys.
    """

    data: KeyringData
    stamp: tuple[int, ...]
    signers: TenantCache[Signer] = field(default_factory=lambda: TenantCache(MOST_SIGNERS))
    endpoint_signers: TenantCache[Signer] = field(default_factory=lambda: TenantCache(MOST_SIGNERS))
    jwk_sets: TenantCache[JwkSet] = field(default_factory=lambda: TenantCache(MOST_JWK_SETS))


@dataclass(frozen=True, slots=True, repr=False)
class KeyEnds:
    """Keys with the Unix second at which each stops signing, newest first; infinity if a key has no end."""

    secrets: dict[str, float]
    """The tenant's shared secrets, `whsec_…`."""
    public_keys: dict[str, float]
    """The tenant's own public keys, `whpk_…`."""
    fleet_keys: dict[str, float]
    """Public keys `whpk_…` of pairs that sign for every tenant: in format 1, and during a migration's overlap."""


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

    @property
    def format(self) -> int:
        """The file's format: 1 if one key pair signs for all tenants, 2 if each tenant has its own pair."""
        return self._loaded.data.format

    def refresh(self) -> bool:
        """Read the file again if it changed, and return True if so. After a KeyringError the old keys stay."""
        if stamp_of(self.path) == self._loaded.stamp:
            return False
        self._loaded = _load(self.path, self._by_root)
        return True

    def follow(self, now: float) -> None:
        """Refresh if the last check was at least a second ago.

        If the file is broken, log the problem and keep the old keys.
        """
        if not 0 <= now - self._looked_at < _LOOK_SECONDS:
            self._looked_at = now
            self._refresh_or_say(now)

    def secrets(self, tenant: str, now: float) -> list[str]:
        """Return the tenant's secrets (`whsec_…`) that sign now: imported, then derived secrets, each newest first."""
        return [SECRET_PREFIX + base64_of(secret) for secret in self._loaded.data.secrets(tenant, now)]

    def signing_keys(self, tenant: str, now: float) -> list[str]:
        """Return the private keys (`whsk_…`: seed and public key) that sign this tenant's events now, newest first.

        The fleet's keys come last. Format 1 has only the fleet's keys; format 2 has these during a migration's overlap.
        """
        data = self._loaded.data
        return [SIGNING_KEY_PREFIX + base64_of(key) for key in (*_own_keys(data, tenant, now), *_fleet_keys(data, now))]

    def public_keys(self, tenant: str, now: float) -> list[str]:
        """Return the public keys (`whpk_…`) that verify this tenant's events now, newest first.

        Format 2 gives the tenant's own keys, format 1 the fleet's keys.
        """
        data = self._loaded.data
        keys = _own_keys(data, tenant, now) if data.format == 2 else _fleet_keys(data, now)
        return [PUBLIC_KEY_PREFIX + base64_of(key[KEY_BYTES:]) for key in keys]

    def key_ends(self, tenant: str, now: float) -> KeyEnds:
        """Return the keys that sign this tenant's events now, with the Unix second at which each stops signing."""
        data = self._loaded.data
        own = data.derived_keys(tenant, now)
        secrets = {key.secret: key.until for key in own}
        for one in data.imported(tenant, now):
            secret = bytes_of(one.secret)
            secrets[secret] = max(one.ends, secrets.get(secret, now))
        pairs = {key.private_bytes: key.until for key in own} if data.format == 2 else {}
        fleet = {key.private_bytes: key.ends for key in data.fleet_keys(now)}
        return KeyEnds(
            {SECRET_PREFIX + base64_of(key): secrets[key] for key in data.secrets(tenant, now)},
            {PUBLIC_KEY_PREFIX + base64_of(key[KEY_BYTES:]): until for key, until in pairs.items()},
            {PUBLIC_KEY_PREFIX + base64_of(key[KEY_BYTES:]): until for key, until in fleet.items()},
        )

    def jwks(self, tenant: str, now: float) -> JwkSet:
        """Return the public keys that verify this tenant's events now, newest first, as a JWK set (RFC 7517)."""
        loaded = self._loaded
        return loaded.jwk_sets.get(
            tenant, now, lambda: _jwk_set(loaded.data, tenant, now), lambda: loaded.data.next_change(tenant, now)
        )

    def fleet_jwks(self, now: float) -> JwkSet:
        """Return the public keys that verify every tenant's events now. After a migration's overlap there are none."""
        return _fleet_jwk_set(self._loaded.data, now)

    def signer(self, tenant: str, now: float) -> Signer:
        """Call `follow`, then return a signer with all of the tenant's keys that sign now."""
        self.follow(now)
        loaded = self._loaded
        return loaded.signers.get(
            tenant,
            now,
            lambda: Signer(self.secrets(tenant, now), self.signing_keys(tenant, now)),
            lambda: loaded.data.next_change(tenant, now),
        )

    def endpoint_secret(self, tenant: str, endpoint_id: str, version: int, now: float) -> str:
        """Return the secret (`whsec_…`) that signs for a tenant's webhook endpoint in this version of its secret."""
        return SECRET_PREFIX + base64_of(self._loaded.data.endpoint_secrets(tenant, endpoint_id, version, now)[0])

    def endpoint_signer(self, tenant: str, endpoint_id: str, versions: tuple[int, ...], now: float) -> Signer:
        """Call `follow`, then return a signer with the secrets of a tenant's endpoint and the tenant's key pairs."""
        self.follow(now)
        loaded = self._loaded

        def make() -> Signer:
            secrets = [
                secret
                for version in versions
                for secret in loaded.data.endpoint_secrets(tenant, endpoint_id, version, now)
            ]
            return Signer([SECRET_PREFIX + base64_of(each) for each in secrets], self.signing_keys(tenant, now))

        key = f"{tenant}/{endpoint_id}/{versions}"
        return loaded.endpoint_signers.get(key, now, make, lambda: loaded.data.next_endpoint_change(tenant, now))

    def next_change(self, tenant: str, now: float) -> float:
        """Return the first Unix second at which a key of the tenant stops signing; infinity if no key has an end."""
        return self._loaded.data.next_change(tenant, now)

    def rotate(self, tenant: str, now: float, overlap_seconds: float = OVERLAP_SECONDS) -> float:
        """Add a tenant's new keys, and retire the old keys and the tenant's imported secrets.

        Returns the Unix second at which the old keys stop signing; keys that are already retiring keep their earlier
        end. After a leak, an `overlap_seconds` of 0 leaves only the new keys in force. Raises KeyringError. Concurrent
        rotations run one after the other, and all of them take effect.
        """
        until = now + overlap_seconds
        self._change(lambda data: data.with_tenant_rotated(tenant, now, until))
        return until

    def rotate_fleet(self, now: float, overlap_seconds: float = OVERLAP_SECONDS) -> float:
        """Rotate the key pair that signs for every tenant, like `rotate`. A keyring of format 2 gets no new pair.

        Raises KeyringError; KeyringRefused in format 2 unless `overlap_seconds` is 0.
        """
        until = now + overlap_seconds

        def rotated(data: KeyringData) -> KeyringData:
            if data.format == 2 and overlap_seconds > 0:
                raise KeyringRefused(
                    "this keyring has format 2, in which each tenant has its own key pair: rotate a tenant's keys; "
                    "to end a pair that still signs after a migration, rotate with --fleet --leaked"
                )
            return data.with_fleet_rotated(now, until)

        self._change(rotated)
        return until

    def rotate_master(self, now: float, overlap_seconds: float = OVERLAP_SECONDS) -> float:
        """Rotate the master secret of all tenants' derived keys, like `rotate`. Imported secrets keep signing.

        Raises KeyringError; KeyringFormatOld in format 1.
        """
        until = now + overlap_seconds
        self._change(lambda data: _newer(data, self.path).with_master_rotated(now, until))
        return until

    def replace_all(self, now: float) -> None:
        """After a leak of the file, end all its keys and imported secrets at once, and begin with a new master.

        Raises KeyringError; KeyringFormatOld in format 1.
        """
        self._change(lambda data: _newer(data, self.path).with_all_replaced(now))

    def migrate(self, now: float, overlap_seconds: float = MIGRATION_OVERLAP_SECONDS) -> float | None:
        """Turn a keyring of format 1 into format 2 in one step. Shared secrets stay the same.

        Returns the Unix second at which the fleet's key pair stops signing; None if the keyring had format 2 already.
        Raises KeyringError.
        """
        until = now + overlap_seconds
        migrated = False

        def change(data: KeyringData) -> KeyringData:
            nonlocal migrated
            migrated = data.format == 1
            return data.migrated(now, until) if migrated else data

        self._change(change)
        return until if migrated else None

    def add_secret(self, tenant: str, secret: str, now: float) -> None:
        """Import another sender's `whsec_…`, which signs beside the tenant's derived keys until the next `rotate`.

        Raises MalformedKey; KeyringError; KeyringFormatOld in format 1; KeyringRefused if another tenant has the
        secret.
        """
        raw = secret_bytes(secret)

        def change(data: KeyringData) -> KeyringData:
            holder = data.holder_of(raw, tenant, now)
            if holder is not None:
                raise KeyringRefused(
                    f"tenant {holder} has this secret already: two tenants with one secret could forge each "
                    "other's events"
                )
            return _newer(data, self.path).with_imported(tenant, raw)

        self._change(change)

    def _change(self, change: Callable[[KeyringData], KeyringData]) -> None:
        """Read, change and write the file, under a lock against other writers."""
        with writing(self.path):
            before = read(self.path, by_root=self._by_root)
            after = change(before)
            if after != before:
                write(self.path, after)
        self.refresh()

    def _refresh_or_say(self, now: float) -> None:
        try:
            if self.refresh():
                log.info(
                    "The keyring changed; signing with the keys in the file now.",
                    action="keyring-reloaded",
                    **_facts(self._loaded.data, now),
                )
            self._problem = None
        except KeyringError as error:
            # Each problem is logged only once, because callbacks repeat the check.
            if str(error) != self._problem:
                self._problem = str(error)
                log.error(
                    "The changed keyring cannot be read; signing with the keys that were read before.",
                    action="keyring-reload-failed",
                    problem=self._problem,
                )


def _newer(data: KeyringData, path: Path) -> KeyringData:
    """Return the data if it has format 2. Raises KeyringFormatOld."""
    if data.format == 1:
        raise KeyringFormatOld(path)
    return data


def _facts(data: KeyringData, now: float) -> dict[str, Any]:
    """Return public facts about the keys for the log, so that an operator sees that a change arrived."""
    return {
        "format": data.format,
        "masters": [master.number for master in data.signing_masters(now)],
        "kids": [one["kid"] for one in _fleet_jwk_set(data, now)["keys"]],
    }


def _own_keys(data: KeyringData, tenant: str, now: float) -> list[bytes]:
    """Return the tenant's private ed25519 keys, 64 bytes each; none in format 1."""
    return [key.private_bytes for key in data.derived_keys(tenant, now)] if data.format == 2 else []


def _fleet_keys(data: KeyringData, now: float) -> list[bytes]:
    return [key.private_bytes for key in data.fleet_keys(now)]


def _jwk_set(data: KeyringData, tenant: str, now: float) -> JwkSet:
    if data.format == 1:
        return _fleet_jwk_set(data, now)
    keys = data.derived_keys(tenant, now)
    return {"keys": [jwk(key.private_bytes[KEY_BYTES:], f"{tenant}/{key.version}/") for key in keys]}


def _fleet_jwk_set(data: KeyringData, now: float) -> JwkSet:
    return {"keys": [jwk(key[KEY_BYTES:]) for key in _fleet_keys(data, now)]}


def _load(path: Path, by_root: bool) -> _LoadedKeyring:
    """Read the file. The file's stamp is read first, so that the next check notices a change during the read."""
    stamp = stamp_of(path)
    return _LoadedKeyring(read(path, by_root=by_root), stamp)
