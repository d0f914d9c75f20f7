"""OpenAI's own Python package against the door: the door has what the package asks for, in the package's types."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import MagicMock

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI
from sqlalchemy import Connection, func, select

from gateway.accept.idempotency import StoredAnswer
from gateway.door.retries import claim_left, forget_left, leave, note_left, rejoined
from gateway.door.server import DoorServer
from gateway.door.settings import GatewaySettings
from gateway.errors import RETRY_HEADER
from gateway.store.store import Store
from gateway.store.tables import jobs, left_requests
from gateway.view.retention import Retention
from gateway.view.stored_jobs import JobFilter, list_stored
from schemas.openai import CHAT_COMPLETIONS, RESPONSES
from schemas.outcome import Outcome
from schemas.screening import CATEGORIES, Verdict
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock
from tests.drawn import JSON, drawn
from tests.integration.certificates import Authority
from tests.unit.door_rig import changed
from tests.unit.gateway_rig import Rig, gateway_rig
from tests.unit.test_gateway_jobs import TENANT, finish, known, records_of
from workers.processes.model_process import ModelAway
from workers.screening.rules import ClassifierRule
from workers.screening.screen import Moderated, Screen

T = TypeVar("T")
SEVERAL = settings(max_examples=drawn(40), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
WHY: list[Any] = [{"role": "user", "content": "Why?"}]
PARTS: list[Any] = [{"type": "text", "text": "Why?"}]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with gateway_rig(tmp_path_factory.mktemp("sdk")) as made:
        yield made


@pytest.fixture(scope="module")
def key(rig: Rig) -> str:
    return rig.key(TENANT)


def sdk(rig: Rig, key: str) -> AsyncOpenAI:
    """The package, which calls the rig's application."""
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(rig.app))
    return AsyncOpenAI(api_key=key, base_url="http://door/v1", http_client=client, max_retries=0)


async def ended(rig: Rig, asking: Awaitable[T], **result: Any) -> T:
    """The answer to a request, whose job gets this result."""
    before, task = known(rig), asyncio.ensure_future(asking)
    while not (made := known(rig) - before):
        assert not task.done(), task.result()
        await asyncio.sleep(0.001)
    finish(rig, made.pop(), **result)
    return await task


# -- stored chat completions -------------------------------------------------------------------------------------------


async def test_a_stored_chat_completion_is_read_listed_changed_and_deleted(rig: Rig, key: str) -> None:
    client = sdk(rig, key)
    chats = client.chat.completions
    asked = chats.create(
        model="small",
        messages=[{"role": "user", "content": PARTS}, *WHY],
        store=True,
        temperature=0.5,
        metadata={"a": "1"},
    )
    made = await ended(rig, asked, model_id="small")
    rig.clock.sleep(1)
    other = await ended(rig, chats.create(model="big", messages=WHY, store=True), model_id="big")
    unstored = await ended(rig, chats.create(model="small", messages=WHY), model_id="small")

    read = await chats.retrieve(made.id)
    assert (read.id, read.choices, read.model_dump()["temperature"]) == (made.id, made.choices, 0.5)
    assert [one.id async for one in chats.list(limit=1)] == [made.id, other.id]
    assert [one.id async for one in chats.list(order="desc")] == [other.id, made.id]
    assert [one.id async for one in chats.list(after=made.id)] == [other.id]
    assert [one.id async for one in chats.list(model="big")] == [other.id]
    assert [one.id async for one in chats.list(metadata={"a": "1"})] == [made.id]

    messages = [one async for one in chats.messages.list(made.id, limit=1)]
    assert [(one.id, one.content) for one in messages] == [(f"{made.id}-0", None), (f"{made.id}-1", "Why?")]
    assert [part.model_dump(exclude_none=True) for part in messages[0].content_parts or ()] == PARTS
    assert [one.id async for one in chats.messages.list(made.id, order="desc")] == [f"{made.id}-1", f"{made.id}-0"]

    updated = await chats.update(made.id, metadata={"b": "2"})
    assert (updated.id, updated.model_dump()["metadata"]) == (made.id, {"b": "2"})
    assert [one.id async for one in chats.list(metadata={"b": "2"})] == [made.id]
    deleted = await chats.delete(made.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "chat.completion.deleted")
    for absent in (made.id, unstored.id, other.id.removeprefix("chatcmpl-"), "chatcmpl-none"):
        with pytest.raises(openai.NotFoundError) as refused:
            await chats.retrieve(absent)
        assert (refused.value.code, refused.value.type) == ("chat_completion_not_found", "invalid_request_error")
    with pytest.raises(openai.NotFoundError):
        await sdk(rig, rig.key("other")).chat.completions.retrieve(other.id)


