"""The settings of all engines, read from `POSTBACK_ENGINE__…`, for example `POSTBACK_ENGINE__VLLM__CONTEXT_TOKENS`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from workers.engines.families import Family, families, family_of, known_family

MODEL_OPTIONS: Final = ("revision", "context_tokens", "adapters", "images")
"""The fields of a model's table in the registry that have a meaning for some engines only."""


class EngineSection(BaseModel):
    """The settings of one engine, read from the operator's environment. Each engine's module has a subclass."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    needs_model: ClassVar[bool] = True
    """True if the engine cannot start without a model's name."""

    needs_package: ClassVar[tuple[str, str] | None] = None
    """A package that the engine cannot do without, and the extra of `postback` that installs it."""

    registry_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of a model's table in the registry that are settings of the engine too."""

    model: str | None = None
    """The model's name, unless `--model` gives one. For vLLM a directory, or a name on the Hugging Face hub."""
    family: str | None = None
    """The model's family, such as `deepseek-r1`, if the model's name does not show it.

    The family gives the marks around the reasoning and the format of calls.
    """

    @field_validator("family")
    @classmethod
    def _is_known(cls, family: str | None) -> str | None:
        return known_family(family)

    def model_family(self, architectures: Iterable[str] = ()) -> Family | None:
        """Return the family that the settings name, else the one of the model and architectures; None if unknown."""
        if self.family is not None:
            return families()[self.family]
        return family_of(self.model, architectures) if self.model is not None else None

    @classmethod
    def unsupported(cls, table: Mapping[str, object]) -> tuple[str, ...]:
        """Return the fields of a model's table in the registry that have no meaning for this engine."""
        return tuple(field for field in MODEL_OPTIONS if table.get(field) and field not in cls.registry_fields)

    def for_model(self, model: str, family: str | None, options: Mapping[str, object]) -> Self:
        """Return the settings for a model of the registry. Options without a meaning for this engine are left out."""
        own = {name: value for name, value in options.items() if name in self.registry_fields}
        given = {name: value for name, value in own.items() if value or value is False}
        return self.model_copy(update={"model": model, "family": family, **given})


class EngineSettings(BaseSettings):
    """The settings of all engines, one section each; `registry.engine_settings` makes the class with the sections."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_ENGINE__",
        env_nested_delimiter="__",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
    )

    def section(self, engine: str) -> EngineSection:
        """Return the settings of one engine. Raises KeyError for a name that is not registered."""
        sections: dict[str, EngineSection] = dict(self)
        return sections[engine]
