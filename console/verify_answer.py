"""`postback verify-answer`: reads the sources of an answer again, and checks that the cited words still stand there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from console.errors import BAD_INPUT, FAILED, fail, needing, telling
from console.lines import lines_of
from console.settings import checked_settings, fleet_settings
from console.terminal import harmless

if TYPE_CHECKING:
    from schemas.result import Result
    from schemas.sources import SourceDocument
    from workers.enrichment.standing import CheckedCitation

_MOST_BYTES = 16 * 1024 * 1024


def verify_answer(
    file: Annotated[
        str,
        typer.Argument(metavar="RESULT.json", help="A file with a result or a webhook's body; - is standard input."),
    ],
    seconds: Annotated[
        float, typer.Option(min=1, max=600, help="Read the sources for at most this many seconds.")
    ] = 30.0,
    document: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID=FILE",
            help="Take the text of the source ID from this file, as for a document that the job carried.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Read an answer's sources again, and say for each citation whether the quoted words still stand in its source.

    The sources are read as a worker reads them: the same rules for addresses (POSTBACK_EGRESS__…), robots.txt and
    limits apply. The page is fetched again, never taken from a shared cache. PubMed and arXiv (POSTBACK_SEARCH__…)
    return their abstracts again. Documents that a job carried, and records of inside sources, have no address:
    --document gives their text as a file.

    Exit status: 0 all quotes stand, 1 a quote is gone or its source cannot be read, 2 wrong options.
    """
    with needing("worker"):
        import asyncio

        import aiohttp  # noqa: F401 - the import that a base install lacks

    result = _result(file)
    documents = dict(_document(one, result) for one in document or ())
    checked = asyncio.run(_checked(result, seconds, documents))
    from workers.enrichment.standing import Standing

    for line in [json.dumps(_said(result, checked))] if as_json else _page(result, checked):
        typer.echo(line)
    if any(one.standing in (Standing.GONE, Standing.UNREAD) for one in checked):
        raise typer.Exit(FAILED)


def _result(file: str) -> Result:
    """Read a result, or the result in an event. Ends the command if the file has neither."""
    from pydantic_core import from_json, to_json

    from schemas.codec import InvalidResult, read_result

    with lines_of(file) as opened:
        content = opened.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise fail(f"{file}: larger than {_MOST_BYTES} bytes; give a file with one result", BAD_INPUT)
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError:
        raise fail(f"{file}: not one JSON object; give a file with one result", BAD_INPUT) from None
    if isinstance(value, dict) and value.get("object") == "event":
        value = value.get("data")
        if isinstance(value, dict):
            value.pop("id", None)
    with telling(InvalidResult, code=BAD_INPUT):
        return read_result(to_json(value))


def _document(option: str, result: Result) -> tuple[str, SourceDocument]:
    """Return the source's id and the file of an option --document. Ends the command if one of them is wrong."""
    from base64 import b64encode
    from mimetypes import guess_type

    from schemas.sources import SourceDocument

    # The longest id that fits is taken, because an id may contain `=`, as URLs do.
    name = max((one for one in result.sources if option.startswith(f"{one}=")), key=len, default=None)
    if name is None:
        known = ", ".join(map(harmless, result.sources)) or "none"
        reason = f"begins with no source's id and `=`; the sources are {known}"
        raise fail(f"--document {harmless(option)}: {reason}", BAD_INPUT)
    path = option.removeprefix(f"{name}=")
    with lines_of(path) as opened:
        content = opened.read(_MOST_BYTES + 1)
    if not 0 < len(content) <= _MOST_BYTES:
        raise fail(f"{path}: empty, or larger than {_MOST_BYTES} bytes; give the source's file", BAD_INPUT)
    return name, SourceDocument(id="file", base64=b64encode(content).decode(), media_type=guess_type(path)[0])


async def _checked(result: Result, seconds: float, documents: Mapping[str, SourceDocument]) -> list[CheckedCitation]:
    from telemetry.clock import Deadline, SystemClock
    from telemetry.metrics import Metrics
    from workers.egress import EgressSettings, Guard
    from workers.enrichment.cache.settings import CacheSettings
    from workers.enrichment.enrich import Enricher
    from workers.enrichment.fetching.settings import PayloadSettings
    from workers.enrichment.search.providers import providers
    from workers.enrichment.search.service import Web
    from workers.enrichment.search.settings import SearchSettings
    from workers.enrichment.settings import EnrichmentSettings
    from workers.enrichment.standing import checked_citations

    settings = checked_settings(EnrichmentSettings).model_copy(update={"rerank_model": None})
    egress = checked_settings(EgressSettings)
    guard = Guard(egress.fetch_policy(development=fleet_settings().env == "development"), proxy=egress.fetch_proxy())
    cache = CacheSettings(memory_bytes=0, redis_url=None, disk_path=None)
    payloads = checked_settings(PayloadSettings).model_copy(update={"s3": ()})  # this command reads no bucket
    clock = SystemClock()
    enricher = Enricher(settings, guard, clock, Metrics(), cache=cache, payloads=payloads)
    web = Web(settings.named, clock, settings.email, guard.proxy)
    # An inside source needs its secrets and a job's parameters, so that only the public services are asked again.
    search = checked_settings(SearchSettings).model_copy(update={"providers": None, "allowed": None})
    try:
        await web.start()
        await enricher.start()
        asked = providers(search, web, installed=()).values()
        return await checked_citations(result, enricher, Deadline.after(clock, seconds), asked, documents)
    finally:
        await enricher.close()
        await web.close()


def _page(result: Result, checked: list[CheckedCitation]) -> Iterator[str]:
    counts = Counter(one.standing.value for one in checked)
    tally = ", ".join(f"{number} {standing}" for standing, number in counts.items()) or "no citations"
    yield f"{result.job_id}: {tally}"
    for one in checked:
        yield f"{one.standing.value:<9} {harmless(one.url or one.citation.source)}"
        if one.citation.quote is not None:
            yield f"          “{harmless(one.citation.quote.exact)}”"
        if one.reason is not None:
            yield f"          {harmless(one.reason)}"


def _said(result: Result, checked: list[CheckedCitation]) -> dict[str, Any]:
    return {
        "job_id": result.job_id,
        "citations": [
            {
                "source": one.citation.source,
                "url": one.url,
                "standing": one.standing.value,
                "quote": None if one.citation.quote is None else one.citation.quote.exact,
                "reason": one.reason,
            }
            for one in checked
        ],
    }
