"""An operator's own sources: the TOML files that describe them, and the part that all kinds have in common.

A file stands in the folder `POSTBACK_SEARCH__PROVIDERS`, and is named after the source. When the process starts, one
error names all mistakes of a file, each with the field and the fix. The error quotes no value of the file.
"""

from __future__ import annotations

import json
import re
import tomllib
from abc import ABC, abstractmethod
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

import jmespath
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError
from yarl import URL

from schemas.job import TENANT_PATTERN
from workers.enrichment.evidence import Found, Particulars, Unreadable
from workers.enrichment.search.base import MAX_TEXT_CHARS, SearchMisconfigured, SearchQuery, is_link
from workers.enrichment.search.service import KEY_REFUSED, MOST_RESULTS, Refused, ServiceRequest, Web
from workers.enrichment.search.words import search_words
from workers.enrichment.settings import PerSecond

EVERYONE: Final = "*"
GIVEN: Final = frozenset({"query", "words", "any", "limit", "tenant"})
"""The placeholders that every source has. Their values come from the job; `tenant` comes from the job's record."""
PAGING: Final = frozenset({"page", "offset", "cursor"})
_PLACEHOLDER: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_MAX_FILE_BYTES: Final = 256 * 1024
_MAX_SECRET_BYTES: Final = 8192
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_FIXES: Final = {
    "union_tag_not_found": "is missing; it is http_json, sql or mcp",
    "union_tag_invalid": "is not known; it is http_json, sql or mcp",
    "extra_forbidden": "is no field of this kind of source; delete it or correct its name",
    "missing": "is missing; add it",
}


def _expression(text: str) -> str:
    try:
        jmespath.compile(text)
    except (jmespath.exceptions.JMESPathError, RecursionError, ValueError):
        raise ValueError("is no JMESPath expression; see jmespath.org") from None
    return text


def _pattern(text: str) -> str:
    try:
        value_of(text)
    except SchemaError:
        raise ValueError("is no regular expression; write one without look-around, such as [0-9]{1,9}") from None
    return text


def value_of(pattern: str) -> TypeAdapter[str]:
    """Return a validator for values of a job's parameter. The time that the regular expression takes is linear."""
    return TypeAdapter(Annotated[str, StringConstraints(pattern=f"^(?:{pattern})$")])


_Placeholder = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
_TenantName = Annotated[str, StringConstraints(pattern=rf"^(?:{TENANT_PATTERN}|\*)$")]
_Expression = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_expression)]
_Pattern = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_pattern)]
_Path = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
_Url = Annotated[str, StringConstraints(max_length=8192, pattern=r"^https?://[^\s/?#@{}]+(?:[/?#][\x21-\x7e]*)?$")]
"""Host and port cannot have placeholders, so that no value of a job chooses the server."""
_HeaderName = Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$")]
_HeaderValue = Annotated[str, StringConstraints(max_length=8192, pattern=r"^[\x20-\x7e]*$")]


class _FileSection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class TenantAccess(_FileSection):
    """The values and secrets that a source's requests have for one tenant's jobs."""

    values: dict[_Placeholder, Annotated[str, StringConstraints(max_length=1024, pattern=r"^[^\x00-\x1f\x7f]*$")]] = {}
    secrets: dict[_Placeholder, _Path] = {}


class ItemFields(_FileSection):
    """JMESPath expressions that find the sources in an answer, and the parts of each source."""

    items: _Expression = "@"
    id: _Expression | None = None
    title: _Expression | None = None
    text: _Expression | None = None
    content: _Expression | None = None
    media_type: _Expression | None = None
    date: _Expression | None = None
    link: _Expression | None = None


