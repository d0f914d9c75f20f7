"""Creates the fleet's topics and configures its consumer groups.

A repeated call is harmless: it only adds missing parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType

from producers.connection import admin_client
from producers.errors import RequestRefused
from producers.topic_configs import ConfigDifference, config_differences, fix_configs, shown_configs
from schemas.groups import GROUPS
from schemas.settings import KafkaSettings
from schemas.topics import TopicSpec
from telemetry.clock import Clock, Deadline, SystemClock

SESSION_TIMEOUT_MS = 6000
"""Least time after which the group reassigns a killed worker's partitions; the broker's own minimum may be longer."""

HEARTBEAT_INTERVAL_MS = 1000
REPLICAS = 3
"""Default number of copies, if there are at least three brokers: then one broker may be lost with its disk."""

_HEARTBEATS_PER_SESSION = 3
_KNOWN_SECONDS = 10.0
_ASK_AGAIN_SECONDS = 0.1
_LED_MS = 10_000
_LED_MS_A_PARTITION = 20
"""Each new partition extends the longest wait for leaders by these milliseconds, because a broker sets up partitions
one by one."""
_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class CountDifference:
    """An existing topic whose number of partitions or copies differs from the settings."""

    topic: str
    wanted: int
    found: int


@dataclass(slots=True)
class TopicsReport:
    """The differences that `create_topics` found, and the changes that it made."""

    replicas: int
    """Number of copies of each new topic."""
    created: list[str] = field(default_factory=list)
    existing: list[str] = field(default_factory=list)
    raised: list[CountDifference] = field(default_factory=list)
    """The topics that got more partitions."""
    differences: list[CountDifference] = field(default_factory=list)
    """Topics whose number of partitions still differs from the settings."""
    thin: list[CountDifference] = field(default_factory=list)
    """Topics with too few copies. Only a reassignment of the partitions can add copies."""
    fixed: list[ConfigDifference] = field(default_factory=list)
    """Topic properties that were corrected."""
    misconfigured: list[ConfigDifference] = field(default_factory=list)
    """Topic properties that still differ from the wanted ones."""
    unseen: list[str] = field(default_factory=list)
    """Topics whose configuration the broker does not show."""

    @property
    def is_sound(self) -> bool:
        """True if no topic has too few copies or a wrong property, as far as the broker shows them."""
        return not self.thin and not self.misconfigured


@dataclass(frozen=True, slots=True)
class _Layout:
    """An existing topic's number of partitions, and the lowest number of copies of a partition."""

    partitions: int
    replicas: int


@dataclass(slots=True)
class GroupsReport:
    """The changes that `configure_groups` made."""

    session_timeout_ms: int | None = None
    """The groups' session timeout; None if the broker keeps its default."""
    problems: list[str] = field(default_factory=list)
    """The reasons why the broker keeps its default."""


def create_topics(
    settings: KafkaSettings,
    *,
    engines: Sequence[str] = (),
    raise_partitions: bool = False,
    fix_config: bool = False,
    clock: Clock = _CLOCK,
) -> TopicsReport:
    """Create missing topics; report the differences of existing topics, and correct them if asked.

    Partitions are added only on request, because afterwards the records of a key may go to another partition.
    Partitions cannot be removed. Each of the `engines` gets its own lanes. Raises ProducerError.
    """
    specs = settings.topics.specs(settings.partitions, tuple(engines))
    with admin_client(settings) as admin:
        found = _found(admin, [spec.name for spec in specs])
        existing = [spec.name for spec in specs if spec.name in found]
        report = TopicsReport(wanted_replicas(admin, settings), existing=existing)
        _create(admin, [spec for spec in specs if spec.name not in found], report)
        were_there = [spec for spec in specs if spec.name in found]
        for spec in were_there:
            _compare(spec, found[spec.name], report, raise_partitions)
        differing, report.unseen = config_differences(
            admin, {spec.name: spec.config | durability(found[spec.name].replicas) for spec in were_there}
        )
        if fix_config:
            fix_configs(admin, differing)
        (report.fixed if fix_config else report.misconfigured).extend(differing)
        _raise(admin, {difference.topic: difference.wanted for difference in report.raised}, clock)
    return report


def wanted_replicas(admin: Any, settings: KafkaSettings) -> int:
    """Return the number of copies in the settings; if they give no number, the number of brokers, but at most three.

    The brokers' own default (KIP-464) is not used, because that default is 1 unless an operator sets it.
    """
    return settings.replication_factor or min(REPLICAS, len(admin.describe_cluster()["brokers"]))


def _compare(spec: TopicSpec, found: _Layout, report: TopicsReport, raise_partitions: bool) -> None:
    if found.partitions != spec.partitions:
        difference = CountDifference(spec.name, spec.partitions, found.partitions)
        raisable = raise_partitions and difference.wanted > difference.found
        (report.raised if raisable else report.differences).append(difference)
    if found.replicas < report.replicas:
        report.thin.append(CountDifference(spec.name, report.replicas, found.replicas))


