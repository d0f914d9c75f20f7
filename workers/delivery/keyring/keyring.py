"""The keys in a file, for signing and verifying, and an operator's changes."""

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
"""Default time for which an old key signs beside the new one."""
MIGRATION_OVERLAP_SECONDS = 7 * 24 * 3600.0
"""Time for which the fleet's key pair signs beside tenants' own: unlike a rotation, it makes consumers change a URL."""

_LOOK_SECONDS = 1.0
"""Interval at which the file is checked for changes."""
_MAX_SIGNERS = 10_000
_MAX_JWK_SETS = 1_000
"""The sets are cached apart from the signers: a stranger that requests one set after another evicts no signer."""

JwkSet = dict[str, list[dict[str, str]]]

log = get_logger()


@dataclass(frozen=True, slots=True)
class _LoadedKeyring:
    """The file's content at one time, with the signers and JWK sets made from it.

    A reload replaces the whole object. A thread that is still making a signer from older keys puts it into the older
    object, never among the signers of newer keys.
    """

    data: KeyringData
    stamp: tuple[int, ...]
    signers: TenantCache[Signer] = field(default_factory=lambda: TenantCache(_MAX_SIGNERS))
    jwk_sets: TenantCache[JwkSet] = field(default_factory=lambda: TenantCache(_MAX_JWK_SETS))


@dataclass(frozen=True, slots=True, repr=False)
class KeyEnds:
    """Keys with the Unix second at which each stops signing, newest first; infinity where no end is set."""

    secrets: dict[str, float]
    """`whsec_…`"""
    public_keys: dict[str, float]
    """`whpk_…` of the tenant."""
    fleet_keys: dict[str, float]
    """`whpk_…` that sign for every tenant: in format 1, and during a migration's overlap."""


