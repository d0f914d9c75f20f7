"""The worker on a model against AsyncLLM alone with the same prompts: `python -m bench.engine`.

Alone: one program submits every prompt to `AsyncLLM.generate` at once, with the engine arguments that the worker uses.
The worker: a real `postback worker --engine vllm`; the jobs stand on `model_requests` before it joins. Both sides are
timed from the first submit to the engine until the last answer is there: for the worker from the last look at which
nothing was in flight (it is looked at 20 times a second) until the last result is settled. Loading is outside of both.

The worker asks for log-probabilities, from which it computes `confidence`, and they have their price: AsyncLLM alone is
measured with them, which is the same work, and without, which is what somebody who needs none would do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import uvloop

from bench.fleet import Command, Kafka, assert_exactly_once, broker, new_fleet, prefill, read_committed, wait_for
from bench.table import table, title, verdict
from devkit.model import tiny_model
from schemas.codec import read_result
from telemetry.metrics import Metrics
from workers.engines.settings import VllmSettings
from workers.engines.vllm import VllmEngine

TARGET = 0.9
PARTITIONS = 4
LOAD_SECONDS = 300.0
LOOK_SECONDS = 0.05
IN_FLIGHT = "postback_in_flight"
SETTLED = "postback_settled_records_total"
WORDS = ("page", "tree", "river", "city", "book", "train", "word", "house", "king", "machine", "letter", "morning")


@dataclass(frozen=True, slots=True)
class Workload:
    """What both sides answer."""

    model: str
    jobs: int
    tokens: int
    max_model_len: int

    def prompts(self) -> list[str]:
        """Short questions, no two alike."""
        return [
            f"Case {number}: which {WORDS[number % 12]} is it that the {WORDS[number // 12 % 12]} of the story has, "
            f"and who wrote of it in the year {1000 + number}?"
            for number in range(self.jobs)
        ]


@dataclass(frozen=True, slots=True)
class Alone:
    """Jobs a second of AsyncLLM alone."""

    with_log_probabilities: float
    without: float


def main() -> None:
    """Run both sides in turn and print what came out."""
    options = _options()
    work = Workload(str(tiny_model()), options.jobs, options.tokens, options.max_model_len)
    title(f"The worker on the tiny model and AsyncLLM alone: {work.jobs:,} prompts, at most {work.tokens} tokens each")
    with broker(options.bootstrap_servers) as used:
        pairs = [(_alone_in_its_own_process(work), _worker(used, work)) for _ in range(options.pairs)]
    _report(pairs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--max-model-len", type=int, default=512)
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    return parser.parse_args()


def _report(pairs: Sequence[tuple[Alone, float]]) -> None:
    lines = [
        (f"{alone.with_log_probabilities:.1f}", f"{alone.without:.1f}", f"{worker:.1f}", *_ratios(alone, worker))
        for alone, worker in pairs
    ]
    alone = "AsyncLLM with log-probabilities, jobs/s", "AsyncLLM without, jobs/s"
    table((*alone, "worker, jobs/s", "worker / with", "worker / without"), lines)
    print("the worker asks for log-probabilities; every job has exactly one result")
    same = statistics.median(worker / alone.with_log_probabilities for alone, worker in pairs)
    less = statistics.median(worker / alone.without for alone, worker in pairs)
    verdict("worker / AsyncLLM alone that does the same work", same, TARGET, at_least=True)
    verdict("worker / AsyncLLM alone without log-probabilities", less, TARGET, at_least=True)


def _ratios(alone: Alone, worker: float) -> tuple[str, str]:
    return f"{worker / alone.with_log_probabilities:.2f}", f"{worker / alone.without:.2f}"


# -- the worker --------------------------------------------------------------------------------------------------


def _worker(used: Kafka, work: Workload) -> float:
    """Jobs a second."""
    kafka = new_fleet(used, PARTITIONS)
    prefill(kafka, (_job(number, prompt, work.tokens) for number, prompt in enumerate(work.prompts())))
    variables = {"POSTBACK_REPLICA": "w0", "POSTBACK_ENGINE__VLLM__MAX_MODEL_LEN": str(work.max_model_len)}
    with Command(kafka, "worker", "--engine", "vllm", "--model", work.model, **variables) as worker:
        started = _first_dispatch(worker)
        wait_for(lambda: worker.sample()[SETTLED] >= work.jobs, LOAD_SECONDS, LOOK_SECONDS)
        took = time.monotonic() - started
    results = [read_result(message.value()) for message in read_committed(kafka, kafka.topics.results)]
    assert_exactly_once((str(result.custom_id) for result in results), work.jobs)
    if any(result.outcome != "succeeded" for result in results):
        raise RuntimeError("a job did not succeed")
    return work.jobs / took


def _first_dispatch(worker: Command) -> float:
    """Monotonic seconds of the last look at which nothing was in flight: no later than the first dispatch."""
    end, idle_at = time.monotonic() + LOAD_SECONDS, time.monotonic()
    while time.monotonic() < end:
        sample = worker.sample()
        if sample[IN_FLIGHT] or sample[SETTLED]:
            return idle_at
        idle_at = sample.at
        time.sleep(LOOK_SECONDS)
    raise RuntimeError(f"the worker took no job for {LOAD_SECONDS:.0f} s")


def _job(number: int, prompt: str, tokens: int) -> bytes:
    return json.dumps({"prompt": prompt, "max_tokens": tokens, "custom_id": str(number)}).encode()


# -- AsyncLLM alone ----------------------------------------------------------------------------------------------


def _alone_in_its_own_process(work: Workload) -> Alone:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        return processes.submit(_alone, work).result()


def _alone(work: Workload) -> Alone:
    return uvloop.run(_measure_alone(work))


async def _measure_alone(work: Workload) -> Alone:
    """The worker's engine is started for its arguments; then only its AsyncLLM is used."""
    engine = VllmEngine(VllmSettings(model=work.model, max_model_len=work.max_model_len), Metrics())
    await engine.start()
    try:
        without = await _generate_all(engine._llm, work, log_probabilities=False)
        return Alone(await _generate_all(engine._llm, work, log_probabilities=True), without)
    finally:
        await engine.close()


async def _generate_all(llm: Any, work: Workload, *, log_probabilities: bool) -> float:
    """Jobs a second, all submitted at once."""
    params = _sampling(work, log_probabilities=log_probabilities)
    started = time.monotonic()
    await asyncio.gather(*(_answer(llm, number, prompt, params) for number, prompt in enumerate(work.prompts())))
    return work.jobs / (time.monotonic() - started)


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
