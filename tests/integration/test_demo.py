"""`scripts/demo` as a newcomer runs it, and its end when something fails."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from scripts.play.site import questions
from tests.postback_command import environment_of

DEMO = Path(__file__).parents[2] / "scripts" / "demo"
ANSWERED = re.compile(r"^ *\d+/\d+  (.+)$", re.MULTILINE)

pytestmark = [pytest.mark.broker, pytest.mark.usefixtures("clean_processes")]


def demo(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DEMO, *arguments], env=env, capture_output=True, text=True, check=False)


@contextmanager
def running(*arguments: str, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [DEMO, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_an_answer(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any(ANSWERED.match(line) for line in process.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The demo's folder for temporary files; empty after it has cleaned up."""
    made = tmp_path / "temporary"
    made.mkdir()
    return made


@pytest.fixture
def env(folder: Path) -> dict[str, str]:
    return environment_of(TMPDIR=folder)


def test_twenty_jobs_come_back_signed_with_their_page_in_the_prompt(env: dict[str, str], folder: Path) -> None:
    done = demo("--engine", "echo", "--jobs", "20", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 of 20 answered, 20 with the right page in the prompt, 20 signatures verified" in done.stdout
    assert "exactly one settled result for each job" in done.stdout
    assert "nothing was answered here" in done.stdout, "what echo cannot show is said"
    assert re.search(
        r"the API is at http://127\.0\.0\.1:\d+/v1, and http://127\.0\.0\.1:\d+/docs describes it", done.stdout
    )
    assert re.search(r"the console page is at http://127\.0\.0\.1:\d+/console\n", done.stdout)
    assert "completed: 3 of 3 lines are answered rightly" in done.stdout
    assert sorted(ANSWERED.findall(done.stdout)) == sorted(question.text for question in questions())
    assert re.search(r"^Next: `\S+ dev` keeps all of this running", done.stdout, re.MULTILINE)
    assert list(folder.iterdir()) == []


def test_a_system_that_dies_ends_the_demo_with_the_end_of_its_log(env: dict[str, str], folder: Path) -> None:
    with running("--engine", "echo", "--jobs", "3000", env=env) as process:
        wait_for_an_answer(process)
        (system,) = (child for child in psutil.Process(process.pid).children() if "dev" in child.cmdline())
        system.kill()
        said, problem = process.communicate()
    assert process.returncode == 1
    assert "`postback dev` ended with status -9. The end of its log:\n" in problem
    assert '"service.name": "dev"' in problem
    assert "signatures verified" not in said
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(number: signal.Signals, env: dict[str, str], folder: Path) -> None:
    with running("--engine", "echo", "--jobs", "3000", env=env) as process:
        wait_for_an_answer(process)
        process.send_signal(number)
        _, problem = process.communicate()
    assert (process.returncode, problem) == (130, "postback: interrupted; everything that was started has ended\n")
    assert list(folder.iterdir()) == []


@pytest.mark.vllm
@pytest.mark.timeout(1500)  # on a bare machine the model is downloaded and unpacked first
def test_a_real_model_answers_every_question_from_the_right_page() -> None:
    done = demo(env=environment_of())  # keeps the usual TMPDIR, to reuse torch's compiled code
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 of 20 answered, 20 right with the right source, 20 signatures verified" in done.stdout