class SourceFile(_FileSection):
    """The fields that every kind of source has."""

    tenants: dict[_TenantName, TenantAccess] = Field(min_length=1)
    secrets: dict[_Placeholder, _Path] = {}
    parameters: dict[_Placeholder, _Pattern] = {}
    per_second: PerSecond = 10.0
    fresh_seconds: float | None = Field(default=None, ge=0, le=86400)

    @property
    def names(self) -> set[str]:
        """The placeholders for values of jobs and of tenants, but not those for secrets."""
        return {*GIVEN, *self.parameters, *self._tenant_values}

    def mistakes(self) -> Iterator[str]:
        """Yield the mistakes that concern several fields together."""
        for tenant, access in self.tenants.items():
            for name in sorted(self._tenant_values - access.values.keys()):
                yield f"tenants.{tenant}.values: has no `{name}`; give every tenant the same names"
            for name in sorted(self._all_secrets - self.secrets.keys() - access.secrets.keys()):
                yield f"tenants.{tenant}.secrets: has no `{name}`; add it there or to [secrets]"
        groups = (GIVEN | PAGING, self.parameters, self._tenant_values, self._all_secrets)
        for name, times in sorted(Counter(name for group in groups for name in group).items()):
            if times > 1:
                yield f"`{name}` has two meanings; choose another name for one of them"

    @property
    def _tenant_values(self) -> set[str]:
        return {name for access in self.tenants.values() for name in access.values}

    @property
    def _all_secrets(self) -> set[str]:
        return {*self.secrets, *(name for access in self.tenants.values() for name in access.secrets)}

    def _unknown(self, field: str, text: str, known: set[str], *, secrets: bool) -> Iterator[str]:
        """Yield a mistake for each placeholder that is not allowed in this text."""
        for name in _PLACEHOLDER.findall(text):
            if name in self._all_secrets and not secrets:
                yield f"{field}: `{{{name}}}` is a secret; secrets are allowed only in headers or in a database's url"
            elif name not in (known | self._all_secrets):
                yield f"{field}: `{{{name}}}` is unknown here; there are: {', '.join(sorted(known))}"

    def _in_headers(self, headers: dict[str, str]) -> Iterator[str]:
        for name, text in headers.items():
            yield from self._unknown(f"headers.{name}", text, self._tenant_values | {"tenant"}, secrets=True)

    def _in_values(self, field: str, value: object) -> Iterator[str]:
        """Yield the mistakes in a JSON value. A string with a placeholder may have no other text."""
        if isinstance(value, dict):
            for name, part in value.items():
                yield from self._in_values(f"{field}.{name}", part)
        elif isinstance(value, list):
            for number, part in enumerate(value):
                yield from self._in_values(f"{field}.{number}", part)
        elif isinstance(value, str) and (found := _PLACEHOLDER.search(value)) is not None:
            if found[0] == value:
                yield from self._unknown(field, value, self.names, secrets=False)
            elif found[1] in self.names | self._all_secrets:
                yield f"{field}: `{found[0]}` is part of a longer text; give it a string of its own"


class HttpJsonFile(SourceFile):
    """An HTTP API with answers in JSON."""

    kind: Literal["http_json"]
    method: Literal["GET", "POST"] = "GET"
    url: _Url
    headers: dict[_HeaderName, _HeaderValue] = {}
    body: dict[str, Any] | None = None
    read: ItemFields
    next: _Expression | None = None
    pages: int = Field(default=1, ge=1, le=20)

    def mistakes(self) -> Iterator[str]:
        """See `SourceFile`."""
        yield from super().mistakes()
        yield from self._unknown("url", self.url, self.names | PAGING, secrets=False)
        yield from self._in_headers(self.headers)
        yield from self._in_values("body", self.body)
        if self.body is not None and self.method == "GET":
            yield 'body: a GET has none; set method = "POST"'
        yield from _without_content(self.read)


class SqlFile(SourceFile):
    """A database that is read by one statement."""

    kind: Literal["sql"]
    url: Annotated[str, StringConstraints(max_length=8192, pattern=r"^(?:sqlite:///|postgresql\+psycopg://)\S+$")]
    statement: Annotated[str, StringConstraints(max_length=65536, pattern=r"^\s*(?i:select|with)\b[^;]*$")]
    timeout_seconds: float = Field(default=5.0, ge=0.1, le=60)
    connections: int = Field(default=2, ge=1, le=32)

    def mistakes(self) -> Iterator[str]:
        """See `SourceFile`."""
        yield from super().mistakes()
        yield from self._unknown("url", self.url, self._tenant_values | {"tenant"}, secrets=True)
        # SQLAlchemy finds bound parameters by the same expression.
        bound = {*re.findall(r"(?<![:\w\\]):(\w+)(?!:)", self.statement)}
        for name in sorted(bound - self.names):
            yield f"statement: `:{name}` is unknown; there are: {', '.join(sorted(self.names))}"
        if "limit" not in bound:
            yield "statement: has no `:limit`; end it with LIMIT :limit"


