"""Finds Java and Kafka's jars. If they are missing, Java is installed, and the jars are fetched once for each user.

`python -m cli.devkit.class_archive` installs and fetches in advance.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cli.devkit.kafka.errors import DownloadFailed, MissingPrerequisite

RELEASE = "kafka-4.3.1"
"""The folder's name in the cache. The name must change whenever the pom changes, so that jars of an earlier pom are
never used.
"""

_POM = Path(__file__).with_name("pom.xml")
_DEBIAN = Path("/etc/debian_version")
_INSTALL_TIMEOUT_SECONDS = 900


def java() -> str:
    """Return the path of `java`, found in JAVA_HOME or else in PATH.

    If neither has it, Java is installed on Debian if this process is root. Kafka 4 needs Java 17. Raises
    MissingPrerequisite.
    """
    home = os.environ.get("JAVA_HOME")
    if home and (found := shutil.which("java", path=Path(home) / "bin")):
        return found
    return program("java", "default-jre-headless")


def ensure_jars() -> Path:
    """Return the folder with Kafka's jars. The user's first call fetches the jars with Maven.

    The folder gets its name only when it is complete: simultaneous starts may fetch the jars twice, but never see an
    incomplete folder. Raises MissingPrerequisite, DownloadFailed.
    """
    target = cache_home() / "postback" / RELEASE
    if target.is_dir():
        return target
    java()  # Maven needs Java; this call raises MissingPrerequisite if there is no Java and none can be installed
    maven = program("mvn", "maven")
    sys.stderr.write(f"Fetching {RELEASE} into {target}\n")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{RELEASE}.", dir=target.parent) as staging:
        jars = Path(staging) / "jars"
        _copy_dependencies(maven, jars)
        try:
            jars.rename(target)
        except OSError:
            if not target.is_dir():  # if the folder exists, another start has fetched the jars
                raise
    return target


def class_archive() -> Path:
    """Return the path of the archive of Kafka's classes, which `class_archive` makes. Raises as `ensure_jars`."""
    return ensure_jars() / "classes.jsa"


def cache_home() -> Path:
    """Return the user's cache folder, by the XDG base directory specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _copy_dependencies(maven: str, into: Path) -> None:
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
    command = [maven, "-B", "-q", "-ntp", "-f", str(_POM), goal, f"-DoutputDirectory={into}", "-DincludeScope=runtime"]
    # Maven makes a `target` folder where it runs, and the pom's folder may be read-only in an installed package.
    done = _captured(command, cwd=into.parent)
    if done.returncode != 0 or not any(into.glob("kafka_2.13-*.jar")):
        raise DownloadFailed(_tail(done.stdout))


def program(name: str, package: str) -> str:
    """Return the path of a program.

    If it is missing, it is installed on Debian if this process is root. Raises MissingPrerequisite.
    """
    found = shutil.which(name)
    if found:
        return found
    detail = _apt_install(package) if _may_install() else ""
    found = shutil.which(name)
    if not found:
        raise MissingPrerequisite(name, package, detail)
    return found


def _may_install() -> bool:
    return _DEBIAN.exists() and os.geteuid() == 0 and shutil.which("apt-get") is not None


def _apt_install(package: str) -> str:
    """Install a package. Return the end of apt-get's output if the installation failed, else an empty text."""
    sys.stderr.write(f"Installing {package} with apt-get\n")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", package]):
        done = _captured(["apt-get", *arguments], environment=environment)
        if done.returncode != 0:
            return _tail(done.stdout)
    return ""


def _captured(
    command: list[str], cwd: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=_INSTALL_TIMEOUT_SECONDS,
        check=False,
    )


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])
