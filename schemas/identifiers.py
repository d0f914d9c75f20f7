"""The forms that the names of jobs, tenants and models may have in jobs and results."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from schemas.affinity import DEFAULT_TENANT as DEFAULT_TENANT

Identifier = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[\x21-\x7e]+$")]
"""Printable ASCII without spaces: identifiers travel in headers, logs and file names."""

TENANT_PATTERN = "[A-Za-z0-9][A-Za-z0-9_-]{0,62}"
Tenant = Annotated[str, StringConstraints(pattern=f"^{TENANT_PATTERN}$")]
CustomId = Annotated[str, StringConstraints(min_length=1, max_length=512)]
"""The producer's own name for a job, returned as it is and never interpreted."""
