"""The settings of all engines, read from `POSTBACK_ENGINE__…`, for example `POSTBACK_ENGINE__VLLM__MAX_MODEL_LEN`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic_settings import BaseSettings, SettingsConfigDict


class EngineSection(BaseModel):
    """The settings of one engine, read from the operator's environment. Each engine's module has a subclass."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    needs_model: ClassVar[bool] = True
    """True if the engine cannot start without a model's name."""

    model: str | None = None
    """The model's name, unless `--model` gives one."""


class EngineSettings(BaseSettings):
    """The settings with one section for each engine; `registry.engine_settings` makes the class with all sections."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_ENGINE__",
        env_nested_delimiter="__",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    def section(self, engine: str) -> EngineSection:
        """Return the settings of one engine. Raises KeyError for a name that is not registered."""
        sections: dict[str, EngineSection] = dict(self)
        return sections[engine]