async def test_an_unanswered_chat_is_not_stored_and_a_redacted_one_keeps_no_message(tmp_path: Path) -> None:
    with screening(tmp_path) as rig:
        client, card = sdk(rig, rig.key(TENANT)), "4111 1111 1111 1111"
        with pytest.raises(openai.UnprocessableEntityError):
            failure = {"code": "not_json", "message": "No."}
            await ended(
                rig,
                client.chat.completions.create(model="m", messages=WHY, store=True),
                outcome=Outcome.FAILED,
                error=failure,
            )
        assert [one.id async for one in client.chat.completions.list()] == []
        messages: list[Any] = [{"role": "user", "content": f"pay {card}"}]
        made = await ended(rig, client.chat.completions.create(model="m", messages=messages, store=True))
        assert (await client.chat.completions.retrieve(made.id)).id == made.id
        with pytest.raises(openai.NotFoundError) as refused:
            await client.chat.completions.messages.list(made.id)
        assert refused.value.code == "input_not_stored"
        assert card.encode() not in (tmp_path / "store.db").read_bytes()


METADATA = st.dictionaries(st.text(max_size=64), st.text(max_size=20), max_size=4)


@SEVERAL
@given(metadata=METADATA | st.none(), noise=JSON)
def test_any_metadata_is_stored_and_any_other_change_is_refused(rig: Rig, key: str, metadata: Any, noise: Any) -> None:
    async def told() -> None:
        made = await ended(rig, sdk(rig, key).chat.completions.create(model="m", messages=WHY, store=True))
        path = f"/v1/chat/completions/{made.id}"
        changed = await rig.request("POST", path, key, json={"metadata": metadata})
        assert changed.status_code == 200, changed.text
        assert changed.json()["metadata"].keys() == {stored(name) for name in metadata or ()}
        body = json.dumps(noise)
        assert (await rig.request("POST", path, key, content=body)).status_code in (200, 400)
        assert (await rig.request("GET", path, key)).status_code == 200

    asyncio.run(told())


def stored(text: str) -> str:
    """The text as a database has it."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


QUERIES = st.dictionaries(
    st.sampled_from(["limit", "order", "after", "model", "metadata[a]", "metadata[", "metadata[]"])
    | st.text(max_size=6),
    st.sampled_from(["asc", "desc", "1", "chatcmpl-none"]) | st.text(max_size=6),
    max_size=4,
)


@SEVERAL
@given(query=QUERIES)
def test_any_query_of_the_list_is_answered_or_refused(rig: Rig, key: str, query: dict[str, str]) -> None:
    answer = asyncio.run(rig.request("GET", "/v1/chat/completions", key, params=query))
    assert answer.status_code in (200, 400, 404), answer.text


# -- moderations -------------------------------------------------------------------------------------------------------

RULES = """
[[rule]]
name = "threats"
kind = "regex"
verdict = "reject"
patterns = ["kill"]
categories = ["violence", "harassment/threatening"]

[[rule]]
name = "cards"
kind = "pii"
verdict = "redact"
find = ["card"]

