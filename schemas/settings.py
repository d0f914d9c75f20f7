"""Settings from `POSTBACK_…` variables: the reader for each room, and the settings that all processes share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from schemas.docstrings import descriptions
from schemas.operator_error import OperatorError
from schemas.topics import TIER_DELAYS_SECONDS, Topics, tier_name
from schemas.trust import MalformedSecrets, TrustSecrets

_SECRETS = ("sasl_password", "ssl_key_password", "ssl_keystore_password", "sasl_oauthbearer_client_secret")
"""librdkafka's properties that may be read from a file."""
_MOST_SECRET_BYTES = 64 * 1024

Settings = TypeVar("Settings", bound=BaseSettings)

_FIELD = re.compile(r'for field "(\w+)"')
"""Finds the field's name in the text of a SettingsError, which has no attribute for the name."""

_SENTENCE_END = re.compile(r"(?<=\.)\s")


TierDelay = Annotated[float, Field(ge=0.001, le=5 * 86_400)]
"""Seconds; at most five days, which is shorter than the week for which a tier keeps records."""


def _content(name: str, path: Path) -> str:
    """Return the secret in a file. Raises ValueError, which names the setting and shows neither path nor content."""
    variable = f"{name.upper()}_FILE"
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_SECRET_BYTES + 1)
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ValueError(f"{variable} names a file that cannot be read ({error.strerror}); check its path") from None
    except UnicodeDecodeError:
        raise ValueError(f"{variable} names a file that is not UTF-8 text") from None
    if not text or len(content) > _MOST_SECRET_BYTES:
        raise ValueError(f"{variable} names a file that is empty or larger than {_MOST_SECRET_BYTES} bytes")
    return text


class KafkaSettings(BaseModel):
    """Kafka's address, and the layout of the fleet's topics."""

    bootstrap_servers: str = "127.0.0.1:9092"
    """`host:port` of brokers, several separated by commas."""
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    """Prefix of the names of all topics, groups and transactional ids, so that fleets can share brokers."""
    partitions: int = Field(default=12, ge=1, le=10_000)
    """Partitions of each topic that `postback topics create` makes. At most this number of workers work at the same
    time."""
    replication_factor: int | None = Field(default=None, ge=1, le=10)
    """Copies of each topic that `postback topics create` makes. The default is three, or one on each broker if there
    are fewer than three brokers. With three copies, brokers acknowledge a record when two copies have it
    (`min.insync.replicas`).
    """
    tier_delays_seconds: Annotated[tuple[TierDelay, ...], Field(min_length=1, max_length=64)] = TIER_DELAYS_SECONDS
    """Waits between a callback's attempts, in seconds, as JSON. `postback topics create` makes a topic for each wait,
    and for 30 seconds and two minutes if they lie between the shortest and the longest. Callbacks in the topics of an
    earlier schedule are still delivered."""
    extra: dict[str, SecretStr] = Field(default_factory=dict)
    """More librdkafka properties: `POSTBACK_KAFKA__EXTRA__SASL_PASSWORD` is `sasl.password`. Four secrets may be read
    from a file: `…__SASL_PASSWORD_FILE` names the file of `SASL_PASSWORD`, and likewise for `SSL_KEY_PASSWORD`,
    `SSL_KEYSTORE_PASSWORD` and `SASL_OAUTHBEARER_CLIENT_SECRET`. A process reads the files at its start, and removes a
    line break at the end."""

    @field_validator("extra")
    @classmethod
    def _read_files(cls, extra: dict[str, SecretStr]) -> dict[str, SecretStr]:
        """Replace each `…_file` property by the secret from its file."""
        named = {name.lower().replace(".", "_"): value for name, value in extra.items()}
        for secret in _SECRETS:
            path = named.pop(f"{secret}_file", None)
            if path is not None and secret in named:
                raise ValueError(f"{secret.upper()} and {secret.upper()}_FILE are both set; set one of them")
            if path is not None:
                named[secret] = SecretStr(_content(secret, Path(path.get_secret_value())))
        return named

    @field_validator("tier_delays_seconds")
    @classmethod
    def _have_topics_of_their_own(cls, delays: tuple[float, ...]) -> tuple[float, ...]:
        if len({tier_name(delay) for delay in delays}) < len(set(delays)):
            raise ValueError("two delays are the same in whole milliseconds, and would share a topic")
        return delays

    @property
    def topics(self) -> Topics:
        """The names of this fleet's topics."""
        return Topics(self.topic_prefix, self.tier_delays_seconds)

    def client_config(self) -> dict[str, Any]:
        """Return the properties for any confluent-kafka client of this fleet.

        The properties hold secrets: never log them.
        """
        extra = {name.lower().replace("_", "."): value.get_secret_value() for name, value in self.extra.items()}
        return {"bootstrap.servers": self.bootstrap_servers, **extra}


