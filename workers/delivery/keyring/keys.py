"""The keys that the keyring's file holds, each with the time until which it signs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    SecretStr,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from workers.delivery.keyring.material import KEY_BYTES, bytes_of, ed25519_private, of_length

LARGEST_NUMBER = 1_000_000
"""Limit on the numbers of masters and versions, because Python refuses to print an overlong number from a damaged
file."""

_written = PlainSerializer(lambda key: key.get_secret_value(), return_type=str)
Key = Annotated[SecretStr, AfterValidator(lambda key: of_length(key, KEY_BYTES, KEY_BYTES)), _written]
"""32 bytes in base64."""
SharedSecret = Annotated[SecretStr, AfterValidator(lambda key: of_length(key, 24, 64)), _written]
"""24 to 64 bytes in base64, as Standard Webhooks asks."""
Number = Annotated[int, Field(ge=1, le=LARGEST_NUMBER)]


class FileModel(BaseModel):
    """A part of the file. Errors never show a refused value, since it may be a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    left_out: ClassVar[frozenset[str]] = frozenset()
    """Fields that are written only if they differ from their default, so that a file of format 1 keeps its form."""

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        default = {name: type(self).model_fields[name].default for name in self.left_out}
        return {n: v for n, v in fields.items() if n not in default or getattr(self, n) != default[n]}


class TimedKey(FileModel):
    """A key that signs; `until` (Unix seconds) is set when the key retires."""

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


class FleetKey(TimedKey):
    """The seed of an ed25519 key pair that signs for every tenant: in format 1, and during a migration's overlap."""

    seed: Key

    @property
    def private_bytes(self) -> bytes:
        """The private key, 64 bytes: the seed and the public key."""
        return ed25519_private(bytes_of(self.seed))

    @property
    def public_bytes(self) -> bytes:
        """The public key, 32 bytes."""
        return self.private_bytes[KEY_BYTES:]


class Master(TimedKey):
    """A secret from which all tenants' keys are derived. Each rotation makes a master with the next number."""

    number: Number
    secret: Key


class ImportedSecret(TimedKey):
    """A tenant's shared secret that another sender made."""

    secret: SharedSecret
