"""Debian's packages, unpacked into a cache: no service is started, and the machine stays as it is."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from tests.go_tools import cache as cache_folder


@cache
def unpacked(name: str) -> Path:
    """Return the folder into which the package is unpacked, without the packages that it depends on."""
    folder = cache_folder() / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=folder.parent) as staging:
            _unpack(name, Path(staging))
            with suppress(OSError):  # another test run may have unpacked the package meanwhile
                (Path(staging) / "root").rename(folder)
    return folder


def _unpack(name: str, folder: Path) -> None:
    download = ["apt-get", "download", "-q", name]
    if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode != 0:
        subprocess.run(["apt-get", "update", "-q"], stdout=subprocess.DEVNULL, check=True)
        subprocess.run(download, cwd=folder, capture_output=True, check=True)
    [package] = folder.glob(f"{name}_*.deb")
    subprocess.run(["dpkg", "-x", package, folder / "root"], check=True)
