"""Prometheus' `promtool`: the installed one, or Debian's package, unpacked into a cache. No service is started."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from tests.go_tools import cache as cache_folder


@cache
def promtool() -> Path:
    """Return the path of `promtool`."""
    unpacked = cache_folder() / "prometheus"
    tool = unpacked / "usr" / "bin" / "promtool"
    if found := shutil.which("promtool"):
        return Path(found)
    if not tool.exists():
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="prometheus.", dir=unpacked.parent) as staging:
            _unpack(Path(staging))
            with suppress(OSError):  # another run may have unpacked it meanwhile
                (Path(staging) / "root").rename(unpacked)
    return tool


def _unpack(folder: Path) -> None:
    download = ["apt-get", "download", "-q", "prometheus"]
    if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode != 0:
        subprocess.run(["apt-get", "update", "-q"], stdout=subprocess.DEVNULL, check=True)
        subprocess.run(download, cwd=folder, capture_output=True, check=True)
    [package] = folder.glob("prometheus_*.deb")
    subprocess.run(["dpkg", "-x", package, folder / "root"], check=True)
