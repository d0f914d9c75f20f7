"""Compares callbacks with a bare aiohttp loop, and times those for an endpoint that was away (`-m bench.delivery`).

Delivery's handler takes results, signs each with HMAC and ed25519, POSTs it and makes the records of the attempt. The
bare loop is aiohttp's client alone, which sends the same bytes and headers, signed in advance. A second loop that signs
each callback shows the cost of the two signatures. The three sides run in this process in turn, a slice each, so that
other load on the machine affects all of them. The receiver is another process. Whole processes with Kafka follow: a
process that starts with a full topic, and one whose endpoint is away for a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import aiohttp
import uvloop

from bench import away, drain
from bench.callbacks import CLOCK, TENANT, headers, result, webhook_id
from bench.fleet import broker
from bench.receivers import receivers
from bench.result import parsed, samples, table, title, verdict
from schemas.event import event_body
from schemas.topics import Topics
from telemetry.metrics import Metrics
from workers.delivery.deliver import DeliveryHandler
from workers.delivery.keyring import Keyring
from workers.delivery.post import USER_AGENT, Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy
from workers.stage.record import Record
from workers.system.tuning import collect_garbage_seldom

TARGET = 0.85
LOOPBACK = EgressPolicy(allow=(ip_network("127.0.0.0/8"),), development=True)


@dataclass(frozen=True, slots=True)
class Measured:
    """The speed and the cost of one side in one slice."""

    per_second: float
    cpu_us: float
    """CPU time of one callback in the sender's process, in microseconds."""


Post = Callable[[int], Awaitable[None]]
Round = tuple[Measured, Measured, Measured]
"""The slices of one round: of the bare loop, of the loop that signs, and of delivery."""


def main() -> None:
    """Measure, and print the results."""
    options = _options()
    title(
        f"Signed callbacks and a bare aiohttp loop: {options.slices} slices each of {options.callbacks:,} callbacks of "
        f"2 KB, {options.in_flight} in flight"
    )
    collect_garbage_seldom()
    with tempfile.TemporaryDirectory() as folder, receivers(1) as consumers:
        path = Path(folder) / "keyring.json"
        keyring = Keyring.create(path, CLOCK)
        rounds = uvloop.run(_all(f"http://127.0.0.1:{consumers.ports[0]}/hook", keyring, options))
        _report(rounds)
    with broker(options.bootstrap_servers) as kafka:
        title(f"A whole process that finds {options.queued:,} results")
        drain.compare(kafka, options.queued, options.runs, statistics.median(one.cpu_us for _, one, _ in rounds))
        title(
            f"An endpoint that is away for {away.AWAY_SECONDS:g} s, and {away.CALLBACKS:,} callbacks that wait for it"
        )
        away.measure(kafka)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callbacks", type=int, default=1000, help="number of callbacks in each slice")
    parser.add_argument("--slices", type=int, default=20, help="number of slices for each side")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--queued", type=int, default=20_000, help="results in the topic when a whole process starts")
    parser.add_argument("--runs", type=int, default=3, help="number of runs of a whole process")
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    return parsed(parser)


def _report(rounds: Sequence[Round]) -> None:
    names = ("bare aiohttp", "bare aiohttp that signs", "delivery")
    lines = [_line(name, [side[number] for side in rounds]) for number, name in enumerate(names)]
    table(("", "callbacks/s (median)", "range", "CPU µs a callback (median)"), lines)
    ratios = [ours.per_second / signs.per_second for _, signs, ours in rounds]
    samples("delivery / bare that signs", ratios)
    print(f"delivery / bare that signs, in single rounds: {min(ratios):.2f}-{max(ratios):.2f}")
    verdict("delivery / bare that signs, median of the rounds", statistics.median(ratios), TARGET, at_least=True)


def _line(name: str, runs: Sequence[Measured]) -> tuple[str, str, str, str]:
    rates = [run.per_second for run in runs]
    cpu = statistics.median(run.cpu_us for run in runs)
    return name, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}-{max(rates):,.0f}", f"{cpu:.0f}"


# -- the three sides ---------------------------------------------------------------------------------------------


async def _all(url: str, keyring: Keyring, options: argparse.Namespace) -> list[Round]:
    """Run slices of all sides in turn, after one slice of each side that opens the connections."""
    rounds = []
    async with (
        _bare(url, keyring, signs=False) as bare,
        _bare(url, keyring, signs=True) as signing,
        _delivery(url, keyring, options) as delivery,
    ):
        for _ in range(1 + options.slices):
            sides = [await _measure(post, options.callbacks, options.in_flight) for post in (bare, signing, delivery)]
            rounds.append((sides[0], sides[1], sides[2]))
    return rounds[1:]


@asynccontextmanager
async def _bare(url: str, keyring: Keyring, *, signs: bool) -> AsyncIterator[Post]:
    """Yield a POST with aiohttp's client alone. With `signs`, each POST is signed with keys in memory."""
    now, body = CLOCK.time(), event_body(result(0), webhook_id(0), TENANT)
    signer = keyring.signer(TENANT, now)
    sent = {
        "User-Agent": USER_AGENT,
        "Content-Type": "application/json",
        **signer.headers(webhook_id(0), int(now), body),
    }
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def post(_: int) -> None:
            own = {**sent, **signer.headers(webhook_id(0), int(now), body)} if signs else sent
            async with session.post(url, data=body, headers=own) as response:
                await response.read()
                if response.status != 200:
                    raise RuntimeError(f"the receiver answered {response.status}")

        yield post


@asynccontextmanager
async def _delivery(url: str, keyring: Keyring, options: argparse.Namespace) -> AsyncIterator[Post]:
    """Yield a function that handles one result as a delivery process does, but without Kafka."""
    settings, metrics = DeliverySettings(destination_concurrency=options.in_flight), Metrics()
    handler = DeliveryHandler(Topics("b."), keyring, Poster(settings, LOOPBACK, CLOCK), CLOCK, metrics, settings)
    records = [_record(number, url) for number in range(options.callbacks)]

    async def post(number: int) -> None:
        await handler.handle(records[number])

    yield post
    await handler.close()
    delivered = metrics.registry.get_sample_value("postback_callbacks_total", {"result": "delivered"})
    if delivered != options.callbacks * (1 + options.slices):
        raise RuntimeError(f"{delivered} callbacks were delivered, not all")


async def _measure(post: Post, callbacks: int, in_flight: int) -> Measured:
    """Run one slice, with `in_flight` callbacks at any time."""
    numbers = iter(range(callbacks))

    async def sender() -> None:
        for number in numbers:
            await post(number)

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(sender() for _ in range(in_flight)))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    return Measured(callbacks / seconds, cpu_seconds / callbacks * 1e6)


def _record(number: int, url: str) -> Record:
    return Record("b.model_results", 0, number, result(number), None, headers(number, url), int(CLOCK.time() * 1000))


if __name__ == "__main__":
    main()
