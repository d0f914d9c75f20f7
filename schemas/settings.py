"""Settings from `POSTBACK_…` variables: the reader for each room, and the settings that all processes share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from schemas.topics import TIER_DELAYS_SECONDS, Topics, tier_name

_SECRETS = ("sasl_password", "ssl_key_password", "ssl_keystore_password", "sasl_oauthbearer_client_secret")
"""Properties of librdkafka whose value may come from a file."""
_MOST_SECRET_BYTES = 64 * 1024

Settings = TypeVar("Settings", bound=BaseSettings)

_FIELD = re.compile(r'for field "(\w+)"')
"""The name in the text of a SettingsError, which has no field for it."""

TierDelay = Annotated[float, Field(ge=0.001, le=5 * 86_400)]
"""Seconds; shorter than the week of a tier's retention."""


def _content(name: str, path: Path) -> str:
    """The secret in a file. Raises ValueError, which names the setting and not the path's content."""
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

    model_config = ConfigDict(use_attribute_docstrings=True)

    bootstrap_servers: str = "127.0.0.1:9092"
    """`host:port` of brokers, several with commas."""
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    """Prefix of each topic's, group's and transactional id's name, so that fleets can share brokers."""
    partitions: int = Field(default=12, ge=1, le=10_000)
    """Partitions of each topic that `postback topics create` makes: at most so many workers work at once."""
    replication_factor: int | None = Field(default=None, ge=1, le=10)
    """Copies of each topic that `postback topics create` makes; absent, three, or one on each broker where there are
    fewer. Of three copies two have to be written before a record counts as written (`min.insync.replicas`)."""
    tier_delays_seconds: Annotated[tuple[TierDelay, ...], Field(min_length=1, max_length=64)] = TIER_DELAYS_SECONDS
    """The waits between a callback's attempts, as JSON; each has a topic, which `postback topics create` makes, and so
    have 30 seconds and two minutes where they lie between. What waits in the topics of an earlier schedule is delivered
    all the same."""
    extra: dict[str, SecretStr] = Field(default_factory=dict)
    """More librdkafka properties: `POSTBACK_KAFKA__EXTRA__SASL_PASSWORD` is `sasl.password`. A secret may stand in a
    file that `…__SASL_PASSWORD_FILE` names, and so may `SSL_KEY_PASSWORD`, `SSL_KEYSTORE_PASSWORD` and
    `SASL_OAUTHBEARER_CLIENT_SECRET`. It is read when a process starts; a line's end behind it is no part of it."""

    @field_validator("extra")
    @classmethod
    def _read_files(cls, extra: dict[str, SecretStr]) -> dict[str, SecretStr]:
        """Put the content of each file in the place of its name."""
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
        """Properties for any confluent-kafka client of this fleet. Holds secrets: never log it."""
        extra = {name.lower().replace("_", "."): value.get_secret_value() for name, value in self.extra.items()}
        return {"bootstrap.servers": self.bootstrap_servers, **extra}


class FleetSettings(BaseSettings):
    """Settings that all processes of a fleet share."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_",
        env_nested_delimiter="__",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    env: Literal["development", "production"] = "production"
    """With `development`, callbacks and pages may be reached over plain http at any public address."""
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    replica: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,128}$")
    """This process's identity, the same over restarts; random where absent."""
    keyring: str | None = None
    """Path of the keyring file that `postback keys init` makes; for delivery, `receive` and `keys`."""


class SettingsRefused(Exception):  # noqa: N818 - named after the refusal
    """Variables with unusable values. The text names each with its problem, and shows no value."""


def read_settings(kind: type[Settings]) -> Settings:
    """A room's settings. Raises SettingsRefused."""
    try:
        return kind()
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        problems = [f"{_variable(kind, each['loc'])}: {each['msg']}" for each in found]
        raise SettingsRefused("; ".join(problems)) from None
    except SettingsError as error:
        field = _FIELD.search(str(error))
        nested = kind.model_config.get("env_nested_delimiter")
        rest = f"{nested}…" if nested else ""
        name = f"{field[1].upper()}{rest}" if field else "…"
        raise SettingsRefused(f"{kind.model_config.get('env_prefix')}{name}: what should be JSON is none") from None


def _variable(kind: type[BaseSettings], place: tuple[int | str, ...]) -> str:
    """The variable of a field. A part of a field is named only if parts have variables."""
    nested = kind.model_config.get("env_nested_delimiter")
    names = [str(part).upper() for part in place] or ["…"]
    return f"{kind.model_config.get('env_prefix')}{nested.join(names) if nested else names[0]}"
