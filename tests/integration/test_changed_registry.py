"""A registry's file that changes while a worker runs counts without a restart, or changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.settings import SettingsRefused
from tests.integration.openai_http.servers import Server, says
from tests.integration.registry_rig import ASKED, ESCALATING, Rig, rig, started
from workers.engines.base import EngineAway, EngineRefused
from workers.engines.models.registry_engine import RegistryEngine
from workers.engines.models.registry_file import ModelRegistry, RegistryModel
from workers.engines.models.served_model import ServedModel
from workers.inference.routing import Registry
from workers.roles.model_registry import RegistryWatch

WITH_ALIAS = ESCALATING.replace("[models.small]\n", '[models.small]\naliases = ["gpt-4o"]\n')


@asynccontextmanager
async def watched(
    folder: Path, problems: Sequence[Exception] = ()
) -> AsyncIterator[tuple[Rig, RegistryEngine, Registry, RegistryWatch]]:
    """Run an engine whose registry's file is watched. The first reads of a changed file raise `problems`."""
    async with (
        rig(folder, a=Server(says("x")), b=Server(says("x"))) as around,
        started(around.engine(ESCALATING)) as engine,
    ):
        left = [*problems]

        def read() -> ModelRegistry:
            if left:
                raise left.pop(0)
            return around.read()

        routes = Registry(engine.models, None, engine.registry.lanes())
        yield around, engine, routes, RegistryWatch(around.file, read, engine, routes, None)


async def test_a_changed_file_counts_without_a_restart_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    async with watched(tmp_path) as (around, engine, routes, watch):
        around.read(WITH_ALIAS)
        await watch.look()
        assert routes.route("gpt-4o", None) is None
        assert "gpt-4o" in routes.announced
        assert (await engine.generate(replace(ASKED, model_id="gpt-4o"))).text == "x"
        around.file.write_text("[models]\nwrong = 1\n")
        await watch.look()
        assert routes.route("gpt-4o", None) is None
        with pytest.raises(EngineRefused, match="other models"):
            await engine.change(around.read(ESCALATING + '[models.m1]\nengine = "a"\n'))
        with pytest.raises(EngineRefused, match="settings of small"):
            await engine.change(around.read(ESCALATING.replace("attempts = 1", "attempts = 2", 1)))


async def test_a_file_that_changes_while_an_engine_is_away_is_used_once_the_engine_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    away = [EngineAway("the engine is away"), EngineAway("the engine is away")]

    async def change_model(served: ServedModel, model: RegistryModel) -> None:
        if away:
            raise away.pop()
        served.change(model)

    monkeypatch.setattr(ServedModel, "require_change", lambda served, model: None)
    monkeypatch.setattr(ServedModel, "change_model", change_model)
    async with watched(tmp_path) as (around, _, routes, watch):
        around.read(WITH_ALIAS.replace("attempts = 1", "attempts = 2", 1))
        for _ in range(2):
            await watch.look()
            assert "gpt-4o" not in routes.announced
        assert caplog.text.count("registry-reload-waits") == 1
        await watch.look()
        assert "gpt-4o" in routes.announced


@pytest.mark.parametrize("raised", [OSError(5, "Input/output error"), SettingsRefused("POSTBACK_ENGINE__X: wrong")])
async def test_a_folder_or_a_setting_that_cannot_be_read_changes_nothing_and_ends_no_watch(
    raised: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In an earlier version, a folder of profiles on a lost network disk ended the watch, and thereby the worker."""
    async with watched(tmp_path, problems=[raised]) as (around, _, routes, watch):
        around.read(WITH_ALIAS)
        await watch.look()
        assert "gpt-4o" not in routes.announced
        assert "registry-reload-failed" in caplog.text
        await watch.look()
        assert ("gpt-4o" in routes.announced) == isinstance(raised, OSError)
