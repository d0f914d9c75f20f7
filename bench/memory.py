"""Measures the resident memory of a worker without an engine: `python -m bench.memory`."""

from __future__ import annotations

import argparse
import json

from bench.fleet import Command, broker, new_fleet, prefill, wait_for
from bench.result import parsed, table, title, verdict

TARGET_MB = 200
PARTITIONS = 12
SETTLED = "postback_settled_records_total"


def main() -> None:
    """Let a worker answer some jobs, and print its resident memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    options = parsed(parser)
    title(f"Resident memory of `postback worker --engine echo`, {options.jobs:,} jobs")
    with broker(options.bootstrap_servers) as used:
        kafka = new_fleet(used, PARTITIONS)
        with Command(kafka, "worker", "--engine", "echo", POSTBACK_REPLICA="w0") as worker:
            wait_for(worker.ready, 60)
            before = worker.rss_bytes() / 1e6
            prefill(kafka, (json.dumps({"prompt": f"a short question {n}"}).encode() for n in range(options.jobs)))
            wait_for(lambda: worker.sample()[SETTLED] >= options.jobs, 60)
            after = worker.rss_bytes() / 1e6
    table(("", "MB"), [("ready, nothing done", f"{before:.0f}"), (f"after {options.jobs:,} jobs", f"{after:.0f}")])
    verdict("resident memory", after, TARGET_MB, at_least=False, unit=" MB")


if __name__ == "__main__":
    main()
