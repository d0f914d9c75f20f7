"""The numbers and tables of docs/WEBHOOKS.md, compared with the code."""

from __future__ import annotations

import random
import re
from ipaddress import ip_network
from typing import get_args

import pytest
from standardwebhooks import Webhook

from cli.devkit.receiver import Behaviour, Keys, Receiver
from schemas.event import EventType, event_body
from schemas.outcome import Outcome
from schemas.result import MAX_RESULT_BYTES, Result
from schemas.signature import Signer, generate_secret
from schemas.topics import LETTERS_KEPT_MS, TIER_DELAYS_SECONDS
from telemetry.clock import SystemClock
from tests.contract.consumers import DOCUMENT
from workers.delivery.keyring import MAX_AGE_SECONDS, OVERLAP_SECONDS
from workers.delivery.post import Delivered, Poster
from workers.delivery.retries import GiveUp, Retry, RetryDecision, Schedule, decide
from workers.delivery.settings import DeliverySettings
from workers.egress import DEFAULT_PORTS, EgressPolicy, EgressRefused, check_url
from workers.egress.answers import MAX_RETRY_AFTER_SECONDS

CLOCK = SystemClock()
MEANINGS = {"Delivered": Delivered, "Given up": GiveUp, "Tried again": Retry}
TO = "\N{EN DASH}"
ROWS = re.findall(r"^\| ([0-9, \u2013]+) \| \*\*([A-Za-z ]+)[.*]", DOCUMENT, re.MULTILINE)
"""The table's first two columns: the statuses of each row, and the bold words that give their meaning."""
UNIT_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


def statuses_of(cell: str) -> list[int]:
    """Return the first and the last status of each range in a cell, and each single status once."""
    return [int(end) for span in cell.split(", ") for end in span.split(TO)]


def meaning_of(status: int) -> str:
    """The meaning that the table gives to a status."""
    for cell, meaning in ROWS:
        for span in cell.split(", "):
            first, _, last = span.partition(TO)
            if int(first) <= status <= int(last or first):
                return str(meaning)
    pytest.fail(f"the table does not say what {status} does")


def test_the_table_has_one_row_for_every_status() -> None:
    assert len(ROWS) == 6
    spans = sorted(
        (int(first), int(last or first))
        for cell, _ in ROWS
        for first, _, last in [span.partition(TO) for span in cell.split(", ")]
    )
    assert spans[0][0] == 200
    assert spans[-1][1] == 599
    assert [first for first, _ in spans[1:]] == [last + 1 for _, last in spans[:-1]]


async def test_each_status_has_the_effect_that_the_table_states() -> None:
    statuses = sorted({status for cell, _ in ROWS for status in statuses_of(cell)} | {204, 301, 307, 404, 413, 503})
    policy = EgressPolicy(allow=(ip_network("127.0.0.0/8"),), development=True)
    poster = Poster(DeliverySettings(), policy, CLOCK)
    try:
        for status in statuses:
            decision = await decision_about(poster, status)
            wanted = MEANINGS[meaning_of(status)]
            assert isinstance(decision, wanted), status
    finally:
        await poster.close()


async def decision_about(poster: Poster, status: int) -> Delivered | RetryDecision:
    secret, body = generate_secret(), b"{}"
    headers = Signer([secret]).headers("msg_1", int(CLOCK.time()), body)
    keys = Keys([secret], [])
    async with Receiver(lambda: keys, lambda received: None, behaviour=Behaviour(status)) as receiver:
        outcome = await poster.post(receiver.url, body, headers, "default")
    return outcome if isinstance(outcome, Delivered) else decide(1, outcome, 0, random.Random(1), Schedule())


def test_the_waits_between_attempts_are_those_of_the_page() -> None:
    [sentence] = re.findall(r"^After (5 seconds, .*? and 24 hours), each up to a tenth longer", DOCUMENT, re.MULTILINE)
    waits = [int(number) * UNIT_SECONDS[unit] for number, unit in re.findall(r"(\d+) (second|minute|hour)s?", sentence)]
    assert tuple(waits) == TIER_DELAYS_SECONDS
    assert "ten attempts over three days" in DOCUMENT
    assert len(TIER_DELAYS_SECONDS) + 1 == 10
    assert 3 * 86_400 < sum(TIER_DELAYS_SECONDS) * (1 + Schedule().jitter) < 4 * 86_400
    assert Schedule().jitter == 0.1


