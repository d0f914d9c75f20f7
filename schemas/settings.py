"""Settings that every process shares: which fleet this is, how to reach its Kafka. From `POSTBACK_…` variables."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.topics import TIER_DELAYS_SECONDS, Topics, tier_name

TierDelay = Annotated[float, Field(ge=0.001, le=5 * 86_400)]
"""Seconds; less than the week for which a tier's topic keeps its records."""


class KafkaSettings(BaseModel):
    """How to reach Kafka, and how its topics are laid out."""

    bootstrap_servers: str = "127.0.0.1:9092"
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    partitions: int = Field(default=12, ge=1, le=10_000)
    replication_factor: int = Field(default=1, ge=1, le=10)
    tier_delays_seconds: Annotated[tuple[TierDelay, ...], Field(min_length=1, max_length=64)] = TIER_DELAYS_SECONDS
    """The waits between a callback's attempts, as JSON; each has a topic, which `postback topics create` makes. What
    waits in the topics of an earlier schedule is delivered all the same."""
    extra: dict[str, SecretStr] = Field(default_factory=dict)
    """librdkafka properties: `POSTBACK_KAFKA__EXTRA__SASL_PASSWORD` is `sasl.password`."""

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
    """What all processes of a fleet agree on. Rooms add their own sections in their own settings classes."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_", env_nested_delimiter="__", extra="ignore", hide_input_in_errors=True, frozen=True
    )

    env: Literal["development", "production"] = "production"
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    replica: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,128}$")
    """This process's identity, the same over restarts; random where absent."""
    keyring: str | None = None
    """Path of the keyring file that `postback keys init` makes."""
