"""What is kept of a page, for how long, and how it is written down."""

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

from workers.enrichment.cache.settings import CacheSettings
from workers.enrichment.evidence import Page, Particulars

_FORMAT: Final = 1
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
    """Whose reading of which URL. Hashes, since a URL may hold a secret."""

    scope: str
    """All jobs share what is public; see `scope_of`."""
    url: str

    @classmethod
    def of(cls, url: str, scope: str) -> Key:
        """The key of a URL."""
        return cls(scope, _hashed(_plain(url)))

    def __str__(self) -> str:
        return f"{self.scope}:{self.url}"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a page is fresh, in seconds, and whether it may be used beyond that where it cannot be asked for."""

    fresh: float
    may_be_served_late: bool = True


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A page as it was read, or why it could not be. Times are Unix seconds, since machines share entries."""

    asked_at: float
    """When its server was asked: what is invalidated later than that is not good any more."""
    fresh_until: float
    kept_until: float
    asked_url: str
    url: str
    """Where the last redirect led."""
    etag: str | None = None
    last_modified: str | None = None
    answer: dict[str, Any] | None = None
    """What the reader made of the page; None where there is a reason."""
    reason: str | None = None
    """Why the page could not be read, or why an older copy of it has to do."""
    life: Lifetime | None = None
    """What its server said of it; None where there is no page."""

    @property
    def may_be_served_late(self) -> bool:
        """Whether it may be used although it is not fresh."""
        return self.answer is not None and (self.life is None or self.life.may_be_served_late)

    @property
    def targets(self) -> Iterator[str]:
        """By which names it can be invalidated."""
        for url in (self.asked_url, self.url):
            yield target_of_url(url)
            yield target_of_host(_host(url))


def scope_of(tenant: str, allowed: tuple[str, ...], denied: tuple[str, ...] = ()) -> str:
    """Whose entries a job may see. Public pages are everybody's.

    Where fetches may reach networks that are not public, a tenant sees only what was read for it under the same
    allowance: a page that one tenant may read can be a secret from another. What was read before something was denied
    is nobody's any more: it may have come from there.
    """
    if not (allowed or denied):
        return "public"
    lists = [*sorted(allowed), "", *sorted(denied)] if denied else sorted(allowed)
    return _hashed("\n".join([tenant if allowed else "", *lists]))[:32]


def target_of_url(url: str) -> str:
    """What an invalidation of this URL is called."""
    return f"u:{_hashed(_plain(url))}"


def target_of_host(host: str) -> str:
    """What an invalidation of everything of this host is called."""
    name = host.lower().strip("[]").rstrip(".")
    with suppress(*_NOT_READ):  # no host at all: nothing was read from there
        name = URL.build(scheme="http", host=name).host or name  # one spelling for names beyond ASCII
    return f"h:{_hashed(name)}"


_NOT_READ: Final = (ValueError, TypeError, LookupError)
"""The errors that yarl raises for a text that is no URL, when it is read or only when a part is asked for."""


def _plain(url: str) -> str:
    """Without its fragment; as it stands where it cannot be read, since an entry may come from anywhere."""
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
    """What the page's server (RFC 9111, sections 4.2 and 5.2.2) and the settings allow; None: it is not to be kept.

    `now` is when the page was asked for, in Unix seconds.
    """
    if _NOT_KEPT.search(page.cache_control):
        return None
    said = 0.0 if _NOT_FRESH.search(page.cache_control) else _said_seconds(page, now)
    fresh = settings.fresh_seconds if said is None else min(said, settings.longest_fresh_seconds)
    return Lifetime(fresh, not _NOT_STALE.search(page.cache_control))


def _said_seconds(page: Page, now: float) -> float | None:
    """For how much longer the page is fresh by what its server says; None where it says nothing."""
    ages = {name.lower(): float(seconds) for name, seconds in _MAX_AGE.findall(page.cache_control)}
    said = ages.get("s-maxage", ages.get("max-age"))
    if said is None and page.expires is not None:
        until, since = _http_date(page.expires), _http_date(page.date or "")
        said = until - (now if since is None else since) if until is not None else 0.0  # `0` is a date that is over
    age = float(page.age) if page.age is not None and _AGE.fullmatch(page.age) else 0.0
    return None if said is None else max(0.0, said - age)


def _http_date(value: str) -> float | None:
    """Unix seconds; None for what is no date."""
    try:
        date = parsedate_to_datetime(value)
        return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def encoded(entry: CacheEntry) -> bytes:
    """The entry as bytes."""
    return zlib.compress(json.dumps({"format": _FORMAT, **asdict(entry)}, ensure_ascii=False).encode(), 1)


def _is_answer(answer: Any) -> bool:
    """Whether this is what a member of the pool answers of a page today, see `workers.enrichment.processes.member`."""
    return (
        isinstance(answer, dict)
        and isinstance(answer.get("text"), str)
        and isinstance(answer.get("title"), str | None)
        and isinstance(answer.get("steering"), list)
        and isinstance(answer.get("particulars"), dict)
        and set(answer["particulars"]) <= _PARTICULARS
    )


def decoded(value: bytes) -> CacheEntry:
    """The entry in these bytes. Raises ValueError for anything else, also for what unpacks to more than 64 MiB."""
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
            raise ValueError("times are numbers, and a page has a URL")
    except (zlib.error, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("not an entry") from None
    return entry