def test_the_numbers_of_the_page_are_those_of_the_settings() -> None:
    assert "within 20 seconds in all" in DOCUMENT
    assert DeliverySettings().deadline_seconds == 20
    assert "is honoured up to 24 hours" in DOCUMENT
    assert MAX_RETRY_AFTER_SECONDS == 24 * 3600
    assert "for 24 hours each callback is signed" in DOCUMENT
    assert OVERLAP_SECONDS == 24 * 3600
    assert "may be kept for five minutes" in DOCUMENT
    assert MAX_AGE_SECONDS == 300
    assert "every attempt failed for five days" in DOCUMENT
    assert DeliverySettings().disable_after_seconds == 5 * 86_400


def test_ids_that_are_kept_for_as_long_as_the_page_says_outlast_a_dead_letter_and_the_attempts_before_it() -> None:
    [days] = map(
        int,
        re.findall(
            r"Keep each id for (\d+) days after its event last came: until then the event may come again\.", DOCUMENT
        ),
    )
    assert (
        "If that redrive fails too, a new dead letter is kept for another 30 days, and your 45 days start again"
        in DOCUMENT
    )
    assert "is kept as a dead letter, for 30 days." in DOCUMENT
    assert "A dead letter may be sent again for 30 days" in DOCUMENT
    assert LETTERS_KEPT_MS == 30 * 86_400_000
    attempts = sum(TIER_DELAYS_SECONDS) * (1 + Schedule().jitter) + DeliverySettings().disable_after_seconds
    assert attempts + LETTERS_KEPT_MS / 1000 < days * 86_400


def test_a_consumer_that_was_away_is_told_which_time_to_ask_for() -> None:
    [advice] = re.findall(r"As TIME, (.*?)\nEvents that still wait", DOCUMENT, re.DOTALL)
    assert advice.startswith(
        "name a time some days before your outage.\n"
        "`postback replay` compares TIME with the time at which a result was settled"
    )


def test_no_event_is_larger_than_the_page_says_and_the_largest_verifies() -> None:
    assert "at most 1 MiB" in DOCUMENT
    longest = Result(job_id="j" * 256, outcome=Outcome.SUCCEEDED, text="x", created_at=1)
    envelope = len(event_body(longest, "m" * 256, "t" * 63)) - len(longest.model_dump_json(exclude_none=True))
    assert MAX_RESULT_BYTES + max(envelope, 2_048) < 1024 * 1024

    secret = generate_secret()
    body = event_body(longest.model_copy(update={"text": "Ω" * (MAX_RESULT_BYTES // 2 - 1_000)}), "msg_1", "acme")
    headers = Signer([secret]).headers("msg_1", int(CLOCK.time()), body)
    assert Webhook(secret).verify(body, headers)["data"]["text"].startswith("Ω")


@pytest.mark.parametrize(
    ("url", "can_be"),
    [
        ("https://consumer.example/hook", True),
        *[(f"https://consumer.example:{port}/hook", True) for port in sorted(DEFAULT_PORTS)],
        ("http://consumer.example/hook", False),
        ("https://consumer.example:9443/hook", False),
        ("https://user:password@consumer.example/hook", False),
        ("https://10.1.2.3/hook", False),
        ("https://localhost/hook", False),
    ],
)
def test_a_callback_may_go_to_the_addresses_that_the_page_allows(url: str, can_be: bool) -> None:
    assert "https, at port 443, 8443, 80 or 8080, at a public address, and without a user name or password" in DOCUMENT
    if can_be:
        assert str(check_url(url, EgressPolicy())) in (url, url.replace(":443", ""))
    else:
        with pytest.raises(EgressRefused):
            check_url(url, EgressPolicy())


def test_the_page_names_every_type_of_event() -> None:
    [row] = [line for line in DOCUMENT.splitlines() if line.startswith("| `type` |")]
    assert tuple(re.findall(r"inference\.\w+", row)) == get_args(EventType)
