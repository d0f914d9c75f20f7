"""`postback models bench`: sends its own jobs to a running fleet, and measures the time from submission to callback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from cli.send.job_warnings import warn_of_refused, warn_of_unserved
from cli.shared.errors import BAD_INPUT, FAILED, fail, say
from cli.shared.given_secrets import SECRET_HELP, checked_secrets
from cli.shared.progress import counting
from cli.shared.settings import checked_tenant, fleet_settings, keyring_path
from cli.shared.terminal import table

if TYPE_CHECKING:
    from cli.operations.fleet_bench import BenchPlan, BenchReport, FleetBench
    from cli.shared.verifying import HeldKeys
    from schemas.settings import FleetSettings
    from telemetry.clock import Clock, Deadline

MOST_JOBS = 100_000
_POLL_SECONDS = 0.05


def bench(
    model: Annotated[str, typer.Option(metavar="NAME", help="The model that the jobs name, such as `echo`.")],
    jobs: Annotated[int, typer.Option(min=1, max=MOST_JOBS, help="The number of jobs.")] = 1_000,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Jobs to send per second; by default as many as Kafka accepts.")
    ] = None,
    bulk: Annotated[bool, typer.Option("--bulk", help="Use the bulk lane, where jobs wait behind all others.")] = False,
    tenant: Annotated[str, typer.Option(help="The tenant that the jobs belong to.")] = "default",
    timeout: Annotated[
        float, typer.Option(min=1, max=3_600, help="Seconds to wait for callbacks after the last job was sent.")
    ] = 120.0,
    host: Annotated[str, typer.Option(help="The address to listen on for callbacks.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on for callbacks; 0 takes a free port.")
    ] = 0,
    callback_url: Annotated[
        str | None, typer.Option(help="The URL by which delivery on another machine reaches the port for callbacks.")
    ] = None,
    secrets: Annotated[list[str] | None, typer.Option("--secret", help=f"{SECRET_HELP} May be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Measure a running fleet: jobs a second, and the time from a job's submission to its callback.

    The command sends short jobs and takes their callbacks itself. The command needs the tenant's secret, by --secret or
    from the keyring, and workers that allow the callback URL. Real jobs wait longer meanwhile; --rate and --bulk
    shorten that wait. A job that is not answered in time expires.

    Exit status: 0 all jobs succeeded, 1 some did not, 2 bad input and nothing sent.
    """
    from cli.operations.fleet_bench import BenchPlan, FleetBench
    from cli.shared.verifying import GivenKeys, KeyringKeys
    from producers.client import Client
    from schemas.job import LONGEST_TTL_SECONDS
    from telemetry.clock import Deadline, SystemClock
    from telemetry.traces import exporting

    fleet, tenant = fleet_settings(), checked_tenant(tenant)
    trust = fleet.trust.secrets
    given = checked_secrets(secrets or [])
    keys: HeldKeys = GivenKeys(given, None, tenant) if given else KeyringKeys(keyring_path(fleet), tenant)
    bench, clock = FleetBench(SystemClock()), SystemClock()
    with _receiving(keys, bench, host, port) as url:
        ttl_seconds = timeout + (jobs / rate if rate is not None else 0.0)
        plan = BenchPlan(model, jobs, callback_url or url, min(ttl_seconds, LONGEST_TTL_SECONDS), rate)
        _check(plan, fleet)
        with exporting("models-bench"), Client(fleet.kafka, trust=trust) as client:
            sent = client.submit(bench.work(plan), tenant=tenant, lane="bulk" if bulk else "default")
            _await(bench, sent.accepted, Deadline.after(clock, timeout), clock)
    report = bench.report(plan, sent.accepted)
    typer.echo(json.dumps(report.document()) if as_json else _table(report))
    if report.succeeded < jobs:
        say(f"{jobs - report.succeeded} of {jobs} jobs did not succeed in time; `postback trace ID` shows a job's path")
        raise typer.Exit(FAILED)


def _check(plan: BenchPlan, fleet: FleetSettings) -> None:
    """End the command if the options make no valid job. Warn if the fleet would refuse the model or the URL."""
    from pydantic import ValidationError

    from schemas.job import Job

    try:
        job = Job(prompt="x", model_id=plan.model, callback_url=plan.callback_url)
    except ValidationError as error:
        options = {"model_id": "--model", "callback_url": "--callback-url"}
        field = str(error.errors()[0]["loc"][0])
        raise fail(f"{options.get(field, field)}: is not valid in a job; nothing was sent", BAD_INPUT) from None
    warn_of_refused([(1, job)], fleet)
    warn_of_unserved([(1, job)], fleet.kafka, checking=False)


def _await(bench: FleetBench, accepted: int, deadline: Deadline, clock: Clock) -> None:
    """Wait until each accepted job has its callback, the time is up, or the user presses Ctrl-C."""
    with suppress(KeyboardInterrupt), counting("called back", accepted, awaits="callbacks") as bar:
        while bench.called_back < accepted and not deadline.passed:
            bar(bench.called_back)
            clock.sleep(_POLL_SECONDS)


@contextmanager
def _receiving(keys: HeldKeys, bench: FleetBench, host: str, port: int) -> Iterator[str]:
    """Receive callbacks in a thread during the block. Yields the receiver's URL, for senders on this machine."""
    import asyncio
    from threading import Thread

    from cli.devkit.receiver import Received, Receiver

    def take(received: Received) -> None:
        if received.verified:
            bench.arrived(received.event)

    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="callbacks", daemon=True)
    thread.start()
    receiver = Receiver(keys.current, take, host=host, port=port)
    try:
        asyncio.run_coroutine_threadsafe(keys.load(), loop).result()
        asyncio.run_coroutine_threadsafe(receiver.start(), loop).result()
    except OSError as error:
        raise fail(f"cannot listen there ({error.strerror or error}): choose another --port or --host") from None
    try:
        yield receiver.url
    finally:
        asyncio.run_coroutine_threadsafe(receiver.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _table(report: BenchReport) -> str:
    """Return the figures as a table of two lines."""
    said = report.document()
    times = {f"{name} ms": "-" if ms is None else f"{ms:,.1f}" for name, ms in said["submit_to_callback_ms"].items()}
    cells = {
        "jobs": f"{report.jobs:,}",
        "called back": f"{report.called_back:,}",
        "succeeded": f"{report.succeeded:,}",
        "seconds": f"{report.seconds:.2f}",
        "jobs/s": f"{report.jobs_per_second:,.1f}",
        **times,
    }
    return "\n".join(table([list(cells), list(cells.values())], names=0))