class McpFile(SourceFile):
    """A tool of an MCP server (Model Context Protocol, transport Streamable HTTP)."""

    kind: Literal["mcp"]
    url: _Url
    headers: dict[_HeaderName, _HeaderValue] = {}
    tool: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    arguments: dict[str, Any] = {}
    read: ItemFields | None = None

    def mistakes(self) -> Iterator[str]:
        """See `SourceFile`."""
        yield from super().mistakes()
        yield from self._unknown("url", self.url, set(), secrets=False)
        yield from self._in_headers(self.headers)
        yield from self._in_values("arguments", self.arguments)
        if self.read is not None:
            yield from _without_content(self.read)


AnySourceFile = HttpJsonFile | SqlFile | McpFile
_FILE: Final[TypeAdapter[AnySourceFile]] = TypeAdapter(Annotated[AnySourceFile, Field(discriminator="kind")])


def _without_content(read: ItemFields) -> Iterator[str]:
    if read.text is None and read.content is None and read.link is None:
        yield "read: finds no content; add text, content or link"


def read_source_file(path: Path) -> AnySourceFile:
    """Read and check one file. Raises SearchMisconfigured with all mistakes of the file."""
    if not _NAME.fullmatch(path.stem):
        raise SearchMisconfigured(f"{path}: the source gets the file's name; use a-z, 0-9, - and _, and begin with a-z")
    try:
        table = tomllib.loads(_text(path, _MAX_FILE_BYTES))
    except tomllib.TOMLDecodeError as error:
        raise SearchMisconfigured(f"{path}: is not TOML: {error}") from None
    except RecursionError:
        raise SearchMisconfigured(f"{path}: is not TOML that can be read: its values are nested too deeply") from None
    try:
        file = _FILE.validate_python(table)
    except ValidationError as error:
        raise SearchMisconfigured(f"{path}: {'; '.join(_reasons(error))}") from None
    mistakes = [*file.mistakes(), *_unread_secrets(path, file)]
    if mistakes:
        raise SearchMisconfigured(f"{path}: {'; '.join(mistakes)}")
    return file


def _reasons(error: ValidationError) -> Iterator[str]:
    for details in error.errors(include_url=False, include_input=False, include_context=False):
        kind, message = details["type"], details["msg"].removeprefix("Value error, ")
        if kind.startswith("union_tag"):
            yield f"kind: {_FIXES[kind]}"
            continue
        place = ".".join(str(part) for part in details["loc"][1:])  # the first part is the kind, not a field
        yield f"{place}: {_FORMS.get((details['loc'][-1], kind)) or _FIXES.get(kind, message)}"


_FORMS: Final[dict[tuple[int | str, str], str]] = {
    ("url", "string_pattern_mismatch"): "is no URL of this kind; http_json and mcp take http:// or https:// with a "
    "fixed host and without credentials, sql takes sqlite:/// or postgresql+psycopg://",
    ("statement", "string_pattern_mismatch"): "is not one statement; begin with SELECT or WITH, without a semicolon",
    ("tenants", "too_short"): 'allows no tenant; add [tenants.NAME], or [tenants."*"] for all tenants',
    ("tenants", "missing"): 'is missing; add [tenants.NAME], or [tenants."*"] for all tenants',
    ("[key]", "string_pattern_mismatch"): "is no valid name here",
}


def _unread_secrets(path: Path, file: SourceFile) -> Iterator[str]:
    places = {f"secrets.{name}": place for name, place in file.secrets.items()}
    for tenant, access in file.tenants.items():
        places |= {f"tenants.{tenant}.secrets.{name}": place for name, place in access.secrets.items()}
    for field, place in places.items():
        try:
            read_secret(path.parent / place)
        except SearchMisconfigured as reason:
            yield f"{field}: {reason}"


