"""JSON schemas for the answers of vLLM on the tiny model: kept, refused, odd and circular ones."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.integration.json_schemas import CIRCULAR, ODD, SCHEMA, UNSUPPORTED, as_schema
from tests.integration.test_engine_contract import request
from workers.engines.base import RequestRejected
from workers.engines.vllm import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1_200)]


async def test_the_answer_is_json_that_the_schema_describes(vllm_engine: VllmEngine) -> None:
    completion = await vllm_engine.generate(request(response_format=as_schema(SCHEMA), max_tokens=100, seed=1))
    answer = json.loads(completion.text)
    assert list(answer) == ["known"]
    assert isinstance(answer["known"], bool)


async def test_an_invalid_schema_is_rejected(vllm_engine: VllmEngine) -> None:
    with pytest.raises(RequestRejected) as rejected:
        await vllm_engine.generate(request(response_format=as_schema({"type": "nonsense"})))
    assert rejected.value.field == "response_format"


@pytest.mark.parametrize(
    "schema",
    UNSUPPORTED,
    ids=lambda schema: json.dumps(schema)[:60],
)
async def test_a_schema_that_vllm_cannot_hold_an_answer_to_is_rejected_and_the_engine_goes_on(
    vllm_engine: VllmEngine, schema: dict[str, object]
) -> None:
    with pytest.raises(RequestRejected) as rejected:
        await vllm_engine.generate(request(response_format=as_schema(schema)))
    assert rejected.value.field.startswith("response_format")
    assert len(rejected.value.reason) <= 300
    assert (await vllm_engine.generate(request(response_format=as_schema(SCHEMA), max_tokens=100))).text


@pytest.mark.parametrize(
    "schema",
    ODD,
    ids=lambda schema: json.dumps(schema)[:60],
)
async def test_an_odd_schema_costs_no_more_than_its_own_job(vllm_engine: VllmEngine, schema: dict[str, object]) -> None:
    async with asyncio.timeout(60):
        odd = await vllm_engine.generate(request("odd", response_format=as_schema(schema), max_tokens=16))
        assert odd.finish_reason in ("stop", "length")
        assert (await vllm_engine.generate(request(response_format=as_schema(SCHEMA), max_tokens=100))).text


@pytest.mark.parametrize(
    "schema",
    CIRCULAR,
    ids=lambda schema: json.dumps(schema)[:60],
)
async def test_a_schema_that_goes_round_in_a_circle_is_rejected_and_the_engine_goes_on(
    vllm_engine: VllmEngine, schema: dict[str, object]
) -> None:
    """vLLM ends such an answer with an error; in an earlier version, the answer looked complete."""
    async with asyncio.timeout(60):
        with pytest.raises(RequestRejected, match="response_format: no answer can go on"):
            await vllm_engine.generate(request("circle", response_format=as_schema(schema), max_tokens=16))
        assert (await vllm_engine.generate(request(response_format=as_schema(SCHEMA), max_tokens=100))).text
