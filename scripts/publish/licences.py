"""The page of licences: each package that the images install, and the foreign code that its wheel has inside.

A licence comes from the package's own metadata. Metadata names no library that a wheel bundles, so tables here do; the
Rust crates of a wheel stand in its SBOM. A package or a library without a licence of `PERMITTED` ends the run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from scripts.publish.markdown import table

ROOT: Final = Path(__file__).parents[2]
PINS: Final = ROOT / "requirements" / "worker.txt"
"""The pins that both images install; the packages of build.txt stay in the stage that builds the wheel."""
IMAGE: Final = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.9",
    "python_version": "3.11",
    "sys_platform": "linux",
}
"""The images' platform, by which environment markers leave out packages of others."""

PERMITTED: Final = frozenset(
    {
        *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSD-4-Clause-UC"),
        *("BSL-1.0", "bzip2-1.0.6", "CC0-1.0", "curl", "FTL", "HPND", "IJG", "ISC", "LGPL-2.1-or-later"),
        *("LGPL-3.0-only", "libpng-2.0", "libtiff", "LicenseRef-AGG-2.3", "LicenseRef-Public-Domain", "MIT", "MIT-0"),
        *("MIT-CMU", "MPL-2.0", "OLDAP-2.8", "PostgreSQL", "PSF-2.0", "Unicode-3.0", "Unicode-DFS-2016", "Unlicense"),
        *("X11", "Zlib"),
    }
)
"""SPDX names of licences that an image may carry. The GPL and the AGPL are not among them."""

_SPELLINGS: Final = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD-3-Clause and Public-Domain": "BSD-3-Clause AND LicenseRef-Public-Domain",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "PSFL": "PSF-2.0",
}
"""Texts of metadata for which SPDX has another name."""
_READ_BY_HAND: Final = {
    "google-re2": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "lz4": "BSD-3-Clause",
    "pypdfium2": "BSD-3-Clause OR Apache-2.0",
    "pystemmer": "MIT AND BSD-3-Clause",
    "python-dateutil": "Apache-2.0 AND BSD-3-Clause",
}
"""Licences of packages whose metadata is vague, such as "BSD License", as their licence files say."""


@dataclass(frozen=True, slots=True)
class Library:
    """Foreign code inside a wheel."""

    name: str
    licence: str


_OPENSSL: Final = Library("OpenSSL", "Apache-2.0")
_ZLIB: Final = Library("zlib", "Zlib")
_ZSTD: Final = Library("zstd", "BSD-3-Clause")
_LZ4: Final = Library("LZ4", "BSD-2-Clause")
_LEXBOR: Final = Library("lexbor", "Apache-2.0")
_LLHTTP: Final = Library("llhttp", "MIT")
_JPEG: Final = Library("libjpeg-turbo", "IJG AND BSD-3-Clause AND Zlib")
_OPENJPEG: Final = Library("OpenJPEG", "BSD-2-Clause")
_FREETYPE: Final = Library("FreeType", "FTL")
_HARFBUZZ: Final = Library("HarfBuzz", "MIT")
_LCMS: Final = Library("Little CMS", "MIT")
_PNG: Final = Library("libpng", "libpng-2.0")
_TIFF: Final = Library("libtiff", "libtiff")
_ABSEIL: Final = Library("Abseil", "Apache-2.0")
_KERBEROS: Final = Library("MIT Kerberos", "MIT")
_WEBP: Final = Library("libwebp", "BSD-3-Clause")
_BROTLI: Final = Library("Brotli", "MIT")

