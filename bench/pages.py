"""Measures reading eight pages of a loopback site before a question, cold and cached: `python -m bench.pages`.

With `--rerank`, a second variant ranks passages by words and by an embedding model. A further measurement then times
the choice among passages that are new to the model. In the first measurement, the passages are the same in every round,
and the model's results for them are cached.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import time
from collections.abc import Awaitable, Sequence
from ipaddress import ip_network

import psutil
import uvloop

from bench.result import parsed, table, title, verdict
from schemas.job import DEFAULT_TENANT, Sources
from scripts.play.model import ENGLISH, embedding_model
from scripts.play.site import Site, paths
from telemetry.clock import Deadline, SystemClock
from telemetry.metrics import Metrics
from workers.egress import EgressPolicy, Guard
from workers.enrichment.choosing.choose import Chooser
from workers.enrichment.choosing.rank import Budget
from workers.enrichment.enrich import Enricher
from workers.enrichment.processes.pool import Pool
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker

PAGES = 8
COLD_TARGET_MS = 60
WARM_TARGET_MS = 5
PATIENCE_SECONDS = 60.0
"""The bench ends if a page or the model takes longer. Even a busy machine does not take that long."""
QUESTION = "Who is the captain of the ferry Astrelle?"


Sample = tuple[float, float]
"""Milliseconds of wall time, and milliseconds of CPU time."""


def main() -> None:
    """Read eight new pages, then read them again, and print both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument(
        "--rerank",
        action="store_true",
        help="also measure a second variant, which ranks by words and by an embedding model",
    )
    options = parsed(parser)
    title(f"{PAGES} pages before a question, {options.rounds} rounds")
    uvloop.run(_measured(options.rounds, with_model=options.rerank))


async def _measured(rounds: int, *, with_model: bool) -> None:
    sides = {"": EnrichmentSettings(budget_seconds=PATIENCE_SECONDS)}
    if with_model:
        sides[", reranked"] = EnrichmentSettings(
            budget_seconds=PATIENCE_SECONDS, rerank_model=str(embedding_model()), rerank_seconds=PATIENCE_SECONDS
        )
    samples = await _pages(rounds, sides)
    _show(samples)
    verdict("cold p50", _p50(samples["cold"]), COLD_TARGET_MS, at_least=False, unit=" ms")
    verdict("warm p50", _p50(samples["from memory"]), WARM_TARGET_MS, at_least=False, unit=" ms")
    if with_model:
        for what in ("cold", "from memory"):
            print(f"{what}, reranked / by words: {_p50(samples[f'{what}, reranked']) / _p50(samples[what]):.2f} at p50")
        await _choices(rounds, sides)


async def _pages(rounds: int, sides: dict[str, EnrichmentSettings]) -> dict[str, list[Sample]]:
    """Return samples of each variant. The variants take turns, and each has its own cache."""
    guard = Guard(EgressPolicy(allow=(ip_network("127.0.0.0/8"),)))
    enrichers = {name: Enricher(settings, guard, SystemClock(), Metrics()) for name, settings in sides.items()}
    samples: dict[str, list[Sample]] = {f"{what}{name}": [] for name in sides for what in ("cold", "from memory")}
    try:
        async with Site() as site:
            for enricher in enrichers.values():
                await enricher.start()
                urls = [site.url(f"{path}?warm") for path in paths()[:PAGES]]
                await _read(enricher, urls)
            for number in range(rounds):
                for name, enricher in enrichers.items():
                    urls = [site.url(f"{path}?{number}") for path in paths()[:PAGES]]
                    for what in ("cold", "from memory"):
                        samples[f"{what}{name}"].append(await _timed(_read(enricher, urls)))
    finally:
        for enricher in enrichers.values():
            await enricher.close()
    return samples


async def _read(enricher: Enricher, urls: list[str]) -> None:
    """Read all pages. The bench ends if a page is left out, or is not ranked as the settings require."""
    evidence = await enricher.enrich(Sources(urls=urls), QUESTION)
    _refuse([note for note in evidence.notes if "others fit" not in note])


async def _choices(rounds: int, sides: dict[str, EnrichmentSettings]) -> None:
    """Print the time of choosing among passages that are new to the model."""
    samples: dict[str, list[Sample]] = {}
    for name, settings in sides.items():
        pool = Pool(settings, Metrics())
        chooser = Chooser(settings, pool, SystemClock(), Metrics())
        await chooser.start()
        try:
            await _chosen(chooser, settings, -1)
            samples[name] = [await _timed(_chosen(chooser, settings, number)) for number in range(rounds)]
            largest = max(child.memory_info().rss for child in psutil.Process().children())
        finally:
            await chooser.close()
            await pool.close()
    most = sides[", reranked"].rerank_passages
    print(f"\nChoosing among passages that the model has not seen; it is asked about {most} of them,")
    print(f"and its process has {largest / 2**20:,.0f} MiB of memory:")
    _show({f"choosing{name}": taken for name, taken in samples.items()})


async def _chosen(chooser: Chooser, settings: EnrichmentSettings, number: int) -> None:
    words, seeded = ENGLISH.split(), random.Random(number)
    texts = [(None, " ".join(seeded.choices(words, k=600))) for _ in range(PAGES)]
    deadline = Deadline.after(SystemClock(), PATIENCE_SECONDS)
    budget = Budget(settings.evidence_chars)
    choice = await chooser.choose(QUESTION, texts, budget, settings.passage_chars, Asker(DEFAULT_TENANT), deadline)
    _refuse(choice.notes)


def _refuse(notes: Sequence[str]) -> None:
    if any("left out" in note or "embedding model" in note for note in notes):
        raise SystemExit(f"not everything was done: {notes}")


async def _timed(work: Awaitable[None]) -> Sample:
    """Time some work. The CPU time includes child processes, such as readers and the model, and the site."""
    before, started = _cpu_seconds(), time.perf_counter()
    await work
    took = time.perf_counter() - started
    return took * 1000, (_cpu_seconds() - before) * 1000


def _cpu_seconds() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    readers = [child.cpu_times() for child in psutil.Process().children()]
    return own.ru_utime + own.ru_stime + sum(times.user + times.system for times in readers)


def _show(samples: dict[str, list[Sample]]) -> None:
    table(("", "p50 ms", "p95 ms", "CPU ms a page"), [(what, *_row(taken)) for what, taken in samples.items()])


def _p50(samples: list[Sample]) -> float:
    return statistics.median(wall for wall, _ in samples)


def _row(samples: list[Sample]) -> tuple[str, str, str]:
    walls = sorted(wall for wall, _ in samples)
    late = walls[min(len(walls) - 1, int(len(walls) * 0.95))]
    cpu = sum(cpu for _, cpu in samples) / len(samples) / PAGES
    return f"{_p50(samples):.1f}", f"{late:.1f}", f"{cpu:.2f}"


if __name__ == "__main__":
    main()