[[rule]]
name = "of-others"
kind = "regex"
verdict = "flag"
patterns = ["."]
categories = ["hate"]
tenants = ["other"]
"""


def screening(folder: Path) -> Any:
    """A rig whose door has the rules."""
    (folder / "rules.toml").write_text(RULES)

    @contextmanager
    def made() -> Iterator[Rig]:
        with gateway_rig(folder) as rig:
            yield changed(rig, screen=Screen.load(folder / "rules.toml"))

    return made()


async def test_moderations_are_the_filters_and_an_unmeasured_category_is_null(tmp_path: Path) -> None:
    with screening(tmp_path) as rig:
        client = sdk(rig, rig.key(TENANT))
        judged = await client.moderations.create(input=["harmless", "I will kill you", "4111 1111 1111 1111"])
        assert [one.flagged for one in judged.results] == [False, True, True]
        seen = [one.categories.model_dump(by_alias=True) for one in judged.results]
        measured = {"violence", "harassment/threatening"}
        assert [{name for name, value in each.items() if value is not None} for each in seen] == [measured] * 3
        assert [each["violence"] for each in seen] == [False, True, False]
        assert judged.results[1].category_scores.violence == 1
        assert judged.results[1].category_applied_input_types.violence == ["text"]
        assert seen[0].keys() == set(CATEGORIES)

        whole = await client.moderations.create(input=[*PARTS, {"type": "text", "text": "kill"}])
        assert [one.flagged for one in whole.results] == [True]
        image: Any = [*PARTS, {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.moderations.create(input=image)
        assert (refused.value.code, refused.value.param) == ("unsupported_input", "input.1")


def test_a_classifiers_score_is_shown_and_without_its_answer_nothing_is_measured() -> None:
    rule = ClassifierRule(
        name="harm", kind="classifier", verdict=Verdict.FLAG, folder="m", labels={"toxic": 0.5}, categories=("hate",)
    )
    classifier = MagicMock()
    screen = Screen([], [(rule, classifier)])
    classifier.scores.return_value = [{"toxic": 0.75, "calm": 0.25}, {"toxic": 0.25}]
    first, second = screen.moderate(TENANT, ["a", "b"])
    assert (first.verdict, first.matches, first.scores) == (Verdict.FLAG, {"hate": True}, {"hate": 0.75})
    assert (second.verdict, second.matches, second.scores) == (Verdict.PASS, {"hate": False}, {"hate": 0.25})
    classifier.scores.assert_called_once_with(["a", "b"], rule.seconds)
    classifier.scores.side_effect = ModelAway
    assert screen.moderate(TENANT, ["a"]) == [Moderated(Verdict.PASS, (), {}, {})]


async def test_moderations_without_a_filter_name_the_setting(rig: Rig, key: str) -> None:
    with pytest.raises(openai.ConflictError, match="POSTBACK_SCREENING__RULES"):
        await sdk(rig, key).moderations.create(input="Why?")


TEXTS = st.text(min_size=1, max_size=20)
PART = st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS})
INPUTS = TEXTS | st.lists(TEXTS, min_size=1, max_size=3) | st.lists(PART, min_size=1, max_size=3)


@SEVERAL
@given(told=INPUTS, noise=JSON)
def test_any_input_is_judged_and_noise_is_refused(screened: Rig, told: Any, noise: Any) -> None:
    async def judged() -> None:
        key = screened.key(TENANT)
        answer = await screened.request("POST", "/v1/moderations", key, json={"input": told})
        assert answer.status_code == 200, answer.text
        count = len(told) if isinstance(told, list) and isinstance(told[0], str) else 1
        assert len(answer.json()["results"]) == count
        for body in (noise, {"input": noise}):
            answer = await screened.request("POST", "/v1/moderations", key, content=json.dumps(body))
            assert answer.status_code in (200, 400), answer.text

    asyncio.run(judged())


@pytest.fixture(scope="module")
def screened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with screening(tmp_path_factory.mktemp("screened")) as rig:
        yield rig


# -- what objects show -------------------------------------------------------------------------------------------------

TOOL: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}


@pytest.mark.parametrize("store", [True, False])
async def test_a_response_shows_its_request_as_it_was_asked(rig: Rig, key: str, store: bool) -> None:
    asked: dict[str, Any] = {
        "tools": [TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "top_logprobs": 2,
        "reasoning": {"effort": "low"},
        "truncation": "disabled",
        "instructions": "Be short.",
    }
    client = sdk(rig, key)
    made = await ended(rig, client.responses.create(model="small", input="Why?", store=store, **asked))
    shown = made.model_dump(exclude_none=True)
    assert {name: shown.get(name) for name in (*asked, "store")} == {**asked, "store": store}
    later = await client.responses.retrieve(made.id)
    assert (later.instructions, later.tools == made.tools) == (("Be short.", True) if store else (None, False))
    plain = await ended(rig, client.responses.create(model="small", input="Why?"))
    assert (plain.tool_choice, plain.tools, plain.parallel_tool_calls, plain.truncation) == (
        "auto",
        [],
        True,
        "disabled",
    )


async def test_a_functions_call_and_its_output_are_input_items(rig: Rig, key: str) -> None:
    call: Any = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    output: Any = {"type": "function_call_output", "call_id": "c", "output": "3"}
    client = sdk(rig, key)
    made = await ended(rig, client.responses.create(model="m", input=[*WHY, call, output], tools=[TOOL]))
    items = [item async for item in client.responses.input_items.list(made.id, order="asc")]
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]


# -- repeats -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


@asynccontextmanager
async def hasty(rig: Rig, key: str, authority: Authority | None) -> AsyncIterator[AsyncOpenAI]:
    """The package with little patience, which calls a server with the rig's application, over TLS by an authority."""
    bound = socket.create_server(("127.0.0.1", 0))
    context = None if authority is None else authority.server()
    server = DoorServer(rig.app, bound, context, GatewaySettings(), SystemClock(), rig.door.metrics)
    task = asyncio.create_task(server.ended())
    trusted = ssl.create_default_context(cafile=None if authority is None else str(authority.ca_file))
    trusting = httpx2.AsyncClient(verify=trusted)
    address = f"http{'s' if authority else ''}://127.0.0.1:{bound.getsockname()[1]}/v1"
    try:
        async with AsyncOpenAI(api_key=key, base_url=address, timeout=0.5, http_client=trusting) as client:
            yield client
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def jobs_of(rig: Rig, before: set[str], wanted: int) -> set[str]:
    """The ids of the new jobs, once there are so many."""
    async with asyncio.timeout(20):
        while len(made := known(rig) - before) < wanted:
            await asyncio.sleep(0.01)
    return made


