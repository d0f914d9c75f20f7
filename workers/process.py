"""A process that runs stages: signals, supervision, and the order in which things stop."""

from __future__ import annotations

import asyncio
import gc
import resource
import secrets
import signal
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from schemas.settings import FleetSettings, KafkaSettings
from telemetry.clock import Clock
from telemetry.health import Heartbeat, Readiness
from telemetry.logs import get_logger
from workers.kafka import asking_config
from workers.stage.stage import Stage

TOPIC_SECONDS = 10.0
STUCK_SECONDS = 60.0
"""How long the event loop may not come round before an orchestrator is to restart the process."""
BEAT_SECONDS = 1.0
_MOST_OPEN_FILES = 1 << 20
_TOPIC_ASKED = 10
_TOPIC_ASK_AGAIN_SECONDS = 0.2
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = get_logger()

T = TypeVar("T")


class ProcessError(Exception):
    """The process cannot do its work; the text says why and what to do."""


class TopicMissing(ProcessError):  # noqa: N818 - it names what is missing
    """A topic that the process reads does not exist."""


class BrokerAway(ProcessError):  # noqa: N818 - it names what is wrong
    """No broker answered when the process started."""


class AccessRefused(ProcessError):  # noqa: N818 - it names what happened
    """A broker answered, and refused who we are or what we asked."""


class PropertyRefused(ProcessError):  # noqa: N818 - it names what happened
    """A property of POSTBACK_KAFKA__EXTRA__… that the Kafka client does not know, or cannot use."""


def replica_of(settings: FleetSettings) -> str:
    """The process's identity: stable where POSTBACK_REPLICA says so, else random."""
    return settings.replica or f"r{secrets.token_hex(4)}"


async def topic_ids(kafka: KafkaSettings, topics: Sequence[str]) -> dict[str, str]:
    """The UUID of each topic; a topic that is made anew under an old name has another. Raises ProcessError.

    A topic that was made a moment ago may be unknown to the broker that is asked, so it is asked again for a while.
    """
    client = _asking(kafka)
    found: dict[str, str] = {}
    for _ in range(_TOPIC_ASKED):
        found |= await known_ids(client, kafka, [name for name in topics if name not in found])
        missing = [name for name in topics if name not in found]
        if not missing:
            return found
        await asyncio.sleep(_TOPIC_ASK_AGAIN_SECONDS)
    raise TopicMissing(f"the topic {missing[0]} does not exist; `postback topics create` makes it")


async def known_ids(client: AdminClient, kafka: KafkaSettings, topics: Sequence[str]) -> dict[str, str]:
    """The UUIDs of those that are known. Raises BrokerAway and AccessRefused."""
    asked = client.describe_topics(TopicCollection(list(topics)), request_timeout=TOPIC_SECONDS)
    found = {}
    for name, future in asked.items():
        try:
            found[name] = str((await asyncio.wrap_future(future)).topic_id)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise unanswered(kafka, error.args[0], f" to the topic {name}") from None
    return found


def _asking(kafka: KafkaSettings) -> AdminClient:
    """A client that asks. Raises PropertyRefused."""
    try:
        return AdminClient(asking_config(kafka))
    except KafkaException as error:
        reason = error.args[0].str()
        for value in kafka.extra.values():  # any of which may be a secret
            reason = reason.replace(f'"{value.get_secret_value()}"', "…")
        raise PropertyRefused(f"the Kafka client refuses a property of POSTBACK_KAFKA__EXTRA__…: {reason}") from None


async def topic_names(kafka: KafkaSettings) -> list[str]:
    """The topics that there are, as far as we may know of them. Raises ProcessError."""
    client = _asking(kafka)
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


class SideTask(Protocol):
    """What runs beside the stages, and without which they would go by what is true no more."""

    @property
    def alive(self) -> bool:
        """Whether it comes round."""
        ...

    def reasons(self) -> list[str]:
        """Why it does not do its work now; empty when it does."""
        ...

    async def ended(self) -> None:
        """Wait for as long as it does its work, and raise what ended it."""
        ...


