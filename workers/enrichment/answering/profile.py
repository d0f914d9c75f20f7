"""Profiles: data that says how to answer a kind of question. `profiles/default.toml` explains the fields."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from schemas.job import Identifier, JsonSchemaFormat, ResponseFormat, Search, Sources
from schemas.operator_error import OperatorError
from workers.enrichment.search.words import question_in

FOLDER: Final = Path(__file__).with_name("profiles")
_SYNTAX: Final = re.compile(r'["\[\]()*:]|\b(?:AND|OR|NOT|ANDNOT)\b')
"""Syntax of the search services' query languages. A query made from a question must not contain this syntax."""
_MAX_FILE_BYTES: Final = 256 * 1024
_IN_FILES: Final = {"response_format": "response_schema"}
"""Maps each field that a profile's file names differently to its name in the file."""


AnswerLevel = Literal["all", "some", "none", "contradicted"]
"""How well the sources support an answer as a whole."""


class ProfileRefused(OperatorError):  # noqa: N818 - named after the event
    """A profile cannot be used. The text names the file, the field and the fix."""


class UnknownProfile(Exception):  # noqa: N818 - named after the job's problem
    """No profile has that name; the text lists the existing profiles."""


class _ProfileSection(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class ProfileSearch(_ProfileSection):
    """The search that is run for a job that names no search itself."""

    provider: Identifier
    limit: int = Field(default=5, ge=1, le=20)


class Profile(_ProfileSection):
    """The way to answer one kind of question."""

    name: Identifier
    instructions: Annotated[str, StringConstraints(strip_whitespace=True, max_length=10_000)] = ""
    required: bool = False
    rewrite: bool = False
    accepts: list[AnswerLevel] = ["all", "some", "none", "contradicted"]
    requires: list[Literal["entailment"]] = []
    evidence_list: bool = False
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    response_format: ResponseFormat | None = None
    evidence_chain: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    no_sources_notice: Annotated[str, StringConstraints(strip_whitespace=True, max_length=1000)] = (
        "No source could be used: this answer rests on no source."
    )
    search: ProfileSearch | None = None
    equal_similarity: float = Field(default=0.95, gt=0, le=1)
    equal_meaning: float = Field(default=0.95, gt=0, le=1)
    equal_numbers: float = Field(default=0.01, ge=0, le=1)

    def applied(self, sources: Sources, question: str) -> Sources:
        """Return the job's sources with the profile's additions: a search if the job has none, and `required`."""
        search = sources.search
        if not sources.all_searches and self.search is not None and (query := _query(question)):
            search = Search(provider=self.search.provider, query=query, limit=self.search.limit)
        return sources.model_copy(update={"search": search, "required": sources.required or self.required})

    def answer_format(self, sources: int) -> ResponseFormat | None:
        """Return the format of an answer. The evidence chain can name only source numbers up to `sources`."""
        if self.response_format is None or self.response_format.json_schema is None or self.evidence_chain is None:
            return self.response_format
        schema = copy.deepcopy(self.response_format.json_schema.schema_)
        try:
            number = schema["properties"][self.evidence_chain]["items"]["properties"]["source"]
            is_integer = number["type"] == "integer"
        except (KeyError, TypeError):
            return self.response_format  # the schema describes `source` in another way, so the schema stays unchanged
        if is_integer:
            number.update(minimum=1, maximum=max(1, sources))
        narrowed = self.response_format.json_schema.model_copy(update={"schema_": schema})
        return self.response_format.model_copy(update={"json_schema": narrowed})


def profile_names(folder: Path | None = None) -> frozenset[str]:
    """Return the names of all profiles, built in or in the operator's folder, without reading the files."""
    folders = [FOLDER, *([folder] if folder is not None else [])]
    return frozenset(path.stem for each in folders for path in each.glob("*.toml"))


class Profiles:
    """All profiles by name. A profile in the operator's folder replaces a built-in profile of the same name."""

    def __init__(self, profiles: Mapping[str, Profile]) -> None:
        self._profiles = dict(profiles)

    @classmethod
    def load(cls, folder: Path | None = None, providers: Collection[str] = ()) -> Profiles:
        """Read all files. `providers` are the search providers that a profile in the folder may name.

        Raises ProfileRefused for the first file that cannot be used.
        """
        ours = {path.stem: _read(path) for path in sorted(FOLDER.glob("*.toml"))}
        if folder is None:
            return cls(ours)
        if not folder.is_dir():
            raise ProfileRefused(f"POSTBACK_ENRICHMENT__PROFILES_FOLDER: {folder} is not a folder")
        own = {path.stem: _read(path, providers) for path in sorted(folder.glob("*.toml"))}
        return cls(ours | own)

    @property
    def names(self) -> list[str]:
        """The names of all profiles, sorted."""
        return sorted(self._profiles)

    def __getitem__(self, name: str) -> Profile:
        """Return the profile of this name. Raises UnknownProfile."""
        try:
            return self._profiles[name]
        except KeyError:
            raise UnknownProfile(f"no profile has this name; there are: {', '.join(sorted(self._profiles))}") from None


def _query(question: str) -> str:
    """Return the question as a search query in plain words."""
    plain = _SYNTAX.sub(lambda found: found[0].lower() if found[0].isalpha() else " ", question_in(question))
    return " ".join(plain.split())


def _read(path: Path, providers: Collection[str] | None = None) -> Profile:
    try:
        data = tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ProfileRefused(f"{path}: it is not TOML: {error}") from None
    schema = data.pop("response_schema", None)
    if "response_format" in data or "name" in data:
        raise ProfileRefused(
            f"{path}: `name` and `response_format` cannot be set: use the name of the file, and `response_schema`"
        )
    try:
        profile = Profile.model_validate({**data, "name": path.stem, "response_format": _response_format(path, schema)})
    except ValidationError as error:
        raise ProfileRefused(f"{path}: {'; '.join(_problem(one) for one in error.errors())}") from None
    if profile.evidence_chain is not None and profile.response_format is None:
        raise ProfileRefused(f"{path}: evidence_chain: names an array of the answer, so response_schema is needed too")
    if providers is not None and profile.search is not None and profile.search.provider not in providers:
        raise ProfileRefused(
            f"{path}: search.provider: no provider {profile.search.provider} is configured; "
            f"there are: {', '.join(sorted(providers)) or 'none'}"
        )
    return profile


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ProfileRefused(f"{path}: it is larger than {_MAX_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ProfileRefused(f"{path}: it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ProfileRefused(f"{path}: it is not UTF-8") from None


def _response_format(path: Path, schema: object) -> ResponseFormat | None:
    if schema is None:
        return None
    if not isinstance(schema, str) or Path(schema).name != schema:
        raise ProfileRefused(f"{path}: response_schema: must be the name of a file beside it")
    file = path.with_name(schema)
    try:
        value = json.loads(_text(file), parse_constant=_no_number)
    except ValueError as error:
        raise ProfileRefused(f"{file}: it is not JSON: {error}") from None
    if not isinstance(value, dict) or value.get("type") != "object":
        raise ProfileRefused(f'{file}: it must be a JSON Schema of an object: {{"type": "object", …}}')
    return ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(name=path.stem, schema=value))


def _no_number(name: str) -> None:
    """Refuse NaN and Infinity: Python's parser accepts them, but RFC 8259 does not."""
    raise ValueError(f"{name} is none")


def _problem(details: Any) -> str:
    field = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        model = ProfileSearch if details["loc"][0] == "search" else Profile
        known = [_IN_FILES.get(name, name) for name in model.model_fields if name != "name"]
        return f"{field}: there is no such field; there are: {', '.join(known)}"
    return f"{field}: {details['msg']}"