def read_secret(path: Path) -> str:
    """Return the secret in this file, without a line break at the end. Raises SearchMisconfigured."""
    secret = _text(path, _MAX_SECRET_BYTES).rstrip("\r\n")
    if not re.fullmatch(r"[\x20-\x7e]+", secret):
        raise SearchMisconfigured(f"{path} holds no secret: one line of printable ASCII is needed")
    return secret


def _text(path: Path, most_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
        text = content.decode()
    except OSError as error:
        raise SearchMisconfigured(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SearchMisconfigured(f"{path} is not UTF-8 text") from None
    if len(content) > most_bytes:
        raise SearchMisconfigured(f"{path} is larger than {most_bytes} bytes")
    return text


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
        text = _as_text(item.get("text"))[:MAX_TEXT_CHARS]
        content = None if text else _content(item.get("content"))
        link = _as_text(item.get("link"))
        link = link if is_link(link) else ""
        if not (text or content or link):
            return None
        named = "-".join(_as_text(item.get("id")).split())
        if not _ID.fullmatch(named):
            named = sha256(content or text.encode() or link.encode()).hexdigest()[:16]
        media_type, published = _as_text(item.get("media_type")), _DATE.match(_as_text(item.get("date")))
        return Found(
            url=link,
            id=f"{self.name}:{named}",
            title=_as_text(item.get("title")) or None,
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


def _as_text(value: object) -> str:
    """Return a JSON or database value as text.

    A list becomes one line, and a list of lists becomes one line for each inner list.
    """
    if isinstance(value, list):
        parts = [part for part in map(_as_text, value) if part]
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


class HttpJsonSource(InsideSource):
    """Implements `SearchProvider`."""

    def __init__(self, name: str, file: HttpJsonFile, folder: Path, web: Web) -> None:
        super().__init__(name, file, folder)
        self._file = file
        self._service = web.service(file.url, file.per_second)
        self._items = Items(file.read)
        self._next = jmespath.compile(file.next) if file.next is not None else None

    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`. Reads one page of results after the other until there are enough results."""
        values = {**self.values_of(query), "page": "1", "offset": "0", "cursor": ""}
        headers = {name: filled(text, self._with_secrets(query, values)) for name, text in self._file.headers.items()}
        url = self._url(values)
        found: list[Found] = []
        seen = 0
        for page in range(1, self._file.pages + 1):
            answer = await self._answer(url, headers, values)
            items = self._items.of(answer)
            found += filter(None, map(self.result_of, items))
            seen += len(items)
            values = {**values, "page": str(page + 1), "offset": str(seen)}
            following = self._following(answer, url, values)
            if len(found) >= query.limit or not items or following is None:
                break
            url = following
        return found[: query.limit]

    async def _answer(self, url: URL, headers: dict[str, str], values: dict[str, str]) -> object:
        body = filled_value(self._file.body, values)
        accepting = {"Accept": "application/json", **headers}
        request = ServiceRequest(url, headers=accepting, method=self._file.method, body=body)
        try:
            return (await self._service.send(request)).json()
        except Refused as refused:
            if refused.answer.status in KEY_REFUSED:
                raise Unreadable(REFUSED_KEY) from None
            raise

    def _following(self, answer: object, url: URL, values: dict[str, str]) -> URL | None:
        """Return the URL of the next page: the one in the answer, or the same with another page, offset or cursor."""
        if self._next is None:
            paged = {"{page}", "{offset}"}
            return self._url(values) if any(name in self._file.url for name in paged) else None
        named = evaluated(self._next, answer)
        if not isinstance(named, str) or not named:
            return None
        if "{cursor}" in self._file.url:
            return self._url({**values, "cursor": named})
        try:
            following = url.join(URL(named))
        except ValueError:
            raise Unreadable("the source's next page has no valid address") from None
        if following.origin() != url.origin():
            raise Unreadable("the source's next page is on another server")  # another server would get the secrets
        return following

    def _url(self, values: dict[str, str]) -> URL:
        return URL(filled(self._file.url, values, encode=True), encoded=True)