_SHARED: Final = {
    "libXau": Library("libXau", "HPND"),
    "libavif": Library("libavif with libaom", "BSD-2-Clause"),
    "libbrotlicommon": _BROTLI,
    "libbrotlidec": _BROTLI,
    "libcom_err": Library("libcom_err", "MIT"),
    "libcrypt": Library("libcrypt of glibc", "LGPL-2.1-or-later"),
    "libcrypto": _OPENSSL,
    "libfreetype": _FREETYPE,
    "libgssapi_krb5": _KERBEROS,
    "libharfbuzz": _HARFBUZZ,
    "libjpeg": _JPEG,
    "libk5crypto": _KERBEROS,
    "libkeyutils": Library("libkeyutils", "LGPL-2.1-or-later"),
    "libkrb5": _KERBEROS,
    "libkrb5support": _KERBEROS,
    "liblber": Library("OpenLDAP", "OLDAP-2.8"),
    "liblcms2": _LCMS,
    "libldap": Library("OpenLDAP", "OLDAP-2.8"),
    "liblzma": Library("liblzma", "0BSD"),
    "libopenjp2": _OPENJPEG,
    "libpdfium": Library("PDFium", "BSD-3-Clause AND Apache-2.0"),
    "libpng16": _PNG,
    "libpq": Library("libpq", "PostgreSQL"),
    "librdkafka": Library("librdkafka", "BSD-2-Clause"),
    "libsasl2": Library("Cyrus SASL", "BSD-4-Clause-UC"),
    "libsharpyuv": _WEBP,
    "libssl": _OPENSSL,
    "libtiff": _TIFF,
    "libwebp": _WEBP,
    "libwebpdemux": _WEBP,
    "libwebpmux": _WEBP,
    "libxcb": Library("libxcb", "X11"),
    "libzstd": _ZSTD,
}
"""Shared libraries that wheels bring, by the beginning of their files' names."""
_LINKED: Final[dict[str, tuple[Library, ...]]] = {
    "aiohttp": (_LLHTTP,),
    "backports-zstd": (_ZSTD,),
    "brotli": (_BROTLI,),
    "cffi": (Library("libffi", "MIT"),),
    "charset-normalizer": (),
    "confluent-kafka": (_OPENSSL, Library("curl", "curl"), _ZLIB, _ZSTD, _LZ4, Library("snappy", "BSD-3-Clause")),
    "cramjam": (_ZSTD, _LZ4, Library("bzip2", "bzip2-1.0.6"), Library("liblzma", "LicenseRef-Public-Domain")),
    "cryptography": (_OPENSSL,),
    "fastwarc": (_ZSTD,),
    "frozenlist": (),
    "google-re2": (Library("RE2", "BSD-3-Clause"), _ABSEIL),
    "httptools": (_LLHTTP, Library("http-parser", "MIT")),
    "lz4": (_LZ4,),
    "markupsafe": (),
    "multidict": (),
    "pillow": (Library("zlib-ng", "Zlib"), Library("Raqm", "MIT"), Library("pythoncapi_compat", "0BSD")),
    "propcache": (),
    "protobuf": (Library("upb", "BSD-3-Clause"), Library("utf8_range", "MIT")),
    "psycopg-binary": (),
    "pyahocorasick": (),
    "pycares": (Library("c-ares", "MIT"),),
    "pydantic-core": (),
    "pynacl": (Library("libsodium", "ISC"),),
    "pypdfium2": (
        *(_ABSEIL, Library("AGG 2.3", "LicenseRef-AGG-2.3"), Library("dragonbox", "Apache-2.0 OR BSL-1.0")),
        *(Library("fast_float", "MIT OR Apache-2.0 OR BSL-1.0"), _FREETYPE, _HARFBUZZ),
        *(Library("Highway", "Apache-2.0 OR BSD-3-Clause"), Library("ICU", "Unicode-3.0"), _JPEG, _LCMS, _OPENJPEG),
        *(Library("libc of LLVM", "Apache-2.0 WITH LLVM-exception"), _PNG, _TIFF),
        *(Library("simdutf", "MIT OR Apache-2.0"), _ZLIB),
    ),
    "pystemmer": (Library("Snowball", "BSD-3-Clause"),),
    "python-calamine": (),
    "rapidfuzz": (Library("rapidfuzz-cpp", "MIT"), Library("Taskflow", "MIT")),
    "resiliparse": (_LEXBOR,),
    "rpds-py": (),
    "selectolax": (_LEXBOR,),
    "sentencex": (),
    "sqlalchemy": (),
    "uvloop": (Library("libuv", "MIT"),),
    "yarl": (),
}
"""Code linked into each compiled package, read from its sources and licence files; crates stand in SBOMs instead."""
_SHARED_FILE: Final = re.compile(r"(lib\w+?)(-[0-9a-f]{8})?\.so(\.[\d.]+)?")

_HEAD: Final = """# Licences

The licences of the Python packages that both images install, as SPDX names, and of the foreign code in their wheels.
`python -m scripts.publish` writes this page from the packages' metadata; a test compares it with the pins.
The images have this page as `/opt/postback/share/doc/postback/licences.md`.
The licences' texts stand in the folder of each package, `/opt/postback/lib/python3.*/site-packages/*.dist-info`.

Postback itself is under Apache-2.0, with [htmx](../../gateway/page/static/htmx.LICENSE) (0BSD) in the console page, and
[lists of words](../../workers/screening/words/NOTICE) of glin-profanity (MIT) in the input filter.
psycopg is under the LGPL: its files are unchanged, and another version may take their place.
No part needs the GPL or the AGPL: where a crate offers the GPL, it offers Apache-2.0 too.

A base image's own packages are not in these tables: Debian names its licences in `/usr/share/doc/*/copyright`, and the
SBOM beside an image lists vLLM's packages.

## Packages

"""
_CRATES: Final = """
## Rust crates

Compiled into these packages; their SBOMs, `*.dist-info/sboms`, name each crate.

"""


