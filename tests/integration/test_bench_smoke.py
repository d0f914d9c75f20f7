"""Each bench runs at a tiny size and prints its table. The measured values are not checked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from devkit.broker import Broker

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.broker


def bench(name: str, servers: str, *arguments: str) -> str:
    """The bench's output; if the bench fails, fails the test with its errors."""
    command = [sys.executable, "-m", f"bench.{name}", "--bootstrap-servers", servers, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows_of(printed: str) -> list[list[str]]:
    """The table's rows without the header."""
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_stage_and_the_blocking_loop_are_compared(broker: Broker, clean_processes: None) -> None:
    printed = bench("stage", broker.bootstrap_servers, "--jobs", "6000", "--pairs", "1")
    assert [row[0] for row in rows_of(printed)] == ["blocking loop", "stage"]
    assert "stage / loop, median of the pairs" in printed


def test_one_and_two_workers_answer_each_job_once(broker: Broker, clean_processes: None) -> None:
    printed = bench("end_to_end", broker.bootstrap_servers, "--jobs", "2000", "--runs", "1")
    assert [row[0] for row in rows_of(printed)] == ["1", "2"]


def test_a_fleet_grows_and_loses_a_replica_under_load(broker: Broker, clean_processes: None) -> None:
    sizes = ("--replicas", "1", "--changing", "1", "--latency", "0.2", "--seconds", "1", "--warm-up", "0")
    printed = bench("fleet", broker.bootstrap_servers, *sizes)
    named = [line.strip("|").split("|")[0].strip() for line in printed.splitlines() if line.startswith("| ")]
    assert named[-2:] == ["1 to 2 replicas", "2 to 1, one killed"]
    assert "moves beyond the needed ones: 0.00, target ≤ 0: met" in printed


def test_a_few_jobs_are_timed_alone_and_beside_a_flood(broker: Broker, clean_processes: None) -> None:
    printed = bench("fairness", broker.bootstrap_servers, "--flood", "150", "--latency", "0.1", "--rounds", "1")
    assert [row[:2] for row in rows_of(printed)] == [
        ["alone", "10"],
        ["right behind the flood", "10"],
        ["while the flood waits", "10"],
    ]


def test_every_callback_arrives_and_verifies(broker: Broker, clean_processes: None) -> None:
    sizes = ("--rate", "20", "--seconds", "2", "--warm-up", "1")
    (row,) = rows_of(bench("latency", broker.bootstrap_servers, *sizes))
    assert row[0] == "40"


def test_callbacks_are_compared_with_bare_aiohttp_and_beside_sick_endpoints(
    broker: Broker, clean_processes: None
) -> None:
    sizes = ("--callbacks", "100", "--slices", "2", "--queued", "500", "--runs", "1")
    schedule = ("--outages", "1", "--rounds", "6", "--turn", "1.5", "--rate", "50")
    printed = bench("delivery", broker.bootstrap_servers, *sizes, *schedule)
    sides = ["bare aiohttp", "bare aiohttp that signs", "delivery"]
    named = [line.strip("|").split("|")[0].strip() for line in printed.splitlines() if line.startswith("| ")]
    assert [name for name in named if name in sides] == sides
    assert "postback deliver / bare:" in printed
    assert re.search(r"where one hangs: [0-9,]+ records were put back into tiers", printed)
    assert re.search(r"p99 where one hangs / where all ten are well: .* target ≤ 1.1: not shown", printed)


def test_a_workers_memory_is_measured(broker: Broker, clean_processes: None) -> None:
    printed = bench("memory", broker.bootstrap_servers, "--jobs", "50")
    assert [row[0] for row in rows_of(printed)] == ["ready, nothing done", "after 50 jobs"]


def test_the_input_filter_is_measured_beside_plain_searches() -> None:
    command = [sys.executable, "-m", "bench.screening", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(rows_of(done.stdout)) == 6


def test_pages_are_read_cold_and_from_the_cache(clean_processes: None) -> None:
    command = [sys.executable, "-m", "bench.pages", "--rounds", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row[0] for row in rows_of(done.stdout)] == ["cold", "from memory"]


def test_pages_are_ranked_with_and_without_a_model(clean_processes: None) -> None:
    command = [sys.executable, "-m", "bench.pages", "--rounds", "1", "--rerank"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    named = [line.strip("|").split("|")[0].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [name for name in named if name.endswith(", reranked")] == [
        "cold, reranked",
        "from memory, reranked",
        "choosing, reranked",
    ]


def test_an_engine_is_measured_while_jobs_wait_for_slow_pages(broker: Broker, clean_processes: None) -> None:
    sizes = ("--jobs", "40", "--sequential-jobs", "12", "--seconds", "0.05", "--page-seconds", "0.1", "0.2")
    rows = rows_of(bench("overlap", broker.bootstrap_servers, *sizes))
    assert [row[1] for row in rows] == ["40", "40", "12"]


@pytest.mark.timeout(600)
def test_the_gateway_takes_a_batch_and_jobs_and_finds_one_among_many(broker: Broker, clean_processes: None) -> None:
    printed = bench("gateway", broker.bootstrap_servers, "--smoke")
    named = [row[0] for row in rows_of(printed)]
    sides = ["300 bytes", "1000 bytes", "empty handler", "POST /v1/jobs", "with --tenant", "without"]
    assert [name for name in dict.fromkeys(named) if name in sides] == sides
    assert re.search(r"accept to a readable answer, 3 jobs one by one: p50 \d+ ms, p99 \d+ ms", printed)
