"""Prometheus with `promtool`, and Alertmanager: Debian's packages, unpacked into a cache. No service is started."""

from __future__ import annotations

import os
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
    if found := shutil.which("promtool"):
        return Path(found)
    return _package("prometheus") / "usr" / "bin" / "promtool"


def amtool() -> Path:
    """Return the path of `amtool`, which checks Alertmanager's configuration."""
    return _package("prometheus-alertmanager") / "usr" / "bin" / "amtool"


def prometheus() -> Path:
    """Return the path of the server."""
    return _package("prometheus") / "usr" / "bin" / "prometheus"


def alertmanager(*arguments: str) -> list[str | Path]:
    """Return the command that runs Alertmanager. Debian's reads its templates in /usr/share, so it sees its own one."""
    root = _package("prometheus-alertmanager")
    namespace = ["--mount"] if os.geteuid() == 0 else ["--map-root-user", "--mount"]
    bound = 'mount --bind "$1" /usr/share && shift && exec "$@"'
    program = root / "usr" / "bin" / "prometheus-alertmanager"
    return ["unshare", *namespace, "sh", "-c", bound, "sh", root / "usr" / "share", program, *arguments]


@cache
def _package(name: str) -> Path:
    """Return the folder into which the package is unpacked."""
    unpacked = cache_folder() / name
    if not unpacked.exists():
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=unpacked.parent) as staging:
            _unpack(name, Path(staging))
            with suppress(OSError):  # another run may have unpacked it meanwhile
                (Path(staging) / "root").rename(unpacked)
    return unpacked


def _unpack(name: str, folder: Path) -> None:
    download = ["apt-get", "download", "-q", name]
    if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode != 0:
        subprocess.run(["apt-get", "update", "-q"], stdout=subprocess.DEVNULL, check=True)
        subprocess.run(download, cwd=folder, capture_output=True, check=True)
    [package] = folder.glob(f"{name}_*.deb")
    subprocess.run(["dpkg", "-x", package, folder / "root"], check=True)
