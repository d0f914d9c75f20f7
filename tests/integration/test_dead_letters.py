"""`postback dead-letters` on a real broker: dead letters are listed, and put back once."""

from __future__ import annotations

import json

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from kafka import KafkaProducer

from bench.committed import committed_records
from cli.operations.cancel import cancel, take_back
from cli.operations.dead_letters import REDRIVE, DeadLetters, LetterFilter
from cli.operations.endpoints import put_endpoints
from cli.operations.put_back import NotPutBack, PutBack
from cli.operations.topics import create_topics
from producers.scan import Scanner
from schemas.endpoint import EndpointRecord, EndpointState
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock
from tests.messages import headers_of
from tests.postback_command import environment_of, postback_here
from tests.product import eventually

pytestmark = pytest.mark.broker

HOOK = "https://hooks.example/in?token=secret"
CLOCK = SystemClock()
EVERYTHING = LetterFilter()


def put_letters(fleet: KafkaSettings) -> None:
    """Write to partition 0 a callback, a job of the bulk lane, and a job that was too large for a dead letter."""
    producer = Producer(fleet.client_config())
    why = {"reason-detail": "because", "attempts": "10", "source-partition": "1", "source-offset": "7"}
    callback = {
        "tenant": "acme",
        "webhook-id": "msg_1",
        "job-id": "job_1",
        "callback-url": HOOK,
        **why,
        "reason": "callback_exhausted",
        "source-topic": fleet.topics.tier(0.6),
    }
    job = {
        "tenant": "globex",
        "webhook-id": "msg_2",
        "job-id": "job_2",
        "deadline": "1",
        "forwarded": "3",
        **why,
        "reason": "worker_killed",
        "source-topic": fleet.topics.requests(bulk=True),
    }
    large = {"job-id": "job_3", **why, "reason": "rejected", "source-topic": fleet.topics.requests(), "abridged": "1"}
    for value, headers in ((b'{"job_id":"job_1"}', callback), (b'{"prompt":"p"}', job), (None, large)):
        key = headers["job-id"] if value else None
        producer.produce(fleet.topics.dead_letters, value, key, 0, headers=list(headers.items()))
    assert producer.flush(20) == 0


def stands_in(fleet: KafkaSettings, topic: str) -> list[tuple[str, bytes | None, int | None, dict[str, str]]]:
    """Key, value, partition and headers of each record in a topic."""
    with Scanner(fleet) as scanner:
        # Wait, because Kafka confirms a commit before every reader sees its records.
        scanner.wait_until_settled([topic])
    found = committed_records(fleet.client_config(), topic)
    return [
        (
            (record.key() or b"").decode(),
            record.value(),
            record.partition(),
            {name: value.decode() for name, value in headers_of(record).items()},
        )
        for record in found
    ]


def ignore(done: int) -> None:
    return None


def test_letters_are_listed_counted_and_put_back_once_with_their_former_identity(
    fleet: KafkaSettings,
) -> None:
    put_letters(fleet)
    env = environment_of(fleet)

    listed = postback_here("dead-letters", "list", "--json", env=env)
    callback, job, large = json.loads(listed.stdout)
    assert "secret" not in listed.stdout + listed.stderr
    assert callback.pop("at") <= job.pop("at") <= large.pop("at")
    assert callback == {
        "id": "0:0",
        "kind": "callback",
        "reason": "callback_exhausted",
        "detail": "because",
        "tenant": "acme",
        "job_id": "job_1",
        "webhook_id": "msg_1",
        "attempts": 10,
        "origin": "https://hooks.example",
        "bytes": 18,
        "source": {"topic": fleet.topics.tier(0.6), "partition": 1, "offset": 7},
        "redriven_at": None,
        "obstacle": None,
    }
    assert (job["id"], job["kind"], job["obstacle"]) == ("0:1", "job", None)
    assert (large["id"], large["kind"], large["obstacle"]) == ("0:2", "job", "too_large")

    dry = postback_here("dead-letters", "redrive", "--dry-run", env=env)
    assert dry.returncode == 0
    assert dry.stderr.splitlines() == [
        "postback: 2 dead letters can be put back",
        "postback:   1 callback: callback_exhausted",
        "postback:   1 job: worker_killed",
        "postback: 1 cannot be put back: too large to be kept whole, or to be taken again",
    ]
    assert stands_in(fleet, fleet.topics.redriven) == []

    done = postback_here("dead-letters", "redrive", "--json", env=env)
    assert done.returncode == 0
    assert json.loads(done.stdout)["redriven"] == 2
    again = postback_here("dead-letters", "redrive", "0:0", "--id", "job_2", env=env)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1] == "postback: no dead letter is left to put back for: 0:0, job_2"

    [(key, value, _, headers)] = stands_in(fleet, fleet.topics.tier(0.3))
    assert (key, value) == ("job_1", b'{"job_id":"job_1"}')
    put_back_at = headers.pop("not-before")
    assert int(put_back_at) <= CLOCK.time() * 1000
    assert (headers.pop("left"), headers.pop("written"), headers.pop("result-at")) == ("0", put_back_at, put_back_at)
    assert headers == {"tenant": "acme", "webhook-id": "msg_1", "job-id": "job_1", "callback-url": HOOK}
    assert stands_in(fleet, fleet.topics.requests(bulk=True)) == [
        ("job_2", b'{"prompt":"p"}', 1, {"tenant": "globex", "webhook-id": "msg_2", "job-id": "job_2"})
    ]
    assert [key for key, *_ in stands_in(fleet, fleet.topics.redriven)] == ["0:0", "0:1"]

    left = postback_here("dead-letters", "list", env=env)
    assert [line.split("  ")[0] for line in left.stdout.splitlines()] == ["0:2"]
    assert left.stderr == "postback: 1 dead letters\n"
    found = postback_here("dead-letters", "show", "msg_1", "--json", env=env)
    assert found.stdout == postback_here("dead-letters", "show", "msg_1", env=env).stdout
    shown = json.loads(found.stdout)
    assert [(one["id"], one["value"], one["redriven_at"] is None) for one in shown] == [
        ("0:0", {"job_id": "job_1"}, False)
    ]
    assert ["callback-url", HOOK] in shown[0]["headers"]


def test_a_filter_takes_letters_that_match_all_of_its_fields(fleet: KafkaSettings) -> None:
    put_letters(fleet)
    table = [
        (EVERYTHING, ["0:0", "0:1", "0:2"]),
        (LetterFilter(reasons=frozenset({"worker_killed", "rejected"})), ["0:1", "0:2"]),
        (LetterFilter(tenant="acme"), ["0:0"]),
        (LetterFilter(tenant="default"), ["0:2"]),
        (LetterFilter(ids=frozenset({"0:1", "job_3", "msg_1", "nobody"})), ["0:0", "0:1", "0:2"]),
        (LetterFilter(until_ms=1_700_000_000_000), []),
        (LetterFilter(endpoint=HOOK), ["0:0"]),
        (LetterFilter(endpoint="https://hooks.example"), ["0:0"]),
        (LetterFilter(endpoint="https://hooks.example/in"), []),
        (LetterFilter(since_ms=1_700_000_000_000, reasons=frozenset({"rejected"})), ["0:2"]),
    ]
    with Scanner(fleet) as scanner:
        letters = DeadLetters(fleet, scanner, CLOCK)
        found = [[str(letter.place) for letter in letters.letters(wanted)] for wanted, _ in table]
    assert found == [ids for _, ids in table]


@pytest.mark.parametrize("command", ["list", "redrive"])
def test_an_endpoint_without_a_scheme_is_refused_before_anything_is_asked(command: str) -> None:
    done = postback_here("dead-letters", command, "--endpoint", "hooks.example", env=environment_of(None))
    assert done.returncode == 2
    assert done.stderr.startswith(
        "postback: --endpoint: a whole URL, as https://hooks.example/in, or its origin, https"
    )


def test_a_letter_that_outlived_its_time_is_left_where_it_is(fleet: KafkaSettings) -> None:
    """The mark of an earlier redrive may already be deleted, so an old letter is not put back."""
    put_letters(fleet)
    for days, count in ((30.01, 0), (29.99, 2)):
        with PutBack(fleet, REDRIVE) as back, Scanner(fleet) as scanner:
            letters = DeadLetters(fleet, scanner, HandClock(CLOCK.time() + days * 24 * 3600))
            assert letters.tally(EVERYTHING).held["expired"] == (3 if count == 0 else 0)
            assert letters.redrive(EVERYTHING, back, 1000, ignore).count == count


def test_a_callback_whose_endpoint_is_disabled_is_kept_until_it_is_enabled(fleet: KafkaSettings) -> None:
    put_letters(fleet)
    callbacks = LetterFilter(tenant="acme")
    for state, count in ((EndpointState.DISABLED, 0), (EndpointState.ENABLED, 1)):
        put_endpoints(fleet, [EndpointRecord(tenant="acme", url=HOOK, state=state, at=1)])
        with PutBack(fleet, REDRIVE) as back, Scanner(fleet) as scanner:
            letters = DeadLetters(fleet, scanner, CLOCK)
            assert letters.tally(callbacks).held["endpoint_disabled"] == 1 - count
            assert letters.redrive(callbacks, back, 1000, ignore).count == count


def test_an_id_that_two_tenants_have_is_put_back_only_for_the_one_that_is_named(fleet: KafkaSettings) -> None:
    producer, env = Producer(fleet.client_config()), environment_of(fleet)
    for tenant in ("acme", "globex"):
        headers = {
            "tenant": tenant,
            "webhook-id": "msg_1",
            "job-id": "job_1",
            "callback-url": HOOK,
            "reason": "timeout",
        }
        source = {"source-topic": fleet.topics.results, "source-partition": "0", "source-offset": "0"}
        producer.produce(fleet.topics.dead_letters, b"{}", tenant, 0, headers=list((headers | source).items()))
    assert producer.flush(20) == 0

    def redrive(*asked: str) -> tuple[int, str]:
        done = postback_here("dead-letters", "redrive", *asked, env=env)
        return done.returncode, done.stderr.splitlines()[-1]

    refused = "postback: {} is an id of several tenants; name the tenant with --tenant: acme, globex"
    assert redrive("job_1", "--dry-run") == redrive("job_1") == (2, refused.format("job_1"))
    assert redrive("--id", "msg_1") == (2, refused.format("msg_1"))
    assert redrive("job_1", "--tenant", "acme") == (0, "postback: 1 of 1 put back")
    assert redrive("job_1") == (2, refused.format("job_1"))  # the id is still ambiguous
    assert redrive("0:1") == (0, "postback: 1 of 1 put back")
    assert sorted(key for key, *_ in stands_in(fleet, fleet.topics.tier(0.3))) == ["acme", "globex"]


def test_an_id_of_the_form_of_a_place_names_the_letter_there_and_no_job(fleet: KafkaSettings) -> None:
    producer, env = Producer(fleet.client_config()), environment_of(fleet)
    for tenant, job_id in (("acme", "job_1"), ("acme", "0:0"), ("globex", "0:0")):
        source = {"source-topic": fleet.topics.requests(), "source-partition": "0", "source-offset": "0"}
        headers = {"tenant": tenant, "job-id": job_id, "reason": "worker_killed"} | source
        producer.produce(fleet.topics.dead_letters, b"{}", job_id, 0, headers=list(headers.items()))
    assert producer.flush(20) == 0

    shown = json.loads(postback_here("dead-letters", "show", "0:0", env=env).stdout)
    assert [letter["job_id"] for letter in shown] == ["job_1"]
    for place, job_id in (("0:0", "job_1"), ("0:2", "0:0")):
        done = postback_here("dead-letters", "redrive", place, env=env)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "postback: 1 of 1 put back")
        assert stands_in(fleet, fleet.topics.requests())[-1][0] == job_id
    again = postback_here("dead-letters", "redrive", "0:0", env=env)
    assert again.stderr.splitlines()[-1] == "postback: no dead letter is left to put back for: 0:0"


def test_a_named_letter_that_cannot_be_put_back_is_a_failure_that_says_why(fleet: KafkaSettings) -> None:
    put_letters(fleet)
    put_endpoints(fleet, [EndpointRecord(tenant="acme", url=HOOK, state=EndpointState.DISABLED, at=1)])
    env = environment_of(fleet)
    for more in ("--dry-run", "--yes"):
        done = postback_here("dead-letters", "redrive", "0:0", "job_2", "job_3", more, env=env)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "postback: not put back: 0:0 (endpoint_disabled), job_3 (too_large)"
    assert len(stands_in(fleet, fleet.topics.requests(bulk=True))) == 1
    # Letters that cannot be put back are an error only if an id names them.
    assert postback_here("dead-letters", "redrive", env=env).returncode == 0


def test_a_cancelled_job_is_kept_until_its_cancellation_is_taken_back(fleet: KafkaSettings) -> None:
    put_letters(fleet)
    # This cancellation has no effect: job_1's letter is a callback, and job_2 belongs to globex.
    cancel(fleet, "acme", ["job_1", "job_2"])
    cancel(fleet, "globex", ["job_2"])
    env, bulk = environment_of(fleet), fleet.topics.requests(bulk=True)
    held = postback_here("dead-letters", "redrive", "job_2", "--yes", env=env)
    assert held.returncode == 1
    assert "postback: 1 cannot be put back: their jobs are cancelled, and `postback cancel --undo ID`" in held.stderr
    assert postback_here("dead-letters", "redrive", "job_1", "--yes", env=env).returncode == 0
    assert stands_in(fleet, bulk) == []
    take_back(fleet, "globex", ["job_2"])
    assert postback_here("dead-letters", "redrive", "job_2", "--yes", env=env).returncode == 0
    assert len(stands_in(fleet, bulk)) == 1


def test_a_job_whose_lane_is_gone_holds_back_no_other_and_waits_until_the_lane_is_there(fleet: KafkaSettings) -> None:
    retired = fleet.topics.requests("retired")
    producer = Producer(fleet.client_config())
    for number, lane in enumerate((fleet.topics.requests(), retired, fleet.topics.requests())):
        headers = {"job-id": f"job_{number}", "reason": "engine_error", "source-topic": lane, "source-partition": "1"}
        producer.produce(
            fleet.topics.dead_letters,
            b"{}",
            f"job_{number}",
            0,
            headers=list((headers | {"source-offset": "7"}).items()),
        )
    assert producer.flush(20) == 0
    env = environment_of(fleet)

    counted = postback_here("dead-letters", "redrive", "--dry-run", "--json", env=env)
    done = postback_here("dead-letters", "redrive", "--json", env=env)
    for told, count in ((counted, 0), (done, 2)):
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["redriven"] == count
        assert json.loads(told.stdout)["held"] == {"lane_gone": 1}
    assert (
        "1 cannot be put back: their lane is gone, and `postback topics create --engine LANE` comes first"
        in done.stderr
    )

    assert postback_here("topics", "create", "--engine", "retired", env=env).returncode == 0
    try:
        assert json.loads(postback_here("dead-letters", "redrive", "--json", env=env).stdout)["redriven"] == 1
        assert [key for key, *_ in stands_in(fleet, retired)] == ["job_1"]
    finally:
        admin = AdminClient(fleet.client_config())
        for deleted in admin.delete_topics([retired, f"{retired}.batch"]).values():
            deleted.result(20)


def test_a_redriven_job_may_become_a_new_event_and_a_redriven_callback_stays_the_same_event(
    fleet: KafkaSettings,
) -> None:
    put_letters(fleet)
    done = postback_here("dead-letters", "redrive", "--as-new-events", "--yes", env=environment_of(fleet))
    assert done.returncode == 0
    [(*_, job)] = stands_in(fleet, fleet.topics.requests(bulk=True))
    assert job == {"tenant": "globex", "job-id": "job_2"}
    [(*_, callback)] = stands_in(fleet, fleet.topics.tier(0.3))
    assert callback["webhook-id"] == "msg_1"


def test_one_of_two_simultaneous_redrives_puts_back_and_the_other_ends_with_a_message(fleet: KafkaSettings) -> None:
    put_letters(fleet)
    with PutBack(fleet, REDRIVE) as first, Scanner(fleet) as scanner:

        def overtaken(done: int) -> None:
            with PutBack(fleet, REDRIVE) as second, Scanner(fleet) as other:
                assert DeadLetters(fleet, other, CLOCK).redrive(EVERYTHING, second, 1000, ignore).count == 1

        with pytest.raises(NotPutBack, match="another run may have taken over"):
            DeadLetters(fleet, scanner, CLOCK).redrive(EVERYTHING, first, 1, overtaken)
    assert len(stands_in(fleet, fleet.topics.tier(0.3))) == 1
    assert len(stands_in(fleet, fleet.topics.redriven)) == 2


def test_a_redrive_goes_on_after_one_that_died_in_the_middle_of_a_transaction(fleet: KafkaSettings) -> None:
    put_letters(fleet)
    died = KafkaProducer(
        bootstrap_servers=fleet.bootstrap_servers, transactional_id=f"{fleet.topic_prefix}{REDRIVE}", acks="all"
    )
    died.init_transactions()
    died.begin_transaction()
    for topic in (fleet.topics.tier(0.3), fleet.topics.redriven):
        died.send(topic, b"half", b"0:0")
    died.flush()
    with PutBack(fleet, REDRIVE) as back, Scanner(fleet) as scanner:
        assert DeadLetters(fleet, scanner, CLOCK).redrive(EVERYTHING, back, 1000, ignore).count == 2
    died.close(timeout=0)
    assert [value for _, value, *_ in stands_in(fleet, fleet.topics.tier(0.3))] == [b'{"job_id":"job_1"}']


def test_letters_of_a_recreated_topic_do_not_count_as_put_back(fleet: KafkaSettings) -> None:
    """The new letters have the offsets of old letters, and the marks of the old letters are kept."""
    topic, admin = fleet.topics.dead_letters, AdminClient(fleet.client_config())
    put_letters(fleet)
    with Scanner(fleet) as scanner, PutBack(fleet, REDRIVE) as back:
        redriven = DeadLetters(fleet, scanner, CLOCK).redrive(EVERYTHING, back, 1000.0, lambda done: None)
        assert redriven.count == 2
        assert DeadLetters(fleet, scanner, CLOCK).tally(EVERYTHING).count == 0
    admin.delete_topics([topic])[topic].result(20)
    eventually(lambda: topic not in admin.list_topics(timeout=20).topics, 60, "the topic is still there")
    assert create_topics(fleet).created == [topic]
    put_letters(fleet)
    with Scanner(fleet) as scanner:
        assert DeadLetters(fleet, scanner, CLOCK).tally(EVERYTHING).count == 2