class LoopBeat:
    """A `SideTask` by which `/healthz` sees whether the event loop comes round; a stage shows only its own thread."""

    def __init__(self, clock: Clock) -> None:
        self._heartbeat = Heartbeat(clock, STUCK_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether the loop came round within a minute."""
        return self._heartbeat()

    def reasons(self) -> list[str]:
        """None: a loop that is held up for a moment goes on with its work."""
        return []

    async def ended(self) -> None:
        """Beat until cancelled."""
        while True:
            self._heartbeat.beat()
            await asyncio.sleep(BEAT_SECONDS)


def readiness_of(stages: Sequence[Stage], beside: Sequence[SideTask] = ()) -> Readiness:
    """Ready when every stage is, and what they go by is up to date."""
    of_stages = [reason for stage in stages for reason in stage.watch.reasons()]
    return Readiness((*of_stages, *(reason for task in beside for reason in task.reasons())))


def alive(stages: Sequence[Stage], beside: Sequence[SideTask] = ()) -> bool:
    """Alive while every stage's Kafka thread comes round, and whatever runs beside them."""
    return all(stage.watch.alive for stage in stages) and all(task.alive for task in beside)


def collect_garbage_seldom() -> None:
    """Let the collector look at new objects every 50,000 allocations rather than every 700.

    A job leaves dozens of them, and reference counting frees them all: looking took a tenth of the stage's CPU.
    """
    gc.set_threshold(50_000, 20, 20)


def change_threads_often() -> None:
    """Let a thread wait for the interpreter for half a millisecond, not five, while another one computes.

    A stage's Kafka thread asks for it several times between taking a record and handing it over: for records on which
    somebody waits for milliseconds. Where nobody does it costs several hundredths of the rate.
    """
    sys.setswitchinterval(0.0005)


def allow_open_files() -> None:
    """Raise the limit of open files as far as we may, up to a million; a low one is for programs that use `select`.

    Each callback under way and each idle connection has one, and some thousands are under way.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS names a hard limit and takes less
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextmanager
def stop_signal() -> Iterator[asyncio.Event]:
    """What SIGTERM and SIGINT set meanwhile. Around all that a process does, so that neither ever cuts it off."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def run_stages(stages: Sequence[Stage], stop: asyncio.Event, beside: Sequence[SideTask] = ()) -> None:
    """Run until `stop` is set and every stage is drained.

    When a stage dies, or what runs beside them, the others are drained and its error is raised.
    """
    collect_garbage_seldom()
    running = [asyncio.create_task(stage.run(), name=f"stage-{index}") for index, stage in enumerate(stages)]
    watched = [asyncio.create_task(task.ended(), name=f"beside-{index}") for index, task in enumerate(beside)]
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait([*running, *watched, stopping], return_when=asyncio.FIRST_COMPLETED)
    log.info("Stopping: draining what is dispatched.", action="stopping")
    for stage in stages:
        stage.stop()
    await asyncio.wait(running)  # for all of them: what one raised does not cut the others' drain short
    for task in (*watched, stopping):
        task.cancel()
    await asyncio.wait([*watched, stopping])
    for ended in (*watched, *running):
        if not ended.cancelled():
            ended.result()


async def unless_stopped(preparing: Coroutine[None, None, T], stop: asyncio.Event) -> T | None:
    """Do what comes before serving. None where `stop` was set first, which cancels it. Raises what it raises.

    Loading an engine takes minutes, and a worker that is stopped meanwhile has nothing to drain and everything to end.
    """
    task, stopping = asyncio.ensure_future(preparing), asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not task.done():
        log.info("Stopping before there is anything to drain.", action="stopping")
        task.cancel()
        await asyncio.wait({task})
    return None if task.cancelled() else task.result()
