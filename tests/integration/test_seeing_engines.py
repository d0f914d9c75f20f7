"""Engines of models that read images: servers like the real ones get each image's bytes, and none fetches a URL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from schemas.images import data_url
from tests.asking import request_of
from tests.images import GIF, PNG, WEBP, asked_of
from tests.integration.online.scripted import ANTHROPIC, GEMINI, RESPONSES, OnlineKind, scripted
from tests.integration.online.scripted import says as online_says
from tests.integration.openai_http.servers import Server, engine_at, says
from workers.engines.base import NO_IMAGES, RequestRejected

SHOWN = tuple(data_url(f"image/{name}", image) for name, image in (("png", PNG), ("gif", GIF), ("webp", WEBP)))
TEXT = "Describe the image."


def base64_of(url: str) -> tuple[str, str]:
    """The media type and the bytes in base64 of a data URL."""
    media_type, _, data = url.removeprefix("data:").partition(";base64,")
    return media_type, data


def anthropic_part(url: str) -> dict[str, Any]:
    media_type, data = base64_of(url)
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def gemini_part(url: str) -> dict[str, Any]:
    media_type, data = base64_of(url)
    return {"inlineData": {"mimeType": media_type, "data": data}}


def responses_part(url: str) -> dict[str, Any]:
    return {"type": "input_image", "image_url": url, "detail": "auto"}


@dataclass
class Seeing:
    """How a service takes a user's message with images."""

    kind: OnlineKind
    text: dict[str, Any]
    part: Callable[[str], dict[str, Any]]
    said: Callable[[dict[str, Any]], list[Any]]
    """Returns the content of each message of a request's body."""


SEEING = [
    Seeing(
        ANTHROPIC,
        {"type": "text", "text": TEXT},
        anthropic_part,
        lambda body: [each["content"] for each in body["messages"]],
    ),
    Seeing(GEMINI, {"text": TEXT}, gemini_part, lambda body: [each["parts"] for each in body["contents"]]),
    Seeing(
        RESPONSES,
        {"type": "input_text", "text": TEXT},
        responses_part,
        lambda body: [each["content"] for each in body["input"]],
    ),
]
EACH = pytest.mark.parametrize("seeing", SEEING, ids=lambda seeing: seeing.kind.name)


@EACH
async def test_a_service_gets_the_bytes_of_each_image_in_the_order_of_the_message(seeing: Seeing) -> None:
    """An empty text beside an image is left out, since the services refuse one."""
    kind, answer = seeing.kind, online_says(seeing.kind, "a cat")
    more = [{"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Which colour?"}]
    async with scripted(kind, *[answer] * 3, images=True) as (engine, server):
        assert engine.takes_images(None)
        await engine.generate(asked_of(*SHOWN))
        await engine.generate(asked_of(SHOWN[0], text=""))
        await engine.generate(request_of(messages=[*asked_of(SHOWN[0]).messages, *more]))
    images = [*map(seeing.part, SHOWN)]
    first, alone, conversation = map(seeing.said, server.bodies)
    assert first == [[seeing.text, *images]]
    assert alone == [images[:1]]
    assert conversation[0] == [seeing.text, images[0]]
    assert len(conversation) == 3


@EACH
async def test_an_image_that_was_not_fetched_never_reaches_a_service(seeing: Seeing) -> None:
    async with scripted(seeing.kind, images=True) as (engine, _):
        with pytest.raises(RequestRejected, match="was not fetched"):
            await engine.generate(asked_of("https://pictures.example/cat.png"))


@EACH
@pytest.mark.parametrize("options", [{}, {"images": False}])
async def test_a_model_of_no_family_that_reads_images_refuses_one(seeing: Seeing, options: dict[str, Any]) -> None:
    async with scripted(seeing.kind, **options) as (engine, _):
        assert not engine.takes_images(None)
        with pytest.raises(RequestRejected) as refused:
            await engine.generate(asked_of(SHOWN[0]))
    assert (refused.value.field, refused.value.reason) == ("messages.0.content.1", NO_IMAGES)


async def test_a_server_of_openais_protocol_gets_openais_parts_with_their_detail() -> None:
    server = Server(says("a cat"))
    parts = [
        {"type": "text", "text": "Describe the image."},
        {"type": "image_url", "image_url": {"url": SHOWN[0], "detail": "low"}},
        {"type": "image_url", "image_url": {"url": SHOWN[1]}},
    ]
    async with engine_at(server, images=True) as engine:
        await engine.generate(request_of(messages=[{"role": "user", "content": parts}]))
        with pytest.raises(RequestRejected, match="was not fetched"):
            await engine.generate(asked_of("https://pictures.example/cat.png"))
    assert [body["messages"] for body in server.bodies] == [[{"role": "user", "content": parts}]]


async def test_a_server_that_only_completes_texts_gets_no_image() -> None:
    async with engine_at(Server(says("a cat")), images=True, api="completions") as engine:
        with pytest.raises(RequestRejected, match="completes texts"):
            await engine.generate(asked_of(SHOWN[0]))
