"""vLLM itself on the tiny model, which gives random answers but runs like any other."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client import REGISTRY, generate_latest

from schemas.job import Message, Reasoning
from scripts.play.model import tiny_model
from telemetry.metrics import Metrics
from tests.integration.json_schemas import SCHEMA, as_schema
from tests.integration.test_engine_contract import QUESTION, busy, request
from workers.engines.answers import finish_reason, is_failure
from workers.engines.base import EngineLoad, PromptTooLong, RequestRejected
from workers.engines.vllm import VllmEngine
from workers.engines.vllm.adapters import MAX_RANKS
from workers.engines.vllm.arguments import engine_arguments
from workers.engines.vllm.chat import Chats, call_parser
from workers.engines.vllm.figures import Figures
from workers.engines.vllm.settings import VllmSettings
from workers.engines.vllm.thinking import Thinking
from workers.enrichment.answering.grounding import ground
from workers.enrichment.evidence import Evidence, NumberedSource

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1_200)]

SETTINGS = VllmSettings(model=str(tiny_model()))
THREAD = ThreadPoolExecutor(1)
TOOLS = [{"type": "function", "function": {"name": "opening_hours", "parameters": {"type": "object"}}}]


async def test_an_answer_grows_to_the_text_that_it_has_without_a_stream(vllm_engine: VllmEngine) -> None:
    """The model may reason, so only an answer without reasoning can be told before its end."""
    asked, grown = request(reasoning={"effort": "none"}), list[str]()
    whole = await vllm_engine.generate(asked)

    def told(piece: str, offset: int) -> None:
        assert offset == sum(map(len, grown))
        grown.append(piece)

    asked.on_delta = told
    assert await vllm_engine.generate(asked) == whole
    assert len(grown) > 1
    assert whole.text.startswith("".join(grown))
    assert "".join(grown).strip()


async def test_the_beginning_of_sentence_token_occurs_once(vllm_engine: VllmEngine) -> None:
    without = await vllm_engine.generate(request(is_raw=True))
    assert await vllm_engine.generate(request(prompt=f"<s>{QUESTION}", is_raw=True)) == without


async def test_a_chat_and_a_prompt_are_rendered_by_the_models_template_and_a_raw_prompt_is_not(
    vllm_engine: VllmEngine,
) -> None:
    message = Message(role="user", content=QUESTION)
    rendered = f"<|user|>{QUESTION}\n<|assistant|>"
    by_template = await vllm_engine.generate(request(prompt=rendered, is_raw=True))
    assert await vllm_engine.generate(request(prompt=None, messages=(message,))) == by_template
    assert await vllm_engine.generate(request()) == by_template
    assert await vllm_engine.generate(request(is_raw=True)) != by_template


@pytest.mark.parametrize("mode", ["deepseek_v32", "deepseek_v4"])
@pytest.mark.usefixtures("vllm_engine")
async def test_a_template_in_vllm_s_code_is_rendered_by_vllm(mode: str) -> None:
    """DeepSeek V3.2 and V4 have no template in their files. An earlier version sent their chats as plain text."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.renderers import renderer_from_config

    arguments = AsyncEngineArgs(**engine_arguments(SETTINGS, {}), tokenizer_mode=mode)
    config = arguments.create_engine_config()
    renderer = renderer_from_config(config)
    chats = Chats(config.model_config, renderer, SETTINGS, THREAD, call_parser(None, "deepseek_v32"))

    async def prompt(**fields: Any) -> str:
        return str(renderer.get_tokenizer().decode((await chats.chat(request(**fields))).tokens))

    assert f"<｜User｜>{QUESTION}<｜Assistant｜>" in await prompt()  # noqa: RUF001 - DeepSeek's bar
    assert "opening_hours" in await prompt(tools=TOOLS)


@pytest.mark.usefixtures("vllm_engine")
async def test_a_chat_template_with_marks_shows_that_a_model_of_no_family_reasons(reasoning_model: Path) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    for model, parser in ((reasoning_model, "deepseek_r1"), (tiny_model(), None)):
        settings = VllmSettings(model=str(model))
        config = AsyncEngineArgs(**engine_arguments(settings, {})).create_engine_config().model_config
        thinking = Thinking.of(None, config)
        assert (thinking.parser if thinking is not None else None) == parser


