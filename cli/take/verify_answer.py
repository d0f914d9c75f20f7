"""`postback verify-answer`: judges whether the sources of an answer bear its sentences, by the rules of a worker.

Three inputs: a result, whose sources are read again; an answer with its sources, as files; and many answers with the
texts of their sources, as JSON Lines on standard input. `--reread` only looks for a result's quoted words.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.shared.errors import BAD_INPUT, FAILED, fail, say, telling
from cli.shared.lines import lines_of
from cli.shared.settings import checked_settings, fleet_settings
from cli.shared.terminal import harmless

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from schemas.result import Result
    from schemas.sources import SourceDocument
    from workers.enrichment.answering.judging import Judge
    from workers.enrichment.answering.profile import Profile, Profiles
    from workers.enrichment.enrich import Enricher
    from workers.enrichment.evidence import NumberedSource
    from workers.enrichment.search.base import SearchProvider
    from workers.enrichment.standing import CheckedCitation

_MOST_BYTES = 16 * 1024 * 1024
NOT_SUPPORTED = 3
CONTRADICTED = 4
_WORST = (BAD_INPUT, CONTRADICTED, FAILED, NOT_SUPPORTED, 0)
"""Exit statuses, the worst first."""
_STATUS = {"all": 0, "some": NOT_SUPPORTED, "none": NOT_SUPPORTED, "contradicted": CONTRADICTED}


def verify_answer(
    file: Annotated[
        str | None,
        typer.Argument(metavar="[RESULT.json]", help="A file with a result or a webhook's body; - is standard input."),
    ] = None,
    answer: Annotated[str | None, typer.Option(metavar="FILE", help="Judge the answer in this file.")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A source of --answer, as text; the first is [1]. May be repeated."),
    ] = None,
    profile: Annotated[str, typer.Option(help="The profile of --answer or of the result.")] = "default",
    reread: Annotated[
        bool, typer.Option("--reread", help="Only look whether the quoted words of a result still stand.")
    ] = False,
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
    """Judge whether the sources of an answer support its sentences.

    Give a result, whose sources are read again; or --answer with a --source for each source; or, with --json alone,
    lines {"id", "answer", "sources": ["text"], "profile"} on standard input. An answer is as supported as its worst
    sentence. The judge is that of POSTBACK_ENRICHMENT__ENTAILMENT; without one, words decide.

    Sources of a result are read as a worker reads them: the same rules for addresses (POSTBACK_EGRESS__…), robots.txt
    and limits apply. The page is fetched again, never taken from a shared cache. PubMed and arXiv (POSTBACK_SEARCH__…)
    return their abstracts again. Documents that a job carried, and records of inside sources, have no address:
    --document gives their text as a file. --reread judges nothing, and says for each citation whether its quoted words
    still stand in the source: exit 0 if all do, 1 if not.

    Exit status: 0 all supported, 3 a sentence is not, 4 one is contradicted, 1 a source cannot be read, 2 bad input; of
    several, the worst.
    """
    if answer is not None or source:
        if file is not None or reread or answer is None or not source:
            raise fail("--answer needs a --source for each source, and no RESULT.json", BAD_INPUT)
        texts = [_text(one) for one in source]
        status = asyncio.run(_judge_files(_text(answer), texts, profile, as_json=as_json))
    elif file is None:
        if reread or not as_json:
            raise fail("name a RESULT.json, or --answer and --source, or --json for lines on standard input", BAD_INPUT)
        status = asyncio.run(_judge_lines(sys.stdin.buffer))
    else:
        result = _result(file)
        documents = dict(_document(one, result) for one in document or ())
        checking = _reread if reread else _judge_result
        status = asyncio.run(checking(result, seconds, documents, profile, as_json=as_json))
    if status:
        raise typer.Exit(status)


def _worst(statuses: Iterable[int]) -> int:
    return min(statuses, key=_WORST.index, default=0)


def _content(file: str, fix: str, *, least: int = 0) -> bytes:
    """Read a file of `least` to _MOST_BYTES bytes. A file of another size ends the command, which names the fix."""
    with lines_of(file) as opened:
        content = opened.read(_MOST_BYTES + 1)
    if not least <= len(content) <= _MOST_BYTES:
        size = "empty, or larger" if least else "larger"
        raise fail(f"{file}: {size} than {_MOST_BYTES} bytes; {fix}", BAD_INPUT)
    return content


def _text(file: str) -> str:
    try:
        return _content(file, "give a smaller file").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise fail(f"{file}: not UTF-8; give a file with text", BAD_INPUT) from None


# -- judging ---------------------------------------------------------------------------------------------------------


async def _judge_files(answer: str, sources: Sequence[str], profile: str, *, as_json: bool) -> int:
    profiles = _profiles()
    async with _judge() as judge:
        said = await _judged(answer, _numbered(sources), _profile(profiles, profile), judge)
    _print(said, as_json=as_json)
    return _STATUS[said["support"]]


async def _judge_lines(lines: Iterable[bytes]) -> int:
    """Judge each line, and print a line for it. A bad line is named on standard error, and the next one is read."""
    statuses, profiles = [0], _profiles()
    async with _judge() as judge:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                name, answer, sources, profile = _line(line, profiles)
            except ValueError as error:
                say(f"line {number}: {error}")
                statuses.append(BAD_INPUT)
                continue
            said = await _judged(answer, _numbered(sources), profile, judge)
            typer.echo(json.dumps({"id": name, **said}, ensure_ascii=False))
            statuses.append(_STATUS[said["support"]])
    return _worst(statuses)


def _line(line: bytes, profiles: Profiles) -> tuple[str | int, str, list[str], Profile]:
    """Return the id, answer, sources and profile of a line. Raises ValueError with the field and the fix."""
    from workers.enrichment.answering.profile import UnknownProfile

    if len(line) > _MOST_BYTES:
        raise ValueError(f"larger than {_MOST_BYTES} bytes; split its sources")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON; write one object a line") from None
    if not isinstance(value, dict):
        raise ValueError("not an object; write id, answer, sources and profile")
    answer, sources, name = value.get("answer"), value.get("sources"), value.get("id")
    if not isinstance(answer, str):
        raise ValueError("answer: not a text; write the answer as a string")
    if not isinstance(sources, list) or not all(isinstance(one, str) for one in sources):
        raise ValueError("sources: not a list of texts; write each source's text as a string")
    if not isinstance(name, str | int):
        raise ValueError("id: not a text; write a string that names the answer")
    try:
        profile = profiles[value.get("profile") or "default"]
    except (UnknownProfile, TypeError) as error:
        raise ValueError(f"profile: {error}") from None
    return name, answer, sources, profile


def _profiles() -> Profiles:
    from workers.enrichment.answering.profile import ProfileRefused, Profiles
    from workers.enrichment.settings import EnrichmentSettings, SearchSettings

    folder = checked_settings(EnrichmentSettings).profiles_folder
    with telling(ProfileRefused, code=BAD_INPUT):
        return Profiles.load(folder, providers=SearchSettings.model_fields)


def _profile(profiles: Profiles, name: str) -> Profile:
    from workers.enrichment.answering.profile import UnknownProfile

    try:
        return profiles[name]
    except UnknownProfile as unknown:
        raise fail(f"--profile {name}: {unknown}", BAD_INPUT) from None


def _numbered(texts: Sequence[str]) -> list[NumberedSource]:
    from workers.enrichment.evidence import NumberedSource

    return [NumberedSource(number, str(number), None, None, (text,)) for number, text in enumerate(texts, start=1)]


@asynccontextmanager
async def _judge() -> AsyncIterator[Judge | None]:
    """Load the cross-encoder that the settings name. The engine's model judges in workers only."""
    from workers.enrichment.answering.judging import CrossEncoder, EntailmentModelRefused
    from workers.enrichment.settings import BY_ENGINE, EnrichmentSettings

    settings = checked_settings(EnrichmentSettings)
    if settings.entailment is None or settings.entailment == BY_ENGINE:
        yield None
        return
    judge = CrossEncoder(settings.entailment, settings)
    try:
        with telling(EntailmentModelRefused, code=BAD_INPUT):
            await judge.start()
        yield judge
    finally:
        await judge.close()


