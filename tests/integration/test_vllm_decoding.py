"""Answers that are decoded once, compared with vLLM's own steps; answers that a JSON schema describes."""

from __future__ import annotations

import asyncio
import importlib
import json
import warnings
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scripts.play.model import tiny_model
from tests.drawn import drawn
from tests.integration.json_schemas import CIRCULAR, SCHEMA, UNSUPPORTED, as_schema
from tests.integration.json_schemas import ODD as ODD_SCHEMAS
from tests.integration.test_engine_contract import request
from workers.engines.base import GenerationRequest, RequestRejected
from workers.engines.vllm import VllmEngine
from workers.engines.vllm.chat import VllmChat, vllm_request
from workers.engines.vllm.decoding import Decoding
from workers.engines.vllm.settings import VllmSettings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1_200)]

ODD = "\N{REPLACEMENT CHARACTER}"
BEYOND = 1_000_000
"""A token that the tokenizer does not know: a model may have more tokens than its tokenizer."""
SPECIAL = ["<unk>", "<s>", "</s>"]
WORDS = ["▁", "▁▁", "▁the", "▁a", "the", "a", "b", ".", "▁.", "'", "▁'s", "中", ODD]
KINDS = ("bytes", "sentencepiece", "gemma", "metaspace")
"""The tiny model's tokenizer, whose tokens are bytes, and three with words as tokens; two of these also have bytes."""


@pytest.fixture(scope="module", autouse=True)
def _vllm_is_imported() -> None:
    """Import vLLM's steps without the warnings about its use of deprecated torch functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("vllm.v1.engine.detokenizer")


@cache
def tokenizer_of(kind: str) -> Any:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if kind == "bytes":
        return PreTrainedTokenizerFast(tokenizer_file=str(tiny_model() / "tokenizer.json"), **names)
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    backend = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, [], byte_fallback=True))
    spaces, joined = decoders.Replace("▁", " "), [decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = {
        "sentencepiece": decoders.Sequence([spaces, *joined, decoders.Strip(" ", 1, 0)]),
        "gemma": decoders.Sequence([spaces, *joined]),
        "metaspace": decoders.Metaspace(),
    }[kind]
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@cache
def decoding_of(kind: str) -> Decoding:
    return Decoding(tokenizer_of(kind))


def spelled(kind: str, text: str) -> list[int]:
    """Return the text's tokens: one for each byte if the kind of tokenizer has such tokens."""
    if kind == "bytes":
        ids: list[int] = tokenizer_of(kind).encode(text, add_special_tokens=False)
        return ids
    return [len(SPECIAL) + byte for byte in text.encode()]


def ids_of(kind: str) -> st.SearchStrategy[list[int]]:
    """Words, whole characters, pieces of characters, special and unknown tokens."""
    ends = [0, 1, 2, BEYOND]
    known = len(tokenizer_of(kind))
    words = range(3, known) if kind == "bytes" else range(known - len(WORDS), known)
    part = st.one_of(
        st.sampled_from(words).map(lambda word: [word]),
        st.sampled_from(words).map(lambda word: [word]),
        st.sampled_from(["é", "中", "\N{PILE OF POO}", "中文", ODD, " a"]).map(lambda text: spelled(kind, text)),
        st.sampled_from([*range(known), *ends]).map(lambda token: [token]),
    )
    return st.lists(part, max_size=10).map(lambda parts: [token for one in parts for token in one])


def params_of(*, skips: bool) -> Any:
    from vllm import SamplingParams

    return SamplingParams(detokenize=False, skip_special_tokens=skips)


def by_vllm(
    kind: str,
    ids: Sequence[int],
    prompt: Sequence[int],
    *,
    skips: bool,
    is_stopped: bool = False,
    is_slow: bool = False,
) -> tuple[str, int]:
    """Let vLLM decode the tokens one by one; return the text, and the number of last steps that added no text."""
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer, SlowIncrementalDetokenizer

    asked: Any = SimpleNamespace(
        request_id="r1", prompt_token_ids=[*prompt], prompt_embeds=None, sampling_params=params_of(skips=skips)
    )
    steps = (SlowIncrementalDetokenizer if is_slow else FastIncrementalDetokenizer)(tokenizer_of(kind), asked)
    silent = 0
    for at, token in enumerate(ids):
        before = steps.output_text
        steps.update([token], stop_terminated=is_stopped and at == len(ids) - 1)
        silent = silent + 1 if steps.output_text == before else 0
    return steps.output_text, silent


