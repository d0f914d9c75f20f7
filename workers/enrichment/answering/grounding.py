"""Writes numbered sources and the question as one prompt, and keeps pages inside quotations.

The wording is a `Template`, a file in `templates/` or the operator's own. A page cannot end its quotation, since it
cannot foresee the mark around it (`mark_for`). In pages, tokens of chat templates are replaced, and invisible
characters are removed. Each line of a passage except the first begins with `>`, as in e-mails. So no line looks like a
question, an answer or another source. Text that looks like a source's citation is removed or changed.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import re
import secrets
import tomllib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from schemas.job import Message, TextPart
from schemas.operator_error import OperatorError
from workers.enrichment.evidence import Evidence, NumberedSource

_FOLDER: Final = Path(__file__).with_name("templates")
_VALUES: Final = {"mark": "", "number": 1, "title": "", "text": "", "question": ""}


class TemplateRefused(OperatorError):  # noqa: N818 - named after the event
    """A template could not be read. The text names the file and the field."""


class Template(BaseModel):
    """The parts of a prompt; `templates/plain.toml` explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: str
    source: str
    title: str
    steering: str
    after: str
    without_sources: str
    question: str
    question_in_chat: str

    @model_validator(mode="after")
    def _can_be_filled(self) -> Template:
        for name, value in self:
            try:
                value.format(**_VALUES)
            except (KeyError, IndexError, ValueError, AttributeError):
                raise ValueError(f"{name}: write a literal brace twice") from None
        if "{text}" not in self.source or "{mark}" not in self.source or "{number}" not in self.source:
            raise ValueError("source: must hold {number}, {mark} and {text}")
        if not self.question.partition("{question}")[1]:
            raise ValueError("question: must hold {question}")
        return self


@lru_cache(maxsize=64)
def load_template(name: str) -> Template:
    """Load the file `name` if it ends in `.toml`, else the template `name` in `templates/`. Raises TemplateRefused."""
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    try:
        return Template.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise TemplateRefused(f"{path.name} cannot be read as a prompt template") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))} {one['msg']}".strip() for one in error.errors())
        raise TemplateRefused(f"{path.name}: {problems}") from None


_LETTERS: Final = "bcdfghjklmnpqrstvwxz"
"""Only consonants, since a small model could take a mark with vowels or digits for a word or number of the page."""
_LENGTH: Final = 8
_DOMAIN: Final = b"postback sources mark v1"
"""Separates marks from other uses of the secret."""
_PROCESS_SECRET: Final = secrets.token_bytes(32)


def fleet_secret(signing_secret: bytes | None, topic_id: str) -> bytes:
    """Return the secret of a fleet's marks: the secret that signs jobs, else the UUID of a topic of the fleet.

    Each worker knows the topic's UUID without any setting, so all workers before one server give equal prompts to equal
    sources. Kafka draws the UUID at random, and the authors of pages never see it. Clients of the fleet's Kafka may see
    it. So use the signing secret if such clients may also write pages.
    """
    return signing_secret if signing_secret is not None else topic_id.encode()


def mark_for(sources: bytes, shown: str, secret: bytes | None = None) -> str:
    """Return the mark for these sources. The text `shown` does not contain the mark, in small or in capital letters.

    `sources` is any encoding of the sources. Without `secret`, the mark comes from a random secret of this process. A
    page's author may have learned the mark from earlier jobs. So if `shown` contains the mark, the next MAC gives
    another mark.
    """
    key = hmac.digest(secret or _PROCESS_SECRET, _DOMAIN, hashlib.sha256)
    digest = hashlib.sha256(sources).digest()
    macs = (hmac.digest(key, digest + number.to_bytes(8, "big"), hashlib.sha256) for number in itertools.count())
    lowered = shown.lower()
    return next(mark for mark in map(_letters, macs) if mark not in lowered)