class TrustSettings(BaseModel):
    """The secrets that sign the tenants of jobs."""

    secret_file: Path | None = None
    """The file of the secrets with which the gateway and `postback submit` sign a job's tenant, and workers verify the
    signature. Each line has one secret of 32 characters or more. The first secret signs and each secret verifies, so a
    new secret goes on top. Remove an old secret when the jobs that it signed are done. `openssl rand -hex 32` makes a
    secret. Without the file, no job is signed. The marks around sources in prompts are derived from the first secret;
    without a secret, from the UUID of the topic of results.
    """

    @property
    def secrets(self) -> TrustSecrets | None:
        """The secrets in the file, read again; None without a file. Raises SettingsRefused."""
        if self.secret_file is None:
            return None
        try:
            return TrustSecrets.parse(_content("secret", self.secret_file))
        except MalformedSecrets as malformed:
            raise SettingsRefused(f"POSTBACK_TRUST__SECRET_FILE {malformed}") from None
        except ValueError as unreadable:
            raise SettingsRefused(f"POSTBACK_TRUST__{unreadable}") from None


class Constants(BaseModel):
    """Numbers that no operator has a reason to change, each with its reason. No variable sets them; tests do."""


class RoomSettings(BaseSettings):
    """Settings of a room: a variable sets each field, except those of a class of constants that the room inherits."""

    model_config = SettingsConfigDict(extra="ignore", hide_input_in_errors=True, frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, and then variables."""
        return init_settings, _Variables(settings_cls)


class _Variables(EnvSettingsSource):
    def __call__(self) -> dict[str, Any]:
        return _without_constants(self.settings_cls, super().__call__())


def constants_of(model: type[BaseModel]) -> frozenset[str]:
    """Return the names of the fields that the model inherits from classes of constants."""
    bases = (base for base in model.__mro__ if issubclass(base, Constants) and base is not model)
    return frozenset(name for base in bases for name in base.model_fields)


def _without_constants(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of variables, without those that name a constant, also in nested groups."""
    constants = constants_of(model)
    kept = {name: value for name, value in values.items() if name not in constants}
    for name, value in kept.items():
        kind = model.model_fields[name].annotation if name in model.model_fields else None
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            kept[name] = _without_constants(kind, value)
    return kept


class FleetSettings(RoomSettings, env_prefix="POSTBACK_", env_nested_delimiter="__"):
    """Settings that all processes of a fleet share."""

    env: Literal["development", "production"] = "production"
    """With `development`, callbacks and pages may be reached over plain http at any public address."""
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    trust: TrustSettings = Field(default_factory=TrustSettings)
    replica: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,128}$")
    """This process's identity, unchanged over restarts; random where absent."""
    keyring: str | None = None
    """Path of the keyring file that `postback keys init` makes. Delivery, `postback receive` and `postback keys` use
    it."""


class SettingsRefused(OperatorError):  # noqa: N818 - named after the refusal
    """Variables have unusable values. The error's text names each variable with its problem, and shows no value."""

    exit_status = 2


def read_settings(kind: type[Settings]) -> Settings:
    """Return a room's settings. Raises SettingsRefused."""
    try:
        return kind()
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        problems = [f"{_variable(kind, each['loc'])}: {_reason(kind, each)}" for each in found]
        raise SettingsRefused("; ".join(problems)) from None
    except SettingsError as error:
        field = _FIELD.search(str(error))
        nested = kind.model_config.get("env_nested_delimiter")
        rest = f"{nested}…" if nested else ""
        name = f"{field[1].upper()}{rest}" if field else "…"
        raise SettingsRefused(
            f"{kind.model_config.get('env_prefix')}{name}: is not JSON, as this variable has to be"
        ) from None


def _reason(kind: type[BaseSettings], details: Mapping[str, Any]) -> str:
    """Return the problem in words. A pattern tells an operator little, so the field's first sentence replaces it."""
    meaning = _meaning(kind, details["loc"]) if details["type"] == "string_pattern_mismatch" else None
    return f"has another form than this variable takes: {meaning}" if meaning else str(details["msg"])


def _meaning(kind: type[BaseModel], place: tuple[int | str, ...]) -> str | None:
    """Return the first sentence of a field's description; None if the place leads to no described field."""
    field = kind.model_fields.get(str(place[0])) if place else None
    if field is None:
        return None
    if len(place) > 1:
        inner = field.annotation
        return _meaning(inner, place[1:]) if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    text = descriptions(kind).get(str(place[0]))
    return _SENTENCE_END.split(text, maxsplit=1)[0].rstrip(".") if text else None


def _variable(kind: type[BaseSettings], place: tuple[int | str, ...]) -> str:
    """Return the name of a field's variable. A nested field's name is included if nested fields have variables."""
    nested = kind.model_config.get("env_nested_delimiter")
    names = [str(part).upper() for part in place] or ["…"]
    return f"{kind.model_config.get('env_prefix')}{nested.join(names) if nested else names[0]}"
