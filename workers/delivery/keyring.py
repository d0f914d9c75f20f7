"""The keyring: one small file that holds every key with which callbacks are signed.

It holds a master secret, from which each tenant's secret is derived (HKDF-SHA256, RFC 5869) by tenant and version, so
that no database of secrets is needed; and one ed25519 key pair for the whole fleet. A rotation keeps the old key
signing beside the new one for 24 hours, so that a consumer may change over at any moment of that day.

Errors, all KeyringError, each naming the path and what to do:

    KeyringError
    ├── KeyringMissing     there is no such file
    ├── KeyringExists      `create` will not overwrite keys
    └── KeyringUnreadable  the file cannot be read or written, is open to others, or is no keyring
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.bindings import crypto_sign_seed_keypair
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_serializer, field_validator

from schemas.signature import Signer
from telemetry.clock import Clock
from telemetry.logs import get_logger

OVERLAP_SECONDS = 24 * 3600.0
"""How long an old key signs beside the new one."""

_LOOK_SECONDS = 1.0
"""How often `signer` looks whether the file changed."""
_MAX_CACHED_SIGNERS = 10_000
_MASTER_BYTES = 32
_SECRET_BYTES = 32
_SEED_BYTES = 32
_ROOT = 0

log = get_logger()


class KeyringError(Exception):
    """The keyring cannot be used."""


class KeyringMissing(KeyringError):  # noqa: N818 - the tree above reads as what happened
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


class _FileModel(BaseModel):
    """A part of the file. What was refused is never shown, since it may be a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class RetiringVersion(_FileModel):
    """A tenant's old version, which signs until then (Unix seconds)."""

    version: int = Field(ge=1)
    until: float


class TenantVersions(_FileModel):
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


class FleetKey(_FileModel):
    """An ed25519 seed in base64; `until` (Unix seconds) is set once it retires."""

    seed: SecretStr
    until: float | None = None

    @field_validator("seed")
    @classmethod
    def _is_a_seed(cls, seed: SecretStr) -> SecretStr:
        return _of_length(seed, _SEED_BYTES)

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
        return self.private_bytes[_SEED_BYTES:]


class KeyringData(_FileModel):
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
        return _of_length(master, _MASTER_BYTES)

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
        return cls(created_at=int(now), master=_random(_MASTER_BYTES), fleet=(FleetKey(seed=_random(_SEED_BYTES)),))

    def versions(self, tenant: str) -> TenantVersions:
        """The versions of a tenant."""
        return self.tenants.get(tenant, TenantVersions())

    def fleet_keys(self, now: float) -> list[FleetKey]:
        """The fleet's keys that sign now, newest first."""
        return [key for key in self.fleet if key.until is None or key.until > now]

    def secret(self, tenant: str, version: int) -> bytes:
        """A tenant's secret: HKDF-SHA256 of the master. The version is the last part, so no two infos are alike."""
        info = f"postback/webhook-secret/{tenant}/{version}".encode()
        derive = HKDF(algorithm=SHA256(), length=_SECRET_BYTES, salt=None, info=info)
        return derive.derive(base64.b64decode(self.master.get_secret_value()))

    def with_tenant_rotated(self, tenant: str, now: float, until: float) -> KeyringData:
        """The data with the tenant's next version."""
        return self.model_copy(update={"tenants": {**self.tenants, tenant: self.versions(tenant).rotated(now, until)}})

    def with_fleet_rotated(self, now: float, until: float) -> KeyringData:
        """The data with a new key pair of the fleet; of the others as with a tenant's versions."""
        ending = (key.retiring(until) for key in self.fleet)
        kept = (key for key in ending if key.until is not None and key.until > now)
        return self.model_copy(update={"fleet": (FleetKey(seed=_random(_SEED_BYTES)), *kept)})

    def next_change(self, tenant: str, now: float) -> float:
        """When the next key of this tenant stops signing, Unix seconds; infinity where none will."""
        untils = [old.until for old in self.versions(tenant).retiring]
        untils += [key.until for key in self.fleet if key.until is not None]
        return min((until for until in untils if until > now), default=float("inf"))


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
        with _writing(path):
            if path.exists() or path.is_symlink():
                raise KeyringExists(path)
            _write(path, KeyringData.generate(clock.time()))
        return cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a keyring. Raises KeyringMissing, KeyringUnreadable."""
        path = Path(path)
        return cls(path, _load(path))

    def refresh(self) -> bool:
        """Read the file again if it changed since; whether it had. Where that raises KeyringError, old keys stay."""
        if _stamp(self.path) == self._loaded.stamp:
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
        return ["whsec_" + _base64(data.secret(tenant, version)) for version in data.versions(tenant).current(now)]

    def signing_keys(self, now: float) -> list[str]:
        """The fleet's private keys (`whsk_…`: seed and public key) that sign now, newest first."""
        return ["whsk_" + _base64(key.private_bytes) for key in self._fleet(now)]

    def public_keys(self, now: float) -> list[str]:
        """The fleet's public keys (`whpk_…`) in use now, newest first."""
        return ["whpk_" + _base64(key.public_bytes) for key in self._fleet(now)]

    def jwks(self, now: float) -> dict[str, list[dict[str, str]]]:
        """The public keys in use now as a JWK set (RFC 7517; RFC 8037 for ed25519), newest first."""
        return {"keys": [_jwk(key.public_bytes) for key in self._fleet(now)]}

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
        with _writing(self.path):
            data = _read(self.path)
            rotated = (
                data.with_fleet_rotated(now, until) if tenant is None else data.with_tenant_rotated(tenant, now, until)
            )
            _write(self.path, rotated)
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