def _letters(mac: bytes) -> str:
    """Encode the beginning of the MAC as letters: one letter for every two bytes."""
    numbers = (int.from_bytes(mac[at : at + 2], "big") for at in range(0, 2 * _LENGTH, 2))
    return "".join(_LETTERS[number % len(_LETTERS)] for number in numbers)


MAX_TITLE_CHARS: Final = 120

_TAG_LIKE: Final = re.compile(r"<(?=[^\s<>]{1,64}>)|(?<=<)<|<(?=\||｜)")  # noqa: RUF001 - DeepSeek's bar
_TAG_END: Final = re.compile(r"(?<=[|｜/\w\]])>")  # noqa: RUF001 - as above
_BRACKETED: Final = re.compile(r"\[(/?(?=[a-z0-9]*[A-Z_])[A-Za-z][A-Za-z_0-9]{2,31}|\|[^\[\]|]{1,64}\|)\]")
"""Matches template tokens such as Mistral's `[INST]` and `[control_8]`, GLM's `[gMASK]` and EXAONE's `[|user|]`."""
_MARKER: Final = re.compile(
    r"(?P<open>[\[【]) ?\^?(?P<named>(?:sources?|citations?|webpages?) ?:? ?)?"
    r"(?P<numbers>\^?\d{1,4}(?: ?[,;] ?\^?\d{1,4})*)"
    r"(?P<tail>(?::\d+)? ?†[^\[\]【】]{0,80}| (?:begin|end))? ?[\]】]",
    re.IGNORECASE,
)
"""Matches every form that `cite` reads as a citation, also with spaces inside, and DeepSeek's delimiters."""
_ENDS_A_CLAUSE: Final = frozenset(".,;!?”")
_ALL_NUMBERS: Final = 9999
_NEXT_LINE: Final = "\n> "
_DOUBLED: Final = re.compile(r"\[(?=\[)")
"""Matches the first bracket of `[[`, which begins a command to the echo engine."""
_SPACES: Final = re.compile(r"\s+")

INVISIBLE: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs"})
"""Categories of invisible characters: control, format (zero width, direction, tags), unassigned, private, surrogate."""

_SELECTORS: Final = frozenset(
    [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), 0x034F, 0x115F, 0x1160, 0x3164, 0xFFA0]
)
"""Variation selectors and fillers, which are invisible although their categories are marks and letters."""


@dataclass(frozen=True, slots=True)
class GroundedPrompt:
    """The engine's input: a prompt if the job has a prompt, messages if the job has messages."""

    prompt: str | None
    messages: tuple[Message, ...] | None


def ground(
    asked: str | Sequence[Message] | None, evidence: Evidence, *, instructions: str = "", mark: str | None = None
) -> GroundedPrompt:
    """Put the evidence before the question in the job's prompt or messages, in the words of the template.

    `instructions` stand before the evidence. By default, `mark` is derived from the evidence. Raises TemplateRefused.
    """
    template = load_template(evidence.template)
    preface = "\n\n".join(filter(None, (instructions, _preface(evidence, template, mark))))
    if asked is None or isinstance(asked, str):
        return GroundedPrompt(f"{preface}\n\n{template.question.format(question=asked or '')}", None)
    return GroundedPrompt(None, _into_messages(asked, preface, template.question_in_chat))


