"""The delivery process: POSTs results to their callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

from schemas.groups import DELIVERY_GROUP
from schemas.settings import FleetSettings, KafkaSettings, read_settings
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.delivery.deliver import GROUP_COMMIT_SECONDS, DeliveryHandler
from workers.delivery.keyring import JWKS_FOLDER, Keyring, tenant_jwks_page
from workers.delivery.post import Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressSettings
from workers.kafka.topics import topic_ids, topic_names
from workers.roles import last_resort
from workers.roles.process import Listen, Process, run
from workers.stage.build import group_stage
from workers.stage.settings import StageSettings
from workers.stage.sharing import Backpressure
from workers.stage.stage import Stage
from workers.stage.window import Limits
from workers.system.errors import ProcessError
from workers.system.memory_limit import LARGEST_WINDOW, window_bytes
from workers.system.tuning import change_threads_often

log = get_logger()

_REVOKE_DRAIN_SECONDS = 5.0
"""The time for which a revocation waits for the partition's attempts: longer than most endpoints take to answer.

A longer wait for an attempt that hangs would hold up all other deliveries of this process. The partition's next owner
repeats an attempt that was cut off.
"""


class KeyringNotSet(ProcessError):  # noqa: N818 - it names what is missing
    """Delivery has no keys to sign with: set POSTBACK_KEYRING to the file that `postback keys init` made."""


async def run_delivery(
    fleet: FleetSettings, listen: Listen, announce: Callable[[int], None], stop: asyncio.Event | None = None
) -> None:
    """Deliver callbacks until SIGTERM, or until `stop` is set if it is given.

    Raises ProcessError, SettingsRefused, and the error that ended the stage.
    """

    async def prepare(process: Process, stack: AsyncExitStack) -> list[Stage]:
        return await delivery_stages(process, stack)

    await run(fleet, listen, announce, prepare, stop)


async def delivery_stages(process: Process, stack: AsyncExitStack, *, reserved_bytes: int = 0) -> list[Stage]:
    """Return the stages that deliver callbacks. `reserved_bytes` of memory are left to the container's other processes.

    Raises ProcessError and SettingsRefused.
    """
    settings, kafka = read_settings(DeliverySettings), process.fleet.kafka
    most_bytes = window_bytes(settings.window_bytes, reserved=reserved_bytes)
    settings = settings.model_copy(update={"window_bytes": most_bytes})
    log.info(f"Holding at most {most_bytes} bytes of results at once.", action="delivery-window", bytes=most_bytes)
    policy = read_settings(EgressSettings).callback_policy(development=process.development)
    if process.fleet.keyring is None:
        raise KeyringNotSet(KeyringNotSet.__doc__)
    keyring = Keyring.load(process.fleet.keyring)
    process.pages[JWKS_FOLDER] = partial(tenant_jwks_page, keyring, process.clock)
    existing = await topic_names(kafka)
    former_tiers, lanes = kafka.topics.former_tiers(existing), kafka.topics.lanes(existing)
    tiers = [*kafka.topics.tiers.values(), *kafka.topics.later.values()]
    read = [kafka.topics.results, kafka.topics.events, *tiers, *former_tiers]
    others = [kafka.topics.attempts, kafka.topics.endpoints, kafka.topics.dead_letters]
    ids = await topic_ids(kafka, [*read, *others])
    process.watch(ids)
    handler = DeliveryHandler(
        kafka.topics,
        keyring,
        Poster(settings, policy, process.clock),
        process.clock,
        process.metrics,
        settings,
        former_tiers=former_tiers,
        lanes=lanes,
    )
    stack.push_async_callback(handler.close)
    process.duties.append(f"delivers results from topic {kafka.topics.results} and events from {kafka.topics.events}")
    await process.follow(kafka.topics.endpoints, handler.states.apply, stack)
    handler.states.show()
    change_threads_often()
    return stages_of(
        handler, settings, kafka, process.replica, process.clock, process.metrics, former_tiers, ids, lanes
    )


def stages_of(
    handler: DeliveryHandler,
    settings: DeliverySettings,
    kafka: KafkaSettings,
    replica: str,
    clock: Clock,
    metrics: Metrics,
    former_tiers: Iterable[str] = (),
    ids: Mapping[str, str] | None = None,
    lanes: Sequence[str] = (),
) -> list[Stage]:
    """Return the stage of results and events, and the stage of the tiers. Each stage may hold half of `window_bytes`.

    The stage of the tiers also moves jobs that start later back into one of `lanes`.

    Hundreds of records in a tier may become due at once. New results do not wait for these records, because the results
    have a stage of their own.
    """
    topics = kafka.topics
    for_results = StageSettings(
        DELIVERY_GROUP,
        Limits(settings.window_records, (settings.window_bytes or LARGEST_WINDOW) // 2),
        settings.drain_seconds,
        revoke_drain_seconds=_REVOKE_DRAIN_SECONDS,
        group_commit_seconds=GROUP_COMMIT_SECONDS,
    )
    for_tiers = replace(for_results, suffix=".tiers")
    tiers = [*topics.tiers.values()]
    later = [*topics.later.values()]
    outputs = [*tiers, topics.attempts, topics.endpoints, topics.dead_letters]
    resort = last_resort.for_callbacks(topics, metrics)

    def stage(settings: StageSettings, read: Sequence[str], pace: Backpressure | None, outputs: Sequence[str]) -> Stage:
        return group_stage(
            settings,
            kafka,
            read,
            replica,
            handler,
            clock,
            metrics,
            pace=pace,
            outputs=outputs,
            last_resort=resort,
            topic_ids=ids,
        )

    return [
        stage(for_results, [topics.results, topics.events], None, outputs),
        stage(for_tiers, [*tiers, *former_tiers, *later], handler, [*outputs, *later, *lanes]),
    ]
