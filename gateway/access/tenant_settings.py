"""Settings of a tenant: its allowed models and callback domains, its rates and its quotas."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from schemas.bounded import BoundedModel
from schemas.job import Identifier
from workers.egress import EgressRefused, connected_host

_ANY_BELOW = "*."


def _domain(text: str) -> str:
    """Return the domain as connections spell it. Raises ValueError."""
    start = _ANY_BELOW if text.startswith(_ANY_BELOW) else ""
    name = text.removeprefix(_ANY_BELOW)
    if any(sign in name for sign in "/?#@*\\"):
        raise ValueError("is a host such as hooks.example.com, or *.example.com for all hosts below; no URL, no port")
    try:
        host = connected_host(f"https://[{name}]/" if ":" in name else f"https://{name}/")
    except EgressRefused:
        raise ValueError("is no host that can be called") from None
    if start and (":" in host or host.rpartition(".")[2].isdigit()):
        raise ValueError("is an address, and addresses have no hosts below them")
    return start + host


Domain = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_domain)]
"""A host, or `*.` and a host for all of that host's subdomains, without the host itself."""

Rate = Annotated[int, Field(ge=1, le=1_000_000)]
Quota = Annotated[int, Field(ge=0, le=10**15)]


class TenantSettings(BoundedModel):
    """Limits of one tenant. An absent field sets no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    models: list[Identifier] | None = Field(default=None, max_length=1000)
    """The models that the tenant's jobs may name. With this list, every job must name one of these models."""
    callback_domains: list[Domain] | None = Field(default=None, max_length=1000)
    """The hosts that callbacks may go to: `hooks.example.com`, or `*.example.com` for all of its subdomains."""
    requests_per_second: Rate | None = None
    """The maximum number of requests per second of all the tenant's credentials together."""
    key_requests_per_second: Rate | None = None
    """The maximum number of requests per second of each credential."""
    queued_lines: Quota | None = None
    """The maximum number of jobs and lines of batches that are accepted and not yet answered."""
    queued_tokens: Quota | None = None
    """The maximum number of tokens of the jobs and lines that are accepted and not yet answered.

    A job is counted as its `max_tokens`, plus one token for each four of its bytes.
    """
