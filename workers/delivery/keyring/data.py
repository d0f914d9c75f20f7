"""The content of the keyring's file: its keys, the keys that sign at a time, and changes.

Format 1 has one master, and one ed25519 key pair that signs for every tenant. Format 2 has overlapping masters, derives
a secret and an ed25519 key for each tenant, and keeps imported secrets.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple, Self

from pydantic import Field, SecretStr, model_validator

from workers.delivery.keyring.keys import FileModel, FleetKey, ImportedSecret, Key, Master
from workers.delivery.keyring.material import base64_of, bytes_of, derived, ed25519_private, random_key
from workers.delivery.keyring.versions import TenantVersions


class DerivedKey(NamedTuple):
    """One of a tenant's derived keys. `until` is the Unix second at which the key stops signing."""

    master: SecretStr
    tenant: str
    version: int
    until: float

    @property
    def secret(self) -> bytes:
        """The shared secret, 32 bytes."""
        return derived(self.master, "webhook-secret", self.tenant, self.version)

    @property
    def private_bytes(self) -> bytes:
        """The ed25519 private key, 64 bytes: the seed and the public key."""
        return ed25519_private(derived(self.master, "webhook-ed25519", self.tenant, self.version))


class KeyringData(FileModel):
    """The file's content. Tenants that are not listed are at version 1. Keys are ordered newest first."""

    left_out: ClassVar[frozenset[str]] = frozenset({"master", "masters"})

    format: Literal[1, 2]
    created_at: int
    master: Key | None = None
    """The master of format 1; None in format 2."""
    masters: tuple[Master, ...] = ()
    """The masters of format 2; empty in format 1."""
    tenants: dict[str, TenantVersions] = Field(default_factory=dict)
    fleet: tuple[FleetKey, ...] = ()
    """Key pairs that sign for every tenant: in format 1, and in format 2 during a migration's overlap."""

    @model_validator(mode="after")
    def _has_what_its_format_has(self) -> Self:
        if self.format == 1 and (self.master is None or self.masters):
            raise ValueError("format 1 needs `master` and takes no `masters`")
        if self.format == 2 and (self.master is not None or not self.masters):
            raise ValueError("format 2 needs `masters` and takes no `master`")
        current = self.fleet if self.format == 1 else self.masters
        if [key.until for key in current].count(None) != 1 or current[0].until is not None:
            raise ValueError(
                "the first key of `fleet` (format 1) or `masters` (format 2) takes no `until`; all others need one"
            )
        numbers = [master.number for master in self.masters]
        if numbers != sorted(set(numbers), reverse=True):
            raise ValueError("`masters` need different numbers, the highest first")
        if self.format == 2 and any(key.until is None for key in self.fleet):
            raise ValueError("each key of `fleet` in format 2 needs an `until`")
        newest = self.all_masters()[0].number
        if any(versions.master > newest for versions in self.tenants.values()):
            raise ValueError("a version in `tenants` names a master that is newer than all masters in the file")
        return self

    @classmethod
    def generate(cls, now: float) -> KeyringData:
        """Make new keys of format 2 from the system's random source."""
        return cls(format=2, created_at=int(now), masters=(Master(number=1, secret=random_key()),))

    def all_masters(self) -> tuple[Master, ...]:
        """Return the masters of either format, newest first."""
        return self.masters if self.master is None else (Master(number=1, secret=self.master),)

    def signing_masters(self, now: float) -> list[Master]:
        """Return the masters of either format that sign now, newest first."""
        return [master for master in self.all_masters() if master.signs(now)]

    def versions(self, tenant: str) -> TenantVersions:
        """Return the versions of a tenant's keys; version 1 for a tenant that is not listed."""
        return self.tenants.get(tenant, TenantVersions())

    def derived_keys(self, tenant: str, now: float) -> list[DerivedKey]:
        """Return the tenant's derived keys that sign now, newest first."""
        masters = self.all_masters()
        keys = [
            DerivedKey(master.secret, tenant, version, min(until, master.ends))
            for version, until, numbers in self.versions(tenant).spans(masters[0].number)
            for master in masters
            if master.number in numbers
        ]
        return [key for key in keys if key.until > now]

    def imported(self, tenant: str, now: float) -> list[ImportedSecret]:
        """Return the tenant's imported secrets that sign now, newest first."""
        return [one for one in self.versions(tenant).imported if one.signs(now)]

    def secrets(self, tenant: str, now: float) -> list[bytes]:
        """Return the tenant's secrets that sign now, imported secrets first: consumers already have those."""
        imported = [bytes_of(one.secret) for one in self.imported(tenant, now)]
        return list(dict.fromkeys([*imported, *(key.secret for key in self.derived_keys(tenant, now))]))

    def endpoint_secrets(self, tenant: str, endpoint_id: str, version: int, now: float) -> list[bytes]:
        """Return the secrets of a tenant's webhook endpoint in this version, one from each signing master."""
        owner = f"{tenant}/{endpoint_id}"
        return [derived(master.secret, "endpoint-secret", owner, version) for master in self.signing_masters(now)]

    def fleet_keys(self, now: float) -> list[FleetKey]:
        """Return the keys that sign now for every tenant, newest first."""
        return [key for key in self.fleet if key.signs(now)]

    def next_change(self, tenant: str, now: float) -> float:
        """Return the first Unix second at which a key of this tenant stops signing; infinity if no key has an end."""
        untils = [key.until for key in self.derived_keys(tenant, now)]
        untils += [key.ends for key in (*self.imported(tenant, now), *self.fleet_keys(now))]
        return min(untils, default=float("inf"))

    def next_endpoint_change(self, tenant: str, now: float) -> float:
        """Return the first Unix second at which a key of the tenant's webhook endpoints stops signing."""
        return min(self.next_change(tenant, now), *(master.ends for master in self.signing_masters(now)))

    def with_tenant_rotated(self, tenant: str, now: float, until: float) -> KeyringData:
        """Return the data with the tenant's next version; the tenant's imported secrets retire too."""
        rotated = self.versions(tenant).rotated(now, until, self.all_masters()[0].number)
        return self._with_tenant(tenant, rotated)

    def with_fleet_rotated(self, now: float, until: float) -> KeyringData:
        """Return the data after the fleet's key pairs retire; in format 1, with a new pair."""
        new = (FleetKey(seed=random_key()),) if self.format == 1 else ()
        ending = (key.retiring(until) for key in self.fleet)
        return self.model_copy(update={"fleet": (*new, *(key for key in ending if key.signs(now)))})

    def with_master_rotated(self, now: float, until: float) -> KeyringData:
        """Return the data with a new master; older masters retire. Needs format 2."""
        new = Master(number=self.masters[0].number + 1, secret=random_key())
        ending = (master.retiring(until) for master in self.masters)
        return self.model_copy(update={"masters": (new, *(master for master in ending if master.signs(now)))})

    def with_all_replaced(self, now: float) -> KeyringData:
        """Return the data with a new master as its only key, for use after the file leaked. Needs format 2."""
        fresh = {name: versions.model_copy(update={"imported": ()}) for name, versions in self.tenants.items()}
        return self.with_master_rotated(now, now).model_copy(update={"tenants": fresh, "fleet": ()})

    def with_imported(self, tenant: str, secret: bytes) -> KeyringData:
        """Return the data with one more imported secret, which signs until the next rotation. Needs format 2."""
        one, versions = ImportedSecret(secret=SecretStr(base64_of(secret))), self.versions(tenant)
        others = (known for known in versions.imported if bytes_of(known.secret) != secret)
        return self._with_tenant(tenant, versions.model_copy(update={"imported": (one, *others)}))

    def migrated(self, now: float, until: float) -> KeyringData:
        """Return the data in format 2. Shared secrets stay, and the fleet's key pairs sign until `until` at most."""
        masters = {"format": 2, "master": None, "masters": self.all_masters()}
        ending = (key.retiring(until) for key in self.fleet)
        return self.model_copy(update={**masters, "fleet": tuple(key for key in ending if key.signs(now))})

    def holder_of(self, secret: bytes, besides: str, now: float) -> str | None:
        """Return a listed tenant that has this secret and is not `besides`; None if there is none."""
        return next((name for name in self.tenants if name != besides and secret in self.secrets(name, now)), None)

    def _with_tenant(self, tenant: str, versions: TenantVersions) -> KeyringData:
        return self.model_copy(update={"tenants": {**self.tenants, tenant: versions}})
