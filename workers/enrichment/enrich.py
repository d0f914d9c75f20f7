"""Finds, fetches, extracts, ranks and numbers the sources of one job. One time budget covers all these steps."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Final

from schemas.job import DEFAULT_TENANT, Search, SourceDocument, Sources
from schemas.settings import read_settings
from telemetry.clock import Clock, Deadline
from telemetry.metrics import Metrics
from telemetry.traces import Kind, span
from workers.egress import Guard
from workers.enrichment.answering.grounding import MAX_TITLE_CHARS, load_template
from workers.enrichment.answering.judging import CrossEncoder, Judge
from workers.enrichment.answering.profile import Profile, Profiles
from workers.enrichment.cache.cache import Cache, Reading, shared_levels
from workers.enrichment.choosing.choose import Choice, Chooser
from workers.enrichment.choosing.rank import Budget, estimated_tokens
from workers.enrichment.evidence import (
    Document,
    Evidence,
    Found,
    LeftOut,
    NothingFound,
    NumberedSource,
    Page,
    Particulars,
    Unreadable,
    Wanted,
)
from workers.enrichment.fetching.attached import ImageFetcher, PayloadFetcher
from workers.enrichment.fetching.fetch import Fetcher, Politeness
from workers.enrichment.fetching.read import Reader
from workers.enrichment.fetching.robots import Robots
from workers.enrichment.processes.pool import Pool
from workers.enrichment.reading.particulars import MAX_TITLE_CHARS as LONGEST_TITLE
from workers.enrichment.reading.steering import steering
from workers.enrichment.rendering.renderer import Renderer
from workers.enrichment.search.base import SearchProvider
from workers.enrichment.search.searches import Findings, Searches
from workers.enrichment.settings import BY_ENGINE, CacheSettings, EnrichmentSettings, PayloadSettings
from workers.enrichment.turns import Asker

LATE = "it was late"
CROWDED = "others fit better or say the same"
RANKING_SHARE = 0.1
"""Share of the budget that is reserved for ranking; the rest is for reading."""
MIN_EVIDENCE_TOKENS = 32
"""Least room for evidence in the prompt. If less room is left, no source is quoted."""
_MAX_RANKED_CHARS: Final = 600_000
"""Cap on the code points of all texts of a job together. Ranking this many takes a quarter of a second."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one job: its own limits, cut to the operator's bounds, or the operator's defaults.

    The notes tell which values of the job are outside the bounds.
    """

    budget_seconds: float
    chars: int
    max_age_seconds: float
    """The greatest age of a cached page or search."""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, sources: Sources, settings: EnrichmentSettings) -> Bounds:
        """Return the limits of a job whose field `sources` is this one."""
        most_seconds = max(settings.longest_budget_seconds, settings.budget_seconds)
        most_chars = max(settings.most_evidence_chars, settings.evidence_chars)
        seconds, chars, age = sources.budget_seconds, sources.max_chars, sources.freshness_seconds
        notes = []
        if seconds is not None and seconds > most_seconds:
            notes.append(f"budget_seconds is {most_seconds:g}, the operator's bound")
        if chars is not None and chars > most_chars:
            notes.append(f"max_chars is {most_chars}, the operator's bound")
        if age is not None and age < settings.least_freshness_seconds:
            notes.append(f"freshness_seconds is {settings.least_freshness_seconds:g}, the operator's bound")
        return cls(
            min(seconds, most_seconds) if seconds is not None else settings.budget_seconds,
            min(chars, most_chars) if chars is not None else settings.evidence_chars,
            max(age, settings.least_freshness_seconds) if age is not None else inf,
            tuple(notes),
        )


@dataclass(frozen=True, slots=True)
class _ReadSources:
    """The sources that were read, and the sources that were left out, each with the reason."""

    documents: tuple[Document, ...]
    left_out: tuple[LeftOut, ...]


class _Known:
    """The sources found so far for a job. When a search ends, it adds those results that are not known yet."""

    def __init__(self, own: Sequence[Wanted]) -> None:
        self.own = own
        self._names = {name for one in own for name in (one.url, one.id) if name}
        self._position = len(own)

    def new(self, found: Sequence[Found]) -> list[Wanted]:
        """Return the results that are not known yet, and remember them."""
        more = []
        for one in found:
            names = {name for name in (one.url, one.id) if name}
            if not names & self._names:
                self._position += 1
                more.append(Wanted(self._position, one.url, one))
            self._names |= names
        return more


class Enricher:
    """Finds the evidence for jobs. A worker has one Enricher for many concurrent jobs; each job has its own budget.

    `guard` is the egress guard of fetches; callbacks have another guard. Raises TemplateRefused for an unusable
    template, and ProcessError if the software for OCR or buckets is missing.
    """

    def __init__(
        self,
        settings: EnrichmentSettings,
        guard: Guard,
        clock: Clock,
        metrics: Metrics,
        providers: Mapping[str, SearchProvider] | None = None,
        profiles: Profiles | None = None,
        cache: CacheSettings | None = None,
        payloads: PayloadSettings | None = None,
    ) -> None:
        load_template(settings.template)  # an unusable template must fail at the start, not at each job
        self._settings = self.settings = settings
        """The settings of the sources, which also have the limits for the rewriting of questions."""
        self.mark_secret: bytes | None = None
        """The secret for the marks around sources. If it is None, the process draws a secret of its own."""
        self._cross_encoder = (
            CrossEncoder(settings.entailment, settings) if settings.entailment not in (None, BY_ENGINE) else None
        )
        self.judge: Judge | None = self._cross_encoder
        """The cross-encoder that judges answers; None without one."""
        self._clock = clock
        reading_seconds = settings.budget_seconds * (1 - RANKING_SHARE)
        self._searches = Searches(providers or {}, reading_seconds, settings.search_fresh_seconds, clock)
        self._profiles = profiles or Profiles.load()
        self._fetched = metrics.fetches.begin()
        self._searched = metrics.searches.begin()
        politeness = Politeness(settings, clock)
        self._fetcher = Fetcher(settings, guard, politeness, clock)
        self.images = ImageFetcher(self._fetcher, settings)
        """Fetches the images of jobs, over the connections that also fetch sources."""
        self.payloads = PayloadFetcher(self._fetcher, payloads or read_settings(PayloadSettings))
        """Fetches the payloads of jobs, over the connections that also fetch sources."""
        self._pool = Pool(settings, metrics)
        self._chooser = Chooser(settings, self._pool, clock, metrics)
        self._robots = Robots(settings, self._fetcher, self._pool, politeness, clock)
        cache = cache or read_settings(CacheSettings)
        self._cache = Cache(cache, clock, metrics.cache_lookups, shared_levels(cache, clock))
        self._renderer = (
            Renderer(settings, guard, self._fetcher, self._robots, self._pool, politeness, clock, metrics)
            if settings.renderer is not None
            else None
        )
        self._reader = Reader(self._fetcher, self._robots, self._pool, guard, self._cache, cache, clock, self._renderer)

    @property
    def has_judge(self) -> bool:
        """True if a cross-encoder or the engine's model judges answers."""
        return self.judge is not None or self._settings.entailment is not None

    def profile(self, name: str) -> Profile:
        """Return the profile of this name. Raises UnknownProfile."""
        return self._profiles[name]

    async def start(self) -> None:
        """Load the models that the settings name. Raises EmbeddingModelRefused and EntailmentModelRefused.

        Connections and the processes that read pages start later, with the first job that has sources.
        """
        await self._chooser.start()
        if self._cross_encoder is not None:
            await self._cross_encoder.start()
        await self._fetcher.start()
        if self._renderer is not None:
            await self._renderer.start()

    async def close(self) -> None:
        """Close the connections and end the processes."""
        await self._robots.close()
        await self._fetcher.close()
        self.payloads.close()
        if self._renderer is not None:
            await self._renderer.close()
        await self._chooser.close()
        if self._cross_encoder is not None:
            await self._cross_encoder.close()
        await self._pool.close()
        await self._cache.close()

    async def enrich(
        self,
        sources: Sources,
        question: str,
        *,
        deadline: Deadline | None = None,
        tenant: str = DEFAULT_TENANT,
        room_tokens: int | None = None,
    ) -> Evidence:
        """Find the evidence for one job of this tenant, within the budget of the settings and before `deadline`.

        A search's wait for a turn at its provider is not counted in the budget: only the deadline limits that wait.
        `room_tokens` caps the tokens of the sources in the prompt; None means no limit.

        Raises NothingFound if sources are required and none could be used. All other faults become notes.
        """
        if _named_by(sources) or sources.all_searches:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if deadline is None else deadline.remaining):
                    await self._pool.warm()
        bounds = Bounds.of(sources, self._settings)
        whole = self._within(bounds.budget_seconds, deadline)
        ranking_seconds = whole.remaining * RANKING_SHARE
        reading = Deadline.after(self._clock, whole.remaining - ranking_seconds)
        asker = Asker(tenant, bounds.max_age_seconds)
        read, notes = await self._find_and_read(sources, asker, bounds, reading, deadline)
        notes = [*bounds.notes, *notes]
        notes += [str(left_out) for left_out in read.left_out]
        numbered: tuple[NumberedSource, ...] = ()
        if read.documents:
            # `whole` may have passed while a search waited for its turn; ranking gets its share of time even then.
            ranking = self._within(max(whole.remaining, ranking_seconds), deadline)
            numbered, unranked = await self._choose(question, read.documents, asker, ranking, bounds.chars, room_tokens)
            notes += unranked
        if sources.required and not numbered:
            raise NothingFound(tuple(notes))
        return Evidence(numbered, tuple(notes), question, self._settings.template, mark_secret=self.mark_secret)

    async def read(
        self, sources: Sequence[str | SourceDocument | Found], seconds: float, *, tenant: str = DEFAULT_TENANT
    ) -> list[Document | LeftOut]:
        """Read these URLs, documents and search results as for a job, within `seconds`.

        Return a LeftOut for a late or unreadable source.
        """
        wanted = [Wanted.of(position, one) for position, one in enumerate(sources, start=1)]
        deadline = Deadline.after(self._clock, seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._pool.warm()
        read = await self._read(wanted, Asker(tenant), deadline)
        found: dict[int, Document | LeftOut] = {one.source.position: one for one in read.documents}
        found |= {one.source.position: one for one in read.left_out}
        return [found[one.position] for one in wanted]

    def _within(self, seconds: float, deadline: Deadline | None) -> Deadline:
        """Return a deadline `seconds` from now, but no later than the job's `deadline`."""
        return Deadline.after(self._clock, seconds if deadline is None else min(seconds, deadline.remaining))

    async def _find_and_read(
        self, sources: Sources, asker: Asker, bounds: Bounds, reading: Deadline, deadline: Deadline | None
    ) -> tuple[_ReadSources, list[str]]:
        """Read the job's own sources and its searches' results; add a note for a search that brought no results.

        All sources are read concurrently, because a search that hangs must not take time from the job's other sources.
        The job's own sources come first in the result, then the results of the first search.
        """
        known = _Known(_named_by(sources))
        own = self._read(known.own, asker, reading)
        searches = (self._search_and_read(one, known, asker, bounds, deadline) for one in sources.all_searches)
        read, found = await asyncio.gather(own, asyncio.gather(*searches))
        parts = [read, *(part for part, _ in found)]
        documents = tuple(one for part in parts for one in part.documents)
        left_out = tuple(one for part in parts for one in part.left_out)
        return _ReadSources(documents, left_out), [note for _, notes in found for note in notes]

    async def _search_and_read(
        self, wanted: Search, known: _Known, asker: Asker, bounds: Bounds, deadline: Deadline | None
    ) -> tuple[_ReadSources, list[str]]:
        """Run the search, and read its results in the remaining time."""
        seconds = bounds.budget_seconds * (1 - RANKING_SHARE)
        findings, notes = await self._find(wanted, asker, seconds, deadline)
        left = self._within(seconds - findings.seconds, deadline)
        return await self._read(known.new(findings.found), asker, left), notes

    async def _find(
        self, wanted: Search, asker: Asker, seconds: float, deadline: Deadline | None
    ) -> tuple[Findings, list[str]]:
        """Return the search's results, and a note if there are none."""
        name = f"the search at {wanted.provider}"
        try:
            async with asyncio.timeout(deadline.remaining if deadline is not None else None):
                with span("search", None, {"provider": wanted.provider}, kind=Kind.CLIENT):
                    findings = await self._searches.find(wanted, asker.tenant, seconds, asker.max_age_seconds)
            result, notes = ("found", []) if findings.found else ("nothing", [f"{name} found nothing"])
        except Unreadable as reason:
            result, findings, notes = "failed", Findings(()), [f"{name} brought nothing: {reason}"]
        except TimeoutError:
            result, findings, notes = "late", Findings(()), [f"{name} brought nothing: {LATE}"]
        self._searched[result].inc()
        notes += [f"{name} has no {one}: the search ran without it" for one in findings.ignored]
        return findings, notes

    async def _read(self, wanted: Sequence[Wanted], asker: Asker, deadline: Deadline) -> _ReadSources:
        """Read these sources concurrently; leave out sources that are late."""
        if not wanted:
            return _ReadSources((), ())
        tasks = {asyncio.create_task(self._document(one, asker, deadline), name="source"): one for one in wanted}
        try:
            await asyncio.wait(tasks, timeout=deadline.remaining)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        documents = [result for result in results if isinstance(result, Document)]
        self._fetched["read"].inc(len(documents))
        failures = [(one, what) for one, what in zip(wanted, results, strict=True) if isinstance(what, BaseException)]
        left_out = [self._left_out(one, what) for one, what in failures]
        documents += [excerpt for one in left_out if (excerpt := _excerpt(one)) is not None]
        return _ReadSources(tuple(documents), tuple(one for one in left_out if _excerpt(one) is None))

    def _left_out(self, one: Wanted, result: BaseException) -> LeftOut:
        if isinstance(result, asyncio.CancelledError):
            self._fetched["late"].inc()
            return LeftOut(one, LATE)
        if not isinstance(result, Unreadable):
            raise result  # this is a defect of this program, and the stage reports it
        self._fetched["left_out"].inc()
        return LeftOut(one, str(result))

    async def _document(self, one: Wanted, asker: Asker, deadline: Deadline) -> Document:
        """Read one source into a document. Raises Unreadable."""
        reading = await self._reading(one, asker, deadline)
        answer = reading.answer
        title, particulars = answer["title"], Particulars(**answer["particulars"])
        if one.found is not None:
            # An abstract gets the service's title. A page's own title beats a search engine's title, which may be cut.
            title = title or one.found.title if one.found.page is None else one.found.title or title
            particulars = particulars.under(one.found.particulars)
        if one.document is not None:
            title = one.document.title or title
        title = (title or "")[:LONGEST_TITLE] or None  # a long title is cut, because each passage repeats it
        return Document(one, reading.url, title, answer["text"], answer["rest"], particulars, reading.older)

    async def _reading(self, one: Wanted, asker: Asker, deadline: Deadline) -> Reading:
        """Read the source's page, the job's document, or the text that the search returned. Raises Unreadable."""
        if one.document is not None:
            return Reading(one.url, await self._reader.extracted(_as_page(one.document), asker, deadline))
        if one.found is not None and (page := one.found.page) is not None:
            return Reading(one.url, await self._reader.extracted(page, asker, deadline))
        return await self._reader.read(one.url, asker, deadline.remaining)

    async def _choose(
        self,
        question: str,
        documents: Sequence[Document],
        asker: Asker,
        deadline: Deadline,
        chars: int,
        room_tokens: int | None,
    ) -> tuple[tuple[NumberedSource, ...], list[str]]:
        """Choose passages; return the numbered sources, and notes on the choice and on sources without passages."""
        wording, source_tokens = self._wording_tokens()
        tokens = None if room_tokens is None else room_tokens - wording
        if tokens is not None and tokens < MIN_EVIDENCE_TOKENS:
            return (), ["no source was used: context_window or the model leaves no room for sources"]
        budget = Budget(chars, tokens, source_tokens)
        texts = within([document.text for document in documents], _MAX_RANKED_CHARS)
        others = within([document.rest for document in documents], _MAX_RANKED_CHARS - sum(map(len, texts)))
        titled = [(one.title, text, rest) for one, text, rest in zip(documents, texts, others, strict=True)]
        notes = []
        if texts != [document.text for document in documents]:
            notes = [f"only the first {max(map(len, texts))} characters of long sources were read"]
        passage_chars = self._passage_chars(tokens)
        try:
            choice = await self._chooser.choose(question, titled, budget, passage_chars, asker, deadline)
            notes += choice.notes
        except (Unreadable, TimeoutError):
            passages = tuple(map(tuple, beginnings(texts, budget, passage_chars)))
            labels = (tuple(steering(*some)) for some in passages)
            notes = ["choosing passages took too long: the beginning of each source was used"]
            choice = Choice(passages, tuple(labels))
        crowded = [one.source for one, some in zip(documents, choice.passages, strict=True) if not some]
        notes += [str(LeftOut(one, CROWDED)) for one in crowded]
        notes += [note for one, label in zip(documents, choice.steering, strict=True) for note in _remarks(one, label)]
        return _numbered(documents, choice), notes

    def _wording_tokens(self) -> tuple[int, int]:
        """Return how many tokens the template's wording adds: once for the whole prompt, and then for each source."""
        template = load_template(self._settings.template)
        each = template.source + template.title + "x" * MAX_TITLE_CHARS
        return estimated_tokens(template.before + template.after + template.question), estimated_tokens(each)

    def _passage_chars(self, tokens: int | None) -> int:
        """Return the length of a passage: as in the settings, or shorter if the prompt has little room."""
        return self._settings.passage_chars if tokens is None else max(100, min(self._settings.passage_chars, tokens))


def _named_by(sources: Sources) -> list[Wanted]:
    """Return each source that the job itself names, once: first the job's documents, then its URLs."""
    documents: dict[str, SourceDocument] = {}
    for document in sources.documents:
        documents.setdefault(document.id, document)
    own = [Wanted.of(position, one) for position, one in enumerate(documents.values(), start=1)]
    urls = (url for url in dict.fromkeys(sources.urls) if url not in documents)
    return own + [Wanted(position, url) for position, url in enumerate(urls, start=len(own) + 1)]


def _as_page(document: SourceDocument) -> Page:
    """Return the document as a `Page`, as if a server had sent it."""
    media_type = (document.media_type or "").lower()
    if document.text is not None:
        return Page("", media_type or "text/plain", "utf-8", document.text.encode("utf-8", "replace"))
    return Page("", media_type, None, b64decode(document.base64 or ""))


def _excerpt(left_out: LeftOut) -> Document | None:
    """Return the search service's excerpt of a source that could not be read; None if the service gave no excerpt."""
    found = left_out.source.found
    if found is None or found.excerpt is None:
        return None
    title = (found.title or "")[:LONGEST_TITLE] or None
    return Document(
        left_out.source, found.url, title, found.excerpt, particulars=found.particulars, unread=left_out.reason
    )


def _numbered(documents: Sequence[Document], choice: Choice) -> tuple[NumberedSource, ...]:
    """Return the documents that have chosen passages, each as a numbered source."""
    kept = [one for one in zip(documents, choice.passages, choice.steering, strict=True) if one[1]]
    return tuple(
        NumberedSource(number, one.source.id, one.url or None, one.title, passages, label, particulars=one.particulars)
        for number, (one, passages, label) in enumerate(kept, start=1)
    )


def _remarks(document: Document, steering_ways: Sequence[str]) -> Iterator[str]:
    """Yield notes about a page for the result's reader."""
    name = f"source {document.source.position} ({document.source.name})"
    if document.older is not None:
        yield f"{name} is an older copy: {document.older}"
    if document.unread is not None:
        yield f"{name} is only the search service's excerpt: {document.unread}"
    if steering_ways:
        yield f"{name} tries to steer the model: {', '.join(steering_ways)}"


def within(texts: Sequence[str], chars: int) -> list[str]:
    """Cut the longest texts to a common length, so that all texts together have at most `chars` code points."""
    left, most = chars, len(texts)
    limit = 0
    for size in sorted(map(len, texts)):
        limit = left // most
        if size > limit:
            break
        left, most = left - size, most - 1
    return [text[:limit] for text in texts]


def beginnings(texts: Sequence[str], budget: Budget, passage_chars: int) -> list[list[str]]:
    """Return the beginning of each text as the text's only passage, as long as the budget has room.

    A beginning is as long as a passage, or shorter if many texts share the budget.
    """
    chosen: list[list[str]] = []
    size = min(passage_chars, budget.chars // max(1, len(texts)))
    for text in texts:
        passage = _beginning(text, size)
        left = budget.without(passage, is_first=True) if passage else None
        chosen.append([passage] if left is not None else [])
        budget = left or budget
    return chosen


def _beginning(text: str, size: int) -> str:
    """Return as many of the text's first words as fit into `size` code points, with single spaces."""
    words = " ".join(text[: size + 1].split())
    if len(words) <= size:
        return words
    return words[:size].rpartition(" ")[0] or words[:size]