async def left(rig: Rig, count: int) -> None:
    """Wait until so many requests are left."""
    async with asyncio.timeout(20):
        while rig.store.read_now(lambda at: at.scalar(select(func.count()).select_from(left_requests))) != count:
            await asyncio.sleep(0.01)


def cancelled(rig: Rig) -> list[str]:
    return [each["job_id"] for each in records_of(rig, rig.door.fleet.kafka.topics.control)]


@pytest.mark.parametrize("is_secure", [True, False])
async def test_the_repeat_of_a_cut_request_joins_its_job(
    rig: Rig, key: str, authority: Authority, is_secure: bool
) -> None:
    before = known(rig)
    async with hasty(rig, key, authority if is_secure else None) as client:
        asking = asyncio.ensure_future(client.chat.completions.create(model="small", messages=WHY))
        [job] = await jobs_of(rig, before, 1)
        await left(rig, 1)  # the first request's time is over
        await left(rig, 0)  # the repeat has joined
        finish(rig, job)
        assert (await asking).id == f"chatcmpl-{job}"
    assert known(rig) - before == {job}
    assert job not in cancelled(rig)


async def test_equal_requests_that_are_both_wanted_stay_two_jobs(rig: Rig, key: str, authority: Authority) -> None:
    before = known(rig)
    async with hasty(rig, key, authority) as client:
        both = [asyncio.ensure_future(client.responses.create(model="small", input="Why?")) for _ in range(2)]
        made = await jobs_of(rig, before, 2)
        await left(rig, 2)
        await left(rig, 0)
        for job in made:
            finish(rig, job)
        assert {answer.id for answer in await asyncio.gather(*both)} == {f"resp_{job}" for job in made}
    assert known(rig) - before == made


async def test_a_request_that_is_not_repeated_ends_its_job_and_is_joined_by_no_other(
    rig: Rig, key: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.door.retries.RETURN_SECONDS", 1.0)
    before = known(rig)
    async with hasty(rig, key, authority) as patient:
        client = patient.with_options(max_retries=0)
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="small", messages=WHY)
        [job] = await jobs_of(rig, before, 1)
        for headers, credential in (({}, key), ({"x-stainless-retry-count": "1"}, rig.key(TENANT))):
            asking = client.with_options(api_key=credential).chat.completions.create(
                model="small", messages=WHY, extra_headers=headers
            )
            with pytest.raises(openai.APITimeoutError):
                await asking
        made = await jobs_of(rig, before, 3)
        async with asyncio.timeout(20):
            while not made <= set(cancelled(rig)):
                await asyncio.sleep(0.01)
    assert job in made


def test_each_left_request_is_claimed_once_and_the_oldest_first(store: Store) -> None:
    def at(change: Any, *arguments: Any) -> Any:
        return store.write_now(lambda connection: change(connection, *arguments))

    for job, left_ms in (("job_2", 5), ("job_1", 5), ("job_3", 5), ("job_0", 4)):
        at(note_left, "acme", job, b"equal", StoredAnswer(202, job.encode()), left_ms)
    assert at(claim_left, "acme", b"other", 5) is None
    assert at(claim_left, "other", b"equal", 5) is None
    assert [at(forget_left, "acme", "job_3", left_ms) for left_ms in (4, 5, 5)] == [False, True, False]
    claimed = [at(claim_left, "acme", b"equal", 5) for _ in range(3)]
    assert claimed == [StoredAnswer(202, b"job_1"), StoredAnswer(202, b"job_2"), None]
    assert at(forget_left, "acme", "job_0", 4)


