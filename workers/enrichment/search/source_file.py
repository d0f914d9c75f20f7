"""The file of an operator's own source: TOML in the folder `POSTBACK_SEARCH__PROVIDERS`, named after the source.

When the process starts, one error names all mistakes of a file, each with the field and the fix. The error quotes no
value of the file.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import jmespath
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from schemas.job import TENANT_PATTERN
from workers.enrichment.search.base import SearchMisconfigured

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
    per_second: Annotated[float, Field(gt=0, le=1000)] = 10.0
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
