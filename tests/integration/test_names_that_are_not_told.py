"""A job's sources do not reveal which names exist in the operator's network."""

from __future__ import annotations

import logging
from ipaddress import ip_network

import pytest

from schemas.job import Sources
from tests.integration.name_server import name_server
from tests.integration.raw_server import HTML, page, reading_here, saying, speaking
from workers.egress import EgressPolicy, Guard
from workers.enrichment.fetching.fetch import NO_PUBLIC_NAME

ANSWERS = {
    "private.example": [["10.1.2.3"]],
    "metadata.example": [["169.254.169.254"]],
    "loopback6.example": [["::1"]],
    "mixed.example": [["1.1.1.1", "10.1.2.3"]],
    "denied.example": [["9.9.9.9"]],
}
NAMES = [*ANSWERS, "missing.example"]
POLICY = EgressPolicy(allow=(ip_network("127.0.0.0/8"),), deny=(ip_network("9.9.9.9/32"),))


@pytest.mark.parametrize("robots", [False, True], ids=["without robots.txt", "with robots.txt"])
@pytest.mark.parametrize("redirected", [False, True], ids=["named by the job", "named by a redirect"])
async def test_a_name_that_is_missing_and_one_that_is_not_public_get_the_same_note(
    robots: bool, redirected: bool
) -> None:
    notes: set[str] = set()
    async with name_server(ANSWERS) as names, reading_here(Guard(POLICY, names.resolver()), robots=robots) as enricher:
        for name in NAMES:
            script = saying(page(), HTML, f"Location: http://{name}/x", status="302 Found")
            async with speaking(script, robots=b"") as origin:
                url = f"{origin}/" if redirected else f"http://{name}/"
                evidence = await enricher.enrich(Sources(urls=[url, url + "?again"]), "Why?")
            assert evidence.sources == ()
            notes |= {note.replace(name, "NAME").replace(origin, "ORIGIN") for note in evidence.notes}
    assert len(notes) == 2  # one note for the first source, and one for the second
    assert all(NO_PUBLIC_NAME in note for note in notes)


async def test_missing_and_forbidden_names_are_cached_equally_long() -> None:
    async with name_server(ANSWERS) as names, reading_here(Guard(POLICY, names.resolver())) as enricher:
        by_ipv4 = [name for name in NAMES if name != "loopback6.example"]
        for name in by_ipv4:
            for _ in range(2):
                await enricher.enrich(Sources(urls=[f"http://{name}/"]), "Why?")
        assert {name: names.asked[name] for name in by_ipv4} == dict.fromkeys(by_ipv4, 2)


async def test_the_log_distinguishes_missing_and_forbidden_names(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with name_server(ANSWERS) as names, reading_here(Guard(POLICY, names.resolver())) as enricher:
        await enricher.enrich(Sources(urls=[f"http://{name}/secret?token=7" for name in NAMES]), "Why?")
    lines = [one for one in map(str, (record.msg for record in caplog.records)) if "source-name-refused" in one]
    reasons = {"missing": "no such name", "denied": "the operator denies it", "private": "the address is not public"}
    for name, reason in reasons.items():
        assert [reason in line for line in lines if f"http://{name}.example" in line] == [True]
    assert not any("secret" in line or "token" in line for line in lines)
