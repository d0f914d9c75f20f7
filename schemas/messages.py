"""Chat messages in OpenAI's shape, with the calls of tools and the answers of those calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, JsonValue, StringConstraints, Tag, model_validator

from schemas.bounded import WireModel
from schemas.images import DataUrl
from schemas.tools import MAX_TOOL_CALLS, ToolCall
from schemas.urls import Url

UNKNOWN_PART: Final = "unknown_part"
"""The type of pydantic's error for a part that is neither a text nor an image."""


class TextPart(WireModel):
    """A part of a chat message: text."""

    type: Literal["text"]
    """The kind of part."""
    text: str
    """The part's text."""


class ImageUrl(WireModel):
    """The URL of an image, and the detail in which the model looks at the image."""

    url: DataUrl | Url
    """An https URL, which the worker fetches, or a data URL of a png, jpeg, gif or webp image in base64."""
    detail: Literal["auto", "low", "high"] | None = None
    """OpenAI's choice between fewer and more tokens; passed on to servers of OpenAI's protocol only."""


class ImagePart(WireModel):
    """A part of a user's message: an image, for models that see."""

    type: Literal["image_url"]
    """The kind of part."""
    image_url: ImageUrl
    """The image."""


def _kind_of_part(part: object) -> str | None:
    """Return the tag of a part, as JSON or as a model. A tag is no field's name, so problems do not show it."""
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return {"text": "text part", "image_url": "image part"}.get(kind) if isinstance(kind, str) else None


Part = Annotated[
    Annotated[ImagePart, Tag("image part")] | Annotated[TextPart, Tag("text part")],
    Discriminator(
        _kind_of_part,
        custom_error_type=UNKNOWN_PART,
        custom_error_message="only `text` and `image_url` parts are taken; audio and files are not",
    ),
]


_NULL: dict[str, JsonValue] = {"type": "null"}
_TEXTS: dict[str, JsonValue] = {"items": {"properties": {"type": {"const": "text"}}}}
_SAID: dict[str, JsonValue] = {"content": {"type": ["string", "array"], **_TEXTS}}
_MESSAGE_FORMS: list[JsonValue] = [
    {
        "required": ["content"],
        "properties": {
            "content": {"type": ["string", "array"]},
            "role": {"const": "user"},
            "tool_calls": _NULL,
            "tool_call_id": _NULL,
        },
    },
    {
        "required": ["content"],
        "properties": {
            **_SAID,
            "role": {"not": {"enum": ["tool", "user"]}},
            "tool_calls": _NULL,
            "tool_call_id": _NULL,
        },
    },
    {
        "required": ["tool_calls"],
        "properties": {
            "content": _TEXTS,
            "role": {"const": "assistant"},
            "tool_calls": {"type": "array"},
            "tool_call_id": _NULL,
        },
    },
    {
        "required": ["content", "tool_call_id"],
        "properties": {
            **_SAID,
            "role": {"const": "tool"},
            "tool_calls": _NULL,
            "tool_call_id": {"type": "string"},
        },
    },
]
"""The rules of Message's validator, written as JSON Schema."""


class Message(WireModel):
    """One chat message in OpenAI's shape."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _MESSAGE_FORMS})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """The author of the message; `tool` for the answer of a called tool."""
    content: str | Annotated[list[Part], Field(min_length=1)] | None = None
    """The message as one text or as parts. Text parts are joined by line breaks; only a user's message has images.

    Only an assistant's message with `tool_calls` may have no content.
    """
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=MAX_TOOL_CALLS)] | None = None
    """The tool calls of an assistant's message, in the form in which results state them."""
    tool_call_id: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """The `id` of the call that a message of the role `tool` answers."""

    @model_validator(mode="after")
    def _calls_go_with_their_roles(self) -> Self:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("`tool_calls` goes with the role `assistant`")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("`tool_call_id` is required with the role `tool`, and only there")
        if self.content is None and self.tool_calls is None:
            raise ValueError("`content` is required; only an assistant's message with `tool_calls` may have none")
        if self.role != "user" and self.images:
            raise ValueError("`image_url` parts go with the role `user`")
        return self

    @property
    def parts(self) -> Sequence[ImagePart | TextPart]:
        """The parts of the content; empty if the content is one text or absent."""
        return () if self.content is None or isinstance(self.content, str) else self.content

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the text parts; empty if the content is one text or absent."""
        return tuple(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImageUrl, ...]:
        """The images of the content, in its order."""
        return tuple(part.image_url for part in self.parts if isinstance(part, ImagePart))

    @property
    def text(self) -> str:
        """The content's texts as one string; empty if the content has no text."""
        return self.content if isinstance(self.content, str) else "\n".join(self.texts)


def images_in(messages: Iterable[Message]) -> list[tuple[str, ImageUrl]]:
    """Return the images of a chat, each with its field, such as `messages.0.content.1`."""
    return [
        (f"messages.{number}.content.{place}", part.image_url)
        for number, message in enumerate(messages)
        for place, part in enumerate(message.parts)
        if isinstance(part, ImagePart)
    ]
