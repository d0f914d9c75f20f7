"""compose.yaml: start order, settings and confinement of its services, checked by their own tools."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sqlalchemy import make_url

from cli.devkit.kafka.cluster import SERVER_PROPERTIES
from tests.integration.deployment import OWN_BYTES, ROOT, Manifest, compose_model, own_services, readers_bytes
from tests.prometheus_tools import amtool, promtool

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


FILES = ROOT / "helm" / "postback" / "files"
"""The files of the chart, which compose mounts."""

HOME = "/var/lib/postback"
"""The folder of our image that the volume of the secrets is mounted at."""


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory, compose: Manifest) -> Path:
    """The volume of the secrets after the service's own script has run twice."""
    folder = tmp_path_factory.mktemp("secrets")
    run_script(compose, folder)
    run_script(compose, folder)
    return folder


def run_script(compose: Manifest, folder: Path) -> None:
    service = compose["services"]["secrets"]
    script = service["command"][0].replace(HOME, str(folder))
    done = subprocess.run(
        [*service["entrypoint"], script],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_each_secret_is_made_once_and_is_a_file_of_its_reader_only(
    compose: Manifest, tmp_path: Path, secrets: Path
) -> None:
    run_script(compose, tmp_path)
    files = [path.relative_to(secrets) for path in sorted(secrets.rglob("*")) if path.is_file()]

    made = {str(path): (secrets / path).read_bytes() for path in files}
    named = [path for path in files if path.parent.name != "issued"]  # the others are named by their serial numbers
    other = {str(path): (tmp_path / path).read_bytes() for path in named}
    run_script(compose, secrets)
    assert {str(path): (secrets / path).read_bytes() for path in files} == made
    assert [name for name in other if other[name] == made[name]] == [], "every stack has secrets of its own"
    private = {"gateway/pgpass", "gateway/pepper", "gateway/gateway.key", "authority/ca.key", "authority/gateway.key"}
    readable = {str(path) for path in files if (secrets / path).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)}
    assert private <= set(made)
    assert not private & readable
    assert {"postgres/password", "grafana/password"} <= readable, "these two run as other users"


def test_a_service_sees_its_own_folder_of_the_secrets_and_not_the_authoritys(compose: Manifest) -> None:
    seen = {
        name: (volume["volume"].get("subpath"), volume.get("read_only", False))
        for name, service in compose["services"].items()
        for volume in service.get("volumes", [])
        if volume["source"] == "secrets"
    }

    assert seen == {
        "secrets": (None, False),
        "postgres": ("postgres", True),
        "grafana": ("grafana", True),
        "gateway": ("gateway", True),
        "worker-gpu": ("worker-gpu", True),
    }


def test_the_gateway_finds_its_secrets_where_it_is_told(compose: Manifest, secrets: Path) -> None:
    service = compose["services"]["gateway"]
    [mount] = [volume["target"] for volume in service["volumes"] if volume["source"] == "secrets"]
    url = make_url(service["environment"]["POSTBACK_STORE__URL"])
    told = [
        str(url.query["passfile"]),
        service["environment"]["POSTBACK_ACCESS__PEPPER_FILE"],
        *(word.partition("=")[2] for word in service["command"] if word.startswith("--tls-")),
    ]

    for path in told:
        assert (secrets / "gateway" / Path(path).relative_to(mount)).is_file(), path
    password = (secrets / "postgres" / "password").read_text()
    assert (secrets / "gateway" / "pgpass").read_text() == f"{url.host}:5432:{url.database}:{url.username}:{password}\n"
    postgres = compose["services"]["postgres"]["environment"]
    assert (postgres["POSTGRES_USER"], postgres["POSTGRES_DB"]) == (url.username, url.database)


def test_the_environment_holds_no_secret() -> None:
    """Reads the file itself, since the parsed model hides a variable that the caller's shell would pass on."""
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    named = {
        f"{name}: {variable}": value
        for name, service in services.items()
        for variable, value in (service.get("environment") or {}).items()
        if re.search(r"PASSWORD|TOKEN|SECRET|PEPPER|API_KEY|PASSPHRASE|CREDENTIAL", variable)
    }
    assert {place: value for place, value in named.items() if not value.startswith("/")} == {}
    assert "worker-gpu: HF_TOKEN_PATH" in named
    for name, service in services.items():
        for value in (service.get("environment") or {}).values():
            assert not re.search(r"://[^/@]*:[^/@]*@", value), f"{name} has a password in an address: {value}"