def _into_messages(messages: Sequence[Message], preface: str, question: str) -> tuple[Message, ...]:
    """Put the preface at the start of the user's last message, so that the question stays last."""
    last = max((at for at, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        return (*messages, Message(role="user", content=preface))
    preface = f"{preface}\n\n{question}"
    content = messages[last].content or ""
    grounded = preface + content if isinstance(content, str) else [TextPart(type="text", text=preface), *content]
    return (*messages[:last], messages[last].model_copy(update={"content": grounded}), *messages[last + 1 :])


def _preface(evidence: Evidence, template: Template, mark: str | None) -> str:
    if not evidence.sources:
        return template.without_sources
    shown = [_shown(source, len(evidence.sources)) for source in evidence.sources]
    mark = mark or _mark(shown, evidence.mark_secret)
    quoted = [_quoted(one, template, mark) for one in shown]
    before, after = (part.format(mark=mark) for part in (template.before, template.after))
    return "\n\n".join(part for part in (before, *quoted, after) if part)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A source's title and text, made harmless for the prompt."""

    number: int
    title: str
    is_steering: bool
    text: str


def _shown(source: NumberedSource, sources: int) -> _Shown:
    title = harmless(source.title, sources)[:MAX_TITLE_CHARS] if source.title else ""
    passages = " ".join(_lines(passage, sources) for passage in source.passages)
    return _Shown(source.number, title, bool(source.steering), passages)


def _mark(shown: Sequence[_Shown], secret: bytes | None) -> str:
    sources = json.dumps([(one.number, one.title, one.is_steering, one.text) for one in shown]).encode()
    return mark_for(sources, "\n".join(f"{one.title}\n{one.text}" for one in shown), secret)


def _quoted(shown: _Shown, template: Template, mark: str) -> str:
    title = template.title.format(title=shown.title) if shown.title else ""
    title += template.steering if shown.is_steering else ""
    return template.source.format(number=shown.number, title=title, mark=mark, text=shown.text)


def _lines(passage: str, sources: int) -> str:
    """Join the passage's lines, each except the first after a `>`, so that rows of a table or of code stay rows."""
    lines = (harmless(line, sources) for line in passage.split("\n"))
    return _NEXT_LINE.join(line for line in lines if line)


def harmless(text: str, sources: int = _ALL_NUMBERS) -> str:
    """Return one line of a page's text, without invisible characters, template tokens and citation marks.

    `sources` is the number of the job's sources. If a job has five sources, `[18, 27]` in a page stays, since it does
    not look like a citation.
    """
    seen = _SPACES.sub(" ", visible(text)).strip()
    while (rest := _without_markers(seen, sources)) != seen:  # the text around a removed marker may form a new one
        seen = rest
    seen = _TAG_END.sub("›", _TAG_LIKE.sub("‹", seen))  # noqa: RUF001 - look-alikes that no tokenizer knows
    return _DOUBLED.sub("[ ", _BRACKETED.sub(r"(\1)", seen))


def _without_markers(text: str, sources: int) -> str:
    """Drop citation marks such as footnotes; put an index or interval that looks like a citation in round brackets."""
    kept: list[str] = []
    position, dropped = 0, -1
    for found in _MARKER.finditer(text):
        written = _neutral(found, sources, is_next=found.start() == dropped)
        kept += [text[position : found.start()], written]
        position = found.end()
        dropped = position if not written else -1
    return "".join([*kept, text[position:]])


def _neutral(found: re.Match[str], sources: int, *, is_next: bool) -> str:
    """Return the replacement for a mark; `is_next` is True if the mark directly follows a dropped mark."""
    said = found["numbers"]
    if found["open"] != "[" or found["named"] or found["tail"] or "^" in found.group():
        return ""
    numbers = [int(number) for number in re.findall(r"\d+", said)]
    if 0 in numbers:
        return found.group()
    before, behind = (
        found.string[max(0, found.start() - 1) : found.start()],
        found.string[found.end() : found.end() + 1],
    )
    is_list = len(numbers) > 1
    if is_next or (before in _ENDS_A_CLAUSE and before and not is_list):
        return ""
    if not any(number <= sources for number in numbers):
        return found.group()
    is_index = before.isalnum() or before in ("_", ")", "]")
    return f"({said})" if (is_list or is_index) and not behind.isalnum() else ""


def visible(text: str) -> str:
    """Return the text without invisible characters; each blank becomes a space."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character.isspace():
        return " "
    hidden = unicodedata.category(character) in INVISIBLE or ord(character) in _SELECTORS
    return "" if hidden else character
