"""A cached page: its key, its lifetime and its encoding."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC
from email.utils import parsedate_to_datetime
from hashlib import sha256
from math import isfinite
from typing import Any, Final

from yarl import URL

from workers.enrichment.evidence import Page, Particulars
from workers.enrichment.settings import CacheSettings

_FORMAT: Final = 3
_MUCH_MORE_TIME: Final = 1.5
"""Factor of a job's time from which on it reads a page again that was not read whole."""
_PARTICULARS: Final = {field.name for field in fields(Particulars)}
_UNPACKED_BYTES: Final = 64 * 1024 * 1024
_MAX_AGE: Final = re.compile(r"(?:^|[\s,])(s-maxage|max-age)\s*=\s*\"?(\d{1,10})", re.IGNORECASE)
_AGE: Final = re.compile(r"[0-9]{1,10}")
_NOT_KEPT: Final = re.compile(r"(?:^|[\s,])(?:no-store|private)(?:$|[\s,=;])", re.IGNORECASE)
_NOT_FRESH: Final = re.compile(r"(?:^|[\s,])no-cache(?:$|[\s,=;])", re.IGNORECASE)
_NOT_STALE: Final = re.compile(
    r"(?:^|[\s,])(?:no-cache|must-revalidate|proxy-revalidate|s-maxage)(?:$|[\s,=;])", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Key:
    """A URL within a scope. The URL is hashed, since it may hold a secret."""

    scope: str
    """The name of a group of jobs that share an entry, see `scope_of`.

    If there is no allowlist, all jobs form one group.
    """
    url: str

    @classmethod
    def of(cls, url: str, scope: str) -> Key:
        """Return the key of a URL in a scope."""
        return cls(scope, _hashed(_plain(url)))

    def __str__(self) -> str:
        return f"{self.scope}:{self.url}"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The seconds for which a page is fresh, and whether a stale copy of it may be served while its server is away."""

    fresh: float
    may_be_served_late: bool = True


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A page as read, or the reason why it could not be read. Times are Unix seconds, since machines share entries."""

    asked_at: float
    """The time of the request to the page's server; an invalidation at that time or later voids the entry."""
    fresh_until: float
    kept_until: float
    asked_url: str
    url: str
    """The URL after the last redirect."""
    etag: str | None = None
    last_modified: str | None = None
    answer: dict[str, Any] | None = None
    """A pool member's answer about the page; None if the page could not be read."""
    reason: str | None = None
    """The reason why the page could not be read, or why its older copy is served."""
    life: Lifetime | None = None
    """The lifetime that follows from the server's headers and the settings; None if there is no page."""
    cut_seconds: float | None = None
    """The time of the job that could not read the page whole; None for a page that more time would not change."""

    def suffices(self, seconds: float) -> bool:
        """True unless a job with so much time may read more of the page than the entry has."""
        return self.cut_seconds is None or seconds <= _MUCH_MORE_TIME * self.cut_seconds

    @property
    def may_be_served_late(self) -> bool:
        """True if the entry may be served although it is stale."""
        return self.answer is not None and (self.life is None or self.life.may_be_served_late)

    @property
    def targets(self) -> Iterator[str]:
        """The names by which the entry can be invalidated."""
        for url in (self.asked_url, self.url):
            yield target_of_url(url)
            yield target_of_host(_host(url))


def scope_of(tenant: str, allowed: tuple[str, ...], denied: tuple[str, ...] = ()) -> str:
    """Return the scope of the entries that a tenant's jobs may see. Without an allowlist, all jobs share public pages.

    With an allowlist, fetches may reach networks that are not public, and a page there may be one tenant's secret. So
    each tenant has a scope of its own for each allowlist. A changed list of denied addresses hides all earlier entries,
    since these may come from a denied address.
    """
    if not (allowed or denied):
        return "public"
    lists = [*sorted(allowed), "", *sorted(denied)] if denied else sorted(allowed)
    return _hashed("\n".join([tenant if allowed else "", *lists]))[:32]


def target_of_url(url: str) -> str:
    """Return the name by which the entries of this URL can be invalidated."""
    return f"u:{_hashed(_plain(url))}"


def target_of_host(host: str) -> str:
    """Return the name by which the entries of all pages of this host can be invalidated."""
    name = host.lower().strip("[]").rstrip(".")
    with suppress(*_NOT_READ):  # an invalid host has no cached pages
        name = URL.build(scheme="http", host=name).host or name  # IDNA gives each name beyond ASCII one spelling
    return f"h:{_hashed(name)}"


_NOT_READ: Final = (ValueError, TypeError, LookupError)
"""The errors that yarl raises when an invalid URL is parsed, or when a part of it is read."""


def _plain(url: str) -> str:
    """Return the URL without its fragment.

    An invalid URL is returned unchanged: another program may have written it into a cache that is shared.
    """
    try:
        return str(URL(url).with_fragment(None))
    except _NOT_READ:
        return url


def _host(url: str) -> str:
    try:
        return URL(url).host or ""
    except _NOT_READ:
        return ""


def _hashed(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def lifetime(page: Page, settings: CacheSettings, now: float) -> Lifetime | None:
    """Return the page's lifetime, from the server's headers (RFC 9111, sections 4.2 and 5.2.2) and the settings.

    Return None if the page must not be stored. `now` is the time of the request, in Unix seconds.
    """
    if _NOT_KEPT.search(page.cache_control):
        return None
    said = 0.0 if _NOT_FRESH.search(page.cache_control) else _said_seconds(page, now)
    fresh = settings.fresh_seconds if said is None else min(said, settings.longest_fresh_seconds)
    return Lifetime(fresh, not _NOT_STALE.search(page.cache_control))


def _said_seconds(page: Page, now: float) -> float | None:
    """Return for how many more seconds the server's headers call the page fresh; None if they do not say."""
    ages = {name.lower(): float(seconds) for name, seconds in _MAX_AGE.findall(page.cache_control)}
    said = ages.get("s-maxage", ages.get("max-age"))
    if said is None and page.expires is not None:
        until, since = _http_date(page.expires), _http_date(page.date or "")
        said = until - (now if since is None else since) if until is not None else 0.0  # `0` means expired
    age = float(page.age) if page.age is not None and _AGE.fullmatch(page.age) else 0.0
    return None if said is None else max(0.0, said - age)


def _http_date(value: str) -> float | None:
    """Return an HTTP date in Unix seconds; None for an invalid date."""
    try:
        date = parsedate_to_datetime(value)
        return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def encoded(entry: CacheEntry) -> bytes:
    """Encode the entry as compressed JSON."""
    return zlib.compress(json.dumps({"format": _FORMAT, **asdict(entry)}, ensure_ascii=False).encode(), 1)


def _is_answer(answer: Any) -> bool:
    """True if `answer` has the current form of a member's answer, see `workers.enrichment.processes.member`."""
    return (
        isinstance(answer, dict)
        and isinstance(answer.get("text"), str)
        and isinstance(answer.get("rest"), str)
        and isinstance(answer.get("title"), str | None)
        and isinstance(answer.get("particulars"), dict)
        and set(answer["particulars"]) <= _PARTICULARS
    )


def decoded(value: bytes) -> CacheEntry:
    """Decode an entry. Raises ValueError for invalid bytes, and for an entry that unpacks to more than 64 MiB."""
    unpacker = zlib.decompressobj()
    try:
        written = json.loads(unpacker.decompress(value, _UNPACKED_BYTES))
        if not unpacker.eof or written.pop("format") != _FORMAT:
            raise ValueError("not an entry of this format")
        life = written.pop("life", None)
        entry = CacheEntry(**written, life=None if life is None else Lifetime(**life))
        if not (_is_answer(entry.answer) or (entry.answer is None and isinstance(entry.reason, str))):
            raise ValueError("an entry holds a page or a reason")
        times = entry.asked_at + entry.fresh_until + entry.kept_until + (entry.life.fresh if entry.life else 0.0)
        if not isinstance(entry.url, str) or not isfinite(times):
            raise ValueError("a time is not a number, or the URL is missing")
    except (zlib.error, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("not an entry") from None
    return entry
