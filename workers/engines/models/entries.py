"""Shapes of the registry's file: its engines and its models."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from schemas.bounded import BoundedModel
from schemas.job import MAX_TOKENS, Identifier
from schemas.topics import is_engine_lane
from workers.engines.families import known_family

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$")]
Folder = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Address = Annotated[str, StringConstraints(min_length=1, max_length=2048, pattern=r"^https?://[^\s/@]+(?:/[^\s@]*)?$")]
"""A server's URL, without credentials."""
Trigger = Literal["failed", "not_json", "low_confidence"]
MOST_ADDRESSES = 64


class RegistryPart(BoundedModel):
    """A table of the file. Unknown fields are mistakes, and types are strict."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


class Cost(RegistryPart):
    """Prices per million tokens."""

    prompt: float = Field(ge=0, le=1_000_000)
    completion: float = Field(ge=0, le=1_000_000)
    currency: str = "USD"
    """An ISO 4217 code."""

    @field_validator("currency")
    @classmethod
    def _is_a_code(cls, currency: str) -> str:
        if re.fullmatch("[A-Z]{3}", currency) is None:
            raise ValueError("must be three capital letters (ISO 4217), such as USD")
        return currency

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the price of one answer."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1_000_000


class RateLimits(RegistryPart):
    """Rate limits of a service. Requests wait in the worker, so that the service does not refuse them."""

    requests_per_second: float | None = Field(default=None, gt=0, le=1_000_000)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10**12)
    """Tokens of prompts and answers together."""


class Escalation(RegistryPart):
    """A second try with another model, at most once per job."""

    to: Name
    on: list[Trigger] = Field(min_length=1, max_length=3)
    below: float | None = Field(default=None, gt=0, le=1, validate_default=True)
    """The confidence below which `low_confidence` applies."""

    @field_validator("below")
    @classmethod
    def _goes_with_low_confidence(cls, below: float | None, read: ValidationInfo) -> float | None:
        if "on" in read.data and ("low_confidence" in read.data["on"]) != (below is not None):
            raise ValueError("is required with low_confidence, such as below = 0.4, and only there")
        return below


class ModelEntry(RegistryPart):
    """One `[models.NAME]` table."""

    engine: Name
    model: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    """The engine's name for the model, or a folder; if absent, the table's name."""
    aliases: list[Identifier] = Field(default_factory=list, max_length=64)
    lane: str | None = None
    """The engine lane whose workers serve the model; absent for the shared lane."""
    revision: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    family: str | None = None
    images: bool | None = None
    """True if the model reads images, false if not; if absent, the family decides, found by the model's name."""
    context_tokens: int | None = Field(default=None, ge=16, le=10_000_000)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    """Default of jobs without `max_tokens`."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Default of jobs without `temperature`."""
    profile: Identifier | None = None
    """The profile for jobs that have sources but name no profile."""
    adapters: dict[Name, Folder] = Field(default_factory=dict, max_length=64)
    adapter: Name | None = None
    """Default of jobs without `adapter`: one of `adapters`."""
    cost: Cost | None = None
    limits: RateLimits = RateLimits()
    escalate: Escalation | None = None

    @field_validator("lane")
    @classmethod
    def _is_a_lane(cls, lane: str | None) -> str | None:
        if lane is not None and not is_engine_lane(lane):
            raise ValueError("must be 1 to 64 letters, digits, `_` or `-`, and none of batch, shadow and spare")
        return lane

    @field_validator("adapter")
    @classmethod
    def _is_one_of_the_adapters(cls, adapter: str | None, read: ValidationInfo) -> str | None:
        if adapter is not None and "adapters" in read.data and adapter not in read.data["adapters"]:
            raise ValueError("is none of this model's `adapters`; add its folder there")
        return adapter

    @field_validator("family")
    @classmethod
    def _is_known(cls, family: str | None) -> str | None:
        return known_family(family)
