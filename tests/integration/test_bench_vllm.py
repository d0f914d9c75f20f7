"""The benches of vLLM run at a tiny size and print their tables. The measured values are not checked."""

from __future__ import annotations

import subprocess
import sys

import pytest

from devkit.broker import Broker
from devkit.model import tiny_model
from tests.integration.test_bench_smoke import ROOT, bench, rows_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.mark.broker
def test_the_worker_is_compared_with_the_engine_alone(broker: Broker, clean_processes: None) -> None:
    tiny_model()
    sizes = ("--jobs", "8", "--tokens", "4", "--rounds", "1")
    printed = bench("engine", broker.bootstrap_servers, *sizes)
    rates, _, _, spent, medians, _, _, batch = rows_of(printed)
    assert (len(rates), len(spent), len(medians), len(batch)) == (6, 4, 4, 3)
    assert "worker / vllm run-batch with its start-up: " in printed


def test_jobs_about_documents_are_compared_with_and_without_prefix_affinity(clean_processes: None) -> None:
    tiny_model()
    command = [sys.executable, "-m", "bench.prefix", "--documents", "8", "--words", "80", "--jobs", "32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row[0] for row in rows_of(done.stdout)] == ["ceiling", "with affinity", "without"]
