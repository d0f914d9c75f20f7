"""The errors of certificates. Each text names the field or the file, the problem and the fix, and shows no key.

CertificatesError
├── InputRefused            a name, a tenant, a scope or a number of days
├── AuthorityUnusable       the authority's directory or a file in it
├── CertificateExists       a certificate of this name is valid already
└── CertificateUnknown      the authority has issued no such certificate
"""

from __future__ import annotations

from pathlib import Path


class CertificatesError(Exception):
    """The base of this package's errors."""


class InputRefused(CertificatesError, ValueError):  # noqa: N818 - named after the refusal
    """An argument is wrong; nothing was changed."""


class AuthorityUnusable(CertificatesError):  # noqa: N818 - named after the problem
    """The authority's directory cannot be used as it is."""

    def __init__(self, path: Path, problem: str, fix: str) -> None:
        super().__init__(f"{path}: {problem}; {fix}")


class CertificateExists(CertificatesError):  # noqa: N818 - named after the certificate
    """A certificate or a file already has this name."""


class CertificateUnknown(CertificatesError):  # noqa: N818 - named after the certificate
    """No certificate that the operation applies to has this name or serial number."""