def test_the_hubs_token_is_a_file_that_operators_write_by_the_documented_command(
    compose: Manifest, tmp_path: Path
) -> None:
    service = compose["services"]["worker-gpu"]
    [mount] = [volume["target"] for volume in service["volumes"] if volume["source"] == "secrets"]
    given, volume = tmp_path / "token.txt", tmp_path / "volume"
    given.write_text("hf_of-acme\n")
    run_script(compose, tmp_path)
    place = tmp_path / "worker-gpu" / Path(service["environment"]["HF_TOKEN_PATH"]).relative_to(mount)
    assert _hub_token(place) == "None", "without a token, the hub is asked anonymously"

    page = (ROOT / "docs" / "DEPLOY.md").read_text()
    [command] = re.findall(r"`docker compose run --rm -T --entrypoint sh secrets (-c '[^`]*') <token\.txt`", page)
    shell = f"sh {command} <{given}".replace(HOME, str(volume))
    volume.mkdir()
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 0, done.stderr
    written = volume / place.relative_to(tmp_path)
    assert _hub_token(written) == "hf_of-acme"
    assert not written.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def _hub_token(file: Path) -> str:
    """Return the token that the hub's library, which vLLM loads models with, finds by this variable."""
    done = subprocess.run(
        [sys.executable, "-c", "import huggingface_hub; print(huggingface_hub.get_token())"],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "HF_TOKEN_PATH": str(file)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_file_that_is_mounted_exists(compose: Manifest) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind" and Path(volume["source"]).is_relative_to(ROOT):
                assert Path(volume["source"]).exists(), f"{name}: {volume['source']}"


def test_promtool_accepts_prometheus_configuration_which_scrapes_each_role_by_the_name_of_the_rules(
    compose: Manifest,
) -> None:
    file = FILES / "prometheus" / "prometheus.yml"
    done = subprocess.run(
        [promtool(), "check", "config", file], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = {
        job["job_name"]: {
            (name, discovery["port"]) for discovery in job["dns_sd_configs"] for name in discovery["names"]
        }
        for job in yaml.safe_load(file.read_text())["scrape_configs"]
    }

    roles = {name: service for name, service in own_services(compose).items() if "healthcheck" in service}
    beside = {("dcgm-exporter", 9400)}  # the exporter listens on this port unless a flag names another
    assert {found for each in jobs.values() for found in each} == {(name, 9464) for name in roles} | beside
    rules = (file.parent / "postback.rules.yml").read_text()
    assert set(re.findall(r'job="(postback-[a-z]+)"', rules)) <= set(jobs)


def test_the_gpus_exporter_reads_the_fields_that_the_rules_ask_for(compose: Manifest) -> None:
    service = compose["services"]["dcgm-exporter"]
    [volume] = service["volumes"]
    assert service["command"] == ["--collectors", volume["target"]]

    lines = [line for line in Path(volume["source"]).read_text().splitlines() if not line.startswith("#")]
    fields = {name: kind for name, kind, _ in (line.split(", ", 2) for line in lines)}
    rules = (FILES / "prometheus" / "postback.rules.yml").read_text()
    assert set(re.findall(r"DCGM_\w+", rules)) == fields.keys()
    assert set(fields.values()) == {"gauge"}


def test_amtool_accepts_alertmanagers_configuration() -> None:
    file = FILES / "alertmanager" / "alertmanager.yml"
    done = subprocess.run([amtool(), "check-config", file], capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_prometheus_and_the_dashboards(compose: Manifest) -> None:
    service = compose["services"]["grafana"]
    mounted = {volume["target"]: Path(volume["source"]) for volume in service["volumes"]}
    provisioning = mounted["/etc/grafana/provisioning"]

    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "postback.yml").read_text())["providers"]
    dashboards = [json.loads(path.read_text()) for path in mounted[provider["options"]["path"]].glob("*.json")]
    assert "Postback fleet" in {each["title"] for each in dashboards}
    host, port = re.fullmatch(r"http://([a-z]+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert host in compose["services"]
    assert port == str(compose["services"][host]["ports"][0]["target"])


@pytest.mark.parametrize(("shipper", "store_name"), [("filebeat", "log-store"), ("filebeat-audit", "audit-store")])
def test_filebeat_reads_the_containers_lines_into_a_store(compose: Manifest, shipper: str, store_name: str) -> None:
    filebeat, store = compose["services"][shipper], compose["services"][store_name]
    folders = [v["target"] for v in filebeat["volumes"] if v["target"].endswith("/containers")]

    assert filebeat["environment"]["POSTBACK_CONTAINER_LOGS"].startswith(folders[0])
    port = store["ports"][0]["target"]
    assert filebeat["environment"]["ELASTICSEARCH_URL"] == f"http://{store_name}:{port}/insert/elasticsearch"
    named = set(re.findall(r"\$\{([A-Z_]+)", (FILES / "filebeat" / "filebeat.yml").read_text()))
    assert filebeat["environment"].keys() <= named


def test_log_and_audit_have_stores_of_their_own_with_the_retention_of_the_policies(compose: Manifest) -> None:
    for service, policy in (("log-store", "logs"), ("audit-store", "audit")):
        [kept] = [
            word.partition("=")[2]
            for word in compose["services"][service]["command"]
            if word.startswith("-retentionPeriod")
        ]
        phases = json.loads((FILES / "filebeat" / f"{policy}.policy.json").read_text())["policy"]["phases"]
        assert kept == phases["delete"]["min_age"]
    mounted = {
        name: [volume["source"] for volume in compose["services"][name]["volumes"] if volume["type"] == "volume"]
        for name in ("log-store", "audit-store", "filebeat", "filebeat-audit")
    }
    assert len({tuple(sources) for sources in mounted.values()}) == len(mounted)
