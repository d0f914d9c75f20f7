"""One executable of a Kubernetes control plane, kubectl and KEDA, built from Go modules and kept in the user's cache.

KEDA is built with the metrics-api trigger alone, which the chart uses, and without clouds' libraries, which would make
the build three times as long. The controllers, the adapter and this trigger are KEDA's own code.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from tests.go_tools import cache, downloaded, go, one_build_at_a_time, run

KUBERNETES, KEDA, ETCD = "v1.36.3", "v2.21.0", "v3.7.3"
BUILD_SECONDS = 3000.0
"""The timeout of a build: about three times its duration on two busy cores."""
TEST_SECONDS = BUILD_SECONDS + 2400.0
"""The timeout of a test, which may have to build first."""
_SOURCES = Path(__file__).with_name("go")
_FIX = "the Go module proxy has to be reachable (GOPROXY), or the executable already be in the cache"
_SCALERS = ("scaler.go", "metrics_api_scaler.go")
_WITHOUT_CLOUDS = {
    "scalers.go": "pkg/scalers",
    "resolver.go": "pkg/scaling/resolver",
    "eventemitter.go": "pkg/eventemitter",
}
_CLOUDS = (
    "pkg/scaling/resolver/aws_secretmanager_handler.go",
    "pkg/scaling/resolver/azure_keyvault_handler.go",
    "pkg/scaling/resolver/gcp_secretmanager_handler.go",
    "pkg/eventemitter/azure_event_grid_topic_handler.go",
)


def executable() -> Path:
    """The executable, built if these versions of its sources are missing; fails the test if the build fails."""
    # The executable has a folder of its own, so that its long build does not delay the builds of the small tools.
    target = cache() / "kubernetes" / f"{KUBERNETES}-{_inputs()}"
    with one_build_at_a_time(target.parent):
        if not target.exists():
            _build(target)
    return target


def keda_definitions() -> Path:
    """The folder of KEDA's CustomResourceDefinitions, in its module."""
    return Path(downloaded(f"github.com/kedacore/keda/v2@{KEDA}")["Dir"]) / "config" / "crd" / "bases"


def _inputs() -> str:
    """Digest of this file and the Go files, for the executable's name: a change to them gives a new name."""
    files = [Path(__file__), *sorted(_SOURCES.iterdir())]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _build(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        home = Path(folder)
        shutil.copy(_SOURCES / "main.go", home)
        _copy_keda(Path(downloaded(f"github.com/kedacore/keda/v2@{KEDA}")["Dir"]), home / "keda")
        (home / "go.mod").write_text(_go_mod())
        major, minor, _ = KUBERNETES.removeprefix("v").split(".")
        version = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor}
        stamps = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in version.items())
        flags = ["-trimpath", "-mod=mod", "-p", "2", "-gcflags=all=-dwarf=false", "-ldflags", f"-s -w {stamps}"]
        run(
            [str(go()), "build", *flags, "-o", "kubernetes", "."],
            fix=_FIX,
            env={**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"},
            cwd=home,
            seconds=BUILD_SECONDS,
        )
        (home / "kubernetes").replace(target)


def _go_mod() -> str:
    """The module's requirements. Kubernetes' own parts have the versions of the same Kubernetes release."""
    kubernetes = Path(downloaded(f"k8s.io/kubernetes@{KUBERNETES}")["GoMod"]).read_text()
    part = KUBERNETES.replace("v1.", "v0.")
    [language] = re.findall(r"^go (\S+)", kubernetes, re.MULTILINE)
    parts = re.findall(r"^\t(k8s\.io/\S+) => \./staging", kubernetes, re.MULTILINE)
    lines = [
        "module postback.test/kubernetes",
        f"go {language}",
        f"require k8s.io/kubernetes {KUBERNETES}",
        f"require github.com/kedacore/keda/v2 {KEDA}",
        f"require go.etcd.io/etcd/server/v3 {ETCD}",
        "replace github.com/kedacore/keda/v2 => ./keda",
        *(f"replace {name} => {name} {part}" for name in parts),
    ]
    return "\n".join(lines) + "\n"


def _copy_keda(module: Path, copy: Path) -> None:
    shutil.copytree(module, copy, ignore=shutil.ignore_patterns("*_test.go", "mock"), copy_function=shutil.copyfile)
    for read_only in (copy, *copy.rglob("*/")):
        read_only.chmod(0o755)  # Go's module cache made the folders read-only
    for scaler in (copy / "pkg" / "scalers").glob("*.go"):
        if scaler.name not in _SCALERS:
            scaler.unlink()
    for file in _CLOUDS:
        (copy / file).unlink()
    for name, folder in _WITHOUT_CLOUDS.items():
        shutil.copy(_SOURCES / name, copy / folder / "without_clouds.go")
    _keep_constants(copy / "pkg" / "scalers" / "azure")
    _edit(copy / "pkg" / "scaling" / "scalers_builder.go", r'\tcase "(?!metrics-api")[^"]+":\n\t\treturn .*\n', "")
    for program in ("operator", "adapter"):
        main = copy / "cmd" / program / "main.go"
        _edit(main, r"^package main$", f"package {program}")
        _edit(main, r"^func main\(\)", "func Main()")


def _keep_constants(azure: Path) -> None:
    """Reduce a package of KEDA to its constants, the names of secrets: other packages need only these."""
    text = (azure / "azure_service_principal.go").read_text()
    [constants] = re.findall(r"^const \(.*?^\)", text, re.MULTILINE | re.DOTALL)
    for file in azure.glob("*.go"):
        file.unlink()
    (azure / "azure_service_principal.go").write_text(f"package azure\n\n{constants}\n")


def _edit(file: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, file.read_text(), flags=re.MULTILINE)
    assert count, f"{file.name} of KEDA {KEDA} has no {pattern}"
    file.write_text(text)
