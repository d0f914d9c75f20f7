"""Settings of enrichment, and of its cache, its payloads and its search.

They are read from `POSTBACK_ENRICHMENT__…`, `POSTBACK_CACHE__…`, `POSTBACK_PAYLOADS__…` and `POSTBACK_SEARCH__…`.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from schemas.settings import Constants, RoomSettings
from workers.enrichment.evidence import Extractor

_PLAIN: Final = r"[!-'*-;=?-~]"
"""Printable ASCII without spaces and brackets, which could end the comment in a `User-Agent` header."""
_LANGUAGE: Final = r"(?:script/)?[A-Za-z_]{2,40}"
"""A name of tesseract's data, such as `eng`, `chi_sim` or `script/Latin`."""
_EMAIL: Final = r"[!-'*-;=?A-~]+@[!-'*-;=?A-~]+"


ENTAILMENT_SETTING: Final = "POSTBACK_ENRICHMENT__ENTAILMENT"
BY_ENGINE: Final = "engine"
"""The value of `entailment` for the engine's own model."""


class EnrichmentConstants(Constants):
    """Bounds on one job's sources that no operator has a reason to change."""

    entailment_classes: str | None = None
    """The classes of the cross-encoder in their order, such as `contradiction,entailment,neutral`.

    By default, they are those of `id2label` in the model's `config.json`.
    """
    search_fresh_seconds: float = 600.0
    """Time for which a search's results are cached."""
    longest_budget_seconds: float = 30.0
    """Upper bound of the time that a job may set for its sources (`sources.budget_seconds`)."""
    page_bytes: int = 8 * 1024 * 1024
    """Maximum size of a page after decompression. A longer page is cut, and its beginning is read."""
    pdf_bytes: int = 20_000_000
    """Maximum size of a PDF or an Office file, including its pictures and fonts, which are not read. A larger file is
    left out, since its end says how to read it."""
    in_flight_bytes: int = 128 * 1024 * 1024
    """Maximum size of all pages together that a worker has in memory, of all jobs, from their first byte until their
    text is extracted. Further pages wait, tenants in turn.

    The default fits beside the worker's own memory into the half GiB that the chart's limit leaves for the worker. One
    page of the largest size may always be read; if the budget is smaller than such a page, pages are read one by one.
    """
    image_seconds: float = 30.0
    """Time for fetching all images of one job, including further tries if servers fail."""
    image_jobs: int = 64
    """Maximum number of jobs that have fetched images in memory at once. Further jobs with image URLs wait.

    One tenant has at most three quarters of these places, and its jobs that fetch from one server have at most half.

    The images of a job take up to 1.4 times `image_bytes` as base64, and as much again in the engine's request.
    """
    redirects: int = 5
    """Maximum number of redirects that are followed from one URL."""
    connections: int = 512
    """Maximum number of connections to sites.

    One job uses at most half of the connections, and all jobs of one tenant use at most three quarters. Each connection
    takes a file descriptor; many systems allow a process 1,024.
    """
    connections_per_host: int = 6
    """Maximum number of connections to one site. One job or one tenant gets only a part of these connections."""
    host_interval_seconds: float = 0.0
    """Least time between two pages that a worker requests from one site, unless the site's `Crawl-delay` is longer."""
    user_agent: str = "Postback/0.1"
    """The product name in the `User-Agent` of each request; `contact` follows it."""
    robots_agent: str = "Postback"
    """The name whose rules in a robots.txt apply to the worker: the product token of RFC 9309 (2.2.1), which
    `user_agent` contains."""
    robots_seconds: float = 3600.0
    """Time for which a robots.txt is cached."""
    ocr_seconds: float = 30.0
    """Timeout of reading one document's pictures, not counting the wait in line. Pages read by then are used.

    The longest time that a job may set for its sources; a shorter budget ends the reading earlier.
    """
    ocr_pages: int = 10
    """Maximum number of one document's pages that OCR reads."""
    renderer_seconds: float = 3.0
    """Timeout of rendering one page. After a timeout, the page is read as the server sent it."""
    renderer_pages: int = 4
    """Number of pages that a worker renders at once."""
    renderer_bytes: int = 10_000_000
    """Maximum size of all files together that the scripts of one page load."""
    least_freshness_seconds: float = 60.0
    """Lower bound of a job's `sources.freshness_seconds`.

    A job cannot refuse cached pages and searches that are younger than this.
    """
    rewrite_seconds: float = 5.0
    """Timeout of a rewriting. After a timeout, the question stays as it is."""
    rewrite_tokens: int = 64
    """Maximum number of tokens of a rewritten question."""
    entailment_supports: float = 0.5
    """Least probability of the class `entailment` at which the cross-encoder finds a sentence supported."""
    entailment_contradicts: float = 0.5
    """Least probability of the class `contradiction` at which the cross-encoder finds a sentence contradicted."""
    entailment_seconds: float = 2.0
    """Time of a job in which the judge reads the sentences of its answer. A sentence that is late is not judged."""
    most_evidence_chars: int = 16_000
    """The operator's bound on a job's `sources.max_chars`, in code points. A larger `max_chars` counts as this bound.

    The job's `max_chars` limits the length of all its quoted passages together.
    """
    passage_chars: int = 600
    """Approximate length of one passage, in code points."""
    rerank_seconds: float = 1.0
    """Time in which the model compares a job's passages. Passages that are late are ranked by words, with a note.

    Four of the five seconds of the default `budget_seconds` remain for finding and reading the pages.
    """
    rerank_passages: int = 32
    """Number of a job's passages that the model compares with the question: those that rank highest by words."""


