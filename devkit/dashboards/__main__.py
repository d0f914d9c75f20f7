"""The command: `python -m devkit.dashboards PICTURES --prometheus URL`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import requests

from devkit.dashboards.model import read_dashboard
from devkit.dashboards.picture import draw
from devkit.dashboards.series import Period, panel_series
from telemetry.clock import SystemClock

_DASHBOARDS = Path(__file__).parents[2] / "deploy" / "grafana"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one PNG for each dashboard, and print the panels without data."""
    chosen = _parser().parse_args(arguments)
    end = chosen.until.timestamp() if chosen.until else SystemClock().time()
    period = Period(end, 60 * chosen.minutes, chosen.scrape_seconds)
    chosen.pictures.mkdir(parents=True, exist_ok=True)
    for file in sorted(chosen.dashboards.glob("*.json")):
        dashboard = read_dashboard(file)
        try:
            series = {panel: panel_series(chosen.prometheus, panel, period) for panel in dashboard.panels}
        except requests.RequestException as error:
            sys.exit(
                f"{chosen.prometheus} did not answer as a Prometheus ({type(error).__name__}); correct --prometheus."
            )
        picture = chosen.pictures / f"{dashboard.name}.png"
        draw(dashboard, series, period, picture)
        sys.stdout.write(f"{picture}\n")
        for panel, lines in series.items():
            if not lines:
                sys.stdout.write(f"  no data: {panel.title}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m devkit.dashboards", description=main.__doc__)
    parser.add_argument("pictures", type=Path, help="the folder to write the pictures to")
    parser.add_argument(
        "--prometheus", default="http://localhost:9090", help="Prometheus's address (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        help="length of the pictures' time span in minutes (default: %(default)s)",
    )
    parser.add_argument(
        "--until", type=datetime.fromisoformat, help="end of the pictures' time span, as ISO 8601 (default: now)"
    )
    parser.add_argument(
        "--scrape-seconds", type=float, default=15.0, help="Prometheus's scrape interval (default: %(default)s)"
    )
    parser.add_argument(
        "--dashboards", type=Path, default=_DASHBOARDS, help="the folder with the dashboards (default: deploy/grafana)"
    )
    return parser


if __name__ == "__main__":
    main()