def _jwk(public: bytes) -> dict[str, str]:
    """One key; `kid` is the thumbprint of its required members in lexical order (RFC 7638)."""
    required = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(public)}
    thumbprint = hashlib.sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {**required, "kid": _base64url(thumbprint), "use": "sig", "alg": "EdDSA"}


def _load(path: Path) -> _Loaded:
    """The file as it is; what it is told by is looked at first, so that a change meanwhile is noticed next time."""
    stamp = _stamp(path)
    return _Loaded(_read(path), stamp)


def _read(path: Path) -> KeyringData:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except FileNotFoundError:
        raise KeyringMissing(path) from None
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "let this user read it") from None
    if is_open_to_others(status.st_mode, status.st_uid):
        raise KeyringUnreadable(path, "it is open to other users of this machine", f"run `chmod 600 {path}`")
    try:
        return KeyringData.model_validate_json(content)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, part["loc"])) or "the JSON" for part in error.errors()}))
        raise KeyringUnreadable(path, f"it is not a keyring: {fields}", "put the file back from a backup") from None


def is_open_to_others(mode: int, owner: int) -> bool:
    """Whether somebody else may use the file. Its owner may, and the group may read what root owns.

    The latter is how a Secret is mounted into a pod that does not run as root; PostgreSQL has the same rule for its
    keys (its documentation, section 18.9).
    """
    allowed = stat.S_IRGRP if owner == _ROOT else 0
    return bool(mode & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed)


def _write(path: Path, data: KeyringData) -> None:
    """Replace the file in one step, so that no reader and no crash ever meets half of it."""
    target = path.resolve()
    try:
        # mkstemp makes the file with mode 0600.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            _keep_access(descriptor, target)
            with os.fdopen(descriptor, "w") as file:
                file.write(data.model_dump_json(indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "choose a place that this user can write") from None


def _keep_access(descriptor: int, target: Path) -> None:
    """Owner, group and mode of the file that is replaced: where root rotates keys, delivery must read them after."""
    if target.exists():
        before, now = target.stat(), os.fstat(descriptor)
        if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
            os.fchown(descriptor, before.st_uid, before.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Hold the directory's lock over a read and a write. The file itself is replaced, so it cannot carry the lock."""
    directory = path.resolve().parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "choose a place that this user can write") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when the file or its mode does."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise KeyringMissing(path) from None
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "let this user read it") from None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size, status.st_dev


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno is not None else "it cannot be used"


def _of_length(encoded: SecretStr, length: int) -> SecretStr:
    try:
        decoded = base64.b64decode(encoded.get_secret_value(), validate=True)
    except ValueError:
        raise ValueError("not base64") from None
    if len(decoded) != length:
        raise ValueError(f"not {length} bytes in base64")
    return encoded


def _random(length: int) -> SecretStr:
    return SecretStr(_base64(os.urandom(length)))


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
