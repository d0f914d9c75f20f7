"""Rules of the input filter for tests."""

from __future__ import annotations

from pathlib import Path

from schemas.job import Job
from workers.screening.screen import Screen, Screened

ALL_PII = 'find = ["card", "iban", "email", "phone", "ip", "ssn"]'
CARD = "4111 1111 1111 1111"


def screen_of(folder: Path, *rules: str) -> Screen:
    """A filter with these rules; each rule is given by the lines below its heading."""
    path = folder / "rules.toml"
    path.write_text("".join(f"[[rule]]\n{rule}\n" for rule in rules), encoding="utf-8")
    return Screen.load(path)


def pii(verdict: str = "redact", more: str = "", name: str = "pii") -> str:
    return f'name = "{name}"\nkind = "pii"\n{ALL_PII}\nverdict = "{verdict}"\n{more}'


def regex(pattern: str, verdict: str = "redact", more: str = "", name: str = "pattern") -> str:
    return f"name = \"{name}\"\nkind = \"regex\"\npatterns = ['''{pattern}''']\nverdict = \"{verdict}\"\n{more}"


def words(more: str = 'lists = ["english"]', name: str = "words") -> str:
    return f'name = "{name}"\nkind = "words"\n{more}'


def found_in(screened: Screened) -> dict[tuple[str, str, str], int]:
    """Counts of the findings by rule, kind and field."""
    return {(found.rule, found.kind, found.field): found.count for found in screened.findings}


def redacted(screen: Screen, text: str, tenant: str = "acme") -> str:
    """The prompt after the filter."""
    prompt = screen.check(tenant, Job(prompt=text)).job.prompt
    assert prompt is not None
    return prompt
