"""A registry's file that changes while a worker runs counts without a restart, or changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from schemas.settings import SettingsRefused
from tests.integration.openai_http.servers import Server, says
from tests.integration.registry_rig import ASKED, ESCALATING, rig, started
from workers.engines.base import EngineAway
from workers.engines.models.registry_engine import NeedsRestart
from workers.engines.models.registry_file import ModelRegistry, RegistryModel
from workers.engines.models.served_model import ServedModel
from workers.inference.registry import Ours, Registry
from workers.inference.registry_watch import RegistryWatch


async def test_a_changed_file_counts_without_a_restart_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    async with (
        rig(tmp_path, a=Server(says("x")), b=Server(says("x"))) as around,
        started(around.engine(ESCALATING)) as engine,
    ):
        routes = Registry(engine.models, None, engine.registry.lanes())
        watch = RegistryWatch(around.file, around.read, engine, routes, None)
        around.read(ESCALATING.replace("[models.small]\n", '[models.small]\naliases = ["gpt-4o"]\n'))
        await watch.look()
        assert routes.route("gpt-4o", None) == Ours()
        assert "gpt-4o" in routes.announced
        assert (await engine.generate(replace(ASKED, model_id="gpt-4o"))).text == "x"
        around.file.write_text("[models]\nwrong = 1\n")
        await watch.look()
        assert routes.route("gpt-4o", None) == Ours()
        with pytest.raises(NeedsRestart, match="other models"):
            await engine.change(around.read(ESCALATING + '[models.m1]\nengine = "a"\n'))
        with pytest.raises(NeedsRestart, match="settings of small"):
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
    async with (
        rig(tmp_path, a=Server(says("x")), b=Server(says("x"))) as around,
        started(around.engine(ESCALATING)) as engine,
    ):
        routes = Registry(engine.models, None, engine.registry.lanes())
        watch = RegistryWatch(around.file, around.read, engine, routes, None)
        changed = ESCALATING.replace("[models.small]\n", '[models.small]\naliases = ["gpt-4o"]\n')
        around.read(changed.replace("attempts = 1", "attempts = 2", 1))
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
    """Earlier, a profiles' folder on a lost network disk ended the watch, and the watch ended the worker."""
    problems = [raised]

    def read() -> ModelRegistry:
        if problems:
            raise problems.pop()
        return around.read()

    async with (
        rig(tmp_path, a=Server(says("x")), b=Server(says("x"))) as around,
        started(around.engine(ESCALATING)) as engine,
    ):
        routes = Registry(engine.models, None, engine.registry.lanes())
        watch = RegistryWatch(around.file, read, engine, routes, None)
        around.read(ESCALATING.replace("[models.small]\n", '[models.small]\naliases = ["gpt-4o"]\n'))
        await watch.look()
        assert "gpt-4o" not in routes.announced
        assert "registry-reload-failed" in caplog.text
        await watch.look()
        assert ("gpt-4o" in routes.announced) == isinstance(raised, OSError)
