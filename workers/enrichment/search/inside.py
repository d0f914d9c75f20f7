"""The part that an operator's own sources have in common: tenants, placeholders, secrets, and items as results."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import jmespath
from pydantic import ValidationError

from workers.enrichment.evidence import Found, Particulars, Unreadable
from workers.enrichment.search.base import MAX_TEXT_CHARS, SearchMisconfigured, SearchQuery, is_link
from workers.enrichment.search.service import MOST_RESULTS
from workers.enrichment.search.source_file import (
    EVERYONE,
    ItemFields,
    SourceFile,
    TenantAccess,
    read_secret,
    value_of,
)
from workers.enrichment.search.words import search_words

REFUSED_KEY: Final = "the source refuses the operator's secret"
_DATE: Final = re.compile(r"\d{4}(?:-\d{2}(?:-\d{2})?)?(?![\d-])", re.ASCII)
_ID: Final = re.compile(r"[\x21-\x7e]{1,160}")
_MEDIA_TYPE: Final = re.compile(r"[\w.+-]{1,64}/[\w.+-]{1,64}", re.ASCII)


class InsideSource(ABC):
    """One source that the operator has configured. A subclass for each kind implements `SearchProvider`."""

    def __init__(self, name: str, file: SourceFile, folder: Path) -> None:
        self.name = name
        self.fresh_seconds = file.fresh_seconds
        self._tenants = file.tenants
        self._secrets = file.secrets
        self._folder = folder
        self._parameters = {name: value_of(pattern) for name, pattern in file.parameters.items()}

    def allows(self, tenant: str) -> bool:
        """True if jobs of this tenant may use the source."""
        return tenant in self._tenants or EVERYONE in self._tenants

    @abstractmethod
    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`."""

    def values_of(self, query: SearchQuery) -> dict[str, str]:
        """Return the values of the placeholders, without secrets. Raises Unreadable for wrong parameters of a job."""
        given = dict(query.parameters)
        if given.keys() != self._parameters.keys():
            raise Unreadable(f"the source takes these parameters: {', '.join(sorted(self._parameters)) or 'none'}")
        for name, value in given.items():
            try:
                self._parameters[name].validate_python(value)
            except ValidationError:
                raise Unreadable(f"the parameter {name} has another form than the source takes") from None
        words = search_words(query.text)
        if not words:
            raise Unreadable("there is no word in the query")
        either = " OR ".join(f'"{word}"' for word in words)
        job = {"query": query.text, "words": " ".join(words), "any": either, "limit": str(query.limit)}
        return {**job, **given, **self._access(query).values, "tenant": query.tenant or ""}

    def _with_secrets(self, query: SearchQuery, values: Mapping[str, str]) -> dict[str, str]:
        """Read the tenant's secrets, and return them together with `values`.

        Raises Unreadable if a secret's file is missing.
        """
        places = {**self._secrets, **self._access(query).secrets}
        try:
            return {**values, **{name: read_secret(self._folder / place) for name, place in places.items()}}
        except SearchMisconfigured:
            raise Unreadable("the operator's secret cannot be read") from None

    def _access(self, query: SearchQuery) -> TenantAccess:
        return self._tenants.get(query.tenant or "") or self._tenants[EVERYONE]

    def result_of(self, item: Mapping[str, Any]) -> Found | None:
        """Return an item as a result; None for one without text, content and link. An item's values are untrusted."""
        try:
            return self._result(item)
        except RecursionError:  # a value may be nested as deeply as JSON allows
            return None

    def _result(self, item: Mapping[str, Any]) -> Found | None:
        text = _text(item.get("text"))[:MAX_TEXT_CHARS]
        content = None if text else _content(item.get("content"))
        link = _text(item.get("link"))
        link = link if is_link(link) else ""
        if not (text or content or link):
            return None
        named = "-".join(_text(item.get("id")).split())
        if not _ID.fullmatch(named):
            named = sha256(content or text.encode() or link.encode()).hexdigest()[:16]
        media_type, published = _text(item.get("media_type")), _DATE.match(_text(item.get("date")))
        return Found(
            url=link,
            id=f"{self.name}:{named}",
            title=_text(item.get("title")) or None,
            text=text or None,
            content=content,
            media_type=media_type.lower() if _MEDIA_TYPE.fullmatch(media_type) else None,
            particulars=Particulars(published=published[0] if published else None),
        )


class Items:
    """Reads the items of a JSON answer by JMESPath expressions."""

    def __init__(self, fields: ItemFields) -> None:
        expressions = fields.model_dump(exclude={"items"}, exclude_none=True)
        self._items = jmespath.compile(fields.items)
        self._fields = {name: jmespath.compile(text) for name, text in expressions.items()}

    def of(self, answer: object) -> list[dict[str, Any]]:
        """Return the fields of each item; leave out items for which an expression fails. Raises Unreadable."""
        found = evaluated(self._items, answer)
        items = found if isinstance(found, list) else [] if found is None else [found]
        if len(items) > MOST_RESULTS:
            raise Unreadable("the source's answer has too many items")
        read = []
        for item in items:
            with suppress(Unreadable):
                read.append({name: evaluated(expression, item) for name, expression in self._fields.items()})
        if items and not read:
            raise Unreadable("the source's answer does not have the form in the operator's file")
        return read


def evaluated(expression: Any, value: object) -> Any:
    """Apply a JMESPath expression to the value, and return the result. Raises Unreadable if the expression fails."""
    try:
        return expression.search(value)
    except (jmespath.exceptions.JMESPathError, ArithmeticError, TypeError, ValueError, KeyError, RecursionError):
        raise Unreadable("the source's answer does not have the form in the operator's file") from None


def filled(template: str, values: Mapping[str, str], *, encode: bool = False) -> str:
    """Replace the template's placeholders by their values. If `encode` is true, percent-encode these.

    Raises Unreadable.
    """

    def value(found: re.Match[str]) -> str:
        given = values[found[1]]
        if not encode:
            return given
        if given in (".", ".."):
            raise Unreadable("a parameter in a URL is made of dots only")  # a server would read `..` as a folder
        return quote(given, safe="")

    return re.sub(r"\{([a-z][a-z0-9_]*)\}", lambda found: value(found) if found[1] in values else found[0], template)


def filled_value(template: Any, values: Mapping[str, str]) -> Any:
    """Replace the template's placeholders, which are whole strings, by their values. `{limit}` becomes a number."""
    if isinstance(template, dict):
        return {name: filled_value(part, values) for name, part in template.items()}
    if isinstance(template, list):
        return [filled_value(part, values) for part in template]
    if isinstance(template, str) and template[:1] == "{" and template[1:-1] in values:
        given = values[template[1:-1]]
        return int(given) if template == "{limit}" else given
    return template


def _text(value: object) -> str:
    """Return a JSON or database value as text.

    A list becomes one line, and a list of lists becomes one line for each inner list.
    """
    if isinstance(value, list):
        parts = [part for part in map(_text, value) if part]
        return ("\n" if any(isinstance(one, list) for one in value) else " ").join(parts)
    if isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, date):
        value = value.isoformat()
    text = "" if value is None or isinstance(value, bytes) else str(value)
    return text.encode("utf-8", "replace").decode()


def _content(value: object) -> bytes | None:
    """Return bytes as they are, and text decoded from base64 (RFC 4648); None for any other value."""
    if isinstance(value, bytes | memoryview):
        return bytes(value) or None
    with suppress(ValueError):
        return b64decode(value) if isinstance(value, str) else None
    return None
