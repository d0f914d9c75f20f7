"""Runs the fault ledger: `python -m bench.faults`. Each cell is a fault at a process of a fleet under a steady load.

A fleet of real processes answers five jobs a second, which clients post to two gateways, and whose callbacks go to one
receiver. The fault stays until its alert fires, or for its own time; then it is mended, and the load goes on. A job is
lost if the gateway accepted it and no result or no callback came, and doubled if it has two results or two events.

A stopped run goes on: cells with samples of this commit in build/faults are not run again. `--only` takes parts of
names, such as `SIGKILL` or `worker`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.faults.faults import (
    Fault,
    brokers_killed,
    certificate_expiring,
    clock_moved,
    disk_full,
    files_frozen,
    frozen,
    hostile,
    ill,
    killed,
    names_away,
    partitions_added,
    poison,
    redis_away,
    redis_lying,
    short_of_memory,
    slow_broker,
    store_away,
    store_failed_over,
    topic_deleted,
)
from bench.faults.judge import Measured, judge
from bench.faults.rig import Needs, Rig
from bench.fleet import wait_for
from bench.result import ROOT, commit, parsed, samples, table, title, verdict

FOLDER = ROOT / "build" / "faults"
WARM_SECONDS = 10.0
"""The load before the fault."""
ALERT_SECONDS = 150.0
"""Longest time for which a fault waits for its alert: 120 s are promised for deaths."""
AFTER_SECONDS = 20.0
"""The load after the fault."""
STILL_SECONDS = 90.0
"""Jobs are lost if no callback has come for so long after the load's end: longer than any wait of the tiers."""
LATE_SECONDS = 5.0
"""Further wait, in which second callbacks would come."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault at one process."""

    process: str
    fault: str
    begin: Fault
    alert: str = ""
    """The alert that must fire, with the role behind PostbackRoleDown."""
    silent: str = ""
    """The reason why no alert has to fire, if none is named."""
    seconds: float = 0.0
    """The fault lasts for at least this time, also if its alert has fired."""
    needs: Needs = field(default_factory=Needs)
    quick: bool = False

    @property
    def name(self) -> str:
        """The cell's name."""
        return f"{self.process} {self.fault}"

    @property
    def file(self) -> Path:
        """The file with the cell's samples."""
        return FOLDER / f"{self.name.lower().replace(' ', '-').replace('±', '')}.json"


_FROZEN = "30 s are shorter than the wait of RoleDown"
_ENDS = "a process that ends is started again at once"

