"""Engines of models that read images: servers like the real ones get each image's bytes, and none fetches a URL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from schemas.images import data_url
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.asking import request_of
from tests.images import GIF, PNG, WEBP, asked_of
from tests.integration.online.responses_service import responses_app
from tests.integration.online.services import KEY, MODEL, anthropic_app, gemini_app
from tests.integration.openai_http.servers import Server, engine_at, says
from tests.integration.openai_server import echo_app, serving
from workers.engines.base import NO_IMAGES, Engine, RequestRejected
from workers.engines.registry import create, engine_settings

APPS = {"openai": echo_app, "anthropic": anthropic_app, "gemini": gemini_app, "responses": responses_app}
EACH = pytest.mark.parametrize("kind", APPS)
SHOWN = tuple(data_url(f"image/{name}", image) for name, image in (("png", PNG), ("gif", GIF), ("webp", WEBP)))


@asynccontextmanager
async def engine_of(kind: str, **options: Any) -> AsyncIterator[Engine]:
    async with serving(APPS[kind]()) as url:
        chosen = {kind: {"base_url": url, "api_key": KEY, "start_timeout_seconds": 60, **options}}
        engine = create(kind, engine_settings().model_validate(chosen), Metrics(), SystemClock(), model=MODEL)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()


@EACH
async def test_the_server_gets_the_bytes_of_each_image_in_the_order_of_the_message(kind: str) -> None:
    async with engine_of(kind, images=True) as engine:
        assert engine.takes_images(None)
        completion = await engine.generate(asked_of(*SHOWN))
        later = replace(asked_of(SHOWN[0], text=""), request_id="r2")
        alone = await engine.generate(later)
    sizes = [f"[image/png, {len(PNG)} bytes]", f"[image/gif, {len(GIF)} bytes]", f"[image/webp, {len(WEBP)} bytes]"]
    assert completion.text.split() == f"Describe the image. {' '.join(sizes)}".split()
    assert alone.text == sizes[0]


@EACH
async def test_a_conversation_about_an_image_keeps_its_turns(kind: str) -> None:
    more = [{"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Which colour?"}]
    told = [{"role": "system", "content": "Be brief."}, *asked_of(SHOWN[0]).messages, *more]
    async with engine_of(kind, images=True) as engine:
        completion = await engine.generate(request_of(messages=told, max_tokens=64))
    assert completion.text == f"Which colour? [image/png, {len(PNG)} bytes]"


@EACH
async def test_an_image_that_was_not_fetched_never_reaches_a_server(kind: str) -> None:
    async with engine_of(kind, images=True) as engine:
        with pytest.raises(RequestRejected, match="was not fetched"):
            await engine.generate(asked_of("https://pictures.example/cat.png"))


@EACH
@pytest.mark.parametrize("options", [{}, {"images": False}])
async def test_a_model_of_no_family_that_reads_images_refuses_one(kind: str, options: dict[str, bool]) -> None:
    async with engine_of(kind, **options) as engine:
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
    assert server.bodies[0]["messages"] == [{"role": "user", "content": parts}]


async def test_a_server_that_only_completes_texts_gets_no_image() -> None:
    async with engine_at(Server(says("a cat")), images=True, api="completions") as engine:
        with pytest.raises(RequestRejected, match="completes texts"):
            await engine.generate(asked_of(SHOWN[0]))
