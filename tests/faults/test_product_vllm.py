"""A real worker on vLLM: its engine hangs, is killed, and the worker is stopped. No job is lost, no engine left over.

To see jobs in flight, a test stops the engine's processes (SIGSTOP) before it submits the jobs. A frozen engine ends no
job, so the test sees jobs in flight on any machine.
"""

from __future__ import annotations

import pytest

from scripts.play.model import tiny_model
from tests.engine_processes import engine_of, frozen, gone
from tests.product import Product, Role, eventually

pytestmark = [pytest.mark.broker, pytest.mark.vllm, pytest.mark.timeout(2_400)]

JOBS = 12
LONG = 300
CUT_OFF = 300
LATE = 300
"""Tokens of each late job: a second of work, far less than the 30 s in which a stopped worker may finish its jobs."""
HUNG_SECONDS = 20.0
CALLED_SECONDS = 0.75 * HUNG_SECONDS
"""The part of the bound in which a health call has to be answered; a pause before the call takes the rest."""
LOADING = 600.0
"""Seconds that vLLM may take to load: it took 20 on a quiet machine, and more than 240 on a busy one."""


def take_long_jobs(product: Product, worker: Role, names: list[str]) -> None:
    """Submit these jobs, and wait until the worker, which has no others, runs all of them."""
    product.submit({"job_id": name, "prompt": "Who wrote the book?", "max_tokens": LONG} for name in names)
    eventually(lambda: worker.metrics()["postback_in_flight"] == len(names), 60, "not every job is taken")


def test_an_engine_that_hangs_costs_no_job_and_none_outlives_its_worker(product: Product) -> None:
    bounds = {"POSTBACK_ENGINE__VLLM__CONTEXT_TOKENS": "4096", "POSTBACK_ENGINE__VLLM__HUNG_SECONDS": str(HUNG_SECONDS)}
    worker = product.worker("w1", "--engine", "vllm", "--model", str(tiny_model()), **bounds)
    eventually(lambda: worker.ready()[0], LOADING, "the engine is not loaded")
    names = [f"job-{number}" for number in range(JOBS)]
    first = engine_of(worker.process.pid)
    assert first != []
    with frozen(first):
        take_long_jobs(product, worker, names)
        loading = "loading the model again"
        eventually(lambda: loading in "".join(worker.ready()[1]), 120, "the worker does not notice the hang")
    eventually(lambda: worker.metrics()["postback_engine_restarts_total"] == 1, LOADING, "no restart is counted")
    product.wait_for_results(JOBS, LOADING)
    eventually(lambda: worker.ready() == (True, []), 60, "the worker is not ready again")
    assert gone(first)
    assert product.outcomes() == dict.fromkeys(names, "succeeded")
    [hung] = [line for line in worker.lines() if line.get("event.action") == "engine-hung"]
    assert hung["postback.bound_seconds"] == HUNG_SECONDS
    # With the default bound of 120 s, the health call would wait for 90 s.
    assert 0.9 * CALLED_SECONDS <= hung["postback.silent_seconds"] < 90

    orphaned = [f"orphaned-{number}" for number in range(JOBS)]
    hit = engine_of(worker.process.pid)
    assert hit != []
    with frozen(hit):
        take_long_jobs(product, worker, orphaned)
        max(hit, key=lambda process: process.memory_info().rss).kill()  # as the kernel does if memory runs out
    names += orphaned
    product.wait_for_results(len(names), LOADING)
    eventually(lambda: worker.ready() == (True, []), 60, "the worker is not ready again")
    assert worker.metrics()["postback_engine_restarts_total"] == 2
    assert gone(hit)
    assert product.outcomes() == dict.fromkeys(names, "succeeded")

    # These jobs ask for a million tokens in six seconds, and no machine is quick enough to answer any of them in time.
    cut_off = [f"cut-off-{number}" for number in range(CUT_OFF)]
    product.submit({"job_id": name, "prompt": "Who?", "max_tokens": 3500, "ttl_seconds": 6} for name in cut_off)
    product.wait_for_results(len(names) + CUT_OFF, 120)
    assert product.outcomes() == {**dict.fromkeys(names, "succeeded"), **dict.fromkeys(cut_off, "expired")}
    assert worker.metrics()["postback_tokens_total{wasted}"] > 0

    late = [f"late-{number}" for number in range(4)]
    second = engine_of(worker.process.pid)
    assert second != []
    with frozen(second):
        product.submit({"job_id": name, "prompt": "Who wrote the book?", "max_tokens": LATE} for name in late)
        # Wait until all jobs are begun, because a stopping worker leaves jobs that it has not begun to other workers.
        eventually(lambda: worker.metrics()["postback_in_flight"] == len(late), 60, "not every job is taken")
        worker.process.terminate()
    assert worker.process.wait(90) == 0  # the worker finishes the jobs that it has begun
    eventually(lambda: gone(second), 60, "an engine process outlives a worker that was asked to stop")
    product.wait_until_nothing_is_left()
    expected = {**dict.fromkeys([*names, *late], "succeeded"), **dict.fromkeys(cut_off, "expired")}
    assert product.outcomes() == expected


def test_workers_that_end_while_their_engines_load_leave_nothing_behind(product: Product) -> None:
    """Both workers run at once to save time, since vLLM takes half a minute to import."""
    model = ("--engine", "vllm", "--model", str(tiny_model()))
    asked, killed = product.worker("asked", *model), product.worker("killed", *model)
    eventually(
        lambda: engine_of(asked.process.pid) != [] != engine_of(killed.process.pid), LOADING, "no engine process starts"
    )
    for worker in (asked, killed):
        assert worker.ready() == (False, ["the process is starting"])
        assert not worker.alive()  # `/healthz` fails during a load, so that a startup probe ends a load that hangs
    loading = [*engine_of(asked.process.pid), *engine_of(killed.process.pid)]
    killed.kill()
    assert asked.terminate() == 0
    eventually(lambda: gone(loading), 30, "an engine process outlives its worker")
