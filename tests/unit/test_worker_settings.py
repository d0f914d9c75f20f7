"""Settings of the worker's rooms: lanes, enrichment, and models that read the input of others."""

from __future__ import annotations

from typing import Final

import pytest
from pydantic import ValidationError

from schemas.bounded import BoundedModel
from schemas.settings import Constants, RoomSettings
from tests.input_models import models
from workers.engines.settings import EngineSection
from workers.enrichment.settings import EnrichmentSettings
from workers.inference.settings import WorkerSettings

# -- Allowed lanes of a worker.


@pytest.mark.parametrize("lane", ["batch", "shadow", "a.b", ""])
def test_a_lane_that_is_another_topic_is_refused_where_it_is_read_and_where_jobs_are_sent(lane: str) -> None:
    """`model_requests.batch` is the shared bulk lane, so a lane `batch` would get the bulk jobs of the whole fleet."""
    with pytest.raises(ValidationError, match="lane"):
        WorkerSettings(lane=lane)
    with pytest.raises(ValidationError, match="models"):
        WorkerSettings(models={"m": lane})


def test_any_other_name_can_be_a_lane_and_no_name_means_the_shared_lane() -> None:
    assert WorkerSettings(lane="gpu-1", models={"m": "batches", "n": None}).lane == "gpu-1"


# -- the operator's contact in the user agent --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contact", "header"),
    [
        (None, "Postback/0.1"),
        ("ops@example.com", "Postback/0.1 (ops@example.com)"),
        ("https://example.com/bot?x=1", "Postback/0.1 (https://example.com/bot?x=1)"),
    ],
)
def test_the_contact_is_part_of_how_we_name_ourselves(contact: str | None, header: str) -> None:
    assert EnrichmentSettings(contact=contact).named == header


@pytest.mark.parametrize(
    "contact", ["nobody", "a b@example.com", "ftp://example.com", "x@y\r\nHost: z", "(x@y)", "ü@x.y"]
)
def test_a_text_that_is_no_address_is_no_contact(contact: str) -> None:
    with pytest.raises(ValidationError):
        EnrichmentSettings(contact=contact)


# -- Models that read the input of others have bounded errors; an integration test measures the memory of


OPERATORS_FILES: Final = (
    "settings",
    "keyring",
    "profile",
    "rules",
    "grounding",
    "certificates",
    "exporter",
    "families",
    "inside",
    "loading",
)
"""Modules and packages with models of the operator's own files and environment."""


def test_every_model_that_is_not_of_the_operators_files_is_bounded() -> None:
    """Every new model of a topic, a socket or a page needs the base class with bounded errors."""
    unbounded = [
        model.__qualname__
        for model in models()
        if not issubclass(model, BoundedModel | EngineSection | RoomSettings | Constants)
        and not {*model.__module__.split(".")} & {*OPERATORS_FILES}
    ]
    assert unbounded == []
