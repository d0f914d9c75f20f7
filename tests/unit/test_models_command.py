"""`postback models list|check|show` on files of an operator."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.postback_command import environment_of, postback_here
from tests.unit.test_model_registry_file import FULL


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "models.toml"
    path.write_text(FULL)
    return str(path)


@pytest.fixture
def env(file: str) -> dict[str, str]:
    return environment_of(POSTBACK_WORKER__REGISTRY=file, KEY="sk-secret")


def test_the_list_names_each_model_with_its_aliases_engine_and_family(env: dict[str, str]) -> None:
    listed = postback_here("models", "list", env=env)
    assert listed.returncode == 0
    header, large, small, medium = (line.split("  ") for line in listed.stdout.splitlines())
    assert header[0] == "model"
    assert [each.strip() for each in small if each] == [
        "small*", "gpt-4o-mini, default-small", "local (vllm)", "google/gemma-3-270m-it", "-", "gemma-3", "medium",
    ]  # fmt: skip
    assert [each.strip() for each in large if each][:5] == ["large", "-", "hosted (openai)", "large", "big"]
    assert [each.strip() for each in medium if each][-1] == "-"


def test_the_list_as_json_has_every_field_and_no_key(env: dict[str, str]) -> None:
    listed = postback_here("models", "list", "--json", env=env)
    small = next(each for each in json.loads(listed.stdout) if each["name"] == "small")
    assert small["default"] is True
    assert small["cost"] == {"prompt": 0.15, "completion": 0.6, "currency": "EUR"}
    assert small["escalate"] == {"to": "medium", "on": ["failed", "low_confidence"], "below": 0.4}
    assert (small["family"]["name"], small["family"]["fences"]) == ("gemma-3", True)
    assert "sk-secret" not in listed.stdout


@pytest.mark.parametrize("name", ["medium", "gpt-4o-mini"])
def test_a_model_is_shown_by_its_name_or_alias_without_its_key(name: str, env: dict[str, str]) -> None:
    shown = postback_here("models", "show", name, env=env)
    assert shown.returncode == 0
    assert "sk-secret" not in shown.stdout
    assert ("name: medium" if name == "medium" else "name: small") in shown.stdout.splitlines()
    if name == "medium":
        assert "  addresses: https://a.example/v1, https://b.example/v1" in shown.stdout.splitlines()


def test_an_unknown_model_is_refused_with_the_nearest_name(env: dict[str, str]) -> None:
    shown = postback_here("models", "show", "smal", env=env)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert 'the registry has no model of this name: did you mean "small"?' in shown.stderr


def test_a_valid_file_passes_the_check(env: dict[str, str], file: str) -> None:
    checked = postback_here("models", "check", env=env)
    assert (checked.returncode, checked.stdout) == (0, "")
    assert "the registry is valid: 3 models with 5 names" in checked.stderr
    bare = environment_of()
    assert postback_here("models", "check", "--file", file, env=bare).returncode == 1  # KEY is not set
    assert postback_here("models", "check", "--file", file, "--without-secrets", env=bare).returncode == 0


def test_the_check_names_each_mistake_with_status_1(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('[engines.e]\nkind = "echo"\n[models.m]\nengine = "e"\ntemperature = 9\n')
    checked = postback_here("models", "check", "--file", str(wrong), env=environment_of())
    assert (checked.returncode, checked.stdout) == (1, "")
    assert "line 5: models.m.temperature: must be less than or equal to 2" in checked.stderr
    as_json = postback_here("models", "check", "--json", "--file", str(wrong), env=environment_of())
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["mistakes"] == [
        {"line": 5, "field": "models.m.temperature", "reason": "must be less than or equal to 2"}
    ]


def test_a_command_without_a_file_asks_for_one() -> None:
    listed = postback_here("models", "list", env=environment_of())
    assert listed.returncode == 2
    assert "POSTBACK_WORKER__REGISTRY" in listed.stderr


def test_the_page_for_operators_has_a_valid_file_and_commands_that_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "models.md").read_text()
    file, with_adapters = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    [console] = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    (tmp_path / "key").write_text("sk-of-a-file")
    (tmp_path / "models.toml").write_text(file.replace("/run/secrets/anthropic", str(tmp_path / "key")))
    monkeypatch.chdir(tmp_path)
    for command in console.splitlines():
        program, *arguments = shlex.split(command)
        done = postback_here(*arguments, env=environment_of(HOSTED_KEY="sk-hosted", OPENAI_KEY="sk-openai"))
        assert (program, done.returncode) == ("postback", 0), done.stderr
        assert "sk-" not in done.stdout + done.stderr
    (tmp_path / "models.toml").write_text(with_adapters)
    shown = postback_here("models", "show", "small", "--file", "models.toml", env=environment_of())
    assert "law: /adapters/law-3" in shown.stdout, shown.stderr
