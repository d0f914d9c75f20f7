"""The keyring: one small file with all keys that sign callbacks.

The file holds master secrets. Each tenant has a shared secret and an ed25519 key pair, derived from a master by
purpose, tenant and version (HKDF-SHA256, RFC 5869). So no database of keys is needed. After a rotation the old keys
sign beside the new keys for 24 hours by default, so that consumers have time to change. An operator can import another
sender's secrets for a tenant. Keys are 32 bytes, in base64 in the file. A key that retires has an `until`, the Unix
second at which it stops signing.

Every error is a KeyringError with a text that names the path or the tenant, and the fix.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self, TypeVar

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
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from schemas.job import TENANT_PATTERN
from schemas.operator_error import OperatorError
from schemas.signature import PUBLIC_KEY_PREFIX, SECRET_PREFIX, SIGNING_KEY_PREFIX, Signer, secret_bytes
from telemetry.atomic_file import PrivateFileRefused, Replacement, only_writer, read_private, replace_files
from telemetry.clock import Clock
from telemetry.logs import get_logger

if TYPE_CHECKING:
    from telemetry.health import HealthPage

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


_LARGEST_BYTES = 64 * 1024 * 1024
"""Limit on the file's size. A hundred thousand rotated tenants take 10 MB."""
_MODELS = (KeyringData, TenantVersions, RetiringVersion, Master, ImportedSecret)
_FIELDS = frozenset(name for model in _MODELS for name in model.model_fields)


class KeyringError(OperatorError):
    """The keyring cannot be used."""


class KeyringMissing(KeyringError):  # noqa: N818 - the names tell events
    """There is no keyring at this path."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"there is no keyring at {path}: make one with `postback keys init`, or set POSTBACK_KEYRING")


class KeyringExists(KeyringError):  # noqa: N818
    """There is a keyring at this path already."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists and is left as it is: rotate its keys with `postback keys rotate`")


class KeyringUnreadable(KeyringError):  # noqa: N818
    """The file cannot serve as a keyring."""

    def __init__(self, path: Path, problem: str, fix: str) -> None:
        super().__init__(f"keyring {path}: {problem}; {fix}")


class KeyringRefused(KeyringError):  # noqa: N818
    """The change makes no sense for these keys; the text gives the reason."""


def read(path: Path, *, by_root: bool = False) -> KeyringData:
    """Return the file's data. Raises KeyringMissing, KeyringUnreadable.

    With `by_root`, root may use another user's file.
    """
    try:
        with _reading(path):
            content = read_private(path, _LARGEST_BYTES, by_root=by_root)
    except PrivateFileRefused as refused:
        raise KeyringUnreadable(path, refused.problem, refused.fix) from None
    if len(content) > _LARGEST_BYTES:
        raise KeyringUnreadable(path, "the file is larger than any keyring", "put the file back from a backup")
    try:
        return KeyringData.model_validate_json(content)
    except ValidationError as error:
        raise KeyringUnreadable(path, _problem_of(error), "put the file back from a backup") from None


def _problem_of(error: ValidationError) -> str:
    parts = error.errors(include_input=False)
    if any(part["loc"] == ("format",) for part in parts):
        return f"its `format` is not {FORMAT}, the only one that this version reads"
    return f"it is not a keyring: {', '.join(sorted({_place_of(part) for part in parts}))}"


def _place_of(part: ErrorDetails) -> str:
    """Return the place of a problem in the file.

    Only names of the format's fields are shown, because any other text may be a key.
    """
    if not part["loc"]:
        return part["msg"].removeprefix("Value error, ") if part["type"] == "value_error" else "the JSON"
    return ".".join(str(name) if isinstance(name, int) or name in _FIELDS else "…" for name in part["loc"])


def stamp_of(path: Path) -> tuple[int, ...]:
    """Return a value that changes with the file or its mode. Raises KeyringMissing, KeyringUnreadable."""
    with _reading(path):
        status = path.stat()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size, status.st_dev


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise KeyringMissing(path) from None
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "let this user read it") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the lock of the keyring's directory during the block. Raises KeyringUnreadable."""
    directory = path.resolve().parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with only_writer(directory):
            yield
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "choose a place that this user can write") from None


def write(path: Path, data: KeyringData) -> None:
    """Inside `writing`, replace the file in one step: neither a reader nor a crash ever meets half a file."""
    replace_files(Replacement(path, (data.model_dump_json(indent=1) + "\n").encode()))


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno is not None else "it cannot be used"


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


# -- the page of public keys for consumers: a JWK set (RFC 7517) at a well-known path (RFC 8615) -----------------------

JWKS_FOLDER = "/.well-known/jwks/"
JWKS_TYPE = "application/jwk-set+json"
"""Media type (RFC 7517, section 8.5.2)."""

MAX_AGE_SECONDS = 300
"""Seconds for which a reader may cache a set, and so trust a leaked key; far less than a rotation's overlap of a
day."""

_FILE = re.compile(rf"({TENANT_PATTERN})\.json")


def tenant_jwks_page(keyring: Keyring, clock: Clock, name: str) -> HealthPage | None:
    """Return the page `TENANT.json`, the keys that verify the tenant's events now; None if `name` has another form.

    If the keyring's file is broken, the page has the keys that were read before. Strangers may ask for any set.
    Every valid name has a set of the same form, even an unused name, so that answers do not reveal tenants.
    """
    asked = _FILE.fullmatch(name)
    if asked is None:
        return None
    now = clock.time()
    keyring.follow(now)
    from telemetry.health import HealthPage  # late, since commands that show keys serve no page

    return HealthPage(JWKS_TYPE, json.dumps(keyring.jwks(asked[1], now)).encode(), MAX_AGE_SECONDS)