CELLS = (
    *(
        Cell(name, "SIGKILL", killed(f"{role}-1"), f"PostbackRoleDown {name}", quick=name != "exporter")
        for name, role in (
            ("worker", "worker"),
            ("delivery", "deliver"),
            ("gateway", "gateway"),
            ("exporter", "exporter"),
        )
    ),
    *(
        Cell(name, "SIGSTOP 30 s", frozen(f"{role}-1"), silent=_FROZEN, seconds=30)
        for name, role in (("worker", "worker"), ("delivery", "deliver"), ("gateway", "gateway"))
    ),
    *(
        Cell(name, "memory used up", short_of_memory(f"{role}-1"), silent=_ENDS, seconds=45)
        for name, role in (("worker", "worker"), ("delivery", "deliver"), ("gateway", "gateway"))
    ),
    *(
        Cell(
            name,
            f"clock {minutes:+d} min",
            clock_moved(60 * minutes),
            alert,
            seconds=60,
            needs=Needs(clock=f"{role}-1"),
        )
        for name, role, alert in (
            ("worker", "worker", "PostbackClockSkew"),
            ("delivery", "deliver", "PostbackClockSkew"),
            ("gateway", "gateway", "PostbackClockSkew"),
        )
        for minutes in (10, -10)
    ),
    Cell(
        "all roles",
        "disk of the logs full",
        disk_full,
        silent="no promise hangs on a log",
        seconds=30,
        needs=Needs(small_disk="logs"),
    ),
    Cell("one of three brokers", "SIGKILL", brokers_killed(2), "PostbackBrokerAway", quick=True),
    Cell("one of three brokers", "slow", slow_broker, silent="a slow broker is no promise", seconds=60),
    Cell("one of three brokers", "disk full", disk_full, "PostbackBrokerAway", needs=Needs(small_disk="broker")),
    Cell("all brokers", "away 60 s", brokers_killed(0, 1, 2), "PostbackKafkaAway", seconds=60),
    Cell("PostgreSQL", "away", store_away, "PostbackStoreAway"),
    Cell("PostgreSQL", "failed over with lag", store_failed_over, silent="the standby answers at once", seconds=30),
    Cell("PostgreSQL", "disk full", disk_full, "PostbackDoorErrors", needs=Needs(small_disk="store")),
    Cell("Redis", "away", redis_away, "PostbackRedisAway"),
    Cell("Redis", "lying", redis_lying, "PostbackRedisAway"),
    Cell("S3", "hung", files_frozen, "PostbackFilesAway"),
    Cell("DNS", "away", names_away, "PostbackCallbacksFail", seconds=30, needs=Needs(host="hooks.example")),
    Cell("model server", "hung", ill("model", "hung"), "PostbackModelServerAway", quick=True),
    Cell("model server", "5xx", ill("model", "5xx"), "PostbackModelServerAway", seconds=30),
    Cell("model server", "garbage", ill("model", "garbage"), "PostbackModelServerAway", seconds=30),
    Cell("model server", "slow", ill("model", "slow"), silent="its answers come", seconds=45),
    Cell("endpoint", "away", ill("endpoint", "away"), "PostbackCallbacksFail", seconds=30),
    Cell("endpoint", "hung", ill("endpoint", "hung"), "PostbackCallbacksFail", seconds=30),
    Cell("endpoint", "slow", ill("endpoint", "slow"), silent="its answers come", seconds=45),
    Cell("endpoint", "redirecting", ill("endpoint", "redirecting"), "PostbackCallbacksFail", seconds=30),
    Cell("endpoint", "huge answer", ill("endpoint", "huge"), "PostbackCallbacksFail", seconds=30),
    Cell(
        "gateway",
        "certificate expired",
        certificate_expiring,
        "PostbackCertificateExpires",
        seconds=90,
        needs=Needs(tls=True),
    ),
    Cell("jobs' topic", "deleted", topic_deleted, "PostbackKafkaAway", seconds=15),
    Cell("all topics", "partitions added", partitions_added, silent="no fault", seconds=20),
    Cell("worker", "poison record", poison, "PostbackDefect", needs=Needs(engine="echo"), seconds=20),
    Cell(
        "worker",
        "130,000 hostile records",
        hostile(130_000),
        silent="each has its result",
        seconds=1,
        needs=Needs(engine="echo"),
    ),
)


