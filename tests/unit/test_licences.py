"""The licences of the images' packages: each part has a permitted one, and the tables by hand name nothing else."""

from __future__ import annotations

import json
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

from scripts.publish import licences
from scripts.publish.licences import LicenceUnknown, examined, is_permitted, page, pinned, refuse

PINNED = list(pinned(licences.PINS.read_text(encoding="utf-8")))


def installed(folder: Path, metadata: str, files: dict[str, str] | None = None) -> Distribution:
    """Install a package of the name `new` that has only metadata and the given files."""
    written = {
        "new-1.dist-info/METADATA": f"Metadata-Version: 2.4\nName: new\nVersion: 1\n{metadata}\n",
        **(files or {}),
    }
    for name, text in written.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "new-1.dist-info" / "RECORD").write_text("".join(f"{name},,\n" for name in written), encoding="utf-8")
    return Distribution.at(folder / "new-1.dist-info")


def crate(licence: str) -> dict[str, str]:
    part = {"name": "crab", "purl": "pkg:cargo/crab@1", "licenses": [{"expression": licence}]}
    return {"new-1.dist-info/sboms/new.cyclonedx.json": json.dumps({"components": [part]})}


@pytest.mark.parametrize(
    ("metadata", "files", "named"),
    [
        ("", {}, "new (unknown)"),
        ("License: see the file", {}, "new (unknown)"),
        ("License-Expression: GPL-3.0-or-later", {}, "new (GPL-3.0-or-later)"),
        ("License-Expression: MIT AND AGPL-3.0-only", {}, "new (MIT AND AGPL-3.0-only)"),
        ("Classifier: License :: OSI Approved :: GNU Affero General Public License v3", {}, "new (unknown)"),
        ("License: GPL\nClassifier: License :: OSI Approved :: MIT License", {}, "new (GPL)"),
        ("License-Expression: MIT", {"new.libs/libimagequant-12345678.so.0": ""}, "libimagequant-12345678.so.0 in new"),
        ("License-Expression: MIT", {"new/fast.cpython-311-x86_64-linux-gnu.so": ""}, "compiled code"),
        ("License-Expression: MIT", crate("GPL-2.0-only"), "crab in new (GPL-2.0-only)"),
    ],
)
def test_a_part_without_a_permitted_licence_is_refused_by_its_name(
    metadata: str, files: dict[str, str], named: str, tmp_path: Path
) -> None:
    with pytest.raises(LicenceUnknown) as refused:
        refuse([examined("new", installed(tmp_path, metadata, files))])
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("metadata", "files", "licence"),
    [
        ("License-Expression: LGPL-3.0-only", {}, "LGPL-3.0-only"),
        ("License: Apache 2.0", {}, "Apache-2.0"),
        ("License: Dual License\nClassifier: License :: OSI Approved :: ISC License", {}, "ISC"),
        ("License-Expression: MIT", crate("Apache-2.0 OR GPL-2.0-only"), "MIT"),
    ],
)
def test_a_permitted_licence_is_named_by_spdx(
    metadata: str, files: dict[str, str], licence: str, tmp_path: Path
) -> None:
    package = examined("new", installed(tmp_path, metadata, files))
    refuse([package])
    assert package.licence == licence


def test_an_expression_needs_one_way_of_permitted_licences() -> None:
    assert is_permitted("(MIT OR GPL-3.0-only) AND Unicode-3.0")
    assert is_permitted("GPL-3.0-only AND MIT OR ISC")
    assert not is_permitted("MIT AND (GPL-3.0-only OR AGPL-3.0-only)")
    assert not any(name.startswith(("GPL", "AGPL")) for name in licences.PERMITTED)


def test_markers_leave_out_packages_of_other_platforms() -> None:
    pins = licences.PINS.read_text(encoding="utf-8")
    absent = {"async-timeout", "colorama", "httpx2-jsfetch", "pywin32", "tzdata"}
    assert all(f"\n{name}==" in pins for name in absent)
    assert absent.isdisjoint(PINNED)
    assert {"psycopg", "psycopg-binary", "truststore"} <= set(PINNED)


def test_the_page_names_psycopg_and_the_libraries_inside_its_wheel() -> None:
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in page().splitlines()}
    assert rows["psycopg"].endswith("LGPL-3.0-only |  |")
    assert all(name in rows["psycopg-binary"] for name in ("LGPL-3.0-only", "libpq (PostgreSQL)", "OpenSSL"))


def test_the_tables_by_hand_name_packages_and_libraries_of_the_images_alone() -> None:
    names = [file.name for name in PINNED for file in distribution(name).files or []]
    shared = {file[1] for name in names if (file := licences._SHARED_FILE.fullmatch(name))}
    compiled = {name for name in PINNED if any(".so" in file.suffixes for file in distribution(name).files or [])}
    vague = {name for name in licences._READ_BY_HAND if is_permitted(licences._licence(distribution(name)))}

    assert set(licences._SHARED) == shared
    assert set(licences._LINKED) == compiled
    assert set(licences._READ_BY_HAND) <= set(PINNED)
    assert vague == {"python-dateutil", "pystemmer"}, "their metadata names one of two licences exactly"
