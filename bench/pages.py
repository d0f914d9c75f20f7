"""Eight pages of a loopback site before a question, cold and from the cache: `python -m bench.pages`."""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from ipaddress import ip_network

import psutil
import uvloop

from bench.table import table, title, verdict
from devkit.site import Site, paths
from schemas.job import Sources
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.egress import EgressPolicy, Guard
from workers.enrichment import Enricher, EnrichmentSettings

PAGES = 8
COLD_TARGET_MS = 60
WARM_TARGET_MS = 5
QUESTION = "Who is the captain of the ferry Astrelle?"


def main() -> None:
    """Read eight pages nobody has read, then the same ones again, and print how long each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    title(f"{PAGES} pages before a question, {options.rounds} rounds")
    uvloop.run(_measured(options.rounds))


async def _measured(rounds: int) -> None:
    clock = SystemClock()
    guard = Guard(EgressPolicy(allow=(ip_network("127.0.0.0/8"),)))
    enricher = Enricher(EnrichmentSettings(), guard, clock, Metrics())
    await enricher.start()
    try:
        async with Site() as site:
            await enricher.enrich(Sources(urls=[site.url("/") + "?warm"]), QUESTION)
            cold, warm = [], []
            for number in range(rounds):
                urls = [site.url(f"{path}?{number}") for path in paths()[:PAGES]]
                cold.append(await _timed(enricher, urls))
                warm.append(await _timed(enricher, urls))
    finally:
        await enricher.close()
    table(("", "p50 ms", "p95 ms", "CPU ms a page"), [("cold", *_row(cold)), ("from memory", *_row(warm))])
    verdict("cold p50", statistics.median(wall for wall, _ in cold), COLD_TARGET_MS, at_least=False, unit=" ms")
    verdict("warm p50", statistics.median(wall for wall, _ in warm), WARM_TARGET_MS, at_least=False, unit=" ms")


async def _timed(enricher: Enricher, urls: list[str]) -> tuple[float, float]:
    """Milliseconds on the clock and of CPU, the readers' and the site's own included. All pages have to be read."""
    before, started = _cpu_seconds(), time.perf_counter()
    evidence = await enricher.enrich(Sources(urls=urls), QUESTION)
    took = time.perf_counter() - started
    if any("left out" in note and "others fit" not in note for note in evidence.notes):
        raise SystemExit(f"a page was not read: {evidence.notes}")
    return took * 1000, (_cpu_seconds() - before) * 1000


def _cpu_seconds() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    readers = [child.cpu_times() for child in psutil.Process().children()]
    return own.ru_utime + own.ru_stime + sum(times.user + times.system for times in readers)


def _row(samples: list[tuple[float, float]]) -> tuple[str, str, str]:
    walls = sorted(wall for wall, _ in samples)
    late = walls[min(len(walls) - 1, int(len(walls) * 0.95))]
    cpu = sum(cpu for _, cpu in samples) / len(samples) / PAGES
    return f"{statistics.median(walls):.1f}", f"{late:.1f}", f"{cpu:.2f}"


if __name__ == "__main__":
    main()
