"""Models that read the input of others have bounded errors; an integration test measures the memory of reading."""

from __future__ import annotations

from typing import Final

from schemas.bounded import BoundedModel
from tests.input_models import models
from workers.engines.settings import EngineSection

OPERATORS_FILES: Final = (
    "settings",
    "gateway_settings",
    "keyring",
    "profile",
    "rules",
    "template",
    "certificates",
    "families",
    "source_file",
)
"""Modules and packages with models of the operator's own files and environment."""


def test_every_model_that_is_not_of_the_operators_files_is_bounded() -> None:
    """Every new model of a topic, a socket or a page needs the base class with bounded errors."""
    unbounded = [
        model.__qualname__
        for model in models()
        if not issubclass(model, BoundedModel | EngineSection)
        and not {*model.__module__.split(".")} & {*OPERATORS_FILES}
    ]
    assert unbounded == []