def main() -> None:
    """Run the cells that have no samples of this commit, and print the table. Raises SystemExit if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="cells whose names contain one of these texts")
    parser.add_argument("--any-commit", action="store_true", help="run no cell that has samples of an earlier commit")
    parser.add_argument("--quick", action="store_true", help="a few cells only")
    options = parsed(parser)
    chosen = [cell for cell in CELLS if cell.quick or not options.quick]
    chosen = [cell for cell in chosen if not options.only or any(text in cell.name for text in options.only)]
    title(f"{len(chosen)} faults at a fleet that answers five jobs a second")
    now, broken = commit(), []
    for number, cell in enumerate(chosen, 1):
        known = Measured.read(cell.file).commit if cell.file.exists() else ""
        if known and (options.any_commit or (known == now and "+" not in now)):
            continue
        print(f"{number} of {len(chosen)}: {cell.name}", flush=True)
        try:
            measured = run(cell, now)
        except Exception:  # the other cells have to run
            traceback.print_exc()
            broken.append(cell.name)
            continue
        measured.write(cell.file)
        print(_row(cell, measured), dict(measured.restarts), dict(measured.alerts), flush=True)
    report([(cell, Measured.read(cell.file)) for cell in chosen if cell.file.exists()])
    if broken:
        raise SystemExit(f"these cells broke: {', '.join(broken)}")


def run(cell: Cell, now: str) -> Measured:
    """Run one cell in a fleet of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="postback-faults-") as folder,
        Rig(Path(folder), cell.needs).running() as rig,
    ):
        date, load = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", os.getloadavg()[0]
        rig.start_load()
        wait_for(lambda: any(job.callbacks for job in list(rig.outside.jobs.values())), ALERT_SECONDS)
        time.sleep(WARM_SECONDS)
        began = time.time()
        with cell.begin(rig):
            _hold(cell, rig, began)
        ended = time.time()
        time.sleep(AFTER_SECONDS)
        rig.outside.stop_load()
        _settle(rig)
        rig.count_results()
        alerts = {name: at - began for name, at in rig.alerts.items() if at >= began}
        return Measured(now, date, load, began, ended, alerts, dict(rig.restarts), list(rig.outside.jobs.values()))


def _hold(cell: Cell, rig: Rig, began: float) -> None:
    """Keep the fault until its alert fires, but for at least its own time."""
    most = max(ALERT_SECONDS, cell.seconds) if cell.alert else cell.seconds
    while time.time() < began + most:
        if time.time() >= began + cell.seconds and cell.alert in rig.alerts:
            return
        time.sleep(0.2)


def _settle(rig: Rig) -> None:
    """Wait until each accepted job has its callback, or no callback came for STILL_SECONDS."""
    least, moved = rig.open_jobs(), time.time()
    while least and time.time() < moved + STILL_SECONDS:
        time.sleep(0.5)
        if (left := rig.open_jobs()) < least:
            least, moved = left, time.time()
    time.sleep(LATE_SECONDS)


def report(done: list[tuple[Cell, Measured]]) -> None:
    """Print the table of cells, and the verdicts over all of them."""
    head = (
        "process",
        "fault",
        "accepted",
        "refused",
        "failed",
        "lost",
        "doubled",
        "longest s",
        "recovery s",
        "alert",
        "load",
        "commit",
    )
    table(head, [_row(cell, measured) for cell, measured in done])
    for cell, measured in done:
        samples(f"{cell.name}, due", [round(job.due - measured.began, 2) for job in measured.jobs])
        samples(f"{cell.name}, s to callback", [round((job.called or -1) - job.due, 2) for job in measured.jobs])
    judged = [judge(measured) for _, measured in done]
    silent = [cell for cell, measured in done if cell.alert and cell.alert not in measured.alerts]
    verdict("jobs lost, in all cells", sum(one.lost for one in judged), 0, at_least=False)
    verdict("jobs doubled, in all cells", sum(one.doubled for one in judged), 0, at_least=False)
    verdict("cells whose alert did not fire", len(silent), 0, at_least=False)


def _row(cell: Cell, measured: Measured) -> tuple[object, ...]:
    one = judge(measured)
    recovery = "never" if one.recovery_seconds is None else f"{one.recovery_seconds:.0f}"
    counts = one.accepted, one.refused, one.failed, one.lost, one.doubled
    return (
        cell.process,
        cell.fault,
        *counts,
        f"{one.longest_seconds:.1f}",
        recovery,
        _alert(cell, measured),
        f"{measured.load:.0f}",
        measured.commit,
    )


def _alert(cell: Cell, measured: Measured) -> str:
    name = cell.alert.partition(" ")[0].removeprefix("Postback")
    if not name:
        return f"none: {cell.silent}"
    seconds = measured.alerts.get(cell.alert)
    return f"**{name} missing**" if seconds is None else f"{name} after {seconds:.0f} s"


if __name__ == "__main__":
    main()
