"""`postback endpoints` beside a real `postback deliver`: its list, and its orders, which take effect at once."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from confluent_kafka import Producer

from cli.devkit.receiver import Behaviour
from cli.operations.endpoints import known_endpoints
from schemas.codec import write_result
from schemas.endpoint import EndpointRecord, EndpointState, key_bytes, write_endpoint
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from tests.postback_command import environment_of, postback_here
from tests.product import Product, eventually

pytestmark = pytest.mark.broker

HOOK = "https://hooks.example/in/path-token?key=query-token"


def listed(fleet: KafkaSettings, *arguments: str) -> list[dict[str, Any]]:
    done = postback_here("endpoints", "list", "--json", *arguments, env=environment_of(fleet))
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def put_result(fleet: KafkaSettings, job_id: str, url: str) -> None:
    producer = Producer(fleet.client_config())
    value = write_result(Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000))
    headers = {"webhook-id": f"msg_{job_id}", "job-id": job_id, "callback-url": url}
    producer.produce(fleet.topics.results, value, job_id, headers=list(headers.items()))
    assert producer.flush(20) == 0


def test_a_gone_endpoint_stays_disabled_over_a_kill_until_an_operator_enables_it(product: Product) -> None:
    fleet, callbacks = product.kafka, product.callbacks

    def reasons() -> list[str]:
        return sorted(letter["reason"] for letter in product.dead_letters())

    callbacks.up(Behaviour(status=410))
    killed = product.deliver("d1")
    put_result(fleet, "first", callbacks.url)
    eventually(lambda: reasons() == ["endpoint_gone"], 60, lambda: f"there is {reasons()}")
    killed.kill()
    callbacks.down()
    callbacks.up()

    restarted = product.deliver("d1")
    put_result(fleet, "kept", callbacks.url)
    eventually(lambda: reasons() == ["endpoint_disabled", "endpoint_gone"], 60, lambda: f"there is {reasons()}")
    [known] = listed(fleet)
    assert (known["tenant"], known["url"], known["state"], known["reason"], known["webhook_id"]) == (
        *("default", callbacks.url, "disabled", "gone", "msg_first"),
    )
    metrics = restarted.metrics()
    assert metrics["postback_disabled_endpoints"] == 1
    enabled = postback_here("endpoints", "enable", callbacks.url, env=environment_of(fleet))
    assert enabled.returncode == 0, enabled.stderr
    eventually(lambda: restarted.metrics()["postback_disabled_endpoints"] == 0, 30, "it is not enabled")
    put_result(fleet, "second", callbacks.url)
    product.wait_for_callbacks(2, 30)

    # The last line's command puts back the letters of this endpoint only, so the tenant's other letters stay.
    command = shlex.split(enabled.stderr.splitlines()[-1].partition("put back by: postback ")[2])
    *before, last = command
    assert last == callbacks.url
    elsewhere = postback_here(*before, f"{callbacks.url}2", "--dry-run", env=environment_of(fleet))
    assert elsewhere.stderr == "postback: 0 dead letters can be put back\n"
    again = postback_here(*command, env=environment_of(fleet))
    assert again.returncode == 0, again.stderr
    eventually(lambda: len(callbacks.received) == 4, 30, lambda: f"{len(callbacks.received)} of 4 came")
    disabled = postback_here("endpoints", "disable", callbacks.url, "--json", env=environment_of(fleet))
    assert json.loads(disabled.stdout)["reason"] == "operator"
    eventually(lambda: restarted.metrics()["postback_disabled_endpoints"] == 1, 30, "it is not disabled")
    put_result(fleet, "third", callbacks.url)
    eventually(lambda: len(reasons()) == 3, 30, lambda: f"there is {reasons()}")

    # `first` came twice, since its first attempt got a 410. Both kept events have their own ids. No other event came.
    sent = sorted(one.webhook_id or "" for one in callbacks.received)
    assert sent == ["msg_first", "msg_first", "msg_kept", "msg_second"]
    said = killed.said()
    assert "inference.endpoint.disabled" in said
    assert "token" not in said + restarted.said()


def test_the_list_shows_the_last_word_on_each_endpoint_and_filters_by_tenant(fleet: KafkaSettings) -> None:
    producer = Producer(fleet.client_config())

    def put(tenant: str, url: str, state: EndpointState | None) -> None:
        record = EndpointRecord(tenant=tenant, url=url, state=state or EndpointState.ENABLED, at=1_700_000_000_000)
        value = write_endpoint(record) if state is not None else None
        producer.produce(fleet.topics.endpoints, value, key_bytes((tenant, url)), 0)

    put("globex", HOOK, EndpointState.DISABLED)
    put("acme", HOOK, EndpointState.DISABLED)
    put("acme", HOOK, EndpointState.ENABLED)
    put("acme", HOOK, EndpointState.FAILING)
    put("acme", f"{HOOK}3", EndpointState.DISABLED)
    put("acme", f"{HOOK}3", EndpointState.FAILING)  # written by a process that had not read DISABLED yet
    put("acme", f"{HOOK}2", EndpointState.FAILING)
    put("acme", f"{HOOK}2", None)
    put("acme", "https://hooks.example/\x1b[2J", EndpointState.DISABLED)
    producer.produce(fleet.topics.endpoints, b"{not json", b"nobody's", 0)
    assert producer.flush(20) == 0

    assert {key: record.state for key, record in known_endpoints(fleet).items()} == {
        ("acme", "https://hooks.example/\x1b[2J"): "disabled",
        ("acme", HOOK): "failing",
        ("acme", f"{HOOK}3"): "disabled",
        ("globex", HOOK): "disabled",
    }
    assert [(one["tenant"], one["url"]) for one in listed(fleet, "--tenant", "globex")] == [("globex", HOOK)]
    lines = postback_here("endpoints", "list", env=environment_of(fleet))
    assert f"failing  -  2023-11-14T22:13:20.000Z  acme  {HOOK}\n" in lines.stdout
    assert "\x1b" not in lines.stdout  # a terminal must not obey a URL's escape codes


def test_several_endpoints_are_enabled_at_once_or_none_if_one_of_them_is_not_disabled(
    fleet: KafkaSettings,
) -> None:
    urls, env = [HOOK, f"{HOOK}2"], environment_of(fleet)

    def states() -> list[str]:
        return [one["state"] for one in listed(fleet)]

    assert postback_here("endpoints", "disable", *urls, env=env).stdout.count("disabled  operator") == 2
    assert postback_here("endpoints", "enable", *urls, f"{HOOK}3", env=env).returncode == 1
    assert states() == ["disabled", "disabled"]
    assert postback_here("endpoints", "enable", *urls, env=env).returncode == 0
    assert states() == ["enabled", "enabled"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("enable", HOOK), 1, f"not disabled, as `postback endpoints list` shows: {HOOK}"),
        (("disable", "hooks.example"), 2, "URL: is not an http or https URL without credentials"),
        (("disable", "https://user:pass@hooks.example/"), 2, "URL: is not an http or https URL without credentials"),
        (("disable", HOOK, "--tenant", "a b"), 2, "--tenant"),
    ],
)
def test_an_impossible_order_is_refused_and_nothing_is_written(
    fleet: KafkaSettings, arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = postback_here("endpoints", *arguments, env=environment_of(fleet))
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert "pass" not in done.stderr
    assert known_endpoints(fleet) == {}