class EnrichmentSettings(EnrichmentConstants, RoomSettings, env_prefix="POSTBACK_ENRICHMENT__"):
    """Limits of one job's sources in time, bytes and processes, and rules for fetching and choosing sources."""

    budget_seconds: float = Field(default=5.0, gt=0, le=120)
    """Time for finding, reading and ranking all sources of a job. Sources that are late are left out, with a note.

    The time does not include a search's wait for a turn.
    """

    image_bytes: int = Field(default=8 * 1024 * 1024, ge=1024, le=100_000_000)
    """Maximum size of all images together that the worker fetches for one job.

    An image counts as often as the job names the image.
    """
    contact: str | None = Field(default=None, max_length=200, pattern=rf"^(?:{_EMAIL}|https?://{_PLAIN}+)$")
    """An e-mail address or a URL at which sites and search services can reach you. Wikimedia and NCBI ask for a
    contact."""
    robots: bool = True
    """Obey robots.txt."""

    members: int = Field(default=2, ge=1, le=64)
    """Number of processes that read pages; one more process ranks. No process starts before a job has sources."""
    member_seconds: float = Field(default=1.5, gt=0, le=60)
    """Timeout of one task, such as reading a page; a process that takes longer is killed."""
    member_bytes: int = Field(default=384 * 1024 * 1024, ge=256 * 1024 * 1024)
    """Address space of one process. A page that needs more is left out.

    The container's limit must suffice for all processes.
    """
    extractor: Extractor = "resiliparse"
    """The library that finds a page's main text. `trafilatura` finds this text better, but takes three times the CPU
    time.

    `trafilatura` needs the extra `extraction`.
    """
    ocr: str | None = Field(default=None, max_length=200, pattern=rf"^{_LANGUAGE}(?:\+{_LANGUAGE})*$")
    """Languages in which tesseract reads images and scanned pages of PDFs, such as `eng+deu`. By default, OCR is off.

    OCR needs the program tesseract, its data for each language, and the extra `ocr`.
    """
    ocr_documents: int = Field(default=1, ge=1, le=64)
    """Number of documents that OCR reads at once. A document takes two processes of at most `member_bytes` each."""
    renderer: str | None = Field(default=None, pattern=r"^https?://[^\s@?#]+$")
    """URL of a Chromium's DevTools endpoint, for pages that a script fills. By default, no script runs.

    The worker fetches all that a script asks for, so the browser needs no network of its own.
    """
    renderer_secret: SecretStr | None = None
    """The secret that the worker sends to the renderer as `Authorization: Bearer …`."""
    entailment: str | None = Field(default=None, min_length=1, max_length=1000)
    """The judge of answers: the folder of a cross-encoder in ONNX, or `engine` for the engine's own model.

    The folder has `model.onnx`, `tokenizer.json` and `config.json`, and needs the extra `entailment`. By default, no
    judge reads an answer: sentences are supported by their words alone (`lexical`).
    """
    profiles_folder: Path | None = None
    """A folder with profiles of your own, see `profiles/default.toml`."""
    template: str = Field(default="plain", min_length=1, max_length=1000)
    """The wording of the prompt: `plain`, `deepseek` (DeepSeek's own form), or the path of your own `.toml` file."""
    evidence_chars: int = Field(default=4000, ge=200, le=1_000_000)
    """Maximum length of all quoted passages together, in code points. English has about four code points per token."""
    rerank_model: str | None = Field(default=None, min_length=1, max_length=1000)
    """A sentence-transformers model: its Hugging Face name or its folder.

    By default, passages are ranked only by words.
    """

    @property
    def named(self) -> str:
        """The `User-Agent` that sites and search services see (RFC 9110, section 10.1.5)."""
        return f"{self.user_agent} ({self.contact})" if self.contact is not None else self.user_agent

    @property
    def email(self) -> str | None:
        """The contact if it is an e-mail address, else None."""
        return None if self.contact is None or "://" in self.contact else self.contact

    @field_validator("extractor")
    @classmethod
    def _is_installed(cls, extractor: Extractor) -> Extractor:
        if extractor == "trafilatura" and find_spec("trafilatura") is None:
            raise ValueError("trafilatura is not installed; run pip install 'postback[worker,extraction]'")
        return extractor


