"""The keyring's file as data: which keys it holds, which of them sign at a time, and what a rotation makes of it."""

from __future__ import annotations

import base64
from typing import Literal

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.bindings import crypto_sign_seed_keypair
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_serializer, field_validator

from workers.delivery.keyring.material import MASTER_BYTES, SECRET_BYTES, SEED_BYTES, of_length, random_key


class FileModel(BaseModel):
    """A part of the file. What was refused is never shown, since it may be a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class RetiringVersion(FileModel):
    """A tenant's old version, which signs until then (Unix seconds)."""

    version: int = Field(ge=1)
    until: float


class TenantVersions(FileModel):
    """Which of a tenant's derived secrets sign."""

    version: int = Field(default=1, ge=1)
    retiring: tuple[RetiringVersion, ...] = ()

    def current(self, now: float) -> list[int]:
        """The versions that sign now, newest first."""
        return [self.version, *(old.version for old in self.retiring if old.until > now)]

    def rotated(self, now: float, until: float) -> TenantVersions:
        """The next version. Those that sign still do so until their time, and none longer than the one before."""
        before = (RetiringVersion(version=self.version, until=until), *self.retiring)
        ending = (old.model_copy(update={"until": min(old.until, until)}) for old in before)
        return TenantVersions(version=self.version + 1, retiring=tuple(old for old in ending if old.until > now))


class FleetKey(FileModel):
    """An ed25519 seed in base64; `until` (Unix seconds) is set once it retires."""

    seed: SecretStr
    until: float | None = None

    @field_validator("seed")
    @classmethod
    def _is_a_seed(cls, seed: SecretStr) -> SecretStr:
        return of_length(seed, SEED_BYTES)

    @field_serializer("seed")
    def _write_seed(self, seed: SecretStr) -> str:
        return seed.get_secret_value()

    def retiring(self, until: float) -> FleetKey:
        """The key as it signs until then, or until it was to end already."""
        return self.model_copy(update={"until": until if self.until is None else min(self.until, until)})

    @property
    def private_bytes(self) -> bytes:
        """The private key, 64 bytes: the seed and the public key."""
        return crypto_sign_seed_keypair(base64.b64decode(self.seed.get_secret_value()))[1]

    @property
    def public_bytes(self) -> bytes:
        """The public key, 32 bytes."""
        return self.private_bytes[SEED_BYTES:]


class KeyringData(FileModel):
    """The file, format 1. Tenants that never rotated are not listed: they are at version 1."""

    format: Literal[1] = 1
    created_at: int
    master: SecretStr
    tenants: dict[str, TenantVersions] = Field(default_factory=dict)
    fleet: tuple[FleetKey, ...] = Field(min_length=1)
    """Newest first."""

    @field_validator("master")
    @classmethod
    def _is_a_master(cls, master: SecretStr) -> SecretStr:
        return of_length(master, MASTER_BYTES)

    @field_serializer("master")
    def _write_master(self, master: SecretStr) -> str:
        return master.get_secret_value()

    @field_validator("fleet")
    @classmethod
    def _one_key_is_current(cls, fleet: tuple[FleetKey, ...]) -> tuple[FleetKey, ...]:
        if [key.until for key in fleet].count(None) != 1 or fleet[0].until is not None:
            raise ValueError("the first key, and no other, has no `until`")
        return fleet

    @classmethod
    def generate(cls, now: float) -> KeyringData:
        """New keys from the system's random source."""
        return cls(created_at=int(now), master=random_key(MASTER_BYTES), fleet=(FleetKey(seed=random_key(SEED_BYTES)),))

    def versions(self, tenant: str) -> TenantVersions:
        """The versions of a tenant."""
        return self.tenants.get(tenant, TenantVersions())

    def fleet_keys(self, now: float) -> list[FleetKey]:
        """The fleet's keys that sign now, newest first."""
        return [key for key in self.fleet if key.until is None or key.until > now]

    def secret(self, tenant: str, version: int) -> bytes:
        """A tenant's secret: HKDF-SHA256 of the master. The version is the last part, so no two infos are alike."""
        info = f"postback/webhook-secret/{tenant}/{version}".encode()
        derive = HKDF(algorithm=SHA256(), length=SECRET_BYTES, salt=None, info=info)
        return derive.derive(base64.b64decode(self.master.get_secret_value()))

    def with_tenant_rotated(self, tenant: str, now: float, until: float) -> KeyringData:
        """The data with the tenant's next version."""
        return self.model_copy(update={"tenants": {**self.tenants, tenant: self.versions(tenant).rotated(now, until)}})

    def with_fleet_rotated(self, now: float, until: float) -> KeyringData:
        """The data with a new key pair of the fleet; of the others as with a tenant's versions."""
        ending = (key.retiring(until) for key in self.fleet)
        kept = (key for key in ending if key.until is not None and key.until > now)
        return self.model_copy(update={"fleet": (FleetKey(seed=random_key(SEED_BYTES)), *kept)})

    def next_change(self, tenant: str, now: float) -> float:
        """When the next key of this tenant stops signing, Unix seconds; infinity where none will."""
        untils = [old.until for old in self.versions(tenant).retiring]
        untils += [key.until for key in self.fleet if key.until is not None]
        return min((until for until in untils if until > now), default=float("inf"))