async def test_a_family_s_parser_finds_the_calls_and_a_grammar_demands_one() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.renderers import renderer_from_config

    arguments = AsyncEngineArgs(**engine_arguments(SETTINGS, {}), tokenizer_mode="deepseek_v32")
    config = arguments.create_engine_config()
    renderer = renderer_from_config(config)
    chats = Chats(config.model_config, renderer, SETTINGS, THREAD, call_parser(None, "hermes"))
    chat = await chats.chat(request(tools=TOOLS))
    said = 'Wait.<tool_call>\n{"name": "opening_hours", "arguments": {"day": "Monday"}}\n</tool_call>'
    text, [call] = chat.calls(said, [])
    assert (text, call.function.name, call.function.arguments) == ("Wait.", "opening_hours", '{"day": "Monday"}')
    assert chat.calls("<tool_call>{", []) == ("<tool_call>{", [])
    params = chat.params({}, marks_are_special=False, decodes_at_end=True)
    assert (chat.may_call, chat.demands_call, params.skip_special_tokens) == (True, False, False)
    for choice in ("required", {"type": "function", "function": {"name": "opening_hours"}}):
        demanded = await chats.chat(request(tools=TOOLS, tool_choice=choice))
        params = demanded.params({}, marks_are_special=False, decodes_at_end=True)
        assert (demanded.demands_call, params.structured_outputs is not None) == (True, True)
    assert not (await chats.chat(request(tools=TOOLS, tool_choice="none"))).may_call
    with pytest.raises(RequestRejected, match="tools: vLLM in the worker has no parser"):
        await Chats(config.model_config, renderer, SETTINGS, THREAD).chat(request(tools=TOOLS))


async def test_tools_are_refused_where_the_model_s_template_has_no_place_for_them(vllm_engine: VllmEngine) -> None:
    with pytest.raises(RequestRejected, match="tools: the model's chat template"):
        await vllm_engine.generate(request(tools=TOOLS))


async def test_the_model_s_own_sampling_counts_where_a_request_says_nothing(vllm_engine: VllmEngine) -> None:
    unsaid = [request(f"u{seed}", temperature=None, seed=seed, max_tokens=16) for seed in range(3)]
    greedy = [request(f"g{seed}", seed=seed, max_tokens=16) for seed in range(3)]
    assert len({(await vllm_engine.generate(one)).text for one in unsaid}) == 3
    assert len({(await vllm_engine.generate(one)).text for one in greedy}) == 1

    async def params(defaults: dict[str, float], **fields: Any) -> tuple[float, ...]:
        chat = await vllm_engine._chats.chat(request(**fields))
        found = chat.params(defaults, marks_are_special=False, decodes_at_end=True)
        return found.temperature, found.top_p, found.top_k, found.repetition_penalty, found.max_tokens

    own = {"temperature": 0.6, "top_k": 20, "max_tokens": 9}
    assert await params(own, temperature=None) == (0.6, 1.0, 20, 1.0, 8)
    own = {"repetition_penalty": 1.1, "top_p": 0.9}
    assert await params(own, temperature=None) == (0.0, 1.0, 0, 1.1, 8)  # greedily, so without `top_p`
    assert await params({"temperature": 0.6, "top_p": 0.9}, temperature=0.7, top_p=0.5) == (0.7, 0.5, 0, 1.0, 8)


async def test_a_long_prompt_keeps_its_end(vllm_engine: VllmEngine) -> None:
    short = await vllm_engine.generate(request(prompt=f"{'many words ' * 40}{QUESTION}", context_window=24))
    long = await vllm_engine.generate(request(prompt=f"{'other people ' * 400}{QUESTION}", context_window=24))
    assert (short.prompt_tokens, long.prompt_tokens) == (16, 16)
    assert short.text == long.text
    assert (await vllm_engine.generate(request(prompt="word " * 3000))).prompt_tokens == 512 - 8


async def test_a_long_prompt_that_may_not_be_cut_is_refused_with_the_part_that_would_fit(
    vllm_engine: VllmEngine,
) -> None:
    assert vllm_engine.context_tokens == 512
    fits = await vllm_engine.generate(request(is_whole=True))
    assert fits == await vllm_engine.generate(request())
    with pytest.raises(PromptTooLong) as long:
        await vllm_engine.generate(request(prompt="word " * 2000, is_whole=True))
    assert 0.0 < long.value.fits < 0.5


async def test_max_tokens_beyond_the_model_are_rejected(vllm_engine: VllmEngine) -> None:
    with pytest.raises(RequestRejected) as rejected:
        await vllm_engine.generate(request(max_tokens=512))
    assert rejected.value.field == "max_tokens"


async def test_a_seed_makes_a_sampled_answer_repeatable(vllm_engine: VllmEngine) -> None:
    first, again, other = [
        await vllm_engine.generate(request(f"s{n}", temperature=1.0, seed=seed))
        for n, seed in enumerate((2**63 - 1, 2**63 - 1, 7))
    ]
    assert first == again
    assert first.text != other.text


async def test_a_stop_text_ends_the_answer_and_is_not_in_it(vllm_engine: VllmEngine) -> None:
    whole = await vllm_engine.generate(request(max_tokens=32))
    stop = whole.text[4:7]
    stopped = await vllm_engine.generate(request(max_tokens=32, stop=(stop,)))
    assert (stopped.text, stopped.finish_reason) == (whole.text.split(stop)[0], "stop")


