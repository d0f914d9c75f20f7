"""Checks a single job, a response or a line of a batch by the allow-lists of its tenant."""

from __future__ import annotations

from typing import NamedTuple

from gateway.access.tenant_settings import TenantSettings
from schemas.job import Job
from schemas.problems import Problem
from workers.egress import EgressRefused, connected_host


class FieldNames(NamedTuple):
    """The names of the fields for the model and for the callback in one kind of request. Problems show these names."""

    model: str
    callback: str


OF_A_JOB = FieldNames("model_id", "callback_url")
OF_A_BODY = FieldNames("model", "metadata.webhook_url")
"""The names in a body to one of OpenAI's URLs."""
OF_A_LINE = FieldNames("body.model", "body.metadata.webhook_url")
"""The names in a line of an OpenAI Batch."""


def check_job(settings: TenantSettings, job: Job, names: FieldNames = OF_A_JOB) -> tuple[Problem, ...]:
    """Return a problem for each allow-list of the tenant that refuses the job."""
    return check_parts(settings, job.model_id, job.callback_url, names)


def check_parts(
    settings: TenantSettings, model: str | None, callback_url: str | None, names: FieldNames = OF_A_JOB
) -> tuple[Problem, ...]:
    """Return a problem for each allow-list of the tenant that refuses the model or the callback."""
    problems = []
    if settings.models is not None and model not in settings.models:
        problems.append(Problem(names.model, _one_of("is none of this tenant's models", settings.models)))
    if callback_url is not None:
        problems += check_callback(settings, callback_url, names.callback)
    return tuple(problems)


def check_callback(settings: TenantSettings, url: str, name: str) -> tuple[Problem, ...]:
    """Return a problem if the URL, of a callback or a webhook endpoint, is outside the tenant's domains."""
    if may_call(settings, url):
        return ()
    return (
        Problem(name, _one_of("has a host outside this tenant's callback domains", settings.callback_domains or [])),
    )


def may_call(settings: TenantSettings, url: str) -> bool:
    """True if the tenant's callbacks may go to this URL. Hosts are compared in the normal form that connections use."""
    if settings.callback_domains is None:
        return True
    try:
        host = connected_host(url)
    except EgressRefused:
        return False
    return any(
        host.endswith(domain[1:]) if domain.startswith("*.") else host == domain for domain in settings.callback_domains
    )


def _one_of(problem: str, allowed: list[str], shown: int = 8) -> str:
    """Return the problem's text, which lists the first allowed values. The tenant may see its own settings."""
    if not allowed:
        return f"{problem}: it has none"
    more = f" and {len(allowed) - shown} more" if len(allowed) > shown else ""
    return f"{problem}: {', '.join(allowed[:shown])}{more}"