def shown(kind: str, ids: Sequence[int], *, skips: bool) -> str:
    text: str = tokenizer_of(kind)._tokenizer.decode([*ids], skip_special_tokens=skips)
    return text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=drawn(400), deadline=None)
@given(data=st.data(), skips=st.booleans(), is_stopped=st.booleans())
def test_the_text_of_any_tokens_is_the_text_of_vllm_s_steps(
    kind: str, data: st.DataObject, skips: bool, is_stopped: bool
) -> None:
    prompt, ids = data.draw(ids_of(kind)), data.draw(ids_of(kind))
    if shown(kind, prompt, skips=skips).endswith(ODD):
        prompt = []
    output = SimpleNamespace(
        outputs=[SimpleNamespace(token_ids=ids, finish_reason="stop" if is_stopped else "length", text="")]
    )
    decoding_of(kind).write_texts(output, prompt, params_of(skips=skips))
    expected, silent = by_vllm(kind, ids, prompt, skips=skips, is_stopped=is_stopped)
    [answer] = output.outputs
    if kind == "bytes" and silent > 3 + is_stopped:
        assert answer.text.startswith(expected)
    else:
        assert answer.text == expected


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=drawn(200), deadline=None)
@given(words=st.lists(st.sampled_from(["the", " a", ".", "  ", "中", "é", "\n", "\N{PILE OF POO}"]), max_size=12))
@example(words=[" a"])
def test_the_text_of_whole_characters_is_the_text_of_vllm_s_slow_steps(kind: str, words: list[str]) -> None:
    ids = [token for word in words for token in spelled(kind, word)]
    prompt = [1, *spelled(kind, "the prompt")]
    text = decoding_of(kind).text(ids, prompt, params_of(skips=True))
    assert text == by_vllm(kind, ids, prompt, skips=True, is_slow=True)[0]
    assert text == "".join(words) or kind == "metaspace"


@pytest.mark.parametrize(
    ("kind", "prompt", "tail", "text"),
    [
        ("bytes", "the", "a中", "a"),
        ("bytes", "the", "中", ""),
        ("sentencepiece", "the", "a中文", "a中"),
        ("gemma", "中", "文中", "文"),
    ],
)
def test_a_character_that_is_cut_off_is_left_out(kind: str, prompt: str, tail: str, text: str) -> None:
    ids, before = spelled(kind, tail)[:-1], spelled(kind, prompt)
    assert decoding_of(kind).text(ids, before, params_of(skips=True)) == text
    assert by_vllm(kind, ids, before, skips=True)[0] == text


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace"])
@pytest.mark.parametrize("specials", [0, 1, 9, 50])
def test_an_answer_keeps_the_space_of_its_first_word(kind: str, specials: int) -> None:
    """A decoder removes the space before the first word that it sees, so it must also see a word of the prompt.

    A prompt may end with many tokens that have no text.
    """
    the = tokenizer_of(kind).convert_tokens_to_ids("▁the")
    assert decoding_of(kind).text([the, the], [1, the, *[2] * specials], params_of(skips=True)) == " the the"
    assert decoding_of(kind).text([the, the], [1] * specials, params_of(skips=True)) == "the the"


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_ends_with_a_replacement_character_is_not_repeated(kind: str) -> None:
    """vLLM's own steps repeat the whole prompt in such an answer."""
    known = tokenizer_of(kind).get_vocab()
    odd = spelled(kind, ODD) if kind in ("bytes", "sentencepiece", "gemma") else [known[ODD]]
    the = spelled(kind, "the") if kind == "bytes" else [known["the"]]
    assert decoding_of(kind).text(the, [*the, *odd], params_of(skips=True)) == "the"
    assert by_vllm(kind, the, [*the, *odd], skips=True)[0] == f"the{ODD}the"


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_a_long_run_of_broken_characters_is_shown(kind: str) -> None:
    """vLLM's steps decode the run again for each of its tokens, which would hold the event loop for minutes."""
    [*_, last] = spelled(kind, "中")
    assert decoding_of(kind).text([last] * 30_000, [1], params_of(skips=True)) == ODD * 30_000


