"""The cost of a job in tokens, before and after its answer, and the order of one tenant's jobs."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.job import DEFAULT_TTL_SECONDS
from tests.unit.echo_worker import record, working
from tests.unit.test_parking import always, partition
from workers.inference.fairness import MOST_TENANTS, AnswerTokens
from workers.inference.prompt_tokens import BYTES_A_TOKEN
from workers.stage.parking import Lot
from workers.stage.record import Record

ACME, GLOBEX = ("tenant", b"acme"), ("tenant", b"globex")


async def test_a_job_costs_the_tokens_of_its_prompt_and_its_tenants_mean_answer_and_then_its_real_ones() -> None:
    async with working() as worker:
        sharing = worker.handler.sharing
        long, short = record({"prompt": "word " * 400}, ACME), record({"prompt": "word"}, GLOBEX)
        assert sharing.cost(long) == pytest.approx(len(long.value) / BYTES_A_TOKEN)
        for _ in range(100):
            await worker.outputs(long)
            await worker.outputs(short)
        assert long.spent == 800  # the echo engine answers with the 400 words of the question
        assert short.spent == 2
        assert sharing.cost(long) == pytest.approx(len(long.value) / BYTES_A_TOKEN + 400, rel=0.05)
        assert sharing.cost(short) == pytest.approx(len(short.value) / BYTES_A_TOKEN + 1, abs=5)


async def test_a_job_that_reaches_no_engine_costs_nothing() -> None:
    async with working() as worker:
        for job in (record(b"no job"), record({"prompt": "x", "model_id": "absent"}), record({"prompt": ""})):
            await worker.outputs(job)
            assert job.spent == 0


async def test_a_tenant_with_twice_the_weight_pays_half() -> None:
    async with working(tenant_weights={"acme": 2.0}) as worker:
        of_acme, of_globex = record({"prompt": "a b c"}, ACME), record({"prompt": "a b c"}, GLOBEX)
        sharing = worker.handler.sharing
        assert sharing.cost(of_acme) * 2 == sharing.cost(of_globex)
        for job in (of_acme, of_globex):
            await worker.outputs(job)
        assert (of_acme.spent, of_globex.spent) == (3, 6)


async def test_a_job_with_an_earlier_deadline_is_more_urgent() -> None:
    async with working() as worker:
        usual = round(1000 * DEFAULT_TTL_SECONDS)
        for job, left_ms in (
            (record({"prompt": "x"}), usual),
            (record({"prompt": "x", "ttl_seconds": 60}), 60_000),
            (record({"prompt": 'Say "ttl_seconds": 5'}), usual),
            (record({"prompt": "x"}, ("deadline", b"soon")), usual),
        ):
            assert worker.handler.sharing.urgency(job) - job.timestamp_ms == left_ms
        stated = record({"prompt": "x"}, ("deadline", b"1700000000000"))
        assert worker.handler.sharing.urgency(stated) == 1_700_000_000_000


@given(st.lists(st.tuples(st.binary(max_size=3), st.integers(0, 2**31 - 1)), max_size=60))
def test_a_mean_lies_between_zero_and_its_answers(answers: list[tuple[bytes, int]]) -> None:
    known = AnswerTokens()
    for tenant, tokens in answers:
        known.add(tenant, tokens)
    lengths = [0.0, *(float(tokens) for _, tokens in answers)]
    for tenant in {*(tenant for tenant, _ in answers), b"other"}:
        assert min(lengths) * 0.999 <= known.mean(tenant) <= max(lengths) * 1.001


def test_only_the_last_tenants_are_remembered() -> None:
    known = AnswerTokens()
    known.add(b"first", 1_000_000)
    for number in range(MOST_TENANTS - 1):
        known.add(b"%d" % number, 0)
    assert known.mean(b"first") > 1000 * known.mean(b"other")
    known.add(b"last", 0)
    assert known.mean(b"first") == known.mean(b"other")


async def test_a_tenant_that_comes_during_a_workers_first_answers_gets_its_share_of_the_freed_places() -> None:
    where = partition()
    flood, few = record({"prompt": "word"}, ACME), record({"prompt": "word"}, GLOBEX)
    async with working() as worker:
        sharing, lot = worker.handler.sharing, Lot(1000, 10**9)

        def park(sent: Record) -> None:
            lot.add(where, replace(sent, offset=next(offsets), cost=sharing.cost(sent)), sharing.party(sent.headers))

        offsets = count()
        for _ in range(300):
            park(flood)
        running = deque(lot.draw(64, always))
        for _ in range(128):
            _, ended = running.popleft()
            await worker.outputs(ended)
            lot.correct(sharing.party(ended.headers), (ended.spent or 0) - ended.cost)
            park(few)
            running += lot.draw(1, always)
    begun_later = Counter(sharing.party(one.headers) for _, one in running)
    assert begun_later[b"globex"] >= 16
