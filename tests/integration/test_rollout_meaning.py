"""Answers in other words, compared by a real embedding model in its own process: all-MiniLM-L6-v2."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.rollout.comparison import Comparison
from scripts.play.model import embedding_model
from tests.drawn import drawn
from tests.handlers import CLOCK
from tests.unit.test_rollout_decisions import Shadow, sample_of
from workers.enrichment.choosing.embedder import Embedder, EmbeddingModelRefused
from workers.inference.rollout.difference import (
    MAX_CHARS,
    MAX_SENTENCE_BYTES,
    MAX_SENTENCES,
    Meaning,
    MeaningUnknown,
)
from workers.inference.rollout.sampling import WITHOUT_PROFILE, read_sample, write_sample

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

LEAST = WITHOUT_PROFILE.equal_meaning
BRIDGE = "The bridge was opened in 1987 and carries two lanes of traffic."
BRIDGE_TOO = "Opened in 1987, the bridge has two traffic lanes."
TABLETS = "The patient should take two tablets each morning after breakfast."
TABLETS_TOO = "After breakfast every morning, the patient should take two tablets."
UNSAFE = "It is not safe to use this medicine during pregnancy."
SUED = "Alice sued Bob for breach of contract."
CALL = '[null, [["open", "{\\"bridge\\": \\"north\\"}"]]]'


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def embedder() -> AsyncIterator[Embedder]:
    found = Embedder(str(embedding_model()))
    await found.start()
    yield found
    await found.close()


@pytest.fixture
def meaning(embedder: Embedder) -> Meaning:
    return Meaning(embedder, CLOCK, 120)


def shadow(meaning: Meaning | None, says: str) -> Shadow:
    found = Shadow(meaning=meaning)
    found.engine.says = says
    return found


async def compared(meaning: Meaning | None, value: bytes, says: str) -> Comparison:
    found = await shadow(meaning, says).compared(value)
    assert found is not None
    return found


# -- pairs of texts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BRIDGE, BRIDGE_TOO),
        (TABLETS, TABLETS_TOO),
        (f"{BRIDGE} {TABLETS}", f"{TABLETS_TOO}\n\n{BRIDGE_TOO}"),
        (f"{BRIDGE} {SUED}", f"{BRIDGE_TOO} {SUED}"),
    ],
)
async def test_texts_in_other_words_are_the_same_if_each_sentence_has_its_counterpart(
    meaning: Meaning, one: str, other: str
) -> None:
    assert await meaning.is_same(one, other, LEAST)
    assert await meaning.is_same(other, one, LEAST)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BRIDGE, BRIDGE_TOO.replace("1987", "1978")),
        (BRIDGE, BRIDGE_TOO.replace("1987", "1987 or 1988")),
        (UNSAFE, UNSAFE.replace("not ", "")),
        ("The dose is safe if the pressure is < 140 mmHg.", "If the pressure is > 140 mmHg, the dose is safe."),
        (BRIDGE, f"{BRIDGE_TOO} {SUED}"),
        (BRIDGE, TABLETS),
        ("", BRIDGE),
        (CALL, CALL.replace("north", "northern")),
        (f"{BRIDGE} " * (MAX_SENTENCES + 1), f"{BRIDGE_TOO} " * (MAX_SENTENCES + 1)),
        (f"{BRIDGE}{' and so on' * MAX_SENTENCE_BYTES}", f"{BRIDGE_TOO}{' and so on' * MAX_SENTENCE_BYTES}"),
        (BRIDGE + " " * MAX_CHARS, BRIDGE_TOO),
    ],
)
async def test_texts_that_say_something_else_or_are_too_long_are_not_the_same(
    meaning: Meaning, one: str, other: str
) -> None:
    """Most of these pairs have a cosine above the threshold, which therefore does not suffice.

    The cosine is 0.98 for the negation, and 0.996 for the exchanged names.
    """
    assert not await meaning.is_same(one, other, LEAST)
    assert not await meaning.is_same(other, one, LEAST)


async def test_the_threshold_decides_which_texts_have_the_same_meaning() -> None:
    embedder = Embedder(str(embedding_model()))
    await embedder.start()
    try:
        for least, expected in ((0.7, True), (0.9, False)):
            one, other = (
                "Children under twelve travel for half the price.",
                "Kids younger than twelve pay half the fare.",
            )
            assert await Meaning(embedder, CLOCK, 120).is_same(one, other, least) is expected
    finally:
        await embedder.close()


async def test_any_two_texts_are_compared(meaning: Meaning) -> None:
    """Both texts come from models that strangers' prompts steer, so they may contain anything."""
    loop = asyncio.get_running_loop()

    @settings(max_examples=drawn(60), deadline=None)
    @given(st.text(max_size=300), st.text(max_size=300))
    def check(one: str, other: str) -> None:
        async def both() -> list[bool]:
            return [await meaning.is_same(one, other, LEAST), await meaning.is_same(other, one, LEAST)]

        there, back = asyncio.run_coroutine_threadsafe(both(), loop).result()
        assert there == back

    await asyncio.to_thread(check)


