"""Compares the worker on a model with AsyncLLM and `vllm run-batch` on the same prompts: `python -m bench.engine`.

The worker and AsyncLLM use one loaded engine in turn. AsyncLLM alone gets every prompt at once, by
`AsyncLLM.generate`. The worker consists of the parts of `postback worker --engine vllm`, as a member of its group; its
jobs are on `model_requests` before it joins. The clock runs from the first submit until the last answer. The worker's
clock runs from the last check (every 20 ms) that finds nothing in flight until the last result is settled.

The worker asks for log-probabilities, which it needs for `confidence` and which cost time. AsyncLLM alone is measured
twice: with log-probabilities, like the worker, and without them, like a caller that does not need them.

`vllm run-batch` (`run_batch`) runs in each round while the loaded engine is idle, without log-probabilities. Its rate
is printed twice: with its start-up, which counts for a person who runs one batch, and without the start-up.

AsyncLLM alone decodes each token as it comes. The worker decodes each answer once (`decoding`); it is also measured
with vLLM's decoding.

The CPU time is this process's: the event loop in front of the engine, and the threads beside it. The processes of the
engine and of Kafka are not counted. Other programs on the machine change the CPU time less than the rates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.committed import committed_records
from bench.fleet import Kafka, assert_exactly_once, broker, new_fleet, prefill, value_of
from bench.result import figure, parsed, table, title, verdict
from bench.run_batch import BatchRun, run_batch
from schemas.codec import read_result
from schemas.settings import FleetSettings
from scripts.play.model import tiny_model
from telemetry.metrics import Metrics
from workers.engines.vllm import VllmEngine
from workers.engines.vllm.arguments import engine_arguments, prepare_environment
from workers.engines.vllm.settings import VllmSettings
from workers.roles.process import Process
from workers.roles.worker import inference_stage
from workers.system.tuning import collect_garbage_seldom

TARGET = 0.98
BATCH_TARGET = 1.0
PARTITIONS = 4
LOOK_SECONDS = 0.02
IN_FLIGHT = "postback_in_flight"
SETTLED = "postback_settled_records_total"
WORDS = ("page", "tree", "river", "city", "book", "train", "word", "house", "king", "machine", "letter", "morning")


@dataclass(frozen=True, slots=True)
class Workload:
    """The model, and the prompts that all sides get."""

    model: str
    jobs: int
    tokens: int
    max_model_len: int

    @property
    def settings(self) -> VllmSettings:
        """The settings of the engine."""
        return VllmSettings(model=self.model, context_tokens=self.max_model_len)

    def prompts(self) -> list[str]:
        """Return short questions, all different."""
        return [
            f"Case {number}: which {WORDS[number % 12]} is it that the {WORDS[number // 12 % 12]} of the story has, "
            f"and who wrote of it in the year {1000 + number}?"
            for number in range(self.jobs)
        ]


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed of one side in one round."""

    rate: float
    """Jobs a second."""
    cpu_ms: float
    """CPU time of this process, in milliseconds a job."""


@dataclass(frozen=True, slots=True)
class Round:
    """The speed of each side in one round."""

    without: Speed
    """AsyncLLM alone, without log-probabilities."""
    alone: Speed
    """AsyncLLM alone, with log-probabilities."""
    worker: Speed
    by_vllm: Speed
    """The worker whose answers vLLM decodes, token by token."""
    batch: BatchRun

    @property
    def sides(self) -> dict[str, Speed]:
        """The sides with the loaded engine, by their names in the tables."""
        return {
            "AsyncLLM with log-probabilities": self.alone,
            "AsyncLLM without": self.without,
            "worker": self.worker,
            "worker that lets vLLM decode": self.by_vllm,
        }


