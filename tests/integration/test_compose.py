"""compose.yaml: the services' start order, settings and confinement."""

from __future__ import annotations

import re

import pytest

from cli.devkit.kafka.cluster import SERVER_PROPERTIES
from tests.integration.deployment import OWN_BYTES, ROOT, Manifest, compose_model, own_services, readers_bytes

# The first run builds Helm or compose-go's command, which takes minutes.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def compose() -> Manifest:
    return compose_model()


def test_one_command_brings_up_every_role_on_a_machine_without_a_gpu(compose: Manifest) -> None:
    default = re.search(r"^COMPOSE_PROFILES=(.*)$", (ROOT / ".env").read_text(), re.MULTILINE)
    assert default is not None

    started = services_of(compose, *default[1].split(","))

    makers, stores = {"topics", "keyring", "secrets"}, {"kafka", "postgres", "redis"}
    assert started == {*makers, *stores, "worker", "delivery", "gateway", "exporter", "receiver"}


def services_of(compose: Manifest, *profiles: str) -> set[str]:
    """Return the services that start with these profiles."""
    return {n for n, s in compose["services"].items() if not s.get("profiles") or {*profiles} & {*s["profiles"]}}


def test_the_profiles_add_the_services_beside_a_fleet(compose: Manifest) -> None:
    alone = services_of(compose)

    added = {profile: services_of(compose, profile) - alone for profile in ("gpu", "dev", "observe", "elk")}
    assert added == {
        "gpu": {"worker-gpu", "dcgm-exporter"},
        "dev": {"receiver"},
        "observe": {"prometheus", "alertmanager", "grafana"},
        "elk": {"log-store", "filebeat", "audit-store", "filebeat-audit"},
    }


def test_the_gpu_profile_starts_one_kind_of_worker_on_a_reserved_gpu(compose: Manifest) -> None:
    workers = {n: s["profiles"] for n, s in compose["services"].items() if s.get("command", [""])[0] == "worker"}
    assert workers == {"worker": ["echo"], "worker-gpu": ["gpu"]}

    gpu = compose["services"]["worker-gpu"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    ]
    exporter = compose["services"]["dcgm-exporter"]["deploy"]["resources"]["reservations"]["devices"]
    assert exporter == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu", "utility"]}]
    assert gpu["build"]["target"] == "worker-gpu"
    assert "--engine vllm" in " ".join(gpu["command"])


def test_a_role_waits_for_its_topics_and_its_keys_and_they_for_kafka(compose: Manifest) -> None:
    waits = {
        name: {on: how["condition"] for on, how in service.get("depends_on", {}).items()}
        for name, service in compose["services"].items()
    }
    made = "service_completed_successfully"

    assert waits["topics"] == {"kafka": "service_healthy"}
    for role in ("worker", "delivery", "exporter"):
        assert waits[role] == {"topics": made, "keyring": made}
    assert waits["worker-gpu"] == {"topics": made, "keyring": made, "secrets": made}
    assert waits["receiver"] == {"keyring": made}
    stores = {"postgres": "service_healthy", "redis": "service_healthy"}
    assert waits["gateway"] == {"topics": made, "keyring": made, "secrets": made, **stores}
    assert waits["postgres"] == waits["grafana"] == {"secrets": made}


def test_a_role_is_healthy_when_it_is_ready_and_is_stopped_after_its_drain(compose: Manifest) -> None:
    for role in ("worker", "worker-gpu", "delivery"):
        service = compose["services"][role]
        section = service["command"][0].replace("deliver", "delivery").upper()
        drain = float(service["environment"][f"POSTBACK_{section}__DRAIN_SECONDS"])
        assert "http://127.0.0.1:9464/readyz" in " ".join(service["healthcheck"]["test"])
        assert _seconds(service["stop_grace_period"]) >= drain + 15
        assert service["restart"] == "unless-stopped"


def _seconds(duration: str) -> int:
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


def test_a_worker_has_room_for_the_processes_that_read_pages(compose: Manifest) -> None:
    limit = compose["services"]["worker"]["deploy"]["resources"]["limits"]["memory"]
    assert limit.endswith("M")  # Compose's M means 1024 * 1024 bytes
    assert int(limit[:-1]) * 2**20 >= OWN_BYTES + readers_bytes()


def test_every_container_is_confined(compose: Manifest) -> None:
    for service in compose["services"].values():
        assert "memory" in service["deploy"]["resources"]["limits"]
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1"
    for name, service in compose["services"].items():
        if name == "kafka":
            continue  # Kafka's file system is writable, because the image writes its configuration there
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_no_scaled_service_is_given_one_identity_for_all_its_replicas(compose: Manifest) -> None:
    assert not [n for n, s in own_services(compose).items() if "POSTBACK_REPLICA" in s["environment"]]


def test_delivery_may_reach_the_receiver_and_nothing_else_of_the_network(compose: Manifest) -> None:
    services = compose["services"]

    address = services["receiver"]["networks"]["fleet"]["ipv4_address"]
    # Workers need the setting too, because they reject jobs with forbidden callbacks.
    for role in ("delivery", "worker", "worker-gpu"):
        assert services[role]["environment"]["POSTBACK_EGRESS__ALLOW_CALLBACKS"] == f"{address}/32"
    assert "POSTBACK_EGRESS__ALLOW_FETCH" not in services["worker"]["environment"]


def test_the_keyring_is_written_by_its_maker_and_only_read_by_others(compose: Manifest) -> None:
    mounted = {
        name: {v["source"]: v.get("read_only", False) for v in service.get("volumes", [])}
        for name, service in own_services(compose).items()
    }

    assert mounted["keyring"] == {"keyring": False}
    assert mounted["delivery"] == mounted["receiver"] == {"keyring": True}
    assert mounted["gateway"]["keyring"]
    assert "keyring" not in mounted["worker"]


def test_composes_kafka_has_the_timeouts_of_the_broker_that_is_tested_on(compose: Manifest) -> None:
    kafka = compose["services"]["kafka"]

    # By the rule of Kafka's image, KAFKA_A_B_C becomes a.b.c.
    given = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in kafka["environment"].items()
        if name.startswith("KAFKA_")
    }
    shared = {
        name: value
        for name, value in SERVER_PROPERTIES.items()
        if name.startswith(("group.consumer.", "transaction.abort.", "offsets.retention.", "auto.create."))
    }
    assert len(shared) == 7
    assert shared.items() <= given.items()
    assert given["process.roles"] == "broker,controller"
