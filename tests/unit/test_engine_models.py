"""Names of an engine's model in jobs and in results."""

from __future__ import annotations

from pathlib import Path

import pytest

from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.engines.registry import create, engine_settings


@pytest.mark.parametrize("kind", ["vllm", "openai"])
def test_a_model_has_the_settings_name_unless_the_command_line_names_another(kind: str) -> None:
    settings = engine_settings().model_validate({"vllm": {"model": "acme/small"}, "openai": {"model": "acme/small"}})
    assert create(kind, settings, Metrics(), SystemClock()).models == ("acme/small",)
    assert create(kind, settings, Metrics(), SystemClock(), model="big").models == ("big",)


def test_echo_has_a_model_only_if_one_is_named() -> None:
    assert create("echo", engine_settings()(), Metrics(), SystemClock()).models == ()
    assert create("echo", engine_settings()(), Metrics(), SystemClock(), model="big").models == ("big",)


def test_a_model_s_folder_is_called_by_its_name_and_may_be_called_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    path = f"{tmp_path}/small/"
    assert create("vllm", engine_settings()(), Metrics(), SystemClock(), model=path).models == ("small", path)