class Keyring:
    """The keys in a file, reloaded when the file changes. May be used by several threads at once.

    `now` is Unix seconds everywhere. Nothing here prints a key: `repr` names the path only.
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
        """Make a keyring with new keys, mode 0600. Raises KeyringExists rather than overwrite, KeyringUnreadable."""
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
        """1 if one key pair signs for all tenants, 2 if each tenant has its own."""
        return self._loaded.data.format

    def refresh(self) -> bool:
        """Read the file again if it changed, and return True if so. Old keys stay if that raises KeyringError."""
        if stamp_of(self.path) == self._loaded.stamp:
            return False
        self._loaded = _load(self.path, self._by_root)
        return True

    def follow(self, now: float) -> None:
        """Refresh if the last check was a second ago or longer. A broken file is logged, and old keys stay."""
        if not 0 <= now - self._looked_at < _LOOK_SECONDS:
            self._looked_at = now
            self._refresh_or_say(now)

    def secrets(self, tenant: str, now: float) -> list[str]:
        """The tenant's secrets (`whsec_…`) that sign now: imported ones, then derived ones, each newest first."""
        return [SECRET_PREFIX + base64_of(secret) for secret in self._loaded.data.secrets(tenant, now)]

    def signing_keys(self, tenant: str, now: float) -> list[str]:
        """The private keys (`whsk_…`: seed and public key) that sign this tenant's events now, newest first.

        The fleet's keys come last: alone in format 1, and beside the tenant's during a migration's overlap.
        """
        data = self._loaded.data
        return [SIGNING_KEY_PREFIX + base64_of(key) for key in (*_own_keys(data, tenant, now), *_fleet_keys(data, now))]

    def public_keys(self, tenant: str, now: float) -> list[str]:
        """The public keys (`whpk_…`) that verify this tenant's events now, newest first.

        They are the tenant's own keys; in format 1 the fleet's, which verify every tenant's events.
        """
        data = self._loaded.data
        keys = _own_keys(data, tenant, now) if data.format == 2 else _fleet_keys(data, now)
        return [PUBLIC_KEY_PREFIX + base64_of(key[KEY_BYTES:]) for key in keys]

    def key_ends(self, tenant: str, now: float) -> KeyEnds:
        """The keys that sign this tenant's events now, with the Unix second at which each stops; infinity for never."""
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
        """The public keys that verify this tenant's events now as a JWK set (RFC 7517), newest first."""
        loaded = self._loaded
        return loaded.jwk_sets.get(
            tenant, now, lambda: _jwk_set(loaded.data, tenant, now), lambda: loaded.data.next_change(tenant, now)
        )

    def fleet_jwks(self, now: float) -> JwkSet:
        """The public keys that sign for every tenant now; none once a migration's overlap is over."""
        return _fleet_jwk_set(self._loaded.data, now)

    def signer(self, tenant: str, now: float) -> Signer:
        """A signer with all of the tenant's keys that sign now. Follows the file; old keys stay if it breaks."""
        self.follow(now)
        loaded = self._loaded
        return loaded.signers.get(
            tenant,
            now,
            lambda: Signer(self.secrets(tenant, now), self.signing_keys(tenant, now)),
            lambda: loaded.data.next_change(tenant, now),
        )

    def next_change(self, tenant: str, now: float) -> float:
        """The Unix second at which the tenant's next key stops signing; infinity if none will."""
        return self._loaded.data.next_change(tenant, now)

    def rotate(self, tenant: str, now: float, overlap_seconds: float = OVERLAP_SECONDS) -> float:
        """Put a tenant's new keys beside the old ones; its imported secrets are among the old ones.

        Returns the Unix second at which the old ones stop signing; keys that retire already sign no longer than that.
        So an `overlap_seconds` of 0, after a leak, leaves only the new ones in force. Raises KeyringError. Concurrent
        rotations queue up: none is lost.
        """
        until = now + overlap_seconds
        self._change(lambda data: data.with_tenant_rotated(tenant, now, until))
        return until

    def rotate_fleet(self, now: float, overlap_seconds: float = OVERLAP_SECONDS) -> float:
        """Like `rotate`, for the key pair that signs for every tenant. A keyring of format 2 gets no new pair.

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
        """Like `rotate`, for the secret from which all tenants' keys are derived. Imported secrets keep signing.

        Raises KeyringError; KeyringFormatOld in format 1.
        """
        until = now + overlap_seconds
        self._change(lambda data: self._newer(data).with_master_rotated(now, until))
        return until

    def replace_all(self, now: float) -> None:
        """End every key in the file at once, imported secrets too, and begin with a new master, after the file leaked.

        Raises KeyringError; KeyringFormatOld in format 1.
        """
        self._change(lambda data: self._newer(data).with_all_replaced(now))

    def migrate(self, now: float, overlap_seconds: float = MIGRATION_OVERLAP_SECONDS) -> float | None:
        """Turn a keyring of format 1 into one of format 2, in one step. Secrets stay as they are.

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
        """Let a `whsec_…` of another sender sign for a tenant, beside its derived keys, until the next `rotate`.

        Raises MalformedKey; KeyringError; KeyringFormatOld in format 1; KeyringRefused if another tenant has it.
        """
        raw = secret_bytes(secret)

        def change(data: KeyringData) -> KeyringData:
            holder = data.holder_of(raw, tenant, now)
            if holder is not None:
                raise KeyringRefused(
                    f"tenant {holder} has this secret already: two tenants with one secret could pass off their events "
                    "as each other's"
                )
            return self._newer(data).with_imported(tenant, raw)

        self._change(change)

    def _newer(self, data: KeyringData) -> KeyringData:
        if data.format == 1:
            raise KeyringFormatOld(self.path)
        return data

    def _change(self, change: Callable[[KeyringData], KeyringData]) -> None:
        """Read, change and write the file while no other process does."""
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
                    **self._facts(now),
                )
            self._problem = None
        except KeyringError as error:
            # Once per problem: this runs for every callback.
            if str(error) != self._problem:
                self._problem = str(error)
                log.error(
                    "The changed keyring cannot be read; signing with the keys that were read before.",
                    action="keyring-reload-failed",
                    problem=self._problem,
                )

    def _facts(self, now: float) -> dict[str, Any]:
        """Facts about the keys that a log may hold, so that an operator sees that a change arrived."""
        data = self._loaded.data
        return {
            "format": data.format,
            "masters": [master.number for master in data.all_masters() if master.signs(now)],
            "kids": [one["kid"] for one in self.fleet_jwks(now)["keys"]],
        }


def _own_keys(data: KeyringData, tenant: str, now: float) -> list[bytes]:
    """The tenant's private ed25519 keys, 64 bytes each; none in format 1."""
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
    """The file's present keys. The stamp is taken first, so that a change meanwhile is noticed next time."""
    stamp = stamp_of(path)
    return _LoadedKeyring(read(path, by_root=by_root), stamp)
