"""`postback worker --check`: an engine that is loaded and asked once, without Kafka."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.play.model import tiny_model
from tests.ecs import log_lines
from tests.postback_command import environment_of, postback, postback_here

NOWHERE = {"POSTBACK_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
REGISTRY = """
[engines.here]
kind = "echo"
[models.small]
engine = "here"
aliases = ["gpt-4o-mini"]
[models.other]
engine = "here"
[models.elsewhere]
engine = "here"
lane = "big"
"""


def without_figures(text: str) -> list[str]:
    return re.sub(r"\d+\.\d+", "N", text).splitlines()


def test_an_engine_that_answers_ends_with_0_and_its_times() -> None:
    done = postback("worker", "--engine", "echo", "--check", env=environment_of(**NOWHERE))
    assert done.returncode == 0, done.stderr
    assert without_figures(done.stdout) == ["echo: loaded in N s", "echo: answered 5 tokens in N s"]


def test_an_extractor_that_is_not_installed_ends_with_2_and_its_setting_and_command() -> None:
    code = "import sys; sys.modules['trafilatura'] = None; from cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "worker", "--engine", "echo", "--check"],
        env=environment_of(POSTBACK_ENRICHMENT__EXTRACTOR="trafilatura", **NOWHERE),
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = log_lines(done.stderr)
    assert (done.returncode, done.stdout) == (2, "")
    assert "POSTBACK_ENRICHMENT__EXTRACTOR" in line["message"]
    assert line["message"].endswith("run pip install 'postback[worker,extraction]'")


def test_each_model_of_a_registrys_lane_is_asked_once(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(REGISTRY)
    done = postback_here("worker", "--check", env=environment_of(POSTBACK_WORKER__REGISTRY=file, **NOWHERE))
    assert done.returncode == 0, done.stderr
    assert without_figures(done.stdout) == [
        "echo: loaded in N s",
        "small: answered 5 tokens in N s",
        "other: answered 5 tokens in N s",
    ]


def test_an_engine_that_does_not_start_ends_with_1_and_the_reason() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        env = environment_of(
            POSTBACK_ENGINE__OPENAI__BASE_URL=url, POSTBACK_ENGINE__OPENAI__START_TIMEOUT_SECONDS="1", **NOWHERE
        )
        done = postback_here("worker", "--engine", "openai", "--model", "some", "--check", env=env)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllm_is_loaded_asked_and_ended() -> None:
    env = environment_of(POSTBACK_ENGINE__VLLM__CONTEXT_TOKENS="256", VLLM_CPU_KVCACHE_SPACE="1", **NOWHERE)
    done = postback("worker", "--engine", "vllm", "--model", tiny_model(), "--check", env=env, seconds=500)
    assert done.returncode == 0, done.stderr
    loaded, answered = without_figures(done.stdout)
    assert loaded == "vllm: loaded in N s"
    assert answered.endswith(": answered 16 tokens in N s")
    # Each process of vLLM writes a line, because it warns that Triton has no CPU backend.
    engine = [line for line in log_lines(done.stderr) if line["log.logger"].startswith("vllm")]
    assert len({line["process.pid"] for line in engine}) > 1, "no process of vLLM's own wrote a line"
