"""Runs the named measurements of the front door, or all: `python -m bench.gateway [NAME …]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from bench.gateway import batches

MEASUREMENTS: dict[str, Callable[[], None]] = {"batches": batches.main}


def main() -> None:
    """Run the measurements one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *MEASUREMENTS], help="by default all")
    for name in parser.parse_args().names or MEASUREMENTS:
        MEASUREMENTS[name]()


if __name__ == "__main__":
    main()