# -- the shadow worker's comparisons -------------------------------------------------------------------------------


async def test_an_answer_with_the_same_meaning_is_equal_only_with_a_model(meaning: Meaning) -> None:
    value = await sample_of(prompt=BRIDGE)
    assert (await compared(None, value, BRIDGE_TOO)).differs == 1
    found = shadow(meaning, BRIDGE_TOO)
    same = await found.compared(value)
    assert same is not None
    assert (same.differs, same.primary_text) == (0, None)
    assert found.metrics.registry.get_sample_value("postback_rollout_samples_total", {"result": "same_meaning"}) == 1
    assert (await compared(meaning, value, SUED)).differs == 1


async def test_json_is_compared_only_by_its_fields(meaning: Meaning) -> None:
    value = await sample_of(prompt=f'{{"a": "{BRIDGE}"}}', response_format={"type": "json_object"})
    assert (await compared(meaning, value, f'{{"a": "{BRIDGE_TOO}"}}')).differs == 1


async def test_the_primarys_noise_is_measured_by_meaning_too(meaning: Meaning) -> None:
    """With noise measured by words, a candidate would seem to differ less from the primary than the primary itself."""
    sample = read_sample(await sample_of(prompt=BRIDGE))
    noisy = write_sample(sample.model_copy(update={"noise": 1.0, "again": BRIDGE_TOO}))
    other = write_sample(sample.model_copy(update={"noise": 1.0, "again": SUED}))
    unknown = write_sample(sample.model_copy(update={"noise": 1.0}))
    found = [await compared(meaning, value, BRIDGE_TOO) for value in (noisy, other, unknown)]
    assert [(each.differs, each.noise) for each in found] == [(0, 0), (0, 1), (1, 1)]


# -- when the model is away ----------------------------------------------------------------------------------------


async def test_a_comparison_waits_for_a_model_whose_process_was_killed() -> None:
    before = {child.pid for child in psutil.Process().children()}
    embedder = Embedder(str(embedding_model()))
    await embedder.start()
    try:
        [killed] = [child for child in psutil.Process().children() if child.pid not in before]
        killed.kill()
        assert await Meaning(embedder, CLOCK, 250).is_same(BRIDGE, BRIDGE_TOO, LEAST)
    finally:
        await embedder.close()


async def test_words_decide_while_the_model_gives_no_answer() -> None:
    away = Meaning(Embedder(str(embedding_model())), CLOCK, 0.1)  # the model's process is never started
    with pytest.raises(MeaningUnknown):
        await away.is_same(BRIDGE, BRIDGE_TOO, LEAST)
    assert (await compared(away, await sample_of(prompt=BRIDGE), BRIDGE_TOO)).differs == 1


async def test_a_model_that_cannot_be_loaded_is_refused_by_its_settings_name() -> None:
    with pytest.raises(EmbeddingModelRefused, match=r"^POSTBACK_OTHER names /nosuch, which cannot be loaded"):
        await Embedder("/nosuch", setting="POSTBACK_OTHER").start()
