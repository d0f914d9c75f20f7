"""Jobs a second with and without prefix affinity, on the tiny model in vLLM: `python -m bench.prefix`.

The jobs ask questions about documents, which are system messages. The real `Partitioner` chooses each job's partition,
and one worker of a fleet answers the jobs of its partitions. All documents together exceed the worker's prefix cache.
Without affinity, jobs go to the partitions in turn. The ceiling is the rate of an equal number of jobs about a single
cached document of the same length. The workers of a fleet share nothing, so measuring one worker is enough.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from bench.result import parsed, table, title, verdict
from producers.sharding import Partitioner
from schemas.affinity import prefix_of
from schemas.codec import write_job
from schemas.job import Job, Message
from scripts.play.model import tiny_model
from telemetry.metrics import Metrics
from workers.engines.base import Completion, GenerationRequest, request_for
from workers.engines.vllm import VllmEngine
from workers.engines.vllm.settings import VllmSettings

TARGET = 2.76
"""The gain from 62 to 171 jobs/s that was measured before the code was written. The documents exceeded the cache."""
PARTITIONS = 12
WORKERS = 4
AT_ONCE = 4
"""Number of requests that the engine has at once."""
BLOCK_TOKENS = 128
WORD_TOKENS = 1.75
"""Tokens that a word of WORDS has on average."""
WORDS = ("river", "city", "book", "train", "word", "house", "king", "machine", "letter", "morning", "tree", "page")


@dataclass(frozen=True, slots=True)
class Measured:
    """The speed of one run through all jobs of the worker."""

    jobs_per_second: float
    cached: float
    """The share of prompt tokens that the engine found in its cache."""


def main() -> None:
    """Measure the ceiling and both ways of choosing partitions in turn, and print the results."""
    options = _options()
    title(f"One worker of {WORKERS}: {options.documents} documents of {options.words} words")
    runs = uvloop.run(_runs(options))
    rates = {name: statistics.median(each.jobs_per_second for each in some) for name, some in runs.items()}
    rows = [
        (
            name,
            f"{rates[name]:.1f}",
            f"{statistics.median(each.cached for each in some):.0%}",
            f"{rates[name] / rates['ceiling']:.2f}",
        )
        for name, some in runs.items()
    ]
    table(("jobs", "jobs/s", "prompt tokens cached", "of the ceiling"), rows)
    verdict("with affinity / without", rates["with affinity"] / rates["without"], TARGET, at_least=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--words", type=int, default=1_200, help="number of words in a document")
    parser.add_argument("--jobs", type=int, default=640, help="number of jobs for the whole fleet")
    parser.add_argument("--rounds", type=int, default=1)
    return parsed(parser)


async def _runs(options: argparse.Namespace) -> dict[str, list[Measured]]:
    documents = [_document(number, options.words) for number in range(options.documents)]
    jobs = _jobs(documents, options.jobs)
    ours = {"with affinity": _of_one_worker(jobs, affine=True), "without": _of_one_worker(jobs, affine=False)}
    cached = _jobs(documents[:1], len(ours["without"]))
    longest = min(4096, 3 * options.words)
    settings = VllmSettings(
        model=str(tiny_model()),
        context_tokens=longest,
        max_concurrency=AT_ONCE,
        extra={"num_gpu_blocks_override": _blocks(options), "block_size": BLOCK_TOKENS},
    )
    engine = VllmEngine(settings, Metrics())
    await engine.start()
    try:
        runs: dict[str, list[Measured]] = {"ceiling": [], "with affinity": [], "without": []}
        for _ in range(options.rounds):
            for name, some in {"ceiling": cached, **ours}.items():
                await engine._llm.reset_prefix_cache()
                # Warm the cache first, because the cache of a long run is warm too.
                await _answered(engine, some[: len(some) // 4])
                runs[name].append(await _answered(engine, some))
        return runs
    finally:
        await engine.close()


def _blocks(options: argparse.Namespace) -> int:
    """Return the cache's size in blocks: room for 1.5 times one worker's documents and for the running requests."""
    a_document: int = math.ceil(options.words * WORD_TOKENS / BLOCK_TOKENS)
    kept: int = options.documents * 3 // 2 // WORKERS + AT_ONCE
    return a_document * kept


def _document(number: int, words: int) -> str:
    drawn = random.Random(number)
    return f"Document {number}. " + " ".join(drawn.choice(WORDS) for _ in range(words))


def _jobs(documents: Sequence[str], count: int) -> list[Job]:
    """Return jobs, equally many about each document, in a random order that is the same in each run."""
    jobs = [
        Job(
            messages=[
                Message(role="system", content=documents[number % len(documents)]),
                Message(role="user", content=f"Which {WORDS[number % 12]} is it, number {number}?"),
            ],
            max_tokens=4,
            temperature=0.0,
        )
        for number in range(count)
    ]
    random.Random(7).shuffle(jobs)
    return jobs


def _of_one_worker(jobs: Sequence[Job], *, affine: bool) -> list[Job]:
    """Return the jobs of the first worker's partitions. Unless `affine`, the partitioner gets no prefix."""
    partitioner = Partitioner()
    ours = range(PARTITIONS // WORKERS)
    return [
        job
        for job in jobs
        if partitioner.partition("jobs", "default", PARTITIONS, write_job(job) if affine else None) in ours
    ]


async def _answered(engine: VllmEngine, jobs: Sequence[Job]) -> Measured:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, job: Job) -> Completion:
        async with places:
            return await engine.generate(_request(number, job))

    began = time.perf_counter()
    answers = await asyncio.gather(*(one(number, job) for number, job in enumerate(jobs)))
    seconds = time.perf_counter() - began
    cached = sum(answer.cached_tokens or 0 for answer in answers)
    return Measured(len(jobs) / seconds, cached / sum(answer.prompt_tokens for answer in answers))


def _request(number: int, job: Job) -> GenerationRequest:
    key = prefix_of(job.model_dump(mode="json", include={"messages"}))
    return request_for(job, f"r{number}", prefix_key=key)


if __name__ == "__main__":
    main()
