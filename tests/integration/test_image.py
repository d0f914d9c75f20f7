"""The image: the files that the Dockerfile copies, and proof that they suffice."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def dockerfile(instruction: str) -> list[str]:
    joined = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in joined.splitlines() if line.startswith(f"{instruction} ")]


def pins(file: str) -> dict[str, set[str]]:
    """Maps a package to its pinned versions, which may differ between platforms."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([A-Za-z0-9._-]+)==([^ ]+)", (ROOT / "requirements" / file).read_text(), re.MULTILINE
    ):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def declared_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][extra] for extra in ("worker", "gateway", "s3", "screening", "ocr"))
    named = [Requirement(text) for texts in (project["dependencies"], *extras) for text in texts]
    return [requirement for requirement in named if requirement.name != project["name"]]


def test_the_image_starts_the_program_itself_and_not_as_root() -> None:
    targets = ("light", "worker-gpu")
    assert {words.split(" AS ")[1] for words in dockerfile("FROM")} == {"wheel", *targets}
    assert dockerfile("ENTRYPOINT") == ['["postback"]'] * len(targets)
    assert dockerfile("USER") == ["10001:10001"] * len(targets)
    assert dockerfile("FROM")[-1] == "${LIGHT_BASE} AS light", "the last target is the one that `docker build .` makes"


def test_both_images_are_made_by_the_same_steps_and_say_what_they_are() -> None:
    steps = [line for line in dockerfile("RUN") if "/requirements/install" in line]
    assert len(steps) == 2
    assert steps[0] == steps[1]
    environments = dockerfile("ENV")
    assert environments[0] == environments[1]
    for labels in dockerfile("LABEL"):
        named = set(re.findall(r"org\.opencontainers\.image\.([\w.]+)=", labels))
        assert named == {"title", "description", "base.name", "licenses", "version", "revision"}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {text for text in dockerfile("ARG") if text.startswith("VERSION=")} == {f"VERSION={version}"}


def test_the_images_keep_the_page_of_licences_where_it_says() -> None:
    page = (ROOT / "docs" / "reference" / "licences.md").read_text()
    [place] = re.findall(r"The images have this page as `(.+)`", page)
    assert f"install -D -m 0644 /requirements/licences.md {place}\n" in (ROOT / "requirements" / "install").read_text()


DOCKER = """#!/bin/sh
echo "$*" >> calls
case "$*" in
  *--raw*) echo '{"manifests":[{"digest":"sha256:aa"},{"digest":"sha256:bb"}]}' ;;
  *inspect*) echo "\\"sha256:$(echo "$4" | tr -dc a-z)\\"" ;;
  *build*) echo '{"containerimage.digest": "sha256:cc"}' | tee build/images/light.json > build/images/worker-gpu.json ;;
esac
"""
"""A docker that answers as a registry with an index, and whose digests of bases are their names."""


def test_images_are_built_from_their_bases_by_digest(tmp_path: Path) -> None:
    for name in ("scripts/images", "Dockerfile", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name, text in (("docker", DOCKER), ("git", "#!/bin/sh\necho 1\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    light = "registry.example/python:3.11@sha256:dd"
    done = subprocess.run(
        ["bash", "scripts/images"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PUSH": "registry.example/postback", "LIGHT_BASE": light},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    gpu = next(text.removeprefix("GPU_BASE=") for text in dockerfile("ARG") if text.startswith("GPU_BASE="))
    pinned = f"{gpu}@sha256:{re.sub('[^a-z]', '', gpu)}"
    assert done.stdout.splitlines() == [
        f"light {version} image sha256:aa index sha256:cc base {light}",
        f"worker-gpu {version} image sha256:aa index sha256:cc base {pinned}",
    ]
    built = [call for call in (tmp_path / "calls").read_text().splitlines() if " build " in call]
    assert [f"--build-arg LIGHT_BASE={light}" in call for call in built] == [True, True]
    assert [f"--build-arg GPU_BASE={pinned}" in call for call in built] == [False, True]


def test_every_stage_knows_the_commits_time_so_that_no_step_writes_the_builds() -> None:
    """Without that time, `useradd` would write the day into /etc/shadow, and the wheel would have the build's times."""
    epochs = [text for text in dockerfile("ARG") if text.startswith("SOURCE_DATE_EPOCH=")]
    assert len(epochs) == len(dockerfile("FROM"))
    assert len(set(epochs)) == 1


def test_everything_that_the_image_is_made_of_reaches_the_build() -> None:
    let_in = {line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {source for line in dockerfile("COPY") for source in line.split()[:-1]}
    # Bind mounts also bring files into the build: the requirements and the installing script.
    copied |= {source for line in dockerfile("RUN") for source in re.findall(r"type=bind,source=([^,]+)", line)}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]

    assert copied == let_in
    assert set(packages["packages"]) <= copied
    assert all((ROOT / path).exists() for path in copied)


def test_every_dependency_of_a_role_is_pinned_to_the_version_that_is_tested() -> None:
    shipped, tested = pins("worker.txt"), pins("dev.txt")

    for requirement in declared_requirements():
        versions = shipped.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement} has no pin: compile requirements/worker.txt again, see requirements/README.md"
        assert all(requirement.specifier.contains(version) for version in versions), requirement
    assert {name: versions - tested.get(name, set()) for name, versions in shipped.items() if versions} == {
        name: set() for name in shipped
    }


@pytest.mark.parametrize("file", ["worker.txt", "build.txt"])
def test_the_images_packages_are_checked_by_their_hashes_and_name_no_download_address(file: str) -> None:
    text = (ROOT / "requirements" / file).read_text()

    entries = [entry for entry in re.split(r"^(?=\w)", text, flags=re.MULTILINE) if "==" in entry]
    assert len(entries) == sum(len(versions) for versions in pins(file).values())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text


@pytest.mark.timeout(900)
def test_the_images_requirements_are_enough_for_every_role(tmp_path: Path) -> None:
    """Runs the Dockerfile's steps in a fresh environment, without vLLM and development packages.

    uv stands for pip, since uv takes from its cache the files that scripts/bootstrap has fetched.
    """
    python = tmp_path / "postback" / "bin" / "python"
    uv: list[str | Path] = [Path(sys.executable).with_name("uv"), "pip", "install", "--quiet", "--python", python]
    wheel: list[str | Path] = ["wheel", "-q", "--no-deps", "--wheel-dir", tmp_path / "wheels"]
    hashed: list[str | Path] = [*uv, "--require-hashes", "-r"]
    commands: tuple[list[str | Path], ...] = (
        [sys.executable, "-m", "venv", tmp_path / "postback"],
        [*hashed, ROOT / "requirements" / "build.txt"],
        [python, "-m", "pip", *wheel, "--no-build-isolation", ROOT, ROOT / "producers" / "postback_client"],
        [*hashed, ROOT / "requirements" / "worker.txt"],
        ["sh", "-c", f"{python} -m pip install -q --no-deps wheels/*.whl"],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    for role in ("worker", "deliver", "gateway", "exporter", "receive", "topics", "keys", "doctor"):
        done = subprocess.run(
            [python.with_name("postback"), role, "--help"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout + done.stderr
