"""Prometheus with `promtool`, and Alertmanager: Debian's packages, unpacked into a cache. No service is started."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path

from tests.debian_package import unpacked


@cache
def promtool() -> Path:
    """Return the path of `promtool`."""
    if found := shutil.which("promtool"):
        return Path(found)
    return unpacked("prometheus") / "usr" / "bin" / "promtool"


def amtool() -> Path:
    """Return the path of `amtool`, which checks Alertmanager's configuration."""
    return unpacked("prometheus-alertmanager") / "usr" / "bin" / "amtool"


def prometheus() -> Path:
    """Return the path of the server."""
    return unpacked("prometheus") / "usr" / "bin" / "prometheus"


def alertmanager(*arguments: str) -> list[str | Path]:
    """Return the command that runs Alertmanager.

    Debian's Alertmanager reads templates in /usr/share, so it gets its unpacked folder mounted there.
    """
    root = unpacked("prometheus-alertmanager")
    namespace = ["--mount"] if os.geteuid() == 0 else ["--map-root-user", "--mount"]
    bound = 'mount --bind "$1" /usr/share && shift && exec "$@"'
    program = root / "usr" / "bin" / "prometheus-alertmanager"
    return ["unshare", *namespace, "sh", "-c", bound, "sh", root / "usr" / "share", program, *arguments]
