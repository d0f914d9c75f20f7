"""Runs each trace under each way of scaling: `python -m bench.scaling`. The bench takes minutes and does no I/O.

*Lag* is the usual rule: one worker for every N records after the committed offsets. The smallest N of the bench is the
number of jobs that one worker answers at once; a larger N needs fewer workers, but jobs may miss their deadlines.
*Deadlines* is the number of workers that `postback exporter` wants, once with the margin from the measured answers, and
once with the fixed margin alone. The same simulated autoscaler, with the same bounds, applies each rule.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from bench.result import parsed, table, title, verdict
from bench.scaling.cluster import SimulatedRun, simulate
from bench.scaling.traces import DAY_SECONDS, NAMES, trace
from bench.scaling.ways import by_deadlines, by_lag

THRESHOLDS = (8, 32, 128)
"""Records of lag for each worker."""
MOST_SHARE = 0.8


def compare(name: str, seconds: float) -> tuple[SimulatedRun, list[SimulatedRun]]:
    """Return the outcome by deadlines, and the outcomes of all other ways: by lag, and last with the fixed margin."""
    jobs = trace(name, seconds)
    others = [*map(by_lag, THRESHOLDS), by_deadlines(measured=False)]
    return simulate(jobs, by_deadlines(), seconds), [simulate(jobs, way, seconds) for way in others]


def row(name: str, ours: SimulatedRun, others: Sequence[SimulatedRun]) -> list[str]:
    """Return a row of the table."""
    cells = [f"{each.replica_hours:.1f} h, {len(each.missed)} missed" for each in (*others, ours)]
    kept = len(ours.missed - others[0].missed)
    return [name, *cells, f"{ours.replica_hours / others[0].replica_hours:.2f}", str(kept)]


def main() -> None:
    """Compare on all traces, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=DAY_SECONDS / 3600, help="length of each trace, in hours")
    parser.add_argument("--traces", nargs="+", choices=NAMES, default=NAMES)
    options = parsed(parser)
    title("replica-hours and missed deadlines of workers that are scaled by lag and by deadlines")
    rows, shares, worse = [], [], 0
    for name in options.traces:
        begun = time.monotonic()
        ours, others = compare(name, options.hours * 3600)
        rows.append(row(name, ours, others))
        shares.append(ours.replica_hours / others[0].replica_hours)
        worse += len(ours.missed - others[0].missed)
        print(*rows[-1], f"({time.monotonic() - begun:.0f} s)", sep=" | ", flush=True)
    columns = [f"lag, {each} a worker" for each in THRESHOLDS]
    columns += ["deadlines, fixed margin"]
    table(("trace", *columns, "deadlines", "share of the first", "missed by deadlines alone"), rows)
    verdict("largest share of lag's replica-hours", max(shares), MOST_SHARE, at_least=False)
    verdict("jobs answered in time only if scaled by lag", worse, 0, at_least=False)


if __name__ == "__main__":
    main()