async def test_an_abort_counts_the_tokens_that_were_generated_for_nothing(vllm_engine: VllmEngine) -> None:
    long = request("long", max_tokens=480)
    generating = asyncio.create_task(vllm_engine.generate(long))
    await busy(vllm_engine, 1)
    # The short request runs in the same batches, so at its end the long one has some tokens, but far fewer than 480.
    await vllm_engine.generate(request("short", max_tokens=8))
    long.abort.ask()
    completion = await generating
    assert completion.finish_reason == "abort"
    assert 0 < completion.completion_tokens < 480
    assert completion.text


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"postback_engine_{name}", labels) or 0.0


async def test_vllm_s_scheduler_counts_its_work_and_has_no_request_left_that_was_aborted(
    vllm_engine: VllmEngine, vllm_metrics: Metrics
) -> None:
    def running() -> float:
        return value(vllm_metrics, "requests", rank="0", state="running")

    before = value(vllm_metrics, "tokens_total", kind="generation")
    asked = [request(f"aborted{number}", max_tokens=480) for number in range(3)]
    generating = [asyncio.create_task(vllm_engine.generate(each)) for each in asked]
    async with asyncio.timeout(60):
        while running() < 3:
            await asyncio.sleep(0.01)
        assert 0 < value(vllm_metrics, "kv_cache_usage_ratio", rank="0") < 1
        for each in asked:
            each.abort.ask()
        aborted = await asyncio.gather(*generating)
        await vllm_engine.generate(request("after"))
        while running() > 0:
            await asyncio.sleep(0.01)
    assert {one.finish_reason for one in aborted} == {"abort"}
    generated = value(vllm_metrics, "tokens_total", kind="generation") - before
    assert sum(one.completion_tokens for one in aborted) <= generated < 3 * 480


async def test_vllm_s_prefix_cache_is_counted_and_its_global_registry_is_not_used(
    vllm_engine: VllmEngine, vllm_metrics: Metrics
) -> None:
    prompt = f"{'A page that two jobs share. ' * 20}{QUESTION}"
    await vllm_engine.generate(request("cold", prompt))

    def counted() -> list[float]:
        prefix = [value(vllm_metrics, "prefix_cache_tokens_total", result=result) for result in ("hit", "miss")]
        return [*prefix, value(vllm_metrics, "tokens_total", kind="prompt")]

    before = counted()
    warm = await vllm_engine.generate(request("warm", prompt))
    after = counted()
    assert warm.cached_tokens
    new = warm.prompt_tokens - warm.cached_tokens
    assert [now - then for then, now in zip(before, after, strict=True)] == [warm.cached_tokens, new, new]
    assert b"vllm" not in generate_latest(REGISTRY)


async def test_preemptions_and_each_rank_s_requests_are_counted(vllm_engine: VllmEngine) -> None:
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

    metrics, step = Metrics(), IterationStats()  # type: ignore[no-untyped-call]
    step.num_preempted_reqs = 2
    figures = Figures(metrics, [0, 1])
    figures.record(SchedulerStats(num_running_reqs=5, num_waiting_reqs=3, num_skipped_waiting_reqs=1), step, 1)
    figures.record(None, step, 0)
    assert value(metrics, "preemptions_total") == 4
    states = [(rank, state) for rank in "01" for state in ("running", "waiting")]
    assert [value(metrics, "requests", rank=rank, state=state) for rank, state in states] == [0, 0, 5, 4]
    Figures(metrics, [0, 1])  # an engine that is loaded after a death makes a new object too
    assert [value(metrics, "requests", rank=rank, state=state) for rank, state in states] == [0, 0, 0, 0]


async def test_each_finish_reason_of_vllm_is_known(vllm_engine: VllmEngine) -> None:
    from vllm.v1.engine import FINISH_REASON_STRINGS

    known = {word: "failure" if is_failure(word) else finish_reason(word) for word in FINISH_REASON_STRINGS}
    assert known == {word: "failure" if word == "error" else word for word in FINISH_REASON_STRINGS}


async def test_ten_questions_to_one_document_find_its_tokens_in_the_prefix_cache(vllm_engine: VllmEngine) -> None:
    """With random marks around the page in each request, vLLM would find 0 % of the tokens in its cache, not 81 %."""
    page = NumberedSource(
        1, "u", "u", "A page", tuple(f"Line {n} of the long page that all ask about." for n in range(24))
    )
    prompts = [ground(f"Name the writer of line {number}.", Evidence((page,))).prompt for number in range(10)]
    completions = [await vllm_engine.generate(request(f"p{n}", prompt)) for n, prompt in enumerate(prompts)]
    shares = [(one.cached_tokens or 0) / one.prompt_tokens for one in completions]
    assert shares[0] < 0.1
    assert min(shares[1:]) > 0.5


