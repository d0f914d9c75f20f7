"""The content of the keyring's file: keys, the keys that sign at a time, and an operator's changes.

Keys are 32 bytes, in base64 in the file. A key that retires has an `until`, the Unix second at which it stops signing.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, NamedTuple, Self, TypeVar

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.bindings import crypto_sign_seed_keypair
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    SecretStr,
    model_validator,
)

FORMAT = 2
"""The number of the file's format. Files with another number are refused."""

_KEY_BYTES = 32
"""Length of a master, of a derived secret, of an ed25519 seed and of a public key."""
_LARGEST_NUMBER = 1_000_000
"""Limit on the numbers of masters and versions, because Python refuses to print an overlong number from a damaged
file."""


def base64_of(value: bytes) -> str:
    """Encode as base64 with padding (RFC 4648, section 4)."""
    return base64.b64encode(value).decode()


def _bytes_of(encoded: SecretStr) -> bytes:
    return base64.b64decode(encoded.get_secret_value())


def _of_length(encoded: SecretStr, shortest: int, longest: int) -> SecretStr:
    """Return the key if it is base64 of an allowed length. Else raises ValueError, without showing the key."""
    try:
        decoded = base64.b64decode(encoded.get_secret_value(), validate=True)
    except ValueError:
        raise ValueError("not base64") from None
    if not shortest <= len(decoded) <= longest:
        raise ValueError(f"not {shortest} to {longest} bytes in base64")
    return encoded


_written = PlainSerializer(lambda key: key.get_secret_value(), return_type=str)
Key = Annotated[SecretStr, AfterValidator(lambda key: _of_length(key, _KEY_BYTES, _KEY_BYTES)), _written]
SharedSecret = Annotated[SecretStr, AfterValidator(lambda key: _of_length(key, 24, 64)), _written]
"""24 to 64 bytes, as Standard Webhooks asks."""
Number = Annotated[int, Field(ge=1, le=_LARGEST_NUMBER)]


# -- the keys in the file --------------------------------------------------------------------------------------------


class FileModel(BaseModel):
    """A part of the file. Errors never show a refused value, since it may be a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TimedKey(FileModel):
    """A key that signs until its end, or until it is rotated."""

    until: FiniteFloat | None = None

    @property
    def ends(self) -> float:
        """The Unix second at which the key stops signing; infinity if the key does not retire."""
        return float("inf") if self.until is None else self.until

    def signs(self, now: float) -> bool:
        """True if the key signs at the time `now`."""
        return self.ends > now

    def retiring(self, until: float) -> Self:
        """Return the key with its end set to `until`; if the key ends earlier, its end stays."""
        return self.model_copy(update={"until": min(self.ends, until)})


Timed = TypeVar("Timed", bound=TimedKey)


def _retired(keys: Iterable[Timed], now: float, until: float) -> tuple[Timed, ...]:
    """Return the keys that still sign, each until `until` or its own earlier end."""
    ending = (key.retiring(until) for key in keys)
    return tuple(key for key in ending if key.signs(now))


class Master(TimedKey):
    """A secret from which all tenants' keys are derived. Each rotation makes a master with the next number."""

    number: Number
    secret: Key

    @classmethod
    def random(cls, number: int) -> Self:
        """Make a master from the system's random source."""
        return cls(number=number, secret=SecretStr(base64_of(os.urandom(_KEY_BYTES))))

    def derived(
        self, purpose: Literal["webhook-secret", "webhook-ed25519", "endpoint-secret"], owner: str, version: int
    ) -> bytes:
        """Derive 32 bytes for one purpose and owner, by HKDF-SHA256 (RFC 5869).

        The owner is a tenant, or an endpoint as `<tenant>/<endpoint>`; neither name has a slash.

        Two different keys never share an HKDF `info`: the purpose at its start has no slash, and the version at its
        end is a number.
        """
        info = f"postback/{purpose}/{owner}/{version}".encode()
        return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(_bytes_of(self.secret))


class ImportedSecret(TimedKey):
    """A tenant's shared secret that another sender made."""

    secret: SharedSecret


class RetiringVersion(TimedKey):
    """An old version of a tenant's keys."""

    until: FiniteFloat
    version: Number
    master: Number = 1
    """The newest master's number when this version began."""


class TenantVersions(FileModel):
    """A tenant's current version, retiring versions and imported secrets, each newest first."""

    version: Number = 1
    master: Number = 1
    """The newest master's number when this version began."""
    retiring: tuple[RetiringVersion, ...] = ()
    imported: tuple[ImportedSecret, ...] = ()

    def spans(self, newest_master: int) -> Iterator[tuple[int, float, range]]:
        """Yield each version, the Unix second at which it stops signing, and the numbers of its masters.

        A version's masters are the masters that were newest while the version was current. Consumers never got
        keys that other masters derive for this version, so those keys need not sign. Without this limit, ten rotations
        of a master and ten of a tenant would make a hundred signatures.
        """
        yield self.version, float("inf"), range(self.master, newest_master + 1)
        last = self.master
        for old in self.retiring:
            yield old.version, old.until, range(old.master, last + 1)
            last = old.master


# -- the file --------------------------------------------------------------------------------------------------------


