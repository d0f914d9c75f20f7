"""The rules of an operator's file as models. `workers.screening.rules_file` reads the rules."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from phonenumbers import SUPPORTED_REGIONS
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from schemas.job import Tenant
from schemas.screening import Category, FieldName, Verdict
from workers.screening.matchers.pii import PiiKind

RuleName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
FilePath = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
ListName = Literal["english", "french", "german", "spanish"]
"""A list that comes with Postback, from glin-profanity."""


class _Rule(BaseModel):
    """The members that all kinds of rules share."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: RuleName
    """The rule's name in findings and in its marker `[redacted:NAME]`: lower-case letters, digits and dashes."""
    verdict: Verdict
    """The decision about a job with a match: `flag`, `redact` or `reject`."""
    fields: Annotated[tuple[FieldName, ...], Field(min_length=1)] = tuple(
        name for name in get_args(FieldName) if name != "metadata"
    )
    """The job's fields that the rule reads; `metadata` only if it is named here."""
    tenants: Annotated[tuple[Tenant, ...], Field(min_length=1)] | None = None
    """The tenants whose jobs the rule reads; by default all tenants."""
    except_tenants: tuple[Tenant, ...] = ()
    """Tenants whose jobs the rule does not read."""
    categories: tuple[Category, ...] = ()
    """The categories of `/v1/moderations` that the rule measures."""

    @field_validator("verdict")
    @classmethod
    def _does_something(cls, verdict: Verdict) -> Verdict:
        if verdict is Verdict.PASS:
            raise ValueError("a rule may flag, redact or reject; delete a rule that is to pass every job")
        return verdict

    @model_validator(mode="after")
    def _one_list_of_tenants(self) -> Self:
        if self.tenants is not None and self.except_tenants:
            raise ValueError("has `tenants` and `except_tenants`; keep one of them")
        return self

    def reads(self, tenant: str) -> bool:
        """True if the rule applies to this tenant's jobs."""
        return tenant not in self.except_tenants and (self.tenants is None or tenant in self.tenants)


class RegexRule(_Rule):
    """Regular expressions in RE2's syntax."""

    kind: Literal["regex"]
    """The kind of rule."""
    patterns: Annotated[tuple[Text, ...], Field(min_length=1, max_length=64)]
    """The expressions. The rule matches if any one of them does."""
    ignore_case: bool = False
    """True for expressions that match in upper and lower case."""


class PiiRule(_Rule):
    """Personal data."""

    kind: Literal["pii"]
    """The kind of rule."""
    find: Annotated[tuple[PiiKind, ...], Field(min_length=1)]
    """The kinds of data: `card`, `iban`, `email`, `phone`, `ip`, `ssn`."""
    regions: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    """Countries (ISO 3166-1, such as `DE`) whose phone numbers are also found without `+` and the country's code."""

    @field_validator("regions")
    @classmethod
    def _are_known(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [region for region in regions if region not in SUPPORTED_REGIONS]
        if unknown:
            raise ValueError("has a region that is no country's two capital letters, such as DE or US")
        return regions


class WordsRule(_Rule):
    """Words and phrases of lists."""

    kind: Literal["words"]
    """The kind of rule."""
    verdict: Verdict = Verdict.FLAG
    """The decision about a job with a match; `flag` by default, because a word alone shows no intent."""
    lists: tuple[ListName, ...] = ()
    """Lists that come with Postback: `english`, `french`, `german`, `spanish`."""
    files: Annotated[tuple[FilePath, ...], Field(max_length=16)] = ()
    """Files of the operator's own, beside the rules' file. Each line has one word or phrase; `#` begins a comment."""
    words: Annotated[tuple[Text, ...], Field(max_length=4096)] = ()
    """Words in the rule itself."""
    except_words: Annotated[tuple[Text, ...], Field(max_length=4096)] = ()
    """Words that the rule ignores, although they are in its lists."""
    everyday: bool = False
    """True to find also the lists' words that medical, legal and everyday texts use without offence."""

    @model_validator(mode="after")
    def _some_words(self) -> Self:
        if not (self.lists or self.files or self.words):
            raise ValueError("has no words; name `lists`, `files` or `words`")
        return self


class ClassifierRule(_Rule):
    """A text classification model of the operator's, in a process of its own."""

    kind: Literal["classifier"]
    """The kind of rule."""
    folder: FilePath
    """The folder of a transformers model for sequence classification, with safetensors weights."""
    labels: Annotated[dict[str, Annotated[float, Field(gt=0, le=1)]], Field(min_length=1, max_length=64)]
    """The labels that the rule looks for, each with the least score, from 0 to 1, that is a match."""
    seconds: float = Field(default=10.0, ge=0.1, le=300)
    """Seconds within which the model reads a job's text."""
    on_failure: Literal["pass", "reject"] = "pass"
    """The decision about a job that the model did not read, because the time was up or the model's process was gone."""

    @field_validator("verdict")
    @classmethod
    def _has_no_place(cls, verdict: Verdict) -> Verdict:
        if verdict is Verdict.REDACT:
            raise ValueError("a classifier judges a whole text and cannot redact; choose flag or reject")
        return verdict


Rule = Annotated[RegexRule | PiiRule | WordsRule | ClassifierRule, Field(discriminator="kind")]
"""One rule of the file."""