def main() -> None:
    """Run all sides in turn, and print the results."""
    options = _options()
    model = str(options.model or tiny_model())
    work = Workload(model, options.jobs, options.tokens, options.max_model_len)
    name = Path(model).name
    title(f"Worker, AsyncLLM and run-batch on {name}: {work.jobs:,} prompts, at most {work.tokens} tokens each")
    with broker(options.bootstrap_servers) as used:
        _report(uvloop.run(_rounds(used, work, options.rounds)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="a model instead of the tiny one")
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-model-len", type=int, default=512)
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    return parsed(parser)


def _report(rounds: Sequence[Round]) -> None:
    sides = [*rounds[0].sides]
    print("\njobs/s")
    lines = [[*(f"{one.sides[side].rate:.1f}" for side in sides), *_ratios(one)] for one in rounds]
    table((*sides, "worker / with", "worker / without"), lines)
    print("CPU ms a job, of the process in front of the engine")
    spent = {side: [one.sides[side].cpu_ms for one in rounds] for side in sides}
    lines = [[f"{each:.2f}" for each in row] for row in zip(*spent.values(), strict=True)]
    table(sides, [*lines, [f"median {statistics.median(each):.2f}" for each in spent.values()]])
    print("jobs/s of vllm run-batch, with its start-up and without")
    batches = [one.batch for one in rounds]
    lines = [[f"{each.start_seconds:.1f} s", f"{each.rate_with_start:.1f}", f"{each.rate:.1f}"] for each in batches]
    table(("start-up", "with start-up", "without"), lines)
    print("the worker asks for log-probabilities; every job has exactly one result")
    same = statistics.median(one.worker.rate / one.alone.rate for one in rounds)
    less = statistics.median(one.worker.rate / one.without.rate for one in rounds)
    verdict("worker / AsyncLLM alone that does the same work", same, TARGET, at_least=True)
    verdict("worker / AsyncLLM alone without log-probabilities", less, TARGET, at_least=True)
    started = statistics.median(one.worker.rate / one.batch.rate_with_start for one in rounds)
    verdict("worker / vllm run-batch with its start-up", started, BATCH_TARGET, at_least=True)
    loaded = statistics.median(one.worker.rate / one.batch.rate for one in rounds)
    figure("worker / vllm run-batch without its start-up", f"{loaded:.2f}")
    medians = ", ".join(f"{statistics.median(each):.2f}" for each in spent.values())
    figure(f"CPU a job of {', '.join(sides)}", f"{medians} ms")


def _ratios(one: Round) -> list[str]:
    return [f"{one.worker.rate / other.rate:.2f}" for other in (one.alone, one.without)]


async def _rounds(used: Kafka, work: Workload, rounds: int) -> list[Round]:
    prepare_environment(work.model)
    environment = dict(os.environ)  # copied before the engine sets variables for its own processes
    engine = VllmEngine(work.settings, Metrics())
    collect_garbage_seldom()
    await engine.start()
    try:
        return [await _round(used, work, engine, environment) for _ in range(rounds)]
    finally:
        await engine.close()


async def _round(used: Kafka, work: Workload, engine: VllmEngine, environment: dict[str, str]) -> Round:
    arguments = engine_arguments(work.settings, {})
    batch = await asyncio.to_thread(run_batch, arguments, environment, work.prompts(), work.tokens)
    without = await _alone(engine._llm, work, log_probabilities=False)
    alone = await _alone(engine._llm, work, log_probabilities=True)
    worker = await _worker(used, work, engine)
    decoding = engine._decoding
    decoding.is_possible = False
    try:
        return Round(without, alone, worker, await _worker(used, work, engine), batch)
    finally:
        decoding.is_possible = True


# -- the worker --------------------------------------------------------------------------------------------------


async def _worker(used: Kafka, work: Workload, engine: VllmEngine) -> Speed:
    """Return the worker's speed."""
    kafka = await asyncio.to_thread(new_fleet, used, PARTITIONS)
    jobs = (_job(number, prompt, work.tokens) for number, prompt in enumerate(work.prompts()))
    await asyncio.to_thread(prefill, kafka, jobs)
    process = Process(FleetSettings(env="development", kafka=kafka, replica="w0"))
    async with AsyncExitStack() as stack:
        stage = await inference_stage(process, engine, stack)
        running = asyncio.create_task(stage.run())
        took, cpu = await _timed(process.metrics, running, work.jobs)
        stage.stop()
        await running
    messages = await asyncio.to_thread(committed_records, kafka.client_config(), kafka.topics.results)
    results = [read_result(message.value()) for message in messages]
    assert_exactly_once((str(result.custom_id) for result in results), work.jobs)
    if any(result.outcome != "succeeded" for result in results):
        raise RuntimeError("a job did not succeed")
    return Speed(work.jobs / took, cpu * 1_000 / work.jobs)


async def _timed(metrics: Metrics, running: asyncio.Task[None], jobs: int) -> tuple[float, float]:
    """Return the seconds from the first dispatch to the last settle, and this process's CPU seconds in that time."""
    started, cpu = time.monotonic(), time.process_time()
    while (settled := value_of(metrics, SETTLED)) < jobs:
        if not settled and not value_of(metrics, IN_FLIGHT):
            started, cpu = time.monotonic(), time.process_time()
        if running.done():
            raise RuntimeError("the stage ended before every job was settled")
        await asyncio.sleep(LOOK_SECONDS)
    return time.monotonic() - started, time.process_time() - cpu


def _job(number: int, prompt: str, tokens: int) -> bytes:
    return json.dumps({"prompt": prompt, "max_tokens": tokens, "custom_id": str(number)}).encode()


# -- AsyncLLM alone ----------------------------------------------------------------------------------------------


async def _alone(llm: Any, work: Workload, *, log_probabilities: bool) -> Speed:
    """Return the speed of AsyncLLM alone, with all prompts submitted at once."""
    params = _sampling(work, log_probabilities=log_probabilities)
    started, cpu = time.monotonic(), time.process_time()
    await asyncio.gather(*(_answer(llm, number, prompt, params) for number, prompt in enumerate(work.prompts())))
    return Speed(work.jobs / (time.monotonic() - started), (time.process_time() - cpu) * 1_000 / work.jobs)


def _sampling(work: Workload, *, log_probabilities: bool) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=work.tokens,
        temperature=0.0,
        logprobs=0 if log_probabilities else None,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


async def _answer(llm: Any, number: int, prompt: str, params: Any) -> None:
    answers = [answer async for answer in llm.generate(prompt, params, str(number))]
    if len(answers) != 1 or not answers[0].finished:
        raise RuntimeError("AsyncLLM ended before the answer was complete")


if __name__ == "__main__":
    main()
