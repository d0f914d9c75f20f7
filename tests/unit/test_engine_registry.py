"""A new engine takes one module and one line: everything else follows from the registry."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from console import engine_names, publish
from console import worker as worker_command
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.process_state import state_kept
from workers.engines import ENGINES
from workers.engines.registry import create, engine_settings

FAKE = '''
from pydantic import Field

from workers.engines.echo import EchoEngine, EchoSettings
from workers.engines.settings import EngineSection


class Settings(EngineSection):
    """An engine of a test."""

    speed: int = Field(default=3, ge=1)
    """How fast the answers come."""


def create(settings, metrics, clock):
    engine = EchoEngine(EchoSettings(model=settings.model), metrics)
    engine.name = "fake"
    return engine
'''


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An engine called `fake`, added by one module and one line."""
    (tmp_path / "fake_engine_of_a_test.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(ENGINES, "fake", "fake_engine_of_a_test")
    importlib.reload(worker_command)
    yield
    monkeypatch.undo()
    importlib.reload(worker_command)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_calls_itself_by_its_registered_name(name: str) -> None:
    assert create(name, engine_settings()(), Metrics(), SystemClock(), model="a-model").name == name


@pytest.mark.usefixtures("fake")
def test_a_worker_makes_a_new_engine_by_its_name_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_ENGINE__FAKE__MODEL", "big")
    engine = create("fake", engine_settings()(), Metrics(), SystemClock())
    assert (engine.name, engine.models) == ("fake", ("big",))


@pytest.mark.usefixtures("fake")
def test_the_command_offers_a_new_engine_and_asks_for_its_model() -> None:
    program = typer.Typer()
    program.command()(worker_command.worker)
    assert "fake" in CliRunner().invoke(program, ["--help"], env={"COLUMNS": "200"}).output
    with state_kept():
        started = CliRunner().invoke(program, ["--engine", "fake"])
    assert started.exit_code == 2
    assert "--engine fake needs a model" in started.output
    assert "POSTBACK_ENGINE__FAKE__MODEL" in started.output


@pytest.mark.usefixtures("fake")
def test_the_settings_page_the_chart_and_its_documentation_have_a_new_engine() -> None:
    texts = {path.name: text for path, text in publish.documents().items()}
    assert "| `POSTBACK_ENGINE__FAKE__SPEED` | `3` | from 1 | How fast the answers come. |" in texts["settings.md"]
    assert "POSTBACK_ENGINE__FAKE__SPEED\n" in texts["variables.txt"]
    schema = json.loads(texts["values.schema.json"])
    assert schema["properties"]["worker"]["properties"]["engine"] == {"enum": [*ENGINES]}
    *_, before, last = ENGINES
    assert f"{before} or {last}.\n  engine: echo\n" in texts["values.yaml"]
    sections = engine_settings()()
    alone = " ".join(f'"{name}"' for name in ENGINES if not sections.section(name).needs_model)
    assert f"has .engine (list {alone})" in texts["_worker.tpl"], "the chart asks for the model of any other engine"


def test_a_file_without_a_place_for_the_names_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "values.yaml").write_text("worker: {}\n")
    place = (tmp_path / "values.yaml", "engine: .*", lambda names, alone: "")
    monkeypatch.setattr(engine_names, "PLACES", (place,))
    with pytest.raises(engine_names.PlaceGone, match=r"values\.yaml has 0 lines"):
        engine_names.documents()