def configure_groups(settings: KafkaSettings, groups: Iterable[str] | None = None) -> GroupsReport:
    """Make consumer groups (KIP-848, brokers from 4.0) notice a killed member as early as the broker allows.

    By default these are the fleet's groups. The groups need not exist yet. If the broker refuses, the report says so,
    and the groups keep the broker's default of 45 s. Raises ProducerError if no broker answers.
    """
    names = [f"{settings.topic_prefix}{name}" for name in GROUPS] if groups is None else list(groups)
    with admin_client(settings) as admin:
        try:
            config = _group_config(_broker_config(admin))
            answer = _alter_groups(admin, names, config)
        except (kafka_errors.AuthorizationError, kafka_errors.UnsupportedVersionError) as error:
            return GroupsReport(problems=[f"the broker refuses this configuration ({type(error).__name__})"])
    problems = [f"{name}: {said}" for name, said in answer.items() if said != "OK"]
    return GroupsReport(None if problems else int(config["consumer.session.timeout.ms"]), problems)


def _found(admin: Any, names: list[str]) -> dict[str, _Layout]:
    return {
        topic["name"]: _Layout(
            len(topic["partitions"]), min(len(each["replica_nodes"]) for each in topic["partitions"])
        )
        for topic in admin.describe_topics(names)
        if topic["error_code"] == 0
    }


def _create(admin: Any, specs: list[TopicSpec], report: TopicsReport) -> None:
    """Create topics, each with a request of its own, because Kafka accepts at most 10,000 partitions in one request."""
    for spec in specs:
        layout = {
            "num_partitions": spec.partitions,
            "replication_factor": report.replicas,
            "configs": spec.config | durability(report.replicas),
        }
        (topic,) = admin.create_topics({spec.name: layout}, raise_errors=False)["topics"]
        if topic["error_code"] == kafka_errors.TopicAlreadyExistsError.errno:
            report.existing.append(spec.name)  # another client has just created it
        elif topic["error_code"] != 0:
            raise RequestRefused(f"the topic {spec.name} could not be created: {_why(topic)}")
        else:
            report.created.append(spec.name)
    if specs:
        _wait_until_led(admin, specs)


def _wait_until_led(admin: Any, specs: list[TopicSpec]) -> None:
    """Wait until each partition of the new topics has a leader, so that clients can produce at once."""
    wait_ms = _LED_MS + _LED_MS_A_PARTITION * sum(spec.partitions for spec in specs)
    try:
        admin.wait_for_topics([spec.name for spec in specs], timeout_ms=wait_ms)
    except kafka_errors.KafkaTimeoutError:
        raise RequestRefused(
            f"Kafka has not set up all partitions of the new topics within {wait_ms // 1000} s; "
            "run this command again later: existing topics stay as they are"
        ) from None


def _raise(admin: Any, wanted: dict[str, int], clock: Clock) -> None:
    """Add partitions to topics, and wait until the broker knows them."""
    if not wanted:
        return
    for topic, partitions in wanted.items():
        admin.create_partitions({topic: partitions})
    deadline = Deadline.after(clock, _KNOWN_SECONDS)
    while _partitions_found(admin, wanted) != wanted and not deadline.passed:
        clock.sleep(_ASK_AGAIN_SECONDS)


def _partitions_found(admin: Any, names: Iterable[str]) -> dict[str, int]:
    return {name: layout.partitions for name, layout in _found(admin, list(names)).items()}


def durability(replicas: int) -> dict[str, str]:
    """Return the property for topics with three copies.

    With it, brokers acknowledge a write when two copies have the record.
    """
    return {"min.insync.replicas": "2"} if replicas >= REPLICAS else {}


def _why(topic: dict[str, Any]) -> str:
    name: str = kafka_errors.for_code(topic["error_code"]).__name__
    return topic["error_message"] or name


def _broker_config(admin: Any) -> dict[str, str]:
    some = admin.describe_cluster()["brokers"][0]
    # The version of the answer decides whether the field with the broker's id is `broker_id` or `node_id`.
    broker = str(some["broker_id"] if "broker_id" in some else some["node_id"])
    return shown_configs(admin, [broker], ConfigResourceType.BROKER)[broker]


def _group_config(broker: dict[str, str]) -> dict[str, str]:
    """Return the shortest session that the broker allows, and a heartbeat interval of a third of that session."""
    if "group.consumer.min.session.timeout.ms" not in broker:
        raise kafka_errors.UnsupportedVersionError("groups have no configuration before Apache Kafka 4.0")
    heartbeat = max(HEARTBEAT_INTERVAL_MS, int(broker["group.consumer.min.heartbeat.interval.ms"]))
    lowest = int(broker["group.consumer.min.session.timeout.ms"])
    session = max(SESSION_TIMEOUT_MS, lowest, _HEARTBEATS_PER_SESSION * heartbeat)
    return {"consumer.session.timeout.ms": str(session), "consumer.heartbeat.interval.ms": str(heartbeat)}


def _alter_groups(admin: Any, groups: list[str], config: dict[str, str]) -> dict[str, str]:
    resources = [ConfigResource(ConfigResourceType.GROUP, group, dict(config)) for group in groups]
    # With `raise_on_unknown`, kafka-python asks for the group's properties, and gets no answer if the group has none.
    answer: dict[str, dict[str, str]] = admin.alter_configs(resources, raise_on_unknown=False)
    return answer["group"]