class DerivedKey(NamedTuple):
    """One of a tenant's derived keys. `until` is the Unix second at which the key stops signing."""

    master: Master
    tenant: str
    version: int
    until: float

    @property
    def secret(self) -> bytes:
        """The shared secret, 32 bytes."""
        return self.master.derived("webhook-secret", self.tenant, self.version)

    @property
    def private_bytes(self) -> bytes:
        """The ed25519 private key in libsodium's form, 64 bytes: the seed and the public key."""
        return crypto_sign_seed_keypair(self.master.derived("webhook-ed25519", self.tenant, self.version))[1]

    @property
    def public_bytes(self) -> bytes:
        """The ed25519 public key, 32 bytes."""
        return self.private_bytes[_KEY_BYTES:]


class KeyringData(FileModel):
    """The file's content. Tenants that are not listed are at version 1. Keys are ordered newest first."""

    format: Literal[2]
    created_at: int
    masters: tuple[Master, ...]
    tenants: dict[str, TenantVersions] = Field(default_factory=dict)
    fleet: tuple[()] = Field(default=(), exclude=True)
    """An empty list that files of this format may have."""

    @model_validator(mode="after")
    def _has_one_current_master_and_knows_all_named_masters(self) -> Self:
        if [master.until for master in self.masters].count(None) != 1 or self.masters[0].until is not None:
            raise ValueError("the first of `masters` takes no `until`, and all others need one")
        numbers = [master.number for master in self.masters]
        if numbers != sorted(set(numbers), reverse=True):
            raise ValueError("`masters` need different numbers, the highest first")
        if any(versions.master > numbers[0] for versions in self.tenants.values()):
            raise ValueError("a version in `tenants` names a master that is newer than all masters in the file")
        return self

    @classmethod
    def generate(cls, now: float) -> KeyringData:
        """Make the content of a new keyring."""
        return cls(format=FORMAT, created_at=int(now), masters=(Master.random(1),))

    def signing_masters(self, now: float) -> list[Master]:
        """Return the masters that sign now."""
        return [master for master in self.masters if master.signs(now)]

    def derived_keys(self, tenant: str, now: float) -> list[DerivedKey]:
        """Return the tenant's derived keys that sign now."""
        keys = [
            DerivedKey(master, tenant, version, min(until, master.ends))
            for version, until, numbers in self._versions(tenant).spans(self.masters[0].number)
            for master in self.masters
            if master.number in numbers
        ]
        return [key for key in keys if key.until > now]

    def secrets(self, tenant: str, now: float) -> dict[bytes, float]:
        """Return the tenant's secrets that sign now, each with its end.

        Imported secrets come first, because consumers have those.
        """
        imported = self._versions(tenant).imported
        ends = [(_bytes_of(one.secret), one.ends) for one in imported if one.signs(now)]
        ends += [(key.secret, key.until) for key in self.derived_keys(tenant, now)]
        latest: dict[bytes, float] = {}
        for secret, end in ends:
            latest[secret] = max(end, latest.get(secret, end))
        return latest

    def endpoint_secrets(self, tenant: str, endpoint_id: str, version: int, now: float) -> list[bytes]:
        """Return the secrets of a tenant's webhook endpoint in this version, one from each signing master."""
        owner = f"{tenant}/{endpoint_id}"
        return [master.derived("endpoint-secret", owner, version) for master in self.signing_masters(now)]

    def next_change(self, tenant: str, now: float) -> float:
        """Return the first Unix second at which a key of this tenant or of its endpoints stops signing.

        The result is infinity if no key has an end.
        """
        versions = self._versions(tenant)
        return min(key.ends for key in (*self.masters, *versions.retiring, *versions.imported) if key.signs(now))

    def holder_of(self, secret: bytes, besides: str, now: float) -> str | None:
        """Return a listed tenant that has this secret and is not `besides`; None if there is none."""
        return next((name for name in self.tenants if name != besides and secret in self.secrets(name, now)), None)

    def with_tenant_rotated(self, tenant: str, now: float, until: float) -> KeyringData:
        """Return the data with the tenant's next version; the tenant's imported secrets retire too."""
        old = self._versions(tenant)
        before = (RetiringVersion(version=old.version, until=until, master=old.master), *old.retiring)
        new = TenantVersions(
            version=old.version + 1,
            master=self.masters[0].number,
            retiring=_retired(before, now, until),
            imported=_retired(old.imported, now, until),
        )
        return self._with_tenant(tenant, new)

    def with_master_rotated(self, now: float, until: float) -> KeyringData:
        """Return the data with a new master; older masters retire."""
        new = Master.random(self.masters[0].number + 1)
        return self.model_copy(update={"masters": (new, *_retired(self.masters, now, until))})

    def with_all_replaced(self, now: float) -> KeyringData:
        """Return the data with a new master as its only key, for use after the file leaked."""
        fresh = {name: versions.model_copy(update={"imported": ()}) for name, versions in self.tenants.items()}
        return self.with_master_rotated(now, now).model_copy(update={"tenants": fresh})

    def with_imported(self, tenant: str, secret: bytes) -> KeyringData:
        """Return the data with one more imported secret, which signs until the next rotation."""
        one, versions = ImportedSecret(secret=SecretStr(base64_of(secret))), self._versions(tenant)
        others = (known for known in versions.imported if _bytes_of(known.secret) != secret)
        return self._with_tenant(tenant, versions.model_copy(update={"imported": (one, *others)}))

    def _versions(self, tenant: str) -> TenantVersions:
        return self.tenants.get(tenant, TenantVersions())

    def _with_tenant(self, tenant: str, versions: TenantVersions) -> KeyringData:
        return self.model_copy(update={"tenants": {**self.tenants, tenant: versions}})
