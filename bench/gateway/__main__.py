"""Runs the named measurements of the front door, or all: `python -m bench.gateway [NAME …]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from bench.gateway import accepting, batches, tracing
from bench.gateway.running import SMOKE, Sizes
from bench.result import parsed

MEASUREMENTS: dict[str, Callable[[str | None, Sizes], None]] = {
    "batches": batches.main,
    "accepting": accepting.main,
    "tracing": tracing.main,
}


def main() -> None:
    """Run the measurements one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *MEASUREMENTS], help="the measurements to run; by default all")
    parser.add_argument("--bootstrap-servers", help="a Kafka to use; by default the bench starts one")
    parser.add_argument("--smoke", action="store_true", help="use tiny sizes, to test the bench itself")
    chosen = parsed(parser)
    for name in chosen.names or MEASUREMENTS:
        MEASUREMENTS[name](chosen.bootstrap_servers, SMOKE if chosen.smoke else Sizes())


if __name__ == "__main__":
    main()