async def test_a_request_that_its_repeat_left_too_waits_its_whole_time_for_the_next_repeat(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[Callable[[], None]] = []
    loop = SimpleNamespace(call_later=lambda _, end: timers.append(end))
    monkeypatch.setattr("gateway.door.retries.asyncio", SimpleNamespace(get_running_loop=lambda: loop))
    call, unwanted, clock = MagicMock(), MagicMock(), HandClock(1.7e9)
    call.door.store, call.door.clock, call.tenant = rig.store, clock, "acme"
    call.principal.credential, call.request.headers = "key:1", {RETRY_HEADER: "1"}
    answer = StoredAnswer(200, b"{}")
    leave(call, b"equal", answer, "job_1", unwanted)
    await left(rig, 1)
    clock.sleep(10)
    assert await rejoined(call, b"equal") == answer
    leave(call, b"equal", answer, "job_1", unwanted)
    await left(rig, 1)
    timers[0]()  # the time of the first note
    rig.store.write_now(unchanged)
    await left(rig, 1)
    unwanted.assert_not_called()
    timers[1]()
    rig.store.write_now(unchanged)
    await left(rig, 0)
    unwanted.assert_called_once()


def unchanged(_connection: Connection) -> None:
    """Wait for the changes before this one."""


def test_stored_chats_are_found_by_an_index_and_without_other_jobs(store: Store) -> None:
    common = {"tenant": "acme", "status": "succeeded", "metadata": {}, "result": b"{}"}
    rows = [
        {**common, "job_id": f"{url}-{kept}", "url": url, "created_at": 1, "request": b"{}" if kept else None}
        for url in (CHAT_COMPLETIONS, RESPONSES)
        for kept in (True, False)
    ]
    store.write_now(lambda connection: connection.execute(jobs.insert(), rows) and None)
    wanted = JobFilter(stored_url=CHAT_COMPLETIONS)
    found, more = store.read_now(lambda at: list_stored(at, "acme", wanted, 5, None, ascending=True))
    assert ([(job.job_id, job.request) for job in found], more) == ([(f"{CHAT_COMPLETIONS}-True", b"{}")], False)
    if store.dialect == "sqlite":
        query = "SELECT * FROM jobs WHERE tenant='a' AND url='b' AND request IS NOT NULL ORDER BY created_at, job_id"
        plan = store.read_now(lambda at: at.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}").all())
        assert "ix_jobs_tenant_kept" in plan[0][3]


async def test_a_first_request_joins_no_other(rig: Rig, key: str, authority: Authority) -> None:
    before = known(rig)
    async with hasty(rig, key, authority) as patient:
        client = patient.with_options(max_retries=0)
        for count in (1, 2):
            with pytest.raises(openai.APITimeoutError):
                await client.completions.create(model="small", prompt="Why?")
            await left(rig, count)
    assert len(known(rig) - before) == 2
    rig.store.write_now(lambda at: at.execute(left_requests.delete()) and None)


async def test_a_left_request_that_its_gateway_forgot_is_removed(rig: Rig, key: str) -> None:
    row = {"tenant": "t", "object_id": "job_1", "digest": b"", "status": 200, "response": b"", "created_at": 1}
    rig.store.write_now(lambda at: at.execute(left_requests.insert(), [row]) and None)
    assert Retention(rig.store, 30, rig.clock).remove_old() > 0
    await left(rig, 0)


@SEVERAL
@given(count=st.text(max_size=6).filter(str.isprintable) | st.integers().map(str), body=st.binary(max_size=9))
def test_any_count_of_repeats_is_served(rig: Rig, key: str, count: str, body: bytes) -> None:
    headers = {"x-stainless-retry-count": count.encode("ascii", "replace").decode()}
    answer = asyncio.run(rig.request("POST", "/v1/jobs", key, content=b'{"prompt": "a"}', headers=headers))
    assert answer.status_code == 202
    assert asyncio.run(rig.request("POST", "/v1/responses", key, content=body, headers=headers)).status_code == 400