async def test_each_adapter_changes_the_answer_though_its_folder_is_gone(
    vllm_engine: VllmEngine, adapters_folder: Path, tmp_path: Path
) -> None:
    requests = [request(f"a{n}", max_tokens=16, adapter=name) for n, name in enumerate((None, "polite", "wide"))]
    adapters_folder.rename(tmp_path / "away")
    try:
        for _ in range(2):
            together = await asyncio.gather(*map(vllm_engine.generate, requests))
            assert len({one.text for one in together}) == 3
    finally:
        (tmp_path / "away").rename(adapters_folder)


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        ("missing", "could not be loaded: its folder does not exist"),
        ("weightless", "could not be loaded: .*weightless"),
        ("unsupported", "could not be loaded: .*DoRA"),
        ("unknown", "no adapter of this name"),
    ],
)
async def test_an_adapter_that_cannot_be_loaded_ends_its_own_jobs_only(
    vllm_engine: VllmEngine, adapter: str, reason: str
) -> None:
    """vLLM loads an adapter at its first request. An adapter without a folder once ended the engine."""
    with pytest.raises(RequestRejected, match=reason) as rejected:
        await vllm_engine.generate(request(adapter=adapter))
    assert rejected.value.field == "adapter"
    assert "/" not in rejected.value.reason
    assert (await vllm_engine.generate(request(adapter="polite"))).text


async def test_the_ranks_that_vllm_takes_are_known(vllm_engine: VllmEngine) -> None:
    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == MAX_RANKS


async def test_reasoning_is_a_part_of_its_own_with_its_tokens_and_a_bound(vllm_engine: VllmEngine) -> None:
    """The tiny model never closes its reasoning; the bound makes vLLM write the closing mark."""
    bounded = await vllm_engine.generate(request(max_tokens=24, reasoning=Reasoning(max_tokens=6)))
    endless = await vllm_engine.generate(request(max_tokens=24, reasoning=Reasoning(effort="low")))
    none = await vllm_engine.generate(request(max_tokens=24, reasoning=Reasoning(effort="none")))
    assert bounded.reasoning and bounded.text
    assert "think>" not in bounded.reasoning + bounded.text
    assert bounded.reasoning_tokens is not None and 6 <= bounded.reasoning_tokens <= 8
    assert bounded.confidence is not None and 0 < bounded.confidence <= 1
    assert (endless.text, endless.reasoning_tokens, endless.confidence) == ("", 24, None)
    assert endless.reasoning is not None and endless.reasoning.startswith(bounded.reasoning)
    assert none == await vllm_engine.generate(request(max_tokens=24))
    assert none.reasoning is None


async def test_a_json_answer_follows_the_reasoning_or_begins_at_once(vllm_engine: VllmEngine) -> None:
    form = as_schema(SCHEMA)
    for asked in (Reasoning(max_tokens=6), None):
        completion = await vllm_engine.generate(request(response_format=form, max_tokens=100, reasoning=asked))
        assert list(json.loads(completion.text)) == ["known"]
        assert (completion.reasoning is not None) == (asked is not None)


async def test_the_bounds_of_a_batch_are_those_of_vllms_offline_use(vllm_engine: VllmEngine) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    arguments = AsyncEngineArgs(**engine_arguments(SETTINGS, {}))
    batches = arguments.create_engine_config(UsageContext.LLM_CLASS).scheduler_config
    assert (batches.max_num_batched_tokens, batches.max_num_seqs) == (4096, 256)


async def test_the_load_tells_how_many_requests_the_kv_cache_holds() -> None:
    """The KV cache holds 512 tokens, the prompts of only a few of the 16 requests that `max_num_seqs` allows."""
    extra = {"num_gpu_blocks_override": 17, "block_size": 32}
    engine = VllmEngine(
        VllmSettings(model=str(tiny_model()), context_tokens=512, max_concurrency=16, extra=extra), Metrics()
    )
    await engine.start()
    try:
        assert engine.load() == EngineLoad(running=0, waiting=0, free=16)
        long = [request(f"long{n}", f"{n} {QUESTION * 6}", max_tokens=64) for n in range(12)]
        generating = asyncio.gather(*map(engine.generate, long))
        async with asyncio.timeout(60):
            while not 1 <= engine.load().running < 8 or not engine.load().waiting:
                await asyncio.sleep(0)
        assert engine.load().free == 0
        completions = await generating
        assert {one.finish_reason for one in completions} == {"length"}
        assert 8 * min(one.prompt_tokens for one in completions) > 512
        assert engine.load().free < 8
    finally:
        await engine.close()
