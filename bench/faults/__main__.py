"""Runs the fault ledger: `python -m bench.faults`. Each cell is a fault at a process of a fleet under a steady load.

A fleet of real processes answers five jobs a second, which clients post to two gateways, and whose callbacks go to one
receiver. The fault stays until its alert fires, or for its own time; then it is mended, and the load goes on. A job is
lost if the gateway accepted it and no result or no callback came, and doubled if it has two results or two events.

Cells with the same needs run in one fleet, as long as it is quiet between them: no alert fires, and no job is open.
A stopped run goes on: cells of this commit are not run again. `--only` takes parts of names, such as `SIGKILL` or
`worker`; the other cells keep the rows of docs/evidence/faults.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.faults import faults
from bench.faults.faults import Fault, brokers_killed, clock_moved, disk_full, frozen, ill, killed
from bench.faults.judge import judge
from bench.faults.rig import Needs, Rig
from bench.fleet import wait_for
from bench.result import ROOT, Result, commit, parsed, samples, table, title, verdict
from telemetry.atomic_file import replacing

LEDGER = ROOT / "build" / "faults.json"
EVIDENCE = ROOT / "docs" / "evidence" / "faults.json"
WARM_SECONDS = 10.0
"""The load before the fault."""
ALERT_SECONDS = 120.0
"""The longest time from a fault's begin to its alert."""
AFTER_SECONDS = 20.0
"""The load after the fault."""
STILL_SECONDS = 90.0
"""Jobs are lost if no callback has come for so long after the load's end: longer than any wait of the tiers."""
QUIET_SECONDS = 60.0
LATE_SECONDS = 5.0
"""Further wait, in which second callbacks would come."""
ROLES = {"worker": "worker-1", "delivery": "deliver-1", "gateway": "gateway-1", "exporter": "exporter-1"}
"""Each role's process that gets the fault."""
HEAD = (
    "process", "fault", "accepted", "refused", "failed", "lost", "doubled", "longest s", "recovery s", "alert", "load",
    "commit",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault at one process."""

    process: str
    fault: str
    begin: Fault
    alert: str
    """The alert that must fire without `Postback`, with the role behind it; or `none: ` and the reason."""
    seconds: float = 0.0
    """The fault lasts for at least this time, also if its alert has fired."""
    needs: Needs = ""
    quick: bool = False

    @property
    def name(self) -> str:
        """The cell's name."""
        return f"{self.process} {self.fault}"


Ledger = dict[str, tuple[list[str], list[float]]]
"""By the cell's name, its row, and the seconds from each job's due time to its callback; -1 without a callback."""

_FROZEN = "none: 30 s are shorter than the wait of RoleDown"
_FAILS = "CallbacksFail"
_MODEL = "ModelServerAway"

CELLS = (
    *(
        Cell(role, "SIGKILL", killed(name), f"RoleDown {role}", quick=role != "exporter")
        for role, name in ROLES.items()
    ),
    *(Cell(role, "SIGSTOP 30 s", frozen(ROLES[role]), _FROZEN, 30) for role in ("worker", "delivery", "gateway")),
    *(
        Cell(role, "memory used up", faults.short_of_memory(ROLES[role]), "none: the process starts again", 45)
        for role in ("worker", "delivery", "gateway")
    ),
    *(
        Cell(role, f"clock {minutes:+d} min", clock_moved(ROLES[role], 60 * minutes), f"ClockSkew {role}", 60, "clocks")
        for role in ("worker", "delivery", "gateway")
        for minutes in (10, -10)
    ),
    Cell("worker", "poison record", faults.poison, "Defect", 20, "echo"),
    Cell("worker", "130,000 hostile records", faults.hostile(130_000), "none: each has its result", 1, "echo"),
    Cell("gateway", "certificate expired", faults.certificate_expiring, "CertificateExpires", 90, "tls"),
    Cell("all roles", "disk of the logs full", disk_full, "none: no promise hangs on a log", 30, "small disk of logs"),
    Cell("one of three brokers", "SIGKILL", brokers_killed(2), "BrokerAway", quick=True),
    Cell("one of three brokers", "slow", faults.slow_broker, "none: the others answer", 60),
    Cell("one of three brokers", "disk full", disk_full, "BrokerAway", needs="small disk of a broker"),
    Cell("all brokers", "away 60 s", brokers_killed(0, 1, 2), "KafkaAway", 60),
    Cell("jobs' topic", "deleted", faults.topic_deleted, "KafkaAway", 15),
    Cell("all topics", "partitions added", faults.partitions_added, "none: no fault", 20),
    Cell("PostgreSQL", "away", faults.store_away, "StoreAway"),
    Cell("PostgreSQL", "failed over", faults.store_taken_over, "none: the standby answers at once", 30),
    Cell("PostgreSQL", "failed over with lag", faults.store_failed_over, "none: the standby answers at once", 30),
    Cell("PostgreSQL", "disk full", disk_full, "DoorErrors", needs="small disk of the store"),
    Cell("Redis", "away", faults.redis_away, "RedisAway"),
    Cell("Redis", "lying", faults.redis_lying, "RedisAway"),
    Cell("S3", "hung", faults.s3_hung, "FilesAway"),
    Cell("DNS", "away", faults.names_away, _FAILS, 30, "names"),
    Cell("model server", "hung", ill("model", "hung"), _MODEL, quick=True),
    Cell("model server", "5xx", ill("model", "5xx"), _MODEL, 30),
    Cell("model server", "garbage", ill("model", "garbage"), _MODEL, 30),
    Cell("model server", "slow", ill("model", "slow"), "none: its answers come", 45),
    Cell("endpoint", "away", ill("endpoint", "away"), _FAILS, 30),
    Cell("endpoint", "hung", ill("endpoint", "hung"), _FAILS, 30),
    Cell("endpoint", "slow", ill("endpoint", "slow"), "none: its answers come", 45),
    Cell("endpoint", "redirecting", ill("endpoint", "redirecting"), _FAILS, 30),
    Cell("endpoint", "huge answer", ill("endpoint", "huge"), _FAILS, 30),
)

CAUSES = {
    "PostgreSQL failed over with lag": "Lost: a job that was accepted just before the death is neither on the standby "
    "nor on Kafka; docs/DEPLOY.md asks for synchronous replication.",
    "jobs' topic deleted": "The unanswered job was only in the deleted topic.",
}
"""The known causes of cells that are missed."""


def main() -> None:
    """Run the cells that have no row of this commit, and print the table. Raises SystemExit if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="cells whose names contain one of these texts")
    parser.add_argument("--quick", action="store_true", help="a few cells only")
    options = parsed(parser)
    chosen = [cell for cell in CELLS if cell.quick or not options.quick]
    chosen = [cell for cell in chosen if not options.only or any(text in cell.name for text in options.only)]
    title(f"{len(CELLS)} faults at a fleet that answers five jobs a second")
    now, ledger, broken = commit(), known(), []
    left = [cell for cell in chosen if "+" in now or cell.name not in ledger or ledger[cell.name][0][-1] != now]
    with ExitStack() as running:
        fleet: Rig | None = None
        for number, cell in enumerate(left, 1):
            print(f"{number} of {len(left)}: {cell.name}", flush=True)
            try:
                if fleet is None or fleet.needs != cell.needs or not _quiet(fleet):
                    running.close()
                    fleet = running.enter_context(new_fleet(cell.needs))
                ledger[cell.name] = run(cell, fleet, now)
            except Exception:  # the other cells have to run
                traceback.print_exc()
                broken.append(cell.name)
                fleet = None
                continue
            LEDGER.parent.mkdir(exist_ok=True)
            with replacing(LEDGER) as out:
                out.write(json.dumps(ledger).encode())
    report(ledger)
    if broken:
        raise SystemExit(f"these cells broke: {', '.join(broken)}")


@contextmanager
def new_fleet(needs: Needs) -> Iterator[Rig]:
    """Run a fleet for a block."""
    with tempfile.TemporaryDirectory(prefix="postback-faults-") as folder, Rig(Path(folder), needs).running() as rig:
        yield rig


def _quiet(rig: Rig) -> bool:
    """Wait until no alert fires and no job is open; return False after QUIET_SECONDS."""
    with suppress(RuntimeError):
        return bool(wait_for(lambda: not rig.firing and not rig.open_jobs(), QUIET_SECONDS))
    return False


def known() -> Ledger:
    """Return the rows of a stopped run, or else those of the evidence."""
    if LEDGER.exists():
        return {name: (row, seconds) for name, (row, seconds) in json.loads(LEDGER.read_bytes()).items()}
    found = Result.read(EVIDENCE)
    return {name: (row, found.samples[name]) for row in found.tables[0].rows if (name := f"{row[0]} {row[1]}")}


def run(cell: Cell, rig: Rig, now: str) -> tuple[list[str], list[float]]:
    """Run one cell in a fleet; return its row, and each job's seconds."""
    load, first = os.getloadavg()[0], len(rig.outside.jobs)
    rig.restarts.clear()
    rig.start_load()
    wait_for(lambda: any(job.callbacks for job in rig.jobs(first)), ALERT_SECONDS)
    time.sleep(WARM_SECONDS)
    rig.alerts.clear()
    began = time.time()
    with cell.begin(rig):
        _hold(cell, rig, began)
    ended = time.time()
    time.sleep(AFTER_SECONDS)
    rig.outside.stop_load()
    _settle(rig)
    rig.count_results()
    alerts = {name: round(at - began) for name, at in rig.alerts.items()}
    print(f"alerts after s: {alerts}; ended by themselves: {dict(rig.restarts)}", flush=True)
    jobs = rig.jobs(first)
    one = judge(jobs, ended)
    recovery = "never" if one.recovery_seconds is None else f"{one.recovery_seconds:.0f}"
    counts = one.accepted, one.refused, one.failed, one.lost, one.doubled, f"{one.longest_seconds:.1f}", recovery
    row = [cell.process, cell.fault, *map(str, counts), _alert(cell, alerts), f"{load:.0f}", now]
    print(row, flush=True)
    return row, [round((job.called or job.due - 1) - job.due, 2) for job in jobs]


def _hold(cell: Cell, rig: Rig, began: float) -> None:
    """Keep the fault until its alert fires, but for at least its own time."""
    waits = cell.seconds if cell.alert.startswith("none") else max(ALERT_SECONDS, cell.seconds)
    while time.time() < began + waits:
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


def _alert(cell: Cell, alerts: dict[str, int]) -> str:
    if cell.alert.startswith("none"):
        return cell.alert
    name = cell.alert.partition(" ")[0]
    return f"{name} after {alerts[cell.alert]} s" if cell.alert in alerts else f"**{name} missing**"


def _is_missed(row: list[str]) -> bool:
    return "missing" in row[HEAD.index("alert")] or {row[HEAD.index(what)] for what in ("lost", "doubled")} != {"0"}


def report(ledger: Ledger) -> None:
    """Print the table of cells, and the verdicts over all of them."""
    done = [(*ledger[cell.name], cell) for cell in CELLS if cell.name in ledger]
    table(HEAD, [row for row, _, _ in done])
    for _, seconds, cell in done:
        samples(cell.name, seconds)
    missed = [cell for cell in CELLS if cell.name not in ledger or _is_missed(ledger[cell.name][0])]
    if missed:
        title("Cells that are missed or have not run")
        table(
            ("process", "fault", "cause"),
            [
                (cell.process, cell.fault, CAUSES.get(cell.name, "unknown") if cell.name in ledger else "Not run yet.")
                for cell in missed
            ],
        )
    lost, doubled = (sum(int(row[HEAD.index(what)]) for row, _, _ in done) for what in ("lost", "doubled"))
    silent = sum("missing" in row[HEAD.index("alert")] for row, _, _ in done)
    verdict("jobs lost, in all cells", lost, 0, at_least=False)
    verdict("jobs doubled, in all cells", doubled, 0, at_least=False)
    verdict("cells whose alert did not fire", silent, 0, at_least=False)
    verdict("cells that have not run", len(CELLS) - len(done), 0, at_least=False)


if __name__ == "__main__":
    main()
