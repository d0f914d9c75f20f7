"""The adapter that a model of the registry uses for jobs that name none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from telemetry.metrics import Metrics
from tests.handlers import CLOCK
from workers.engines.base import Completion, EngineRefused, GenerationRequest
from workers.engines.echo import EchoEngine, EchoSettings
from workers.engines.families.quirks import FamilyEngine
from workers.engines.models.registry_file import RegistryModel, read_registry
from workers.engines.models.served_model import ServedModel
from workers.engines.registry import engine_settings

ASKED = GenerationRequest("r1", "Hello?", None, 16, 0.0)
FILE = """
[engines.local]
kind = "vllm"
[models.small]
engine = "local"
model = "/models/small"
adapters = { law = "/adapters/law", tax = "/adapters/tax" }
"""


class AdaptedEcho(EchoEngine):
    """Answers with the name of the request's adapter, and has loaded only the adapters `loaded`."""

    def __init__(self, loaded: tuple[str, ...]) -> None:
        super().__init__(EchoSettings(), Metrics())
        self.adapters = loaded

    async def generate(self, request: GenerationRequest) -> Completion:
        return replace(await super().generate(replace(request, adapter=None)), text=str(request.adapter))


def model_of(folder: Path, more: str) -> RegistryModel:
    file = folder / "models.toml"
    file.write_text(FILE + more)
    return read_registry(file, engine_settings()()).models["small"]


def served(model: RegistryModel, *loaded: str) -> ServedModel:
    engine: Any = AdaptedEcho(loaded)
    return ServedModel(model, [FamilyEngine(engine, None)], CLOCK, Metrics())


@pytest.mark.parametrize(
    ("table", "asked", "used"),
    [
        ('adapter = "law"\n', None, "law"),
        ('adapter = "law"\n', "tax", "tax"),
        ("", None, "None"),
        ("", "tax", "tax"),
    ],
)
async def test_a_job_gets_its_own_adapter_or_else_that_of_its_model(
    tmp_path: Path, table: str, asked: str | None, used: str
) -> None:
    small = served(model_of(tmp_path, table), "law", "tax")
    await small.start()
    assert (await small.generate(replace(ASKED, adapter=asked))).text == used
    await small.close()


async def test_a_changed_file_changes_the_default_adapter_of_later_jobs(tmp_path: Path) -> None:
    small = served(model_of(tmp_path, 'adapter = "law"\n'), "law", "tax")
    await small.start()
    small.change(model_of(tmp_path, 'adapter = "tax"\n'))
    assert (await small.generate(ASKED)).text == "tax"
    await small.close()


async def test_a_model_whose_default_adapter_was_not_loaded_does_not_start(tmp_path: Path) -> None:
    model = model_of(tmp_path, 'adapter = "law"\n')
    with pytest.raises(EngineRefused, match="small cannot use its default adapter law"):
        await served(model, "tax").start()
    with pytest.raises(EngineRefused, match="default adapter law"):
        served(model_of(tmp_path, ""), "tax").require_adapter(model)