class LicenceUnknown(Exception):  # noqa: N818 - named after the fault of a package
    """Packages or libraries have no licence that an image may carry."""


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package, with the licences of its own code and of the code inside its wheel."""

    name: str
    version: str
    licence: str
    libraries: tuple[Library, ...]
    crates: tuple[Library, ...]


def page() -> str:
    """Return the page. Raises LicenceUnknown, and PackageNotFoundError where `.venv` lacks a package."""
    packages = [examined(name, distribution(name)) for name in pinned(PINS.read_text(encoding="utf-8"))]
    refuse(packages)
    rows = ((each.name, each.version, each.licence, _listed(each.libraries)) for each in packages)
    crates = (
        (each.name, ", ".join(sorted({crate.licence for crate in each.crates}))) for each in packages if each.crates
    )
    return (
        _HEAD
        + table(("package", "version", "licence", "foreign code inside"), rows)
        + _CRATES
        + table(("package", "licences of its crates"), crates)
    )


def pinned(requirements: str) -> Iterator[str]:
    """Yield the names of the packages that a file of pins installs on the images' platform."""
    for line in re.findall(r"^[a-z].*?(?= *\\?$)", requirements, re.MULTILINE):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(dict(IMAGE)):
            yield requirement.name


def examined(name: str, installed: Distribution) -> Package:
    """Return a package with its licences; a licence that is not known is an empty text."""
    files = installed.files or []
    is_compiled = any(".so" in file.suffixes for file in files)
    linked = _LINKED.get(name, (Library("compiled code that scripts/publish/licences.py does not name", ""),))
    crates = {
        Library(
            part["name"], " AND ".join(each.get("expression") or each["license"]["id"] for each in part["licenses"])
        )
        for file in files
        if file.match("*.dist-info/sboms/*")
        for part in json.loads(file.read_text(encoding="utf-8"))["components"]
        if part.get("purl", "").startswith("pkg:cargo/")
    }
    return Package(
        name,
        installed.version,
        _READ_BY_HAND.get(name) or _licence(installed),
        tuple(dict.fromkeys((*_shared(file.name for file in files), *(linked if is_compiled else ())))),
        tuple(crates),
    )


def _licence(installed: Distribution) -> str:
    """Return the licence in a package's metadata; an empty text if there is none, or one that says too little."""
    fields = ("License-Expression", "License", "Classifier")
    found = (text.rpartition(" :: ")[2] for field in fields for text in installed.metadata.get_all(field) or [])
    spelled = (_SPELLINGS.get(text, text) for text in found)
    return next((licence for licence in spelled if "GPL" in licence or is_permitted(licence)), "")


def _shared(names: Iterable[str]) -> Iterator[Library]:
    """Yield the shared libraries among a package's files."""
    for name in names:
        if (file := _SHARED_FILE.fullmatch(name)) is not None:
            yield _SHARED.get(file[1], Library(name, ""))


def is_permitted(expression: str) -> bool:
    """True if an SPDX expression can be met by permitted licences alone. `AND` binds more closely than `OR`."""
    while (inner := re.search(r"\(([^()]*)\)", expression)) is not None:
        verdict = "MIT" if is_permitted(inner[1]) else "none"
        expression = f"{expression[: inner.start()]}{verdict}{expression[inner.end() :]}"
    return any(all(name in PERMITTED for name in way.split(" AND ")) for way in expression.split(" OR "))


def refuse(packages: Iterable[Package]) -> None:
    """Raise LicenceUnknown, which names each part without a permitted licence."""
    parts = {
        f"{part.name}{place}": part.licence
        for each in packages
        for part, place in (
            (Library(each.name, each.licence), ""),
            *((part, f" in {each.name}") for part in (*each.libraries, *each.crates)),
        )
    }
    refused = [f"{name} ({licence or 'unknown'})" for name, licence in parts.items() if not is_permitted(licence)]
    if refused:
        raise LicenceUnknown(
            f"no permitted licence: {', '.join(refused)}; read it, then name it in scripts/publish/licences.py, "
            "or take another package"
        )


def _listed(libraries: Iterable[Library]) -> str:
    return ", ".join(f"{each.name} ({each.licence})" for each in libraries)