async def _judged(
    answer: str, sources: Sequence[NumberedSource], profile: Profile, judge: Judge | None
) -> dict[str, Any]:
    """Return an answer's support and its sentences. Any link of the answer counts as given, so that spans stay."""
    from workers.enrichment.answering.citations import Draft, judged
    from workers.enrichment.evidence import Evidence

    evidence = Evidence(tuple(sources), question=answer)
    draft = Draft.of(answer, evidence, _plain(profile, answer))
    verdicts, not_checked = await judged(draft.open, judge, seconds=60.0, calls=len(draft.open))
    return {
        "support": draft.level(verdicts),
        "sentences": [
            {
                "start": one.start,
                "end": one.end,
                "text": draft.reading.text[one.start : one.end],
                "support": one.support.value,
                "missing": one.missing,
            }
            for one in draft.judged(verdicts)
        ],
        "not_checked": not_checked,
    }


def _plain(profile: Profile, answer: str) -> Profile:
    """Return the profile without what would change the answer; an answer in words has no evidence chain."""
    is_json = answer.lstrip().startswith("{")
    chain = profile.evidence_chain if is_json else None
    return profile.model_copy(update={"no_sources_notice": "", "evidence_chain": chain})


async def _judge_result(
    result: Result, seconds: float, documents: Mapping[str, SourceDocument], profile: str, *, as_json: bool
) -> int:
    """Read the result's sources again, and judge its answer by their present text."""
    from telemetry.clock import Deadline, SystemClock
    from workers.enrichment.evidence import Document, NumberedSource
    from workers.enrichment.standing import present_sources, source_numbers

    if result.text is None:
        raise fail("the result has no answer: give one that succeeded", BAD_INPUT)
    chosen = _profile(_profiles(), profile)
    async with _reading() as (enricher, providers), _judge() as judge:
        deadline = Deadline.after(SystemClock(), seconds)
        numbers = source_numbers(result)
        found = await present_sources(result, numbers.values(), enricher, deadline, providers, documents)
        sources, unread = [], {}
        for number, name in numbers.items():
            one = found[name]
            if isinstance(one, Document):
                sources.append(NumberedSource(number, name, one.url or None, one.title, (one.text, one.rest)))
            else:
                unread[name] = one
        said = await _judged(result.text, sources, chosen, judge)
    _print({"job_id": result.job_id, **said, "unread": unread}, as_json=as_json)
    return _worst([_STATUS[said["support"]], *([FAILED] if unread else [])])


