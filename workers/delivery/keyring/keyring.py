"""The keys in a file, as those who sign and verify see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from schemas.signature import Signer
from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.delivery.keyring.data import FleetKey, KeyringData
from workers.delivery.keyring.errors import KeyringError, KeyringExists
from workers.delivery.keyring.file import read, stamp_of, write, writing
from workers.delivery.keyring.jwk import jwk
from workers.delivery.keyring.material import base64_of

OVERLAP_SECONDS = 24 * 3600.0
"""How long an old key signs beside the new one."""

_LOOK_SECONDS = 1.0
"""How often `signer` looks whether the file changed."""
_MAX_CACHED_SIGNERS = 10_000

log = get_logger()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What the file held at one time, with the signers made of that.

    It is replaced as a whole. Another thread may be making a signer of older keys meanwhile: that one lands here, in
    the older whole, and never among the signers of newer keys.
    """

    data: KeyringData
    stamp: tuple[int, ...]
    signers: dict[str, tuple[Signer, float]] = field(default_factory=dict)
    """By tenant, with the Unix second at which its keys change."""


class Keyring:
    """The keys in a file, reloaded when the file changes. May be used by several threads at once.

    `now` is Unix seconds everywhere. Nothing here prints a key: `repr` names the path only.
    """

    def __init__(self, path: Path, loaded: _Loaded) -> None:
        self.path = path
        self._loaded = loaded
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
        return cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a keyring. Raises KeyringMissing, KeyringUnreadable."""
        path = Path(path)
        return cls(path, _load(path))

    def refresh(self) -> bool:
        """Read the file again if it changed since; whether it had. Where that raises KeyringError, old keys stay."""
        if stamp_of(self.path) == self._loaded.stamp:
            return False
        self._loaded = _load(self.path)
        return True

    def follow(self, now: float) -> None:
        """Refresh where the last look was a second ago or longer. A file that broke is logged, and old keys stay."""
        if not 0 <= now - self._looked_at < _LOOK_SECONDS:
            self._looked_at = now
            self._refresh_or_say(now)

    def secrets(self, tenant: str, now: float) -> list[str]:
        """The tenant's secrets (`whsec_…`) that sign now, newest first."""
        data = self._loaded.data
        return ["whsec_" + base64_of(data.secret(tenant, version)) for version in data.versions(tenant).current(now)]

    def signing_keys(self, now: float) -> list[str]:
        """The fleet's private keys (`whsk_…`: seed and public key) that sign now, newest first."""
        return ["whsk_" + base64_of(key.private_bytes) for key in self._fleet(now)]

    def public_keys(self, now: float) -> list[str]:
        """The fleet's public keys (`whpk_…`) in use now, newest first."""
        return ["whpk_" + base64_of(key.public_bytes) for key in self._fleet(now)]

    def jwks(self, now: float) -> dict[str, list[dict[str, str]]]:
        """The public keys in use now as a JWK set (RFC 7517; RFC 8037 for ed25519), newest first."""
        return {"keys": [jwk(key.public_bytes) for key in self._fleet(now)]}

    def signer(self, tenant: str, now: float) -> Signer:
        """Signs with all of a tenant's and the fleet's keys of now. Follows the file; if it breaks, old keys stay."""
        self.follow(now)
        loaded = self._loaded
        signer, valid_until = loaded.signers.get(tenant, (None, 0.0))
        if signer is None or now >= valid_until:
            signer = Signer(self.secrets(tenant, now), self.signing_keys(now))
            if len(loaded.signers) >= _MAX_CACHED_SIGNERS:
                loaded.signers.clear()
            loaded.signers[tenant] = (signer, loaded.data.next_change(tenant, now))
        return signer

    def next_change(self, tenant: str, now: float) -> float:
        """When the next of a tenant's keys stops signing, Unix seconds; infinity where none will."""
        return self._loaded.data.next_change(tenant, now)

    def rotate(self, tenant: str | None, now: float, overlap_seconds: float = OVERLAP_SECONDS) -> float:
        """Put a new key beside the old one: a tenant's secret, or with None the fleet's key pair.

        Returns when the old one stops signing, Unix seconds; no key that retires already signs longer. So an
        `overlap_seconds` of 0, for a key that leaked, leaves nothing but the new one in force. Raises KeyringError.
        Concurrent rotations queue up: none is lost.
        """
        until = now + overlap_seconds
        with writing(self.path):
            data = read(self.path)
            rotated = (
                data.with_fleet_rotated(now, until) if tenant is None else data.with_tenant_rotated(tenant, now, until)
            )
            write(self.path, rotated)
        self.refresh()
        return until

    def _refresh_or_say(self, now: float) -> None:
        try:
            if self.refresh():
                kids = [jwk["kid"] for jwk in self.jwks(now)["keys"]]
                log.info("The keyring changed and was read again.", action="keyring-reloaded", kids=kids)
            self._problem = None
        except KeyringError as error:
            # Once per problem: this runs for every callback.
            if str(error) != self._problem:
                self._problem = str(error)
                log.error(
                    "The keyring cannot be read again; the keys in hand go on signing.",
                    action="keyring-reload-failed",
                    problem=self._problem,
                )

    def _fleet(self, now: float) -> list[FleetKey]:
        return self._loaded.data.fleet_keys(now)


def _load(path: Path) -> _Loaded:
    """The file as it is; what it is told by is looked at first, so that a change meanwhile is noticed next time."""
    stamp = stamp_of(path)
    return _Loaded(read(path), stamp)