def sampled(asked: GenerationRequest, *, decodes_at_end: bool = True, **own: Any) -> Any:
    """The `SamplingParams` of a request to an engine with these settings of its own."""
    chat = VllmChat(asked, vllm_request(asked, VllmSettings(model="m", **own)), [1])
    return chat.params({}, marks_are_special=False, decodes_at_end=decodes_at_end)


def test_vllm_decodes_the_answers_of_a_tokenizer_of_another_library() -> None:
    output = SimpleNamespace(outputs=[SimpleNamespace(token_ids=[5], finish_reason="length", text="by vLLM")])
    decoding = Decoding(object())
    params = sampled(request(), decodes_at_end=decoding.is_possible)
    decoding.write_texts(output, [1], params)
    assert (params.detokenize, output.outputs[0].text) == (True, "by vLLM")


@pytest.mark.parametrize(
    ("asked", "own", "is_decoded_by_vllm"),
    [
        (request(), {}, False),
        (request(n=2, temperature=1.0), {"log_probabilities": False}, False),
        (request(stop=("x",)), {}, True),
        (request(), {"stop": ("\n",)}, True),
        (request(top_logprobs=0), {}, True),
    ],
)
def test_vllm_decodes_answers_whose_tokens_need_a_text_each(
    asked: GenerationRequest, own: dict[str, Any], is_decoded_by_vllm: bool
) -> None:
    assert sampled(asked, **own).detokenize == is_decoded_by_vllm


def test_a_worker_without_confidence_asks_for_log_probabilities_only_where_the_job_does() -> None:
    asked = [request(), request(top_logprobs=2)]
    assert [sampled(each, log_probabilities=False).logprobs for each in asked] == [None, 2]


@pytest.mark.asyncio(loop_scope="session")
async def test_an_engine_s_answers_are_those_that_vllm_decodes(vllm_engine: VllmEngine) -> None:
    """An answer with log-probabilities is decoded by vLLM."""
    for seed in range(8):
        both: list[dict[str, Any]] = [{}, {"top_logprobs": 0}]
        asked: dict[str, Any] = {"max_tokens": 24, "temperature": 1.0, "seed": seed, "n": 2}
        plain, decoded = [await vllm_engine.generate(request(**asked, **more)) for more in both]
        assert plain.text
        assert [each.text for each in plain.further] == [each.text for each in decoded.further]
        assert (plain.text, plain.finish_reason) == (decoded.text, decoded.finish_reason)
        assert plain.confidence == pytest.approx(decoded.confidence)
        assert plain.logprobs is None
        assert decoded.logprobs is not None
        assert len(decoded.logprobs) + sum(len(each.logprobs or ()) for each in decoded.further) <= 48


@pytest.mark.asyncio(loop_scope="session")
async def test_the_answer_is_json_that_the_schema_describes(vllm_engine: VllmEngine) -> None:
    completion = await vllm_engine.generate(request(response_format=as_schema(SCHEMA), max_tokens=100, seed=1))
    answer = json.loads(completion.text)
    assert list(answer) == ["known"]
    assert isinstance(answer["known"], bool)


@pytest.mark.asyncio(loop_scope="session")
async def test_an_invalid_schema_is_rejected(vllm_engine: VllmEngine) -> None:
    with pytest.raises(RequestRejected) as rejected:
        await vllm_engine.generate(request(response_format=as_schema({"type": "nonsense"})))
    assert rejected.value.field == "response_format"


@pytest.mark.asyncio(loop_scope="session")
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


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(
    "schema",
    ODD_SCHEMAS,
    ids=lambda schema: json.dumps(schema)[:60],
)
async def test_an_odd_schema_costs_no_more_than_its_own_job(vllm_engine: VllmEngine, schema: dict[str, object]) -> None:
    async with asyncio.timeout(60):
        odd = await vllm_engine.generate(request("odd", response_format=as_schema(schema), max_tokens=16))
        assert odd.finish_reason in ("stop", "length")
        assert (await vllm_engine.generate(request(response_format=as_schema(SCHEMA), max_tokens=100))).text


@pytest.mark.asyncio(loop_scope="session")
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