class CacheConstants(Constants):
    """Lifetimes and bounds of cached pages."""

    memory_bytes: int = 64 * 1024 * 1024
    """Maximum size of the unpacked pages in each worker's memory; 0 turns this level off."""
    redis_prefix: str = "postback:cache:"
    """Prefix of each key, so that a Redis can serve other programs, too."""
    entry_bytes: int = 1024 * 1024
    """Maximum size of a page in the encoding for Redis and the file. A larger page is not cached at all."""
    fresh_seconds: float = 3600.0
    """Time for which a page is fresh if its server names no time."""
    longest_fresh_seconds: float = 86400.0
    """Cap on the time for which a page is fresh if its server names a time, for example by `max-age`."""
    stale_seconds: float = 86400.0
    """Time for which a stale page is kept, to replace a page that cannot be read (RFC 5861, `stale-if-error`)."""
    negative_seconds: float = 60.0
    """Time for which a failure to read a page is cached."""
    answer_seconds: float = 0.25
    """Timeout of each call to Redis and to the file."""
    pause_seconds: float = 1.0
    """Pause after a level's failure. This is also the longest delay until a worker learns of an invalidation."""


class CacheSettings(CacheConstants, RoomSettings, env_prefix="POSTBACK_CACHE__"):
    """The cache's levels, the sizes of the levels, and the lifetimes of cached pages."""

    redis_url: SecretStr | None = None
    """URL of a Redis with its password (`redis://…`, `rediss://…` or `unix://…`). Without a URL, this level is off."""
    disk_path: Path | None = None
    """Path of an SQLite file that the workers of one machine may share. Without a path, this level is off."""
    disk_bytes: int = Field(default=1024 * 1024 * 1024, ge=1024 * 1024)
    """Maximum size of the pages in the SQLite file; the least recently used page is evicted first."""


_TENANT: Final = "{tenant}"
_FOLDER: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/((?:[^\x00-\x1f\x7f]*/)?)")


class ObjectFolder(NamedTuple):
    """A folder of objects in S3 that jobs may name."""

    bucket: str
    prefix: str
    """The beginning of the objects' keys: empty, or with a slash at the end. `{tenant}` stands for the job's tenant."""

    def holds(self, bucket: str, key: str, tenant: str) -> bool:
        """True if a job of this tenant may name this object."""
        return bucket == self.bucket and key.startswith(self.prefix.replace(_TENANT, tenant))


