"""The principal of a request: tenant and scopes, from the credential and never from the body."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class CredentialRefused(Exception):  # noqa: N818 - named after the refusal
    """The request has no valid credential. The error's text repeats no part of a credential."""


class IssuerAway(Exception):  # noqa: N818 - it names what happened
    """The issuer's keys cannot be fetched, and the last keys are too old; the request may be repeated."""


class Scope(StrEnum):
    """A permission of a credential. `admin` includes all other scopes, and reaches the endpoints of every tenant."""

    SUBMIT = "submit"
    """Submit jobs, upload files, create batches."""
    READ = "read"
    """Read jobs, files, batches, events."""
    CANCEL = "cancel"
    """Cancel jobs and batches, delete files."""
    WEBHOOKS = "webhooks"
    """Manage the tenant's webhook endpoints."""
    REDRIVE = "redrive"
    """Send callbacks again."""
    ADMIN = "admin"
    """Manage keys and tenants, see every tenant."""


DEFAULT_SCOPES = frozenset({Scope.SUBMIT, Scope.READ, Scope.CANCEL, Scope.WEBHOOKS, Scope.REDRIVE})
"""The scopes of a new API key: everything within its tenant."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated sender of a request."""

    tenant: str
    credential: str
    """The credential's public id for logs and the audit, such as `key:<id>`, `jwt:<subject>` or `cert:<serial>`."""
    kind: Literal["api_key", "jwt", "certificate"]
    scopes: frozenset[Scope]
    expires_at: int | None = field(default=None, compare=False)
    """The end of a token, in Unix seconds; None for a credential whose end is looked up at each use."""

    def may(self, scope: Scope) -> bool:
        """Return whether the principal has the scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes
