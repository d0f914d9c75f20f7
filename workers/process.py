"""A process that runs stages: signals, supervision, and the order in which things stop."""

from __future__ import annotations

import asyncio
import gc
import secrets
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from schemas.settings import FleetSettings, KafkaSettings
from telemetry.health import Readiness
from telemetry.logs import get_logger
from workers.stage.stage import Stage

TOPIC_SECONDS = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = get_logger()


class ProcessError(Exception):
    """The process cannot do its work; the text says why and what to do."""


class TopicMissing(ProcessError):  # noqa: N818 - it names what is missing
    """A topic that the process reads does not exist."""


class BrokerAway(ProcessError):  # noqa: N818 - it names what is wrong
    """No broker answered when the process started."""


class AccessRefused(ProcessError):  # noqa: N818 - it names what happened
    """A broker answered, and refused who we are or what we asked."""


def replica_of(settings: FleetSettings) -> str:
    """The process's identity: stable where POSTBACK_REPLICA says so, else random."""
    return settings.replica or f"r{secrets.token_hex(4)}"


async def topic_ids(kafka: KafkaSettings, topics: Sequence[str]) -> dict[str, str]:
    """The UUID of each topic; a topic that is made anew under an old name has another. Raises ProcessError."""
    client = AdminClient(kafka.client_config())
    asked = client.describe_topics(TopicCollection(list(topics)), request_timeout=TOPIC_SECONDS)
    found = {}
    for name, future in asked.items():
        try:
            described = await asyncio.wrap_future(future)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise TopicMissing(f"the topic {name} does not exist; `postback topics create` makes it") from None
            raise unanswered(kafka, error.args[0], f" to the topic {name}") from None
        found[name] = str(described.topic_id)
    return found


async def topic_names(kafka: KafkaSettings) -> list[str]:
    """The topics that there are, as far as we may know of them. Raises BrokerAway."""
    client = AdminClient(kafka.client_config())
    try:
        return list((await asyncio.to_thread(client.list_topics, timeout=TOPIC_SECONDS)).topics)
    except KafkaException as error:
        raise unanswered(kafka, error.args[0]) from None


def unanswered(kafka: KafkaSettings, error: KafkaError, to_what: str = "") -> BrokerAway | AccessRefused:
    """Why Kafka did not tell what a process that starts has asked: it is not there, or it may not tell."""
    if error.name().endswith("_AUTHORIZATION_FAILED"):
        return AccessRefused(
            f"Kafka refuses access{to_what} ({error.name()}): check POSTBACK_KAFKA__EXTRA__SASL_… and the broker's ACLs"
        )
    return BrokerAway(
        f"Kafka at {kafka.bootstrap_servers} does not answer ({error.name()}); "
        "set POSTBACK_KAFKA__BOOTSTRAP_SERVERS, or start one with `postback broker start`"
    )


def readiness_of(stages: Sequence[Stage]) -> Readiness:
    """Ready when every stage is."""
    return Readiness(tuple(reason for stage in stages for reason in stage.watch.reasons()))


def alive(stages: Sequence[Stage]) -> bool:
    """Alive while every stage's Kafka thread comes round."""
    return all(stage.watch.alive for stage in stages)


def collect_garbage_seldom() -> None:
    """Let the collector look at new objects every 50,000 allocations rather than every 700.

    A job leaves dozens of them, and reference counting frees them all: looking took a tenth of the stage's CPU.
    """
    gc.set_threshold(50_000, 20, 20)


async def run_stages(stages: Sequence[Stage]) -> None:
    """Run until SIGTERM or SIGINT has drained every stage.

    When one dies, the others are drained and its error is raised.
    """

    def stop() -> None:
        log.info("Stopping: draining what is dispatched.", action="stopping")
        for stage in stages:
            stage.stop()

    collect_garbage_seldom()
    tasks = [asyncio.create_task(stage.run(), name=f"stage-{index}") for index, stage in enumerate(stages)]
    with _at_a_signal(stop):
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for stage in stages:
            stage.stop()
        await asyncio.wait(tasks)  # for all of them: what one raised does not cut the others' drain short
    for task in tasks:
        task.result()


async def unless_stopped(preparing: Coroutine[None, None, None]) -> bool:
    """Do what comes before serving. False where SIGTERM or SIGINT came first, which cancels it. Raises what it raises.

    Loading an engine takes minutes, and a worker that is stopped meanwhile has nothing to drain and everything to end.
    """
    task = asyncio.ensure_future(preparing)

    def stop() -> None:
        log.info("Stopping before there is anything to drain.", action="stopping")
        task.cancel()

    with _at_a_signal(stop):
        await asyncio.wait({task})
    if task.cancelled():
        return False
    task.result()
    return True


@contextmanager
def _at_a_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` when SIGTERM or SIGINT comes meanwhile."""
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