def _folders(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(_folder(item.strip()) for item in value.split(",") if item.strip())


def _folder(item: str) -> ObjectFolder:
    found = _FOLDER.fullmatch(item)
    if found is None:
        raise ValueError("not s3://BUCKET/ or s3://BUCKET/PREFIX/ with a slash at the end")
    return ObjectFolder(found[1], found[2])


class PayloadConstants(Constants):
    """Bounds on fetching payloads."""

    s3_endpoint: str | None = None
    """The URL of S3-compatible storage, before `AWS_ENDPOINT_URL_S3`, which operators set."""
    seconds: float = 30.0
    """Time for fetching a payload, including further tries if the server fails."""
    jobs: int = 32
    """Maximum number of jobs that have payloads in memory at once. Further jobs with a `payload_url` wait.

    In memory, the text of a payload takes one to four times the payload's bytes (PEP 393). The engine's request may
    contain a copy.
    """


class PayloadSettings(PayloadConstants, RoomSettings, env_prefix="POSTBACK_PAYLOADS__"):
    """Limits on the documents at the `payload_url` of jobs, and the buckets that jobs may name."""

    most_bytes: int = Field(default=8 * 1024 * 1024, ge=1024, le=100_000_000)
    """Maximum size of a payload after decompression."""
    s3: Annotated[tuple[ObjectFolder, ...], NoDecode, BeforeValidator(_folders)] = ()
    """Folders `s3://BUCKET/PREFIX/`, separated by commas, whose objects jobs may name; none by default.

    `{tenant}` in a prefix stands for the job's tenant. Without `{tenant}`, each tenant may read all objects of the
    prefix. Credentials, region and the URL of a storage that is not Amazon's come from `AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY`, `AWS_DEFAULT_REGION` and `AWS_ENDPOINT_URL_S3`, or any other source that boto3 reads. The
    egress lists do not apply to that URL. Needs the extra `s3`.
    """


PUBMED_PER_SECOND: Final = 3.0
PUBMED_PER_SECOND_WITH_KEY: Final = 10.0
"""NCBI's limits without a key and with one (A General Introduction to the E-utilities, "Frequency")."""

PerSecond = Annotated[float, Field(gt=0, le=1000)]
BaseUrl = Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]


class _SearchSection(Constants):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    per_second: float | None = None
    """The maximum number of requests in a second that the service allows, or takes without harm."""


class SearxngSettings(_SearchSection):
    """A SearXNG instance with `json` among its `search.formats`."""

    base_url: BaseUrl | None = None
    """The instance's URL, without `/search`. Without a URL, jobs cannot use SearXNG."""
    per_second: float = 10.0


class WikipediaSettings(_SearchSection):
    """Wikipedia, or any MediaWiki with CirrusSearch."""

    base_url: BaseUrl = "https://en.wikipedia.org/w/api.php"
    """URL of the wiki's `api.php`; the language is part of the URL."""
    per_second: float = 5.0


class _PubmedConstants(_SearchSection):
    base_url: str = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"


class PubmedSettings(_PubmedConstants):
    """NCBI's E-utilities."""

    api_key: SecretStr | None = None
    """An API key from NCBI."""


class _ArxivConstants(_SearchSection):
    base_url: str = "https://export.arxiv.org/api/query"
    per_second: float = 1 / 3
    """arXiv's terms of use allow one request in three seconds."""


class ArxivSettings(_ArxivConstants):
    """arXiv's API."""


class _BraveConstants(_SearchSection):
    base_url: str = "https://api.search.brave.com/res/v1/web/search"
    per_second: float = 1.0
    """The limit of Brave's smallest plan."""


class BraveSettings(_BraveConstants):
    """Brave's web search."""

    api_key: SecretStr | None = None
    """An API key from Brave. Without a key, jobs cannot use Brave."""


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


class SearchSettings(RoomSettings, env_prefix="POSTBACK_SEARCH__", env_nested_delimiter="__"):
    """The services that jobs may search, and the keys for these services."""

    providers: Path | None = None
    """A folder with a `.toml` file for each source of your own: an HTTP API, a database or an MCP server."""
    allowed: Annotated[frozenset[str] | None, NoDecode, BeforeValidator(_names)] = None
    """Names of the providers that jobs may use, separated by commas.

    By default, jobs may use all providers, also those of other packages.
    """
    workers: int = Field(default=1, ge=1, le=10_000)
    """The number of workers with the same address or keys: each sends this part of the requests that a service allows
    in a second."""
    searxng: SearxngSettings = Field(default_factory=SearxngSettings)
    wikipedia: WikipediaSettings = Field(default_factory=WikipediaSettings)
    pubmed: PubmedSettings = Field(default_factory=PubmedSettings)
    arxiv: ArxivSettings = Field(default_factory=ArxivSettings)
    brave: BraveSettings = Field(default_factory=BraveSettings)