def _print(said: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(said, ensure_ascii=False))
        return
    typer.echo(f"support: {said['support']}")
    for one in said["sentences"]:
        missing = f" (no source has {', '.join(one['missing'])})" if one["missing"] else ""
        typer.echo(f"{one['support']:<12} {harmless(' '.join(one['text'].split()))}{harmless(missing)}")
    for name, reason in said.get("unread", {}).items():
        typer.echo(f"unread       {harmless(name)}: {harmless(reason)}")
    for check in said["not_checked"]:
        typer.echo(f"not checked  {check}")


# -- reading again ---------------------------------------------------------------------------------------------------


async def _reread(
    result: Result, seconds: float, documents: Mapping[str, SourceDocument], profile: str, *, as_json: bool
) -> int:
    """Say for each citation whether the quoted words still stand in its source."""
    from telemetry.clock import Deadline, SystemClock
    from workers.enrichment.standing import Standing, checked_citations

    async with _reading() as (enricher, providers):
        deadline = Deadline.after(SystemClock(), seconds)
        checked = await checked_citations(result, enricher, deadline, providers, documents)
    for line in [json.dumps(_said(result, checked))] if as_json else _page(result, checked):
        typer.echo(line)
    return FAILED if any(one.standing in (Standing.GONE, Standing.UNREAD) for one in checked) else 0


def _result(file: str) -> Result:
    """Read a result, or the result in an event. Ends the command if the file has neither."""
    from pydantic_core import from_json, to_json

    from schemas.codec import InvalidResult, read_result

    fix = "give a file with one result"
    content = _content(file, fix)
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError:
        raise fail(f"{file}: not one JSON object; {fix}", BAD_INPUT) from None
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
    content = _content(path, "give the source's file", least=1)
    return name, SourceDocument(id="file", base64=b64encode(content).decode(), media_type=guess_type(path)[0])


@asynccontextmanager
async def _reading() -> AsyncIterator[tuple[Enricher, list[SearchProvider]]]:
    """Set up what reads sources as a worker does, and the public search services."""
    from telemetry.clock import SystemClock
    from telemetry.metrics import Metrics
    from workers.egress import EgressSettings, Guard
    from workers.enrichment.enrich import Enricher
    from workers.enrichment.search.providers import providers
    from workers.enrichment.search.service import Web
    from workers.enrichment.settings import CacheSettings, EnrichmentSettings, PayloadSettings, SearchSettings

    settings = checked_settings(EnrichmentSettings).model_copy(update={"rerank_model": None, "entailment": None})
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
        yield enricher, list(providers(search, web, installed=()).values())
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
