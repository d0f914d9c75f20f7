"""The chart: its objects for every role, the settings that programs read from them, network policies, and scaling."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli.operations.exporter.replicas import ExporterSettings
from gateway.access.settings import AccessSettings
from gateway.blobs.settings import FilesSettings
from gateway.door.settings import GatewaySettings
from gateway.role import ROLES as GATEWAY_ROLES
from gateway.store.settings import StoreSettings
from producers.connection import connection_config
from schemas.settings import FleetSettings
from scripts.publish.reference import RULES
from telemetry.health import READY, HealthServer, Readiness
from telemetry.metrics import Metrics
from tests.go_tools import HELM, ensure
from tests.integration.deployment import (
    AT_REST,
    AUTHORITIES,
    CHART,
    DEFAULTS,
    DENIED,
    EXAMPLES,
    GATEWAY,
    MESHED,
    OLDEST_KUBERNETES,
    ON_GPUS,
    OWN_BYTES,
    REGISTRY,
    ROLES,
    ROOT,
    SCALED,
    SECURED,
    VALUE_SETS,
    Manifest,
    compose_model,
    container_of,
    environment,
    every_value_set,
    find,
    helm,
    own_containers,
    pod_of,
    pods,
    readers_bytes,
    refusal,
    render,
    rendered,
)
from tests.kubeconform import Kubeconform, is_custom, validate_custom
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressSettings, is_public_address
from workers.inference.settings import WorkerSettings

# The first run builds Helm or compose-go's command, which takes minutes.
pytestmark = pytest.mark.timeout(1800)

MANY = VALUE_SETS["many-gpus"]


def gateway(**values: object) -> Manifest:
    return {"gateway": {**GATEWAY["gateway"], **values}}


@every_value_set
def test_the_chart_passes_helms_lint(values: Manifest) -> None:
    done = helm("lint", "--strict", str(CHART), values=values)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def kubeconform(tmp_path_factory: pytest.TempPathFactory) -> Kubeconform:
    return Kubeconform(tmp_path_factory.mktemp("schemas"))


@every_value_set
def test_rendered_objects_are_valid_for_kubernetes(kubeconform: Kubeconform, values: Manifest) -> None:
    for version in (OLDEST_KUBERNETES, kubernetes_validate.latest_version()):
        assert kubeconform.faults(rendered(values), version) == {}
    assert {m["kind"] for m in render(values)} >= {"StatefulSet", "Service", "PodDisruptionBudget", "ServiceAccount"}


def test_kubeconform_names_unknown_fields_wrong_values_and_repeated_keys(kubeconform: Kubeconform) -> None:
    text = rendered(SCALED)
    broken = (
        text.replace("serviceName:", "servicename:", 1),
        text.replace("maxUnavailable: 1", "maxUnavailable: [1]", 1),
        text.replace("maxReplicaCount:", "maxReplicas:", 1),
        text.replace("kind: ServiceAccount", "kind: ServiceAccount\nkind: ServiceAccount", 1),
    )

    faults = [" ".join(kubeconform.faults(each, OLDEST_KUBERNETES).values()) for each in broken]

    for fault, named in zip(faults, ("servicename", "maxUnavailable", "maxReplicas", "kind"), strict=True):
        assert named in fault


@pytest.mark.parametrize(("role", "drain", "margin"), [("worker", 30, 30), ("worker", 240, 20), ("delivery", 60, 10)])
def test_the_grace_period_is_the_drain_time_of_the_process_and_a_margin(role: str, drain: int, margin: int) -> None:
    manifests = render({role: {"drainSeconds": drain, "marginSeconds": margin}})

    assert pod_of(manifests, role)["terminationGracePeriodSeconds"] == drain + margin
    told = environment(container_of(manifests, role))[f"POSTBACK_{role.upper()}__DRAIN_SECONDS"]
    assert told == str(drain)


@pytest.mark.parametrize("role", ROLES)
def test_a_replica_is_known_by_its_pods_name_which_outlives_the_pod(role: str) -> None:
    manifests = render(DEFAULTS)

    replica = environment(container_of(manifests, role))["POSTBACK_REPLICA"]
    assert replica == {"fieldRef": {"fieldPath": "metadata.name"}}
    statefulset = find(manifests, "StatefulSet", role)["spec"]
    assert statefulset["podManagementPolicy"] == "Parallel"
    service = find(manifests, "Service", role)
    assert statefulset["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"


def test_gpus_are_asked_for_beside_the_other_limits_and_only_by_workers() -> None:
    manifests = render(ON_GPUS)

    assert container_of(manifests, "worker")["resources"] == {
        "requests": {"cpu": "8", "memory": "512Mi"},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": 2},
    }
    assert "nvidia.com/gpu" not in container_of(manifests, "delivery")["resources"]["limits"]
    assert "nvidia.com/gpu" not in container_of(render(DEFAULTS), "worker")["resources"]["limits"]
    assert container_of(render(MESHED), "worker")["resources"]["limits"] == {"memory": "1664Mi", "amd.com/gpu": 1}


def test_a_worker_has_room_for_the_processes_that_read_pages() -> None:
    limit = container_of(render(DEFAULTS), "worker")["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    assert int(limit[:-2]) * 2**20 >= OWN_BYTES + readers_bytes()


@pytest.mark.parametrize("role", ROLES)
def test_a_model_has_its_time_to_load_before_liveness_counts(role: str) -> None:
    container = container_of(render(ON_GPUS), role)

    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= {"worker": 601, "delivery": 120}[role]
    probed = {probe: container[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probed == {
        "startupProbe": {"path": "/healthz", "port": "metrics"},
        "livenessProbe": {"path": "/healthz", "port": "metrics"},
        "readinessProbe": {"path": "/readyz", "port": "metrics"},
    }
    assert {"name": "metrics", "containerPort": 9464} in container["ports"]
    assert "--host 0.0.0.0 --metrics-port 9464" in " ".join(container["args"])


@every_value_set
def test_no_pod_runs_as_root_writes_to_its_root_or_holds_a_token(values: Manifest) -> None:
    manifests = render(values)
    for pod in pods(manifests):
        assert pod["securityContext"]["runAsNonRoot"] is True
        if values is not VALUE_SETS["openshift"]:
            assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
        assert pod["automountServiceAccountToken"] is False
        for container in ours(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
    for manifest in (m for m in manifests if m["kind"] == "StatefulSet"):
        pod = manifest["spec"]["template"]["spec"]
        claims = {claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", [])}
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]} | claims


def ours(pod: Manifest) -> list[Manifest]:
    """Return the pod's containers that the chart itself makes."""
    added = {each["name"] for key in ("extraContainers", "extraInitContainers") for each in REGISTRY["worker"][key]}
    return [c for c in (*pod.get("initContainers", []), *pod["containers"]) if c["name"] not in added]


def test_credentials_come_from_secrets_for_both_roles_and_the_topics_job() -> None:
    manifests = render(SECURED)
    jobs = [m["spec"]["template"]["spec"]["containers"][0] for m in manifests if m["kind"] == "Job"]

    for container in [container_of(manifests, "worker"), container_of(manifests, "delivery"), *jobs]:
        env = environment(container)
        assert env["POSTBACK_KAFKA__EXTRA__SASL_USERNAME"] == {
            "secretKeyRef": {"name": "kafka-user", "key": "username"}
        }
        assert env["POSTBACK_KAFKA__EXTRA__SASL_PASSWORD"] == {"secretKeyRef": {"name": "kafka-user", "key": "pass"}}
        assert {"name": "kafka", "mountPath": "/etc/postback/kafka", "readOnly": True} in container["volumeMounts"]


@pytest.mark.parametrize(("values", "role"), [(AUTHORITIES, "delivery"), (ON_GPUS, "worker")])
def test_an_operators_mounts_are_beside_the_charts_and_only_in_that_roles_pod(values: Manifest, role: str) -> None:
    ours, manifests = values[role], render(values)
    plain = render({**values, role: {k: v for k, v in ours.items() if not k.startswith("extraVolume")}})

    for name in ROLES:
        volumes, mounts = (ours["extraVolumes"], ours["extraVolumeMounts"]) if name == role else ([], [])
        assert pod_of(manifests, name)["volumes"] == pod_of(plain, name)["volumes"] + volumes
        mounted = container_of(plain, name)["volumeMounts"] + mounts
        assert container_of(manifests, name)["volumeMounts"] == mounted


def test_the_documented_authority_and_client_certificates_lie_where_delivery_is_told_to_read_them() -> None:
    container = container_of(render(AUTHORITIES), "delivery")
    env = environment(container)
    files = [env["POSTBACK_DELIVERY__CA_FILE"], *json.loads(env["POSTBACK_DELIVERY__CLIENT_CERTIFICATES"]).values()]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}

    volumes = {volume["name"]: volume for volume in pod_of(render(AUTHORITIES), "delivery")["volumes"]}
    for file in files:
        mount = mounts[file.rpartition("/")[0]]
        assert mount["readOnly"]
        assert "subPath" not in mount
        assert volumes[mount["name"]]["secret"]["defaultMode"] == 0o440
    assert {"ca_file", "client_certificates"} <= DeliverySettings.model_fields.keys()


STRATEGY = {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}
CLIENTS = {"existingSecret": "door", "clientCA": {"existingSecret": "clients", "required": True}}


@pytest.mark.parametrize(
    ("values", "component", "place", "expected"),
    [
        ({"worker": {"updateStrategy": STRATEGY}}, "worker", "updateStrategy", STRATEGY),
        (DEFAULTS, "worker", "replicas", 1),
        (DEFAULTS, "delivery", "replicas", 2),
        (DEFAULTS, "worker", "template.spec.topologySpreadConstraints", None),
        (DEFAULTS, "worker", "template.spec.serviceAccountName", "fleet-postback"),
        ({"serviceAccount": {"create": False, "name": "a"}}, "worker", "template.spec.serviceAccountName", "a"),
        (REGISTRY, "worker", "template.spec.containers.1.name", "proxy"),
        (REGISTRY, "worker", "template.spec.initContainers.0.name", "wait"),
        (ON_GPUS, "worker", "template.spec.volumes.*.emptyDir.sizeLimit", "8Gi"),
        (ON_GPUS, "worker", "template.spec.containers.0.volumeMounts.*.mountPath", "/dev/shm"),
        (ON_GPUS, "worker", "template.spec.volumes.*.persistentVolumeClaim.claimName", "models"),
        (ON_GPUS, "delivery", "template.spec.containers.0.args.-1", "::"),
        (gateway(tls=CLIENTS), "gateway", "template.spec.containers.0.args.*", "/etc/postback/client-ca/ca.pem"),
    ],
)
def test_a_value_stands_in_its_place_of_the_role_s_statefulset(
    values: Manifest, component: str, place: str, expected: object
) -> None:
    assert expected in list(found_at(find(render(values), "StatefulSet", component)["spec"], place.split(".")))


def found_at(value: Any, steps: list[str]) -> Iterator[object]:
    """Yield the values at a place: names and indexes; `*` is each element of a list."""
    if not steps:
        yield value
    elif isinstance(value, list):
        for each in value if steps[0] == "*" else [value[int(steps[0])]]:
            yield from found_at(each, steps[1:])
    else:
        yield from found_at((value or {}).get(steps[0]), steps[1:])


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("variable", "expected"),
    [("ALLOW_CALLBACKS", "10.1.0.0/16,10.2.0.0/16"), ("DENY", ",".join(DENIED))],
    ids=["callbacks to internal networks are allowed", "networks of the operator's are denied"],
)
def test_both_roles_judge_addresses_by_the_same_rules(role: str, variable: str, expected: str) -> None:
    assert environment(container_of(render(SECURED), role))[f"POSTBACK_EGRESS__{variable}"] == expected


def test_only_delivery_holds_the_keyring_and_others_cannot_read_it() -> None:
    manifests = render(SECURED)

    volumes = {role: {v["name"]: v for v in pod_of(manifests, role)["volumes"]} for role in ROLES}
    assert volumes["delivery"]["keyring"]["secret"] == {"secretName": "blue-keys", "defaultMode": 0o440}
    assert "keyring" not in volumes["worker"]
    assert environment(container_of(manifests, "delivery"))["POSTBACK_KEYRING"] == "/etc/postback/keyring/ring.json"


def test_the_program_s_settings_are_those_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {**SECURED, "worker": {"drainSeconds": 77}, "delivery": {"drainSeconds": 88}}
    manifests = render(values)
    for role in ROLES:
        for name, value in environment(container_of(manifests, role)).items():
            monkeypatch.setenv(name, value if isinstance(value, str) else "from-a-secret")

    fleet = FleetSettings()
    assert fleet.env == "production"
    assert fleet.kafka.topics.results == "blue.model_results"
    assert fleet.kafka.client_config() == {
        "bootstrap.servers": "kafka-0.example:9093,kafka-1.example:9093",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "from-a-secret",
        "sasl.password": "from-a-secret",
        "ssl.ca.location": "/etc/postback/kafka/ca.crt",
        "ssl.certificate.location": "/etc/postback/kafka/tls.crt",
        "ssl.key.location": "/etc/postback/kafka/tls.key",
        "queued.min.messages": "10000000",
        "socket.keepalive.enable": "true",
    }
    assert WorkerSettings().drain_seconds == 77
    assert DeliverySettings().drain_seconds == 88
    assert [str(network) for network in EgressSettings().allow_callbacks] == ["10.1.0.0/16", "10.2.0.0/16"]
    assert [str(network) for network in EgressSettings().allow_fetch] == ["fd00::/8"]


def test_the_topics_job_which_has_another_kafka_client_understands_the_same_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = next(m for m in render(SECURED) if m["kind"] == "Job")
    for name, value in environment(job["spec"]["template"]["spec"]["containers"][0]).items():
        monkeypatch.setenv(name, value if isinstance(value, str) else "from-a-secret")

    assert connection_config(FleetSettings().kafka) == {
        "bootstrap_servers": ["kafka-0.example:9093", "kafka-1.example:9093"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "from-a-secret",
        "sasl_plain_password": "from-a-secret",
        "ssl_cafile": "/etc/postback/kafka/ca.crt",
        "ssl_certfile": "/etc/postback/kafka/tls.crt",
        "ssl_keyfile": "/etc/postback/kafka/tls.key",
        "ssl_password": "from-a-secret",
    }


def test_the_default_values_reach_the_program_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(container_of(render(DEFAULTS), "delivery")).items():
        monkeypatch.setenv(name, value if isinstance(value, str) else "fleet-postback-delivery-0")

    assert FleetSettings().replica == "fleet-postback-delivery-0"
    assert FleetSettings().kafka.client_config() == {
        "bootstrap.servers": "kafka:9092",
        "security.protocol": "PLAINTEXT",
    }
    assert EgressSettings().allow_callbacks == ()


def test_values_of_the_fleet_reach_every_pod_unless_its_role_has_its_own() -> None:
    manifests = render(MESHED)
    worker, delivery = (container_of(manifests, role) for role in ROLES)

    for pod in pods(manifests):
        own = pod["containers"][0]["name"] == "worker"
        assert pod["priorityClassName"] == ("inference" if own else "fleet")
        assert pod["nodeSelector"] == {"pool": "inference"}
        assert pod["tolerations"] == MESHED["tolerations"]
        for container in pod["containers"]:
            env = [(each["name"], each.get("value")) for each in container["env"]]
            assert ("HTTPS_PROXY", "http://proxy:3128") in env
            levels = [value for name, value in env if name == "POSTBACK_LOG_LEVEL"]
            assert levels == ["debug" if own else "info"]
            assert container["envFrom"] == [{"configMapRef": {"name": "everywhere"}}]
    assert [each["livenessProbe"]["timeoutSeconds"] for each in (worker, delivery)] == [20, 20]
    assert delivery["livenessProbe"]["failureThreshold"] == 6, "the other times stay"


@pytest.mark.parametrize("role", ["worker", "delivery", "gateway"])
def test_a_constraint_on_the_spread_counts_the_pods_of_its_role_unless_it_says_which(role: str) -> None:
    manifests = render(MESHED)
    selected = find(manifests, "StatefulSet", role)["spec"]["selector"]

    assert pod_of(manifests, role)["topologySpreadConstraints"] == [
        {**MESHED["topologySpreadConstraints"][0], "labelSelector": selected}
    ]
    [own] = ON_GPUS["worker"]["topologySpreadConstraints"]  # type: ignore[index]
    assert pod_of(render(ON_GPUS), "worker")["topologySpreadConstraints"] == [own]


def test_a_variable_of_the_operators_replaces_the_charts_own() -> None:
    own = {"name": "POSTBACK_KAFKA__REPLICATION_FACTOR", "value": "1"}
    for container in own_containers(render({"extraEnv": [own]})):
        assert [each for each in container["env"] if each["name"] == own["name"]] == [own]


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_example_is_complete_as_printed(example: Path) -> None:
    text = example.read_text().replace("\\\n#", "")
    [(verb, options)] = re.findall(r"^# +helm (install|upgrade) (.*)$", text, re.MULTILINE)
    printed = [option for option in options.split() if option not in ("--reuse-values", "--wait")]
    earlier = "--set image.repository=postback" if verb == "upgrade" else ""

    done = subprocess.run(
        [ensure(HELM), "template", *printed, "--kube-version", OLDEST_KUBERNETES, *earlier.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ("--reuse-values" in options) == (verb == "upgrade")
    assert done.returncode == 0, done.stderr


def test_the_page_of_a_fleet_on_gpus_names_objects_alerts_and_labels_of_its_values() -> None:
    page = (ROOT / "docs" / "howto" / "first-fleet.md").read_text()
    manifests = render(VALUE_SETS["scaled-gpus"])
    objects = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in manifests}
    rules = next(each for each in manifests if each["kind"] == "PrometheusRule")["spec"]["groups"]
    [stack] = re.findall(r"helm install (\S+) kube-prometheus-stack ", page)
    watched = [each for each in manifests if each["kind"] in ("PodMonitor", "PrometheusRule")]

    assert set(re.findall(r"\b(?:deployment|statefulset)/\S+", page)) - objects == set()
    assert set(re.findall(r"grep -o (\w+)", page)) <= {
        rule["alert"] for group in rules for rule in group["rules"] if "alert" in rule
    }
    assert [each["metadata"]["labels"]["release"] for each in watched] == [stack] * 3
    assert find(manifests, "ScaledObject", "worker")["spec"]["minReplicaCount"] == 0
    assert VALUE_SETS["scaled-gpus"]["kafka"]["bootstrapServers"] == VALUE_SETS["cpu-demo"]["kafka"]["bootstrapServers"]


def test_the_demos_kafka_is_valid_and_at_the_demos_address(kubeconform: Kubeconform) -> None:
    text = (ROOT / "helm" / "demo-kafka.yaml").read_text()
    service, deployment = yaml.safe_load_all(text)
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    address = VALUE_SETS["cpu-demo"]["kafka"]["bootstrapServers"]
    of_compose = compose_model()["services"]["kafka"]

    assert kubeconform.faults(text, OLDEST_KUBERNETES) == {}
    assert address == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert environment(container)["KAFKA_ADVERTISED_LISTENERS"] == f"FLEET://{address}"
    assert container["image"] == of_compose["image"]
    assert environment(container).keys() - {"KAFKA_HEAP_OPTS"} <= of_compose["environment"].keys()


def test_without_the_images_name_nothing_is_rendered_and_the_error_says_what_to_set() -> None:
    error = refusal({"image": {"repository": ""}})

    assert "image.repository: name the image that you built and pushed, such as registry.example/postback" in error
    assert refusal({"image": {"repository": ""}, "worker": {"image": {"repository": "heavy"}}})


def test_the_notes_name_the_image_of_every_pod(tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "postback")
    notes = (chart / "templates" / "NOTES.txt").read_text()
    # `helm template` renders no notes, so they become an object here.
    (chart / "templates" / "notes.yaml").write_text(
        f'{{{{ define "notes" }}}}{notes}{{{{ end }}}}kind: Notes\ntext: {{{{ include "notes" . | toJson }}}}\n'
    )
    done = helm("template", "fleet", str(chart), values=VALUE_SETS["many-gpus"])
    [text] = [each["text"] for each in yaml.safe_load_all(done.stdout) if each["kind"] == "Notes"]

    assert "fleet-postback-worker-small, of registry.example/postback:0.1.0-gpu: 1 to 16 worker(s)" in text
    assert "The other pods run registry.example/postback:0.1.0." in text
    assert "name it in image.repository" in text


@pytest.mark.parametrize("role", ROLES)
def test_a_voluntary_disruption_takes_one_replica_at_a_time_unless_told_otherwise(role: str) -> None:
    manifests = render(DEFAULTS)

    budget = find(manifests, "PodDisruptionBudget", role)["spec"]
    assert budget["maxUnavailable"] == 1
    statefulset = find(manifests, "StatefulSet", role)["spec"]
    assert budget["selector"] == statefulset["selector"] == {"matchLabels": budget["selector"]["matchLabels"]}
    assert budget["selector"]["matchLabels"].items() <= statefulset["template"]["metadata"]["labels"].items()


def test_topics_are_made_before_anything_that_reads_them() -> None:
    job = next(m for m in render(SECURED) if m["kind"] == "Job")

    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == [
        "topics",
        "create",
        "--fix-config",
        "--engine",
        "big",
        "--engine",
        "small",
    ]
    # A hook runs before the chart's own objects exist, so it must not use any of them.
    assert "serviceAccountName" not in job["spec"]["template"]["spec"]
    assert not [m for m in render(AT_REST) if m["kind"] == "Job"]


def test_every_process_and_the_topics_job_get_the_waits_between_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifests = render(SECURED)
    for container in own_containers(manifests):
        told = environment(container)["POSTBACK_KAFKA__TIER_DELAYS_SECONDS"]
        monkeypatch.setenv("POSTBACK_KAFKA__TIER_DELAYS_SECONDS", told)
        assert FleetSettings().kafka.tier_delays_seconds == (0.5, 60, 432_000)
    assert len([*own_containers(manifests)]) == 5
    job = next(m for m in manifests if m["kind"] == "Job")["spec"]["template"]["spec"]["containers"][0]
    assert job["envFrom"] == [{"secretRef": {"name": "more"}}]
    for container in own_containers(render(DEFAULTS)):
        assert "POSTBACK_KAFKA__TIER_DELAYS_SECONDS" not in environment(container)


@pytest.mark.parametrize(
    "told",
    [
        {"model": "org/model"},
        {"extraArgs": ["--model", "org/model"]},
        {"extraEnv": [{"name": "POSTBACK_ENGINE__OPENAI__MODEL", "value": "org/model"}]},
        {"extraEnvFrom": [{"configMapRef": {"name": "engine"}}]},
    ],
)
def test_each_way_of_naming_an_engines_model_is_accepted(told: Manifest) -> None:
    assert render({"worker": {"engine": "openai", **told}})


def test_further_objects_of_the_values_are_rendered_with_their_templates() -> None:
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "{{ .Release.Name }}-door"},
        "spec": {"rules": [{"backendRefs": [{"name": '{{ include "postback.fullname" . }}-door', "port": 8443}]}]},
    }
    [found] = [each for each in render(DEFAULTS | {"extraObjects": [route]}) if each["kind"] == "HTTPRoute"]
    assert found["metadata"]["name"] == "fleet-door"
    assert found["spec"]["rules"][0]["backendRefs"] == [{"name": "fleet-postback-door", "port": 8443}]
    assert "HTTPRoute" not in {each["kind"] for each in render(DEFAULTS)}


POSTGRESQL = {"store": {"existingSecret": "store"}, "pepper": {"existingSecret": "pepper"}}


def test_the_default_gateway_is_one_pod_whose_store_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = render(GATEWAY)
    statefulset = find(manifests, "StatefulSet", "gateway")["spec"]

    container = container_of(manifests, "gateway")
    for name, value in environment(container).items():
        monkeypatch.setenv(name, value if isinstance(value, str) else "fleet-postback-gateway-0")
    [mount] = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "store"]
    [claim] = statefulset["volumeClaimTemplates"]
    assert (claim["metadata"]["name"], statefulset["replicas"]) == ("store", 1)
    assert StoreSettings().url == f"sqlite:///{mount}/gateway.db"
    assert str(FilesSettings().place).startswith(mount)
    assert AccessSettings().pepper_file is None, "the first start makes it beside the SQLite file"
    assert GatewaySettings().stop_seconds == 15
    assert FleetSettings().keyring == "/etc/postback/keyring/keyring.json"
    assert container["args"][:3] == ["gateway", "--roles", ",".join(GATEWAY_ROLES)]


def test_several_gateways_share_postgresql_the_pepper_and_a_bucket() -> None:
    manifests = render(MANY)

    for pool in ("door", "background"):
        statefulset = find(manifests, "StatefulSet", f"gateway-{pool}")["spec"]
        env = environment(container_of(manifests, f"gateway-{pool}"))
        assert env["POSTBACK_STORE__URL"] == {"secretKeyRef": {"name": "gateway-store", "key": "url"}}
        assert env["POSTBACK_ACCESS__PEPPER_FILE"] == "/etc/postback/pepper/pepper"
        assert env["POSTBACK_FILES__PLACE"] == "s3://inference-files/gateway"
        assert env["POSTBACK_ACCESS__REDIS_URL"] == {"secretKeyRef": {"name": "redis", "key": "url"}}
        assert env["POSTBACK_DELTAS__REDIS_URL"] == {"secretKeyRef": {"name": "redis", "key": "url"}}
        assert "volumeClaimTemplates" not in statefulset


def test_requests_reach_the_pods_with_the_door_and_no_others() -> None:
    manifests = render(MANY)

    service = find(manifests, "Service", "door")["spec"]
    labels = {
        pool: find(manifests, "StatefulSet", f"gateway-{pool}")["spec"]["template"]["metadata"]["labels"]
        for pool in ("door", "background")
    }
    assert [pool for pool in labels if service["selector"].items() <= labels[pool].items()] == ["door"]
    ports = {pool: [p["name"] for p in container_of(manifests, f"gateway-{pool}")["ports"]] for pool in labels}
    assert ports == {"door": ["metrics", "https"], "background": ["metrics"]}
    assert service["ports"] == [{"name": "https", "port": 443, "targetPort": "https"}]
    [rule] = find(manifests, "Ingress", "door")["spec"]["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"] == {"name": "fleet-postback-door", "port": {"name": "https"}}


def test_behind_a_mesh_the_door_speaks_plain_http_on_a_port_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = render(MESHED)
    container = container_of(manifests, "gateway")

    monkeypatch.setenv("POSTBACK_GATEWAY__PLAIN_HTTP", environment(container)["POSTBACK_GATEWAY__PLAIN_HTTP"])
    assert GatewaySettings().plain_http
    assert "--tls-cert" not in container["args"]
    assert "door" not in {volume["name"] for volume in pod_of(manifests, "gateway")["volumes"]}
    assert {"name": "http", "containerPort": 8443} in container["ports"]
    service = find(manifests, "Service", "door")["spec"]
    assert service["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    [policy] = [m for m in manifests if m["kind"] == "NetworkPolicy"]
    assert {"ports": [{"port": "http"}]} in policy["spec"]["ingress"]
    route = find(manifests, "HTTPRoute", "door")["spec"]
    assert route["rules"] == [{"backendRefs": [{"name": "fleet-postback-door", "port": 80}]}]
    assert route["parentRefs"] == [{"name": "public", "namespace": "gateways"}]


@pytest.mark.parametrize(
    ("values", "secret"), [(GATEWAY, "door"), (MANY, "fleet-postback-gateway-tls")], ids=["own", "cert-manager"]
)
def test_the_doors_certificate_lies_where_the_command_reads_it(values: Manifest, secret: str) -> None:
    manifests = render(values)
    name = "gateway" if values is GATEWAY else "gateway-door"
    arguments = container_of(manifests, name)["args"]

    [mount] = [m for m in container_of(manifests, name)["volumeMounts"] if m["name"] == "door"]
    assert "subPath" not in mount, "a renewed certificate would not reach the pod"
    for option, file in (("--tls-cert", "tls.crt"), ("--tls-key", "tls.key")):
        assert arguments[arguments.index(option) + 1] == f"{mount['mountPath']}/{file}"
    [volume] = [v for v in pod_of(manifests, name)["volumes"] if v["name"] == "door"]
    assert volume["secret"] == {"secretName": secret, "defaultMode": 0o440}


def test_cert_manager_writes_the_secret_that_the_pods_mount_for_every_name_of_the_door() -> None:
    certificate = find(render(MANY), "Certificate", "door")["spec"]

    assert certificate["secretName"] == "fleet-postback-gateway-tls"
    assert certificate["issuerRef"] == {"name": "internal", "kind": "ClusterIssuer"}
    assert certificate["dnsNames"] == [
        "fleet-postback-door",
        "fleet-postback-door.inference.svc",
        "inference.example.com",
    ]


GUARDED = {**SECURED, **GATEWAY, "networkPolicy": {"enabled": True, "egress": {"enabled": True}}}
PORTS = [80, 443, 8080, 8443]
GLOBAL_UNICAST = ip_network("2000::/3")
ISATAP = (0x0000_5EFE, 0x0200_5EFE)


@cache
def policy(component: str) -> list[Manifest]:
    rules: list[Manifest] = find(render(GUARDED), "NetworkPolicy", f"{component}-egress")["spec"]["egress"]
    return rules


def lets_out(rules: list[Manifest], address: IPv4Address | IPv6Address, port: int) -> bool:
    """True if a rule with an address block lets a packet out, by the semantics of NetworkPolicy v1."""
    return any(
        _is_in(peer["ipBlock"], address)
        for rule in rules
        if "ports" not in rule or port in [each["port"] for each in rule["ports"]]
        for peer in rule.get("to", [])
        if "ipBlock" in peer
    )


def _is_in(block: dict[str, Any], address: IPv4Address | IPv6Address) -> bool:
    inside = address in ip_network(block["cidr"])
    return inside and not any(address in ip_network(each) for each in block.get("except", []))


@every_value_set
def test_each_exception_lies_within_its_block_as_the_api_server_requires(values: Manifest) -> None:
    for manifest in (m for m in render(values) if m["kind"] == "NetworkPolicy"):
        for rule in manifest["spec"].get("egress", []):
            for block in (peer["ipBlock"] for peer in rule.get("to", []) if "ipBlock" in peer):
                whole = ip_network(block["cidr"])
                for each in map(ip_network, block.get("except", [])):
                    assert each.version == whole.version
                    assert each.prefixlen > whole.prefixlen


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6, network=GLOBAL_UNICAST) | st.ip_addresses(v=6))
def test_a_role_reaches_the_addresses_that_the_guard_takes_for_public_and_no_others(
    address: IPv4Address | IPv6Address,
) -> None:
    rules = policy("delivery")
    denied = [ip_network(each) for each in SECURED["egress"]["deny"] if each[0] != "*"]  # type: ignore[index]
    allowed = [ip_network(each) for each in SECURED["egress"]["allowCallbacks"]]  # type: ignore[index]
    if any(address in network for network in (*denied, *allowed)):
        return
    # A policy cannot judge an IPv4 address in an IPv6 address. The chart closes NAT64; only the guard judges ISATAP.
    inner = isinstance(address, IPv6Address) and (
        address not in GLOBAL_UNICAST or (int(address) >> 32) & 0xFFFF_FFFF in ISATAP
    )

    assert lets_out(rules, address, 443) == is_public_address(address) or inner


@pytest.mark.parametrize("component", ["worker", "delivery", "gateway"])
def test_denied_networks_and_other_ports_are_closed(component: str) -> None:
    rules = policy(component)

    for denied in ("34.118.224.1", "198.51.100.7", "2600:1900::1", "169.254.169.254", "10.200.0.1", "fd00:ec2::254"):
        open_by_the_operator = component == "worker" and denied.startswith("fd00")
        assert lets_out(rules, ip_address(denied), 443) == open_by_the_operator, denied
    assert [port for port in (22, *PORTS) if lets_out(rules, ip_address("93.184.215.14"), port)] == PORTS


def test_internal_callbacks_open_nothing_to_workers_and_internal_sources_nothing_to_delivery() -> None:
    reached = {
        component: [lets_out(policy(component), ip_address(each), 9999) for each in ("10.1.0.1", "fd00::1")]
        for component in ("worker", "delivery", "gateway")
    }

    assert reached == {"worker": [False, True], "delivery": [True, False], "gateway": [True, False]}


def test_the_light_roles_reach_kafka_and_name_servers_only() -> None:
    for component in ("exporter", "topics"):
        ports = [[port["port"] for port in rule["ports"]] for rule in policy(component)]
        assert ports == [[53, 53], [9093]]


def test_others_reach_the_metrics_port_and_the_door_only() -> None:
    [guarded] = [m for m in render(GUARDED) if m["kind"] == "NetworkPolicy" and "ingress" in m["spec"]]
    [plain] = [m for m in render(SECURED) if m["kind"] == "NetworkPolicy"]

    assert guarded["spec"]["ingress"] == [{"ports": [{"port": "metrics"}]}, {"ports": [{"port": "https"}]}]
    assert plain["spec"]["ingress"] == [{"ports": [{"port": "metrics"}]}]
    assert not [m for m in render(DEFAULTS) if m["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize(("readiness", "status"), [(READY, 0), (Readiness(("the engine is away",)), 1)])
def test_helms_test_passes_when_every_role_is_ready_and_names_the_one_that_is_not(
    readiness: Readiness, status: int
) -> None:
    [ready, _] = _test_pod(GATEWAY)["containers"]
    with HealthServer(Metrics(), lambda: readiness) as server:
        url = f"http://127.0.0.1:{server.port}/readyz"
        done = subprocess.run(
            [sys.executable, *ready["command"][1:], ready["args"][0], "0", url],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    assert done.returncode == status, done.stderr
    assert ("the engine is away" in done.stderr) == (status == 1)


def test_each_role_of_the_example_with_many_gpus_reaches_its_redis() -> None:
    rendered = render(VALUE_SETS["many-gpus"])
    users = ("worker", "gateway")
    found = {
        role: [
            rule["to"]
            for rule in find(rendered, "NetworkPolicy", f"{role}-egress")["spec"]["egress"]
            if rule.get("ports") == [{"port": 6379}]
        ]
        for role in users
    }

    assert found == {role: [[{"podSelector": {"matchLabels": {"app": "redis"}}}]] for role in users}


def test_helms_test_asks_every_role_that_has_a_pod_and_lets_doctor_look_at_the_fleet() -> None:
    pod = _test_pod(GATEWAY)

    [ready, doctor] = pod["containers"]
    roles = ("delivery", "exporter", "worker", "gateway")
    assert ready["args"][2:] == [f"http://fleet-postback-{role}.inference.svc:9464/readyz" for role in roles]
    assert doctor["args"] == ["doctor"]
    assert environment(doctor)["POSTBACK_KAFKA__BOOTSTRAP_SERVERS"] == "kafka:9092"
    scaled = _test_pod({**VALUE_SETS["many-gpus"], "test": {"doctor": False}})["containers"]
    assert [each["name"] for each in scaled] == ["ready"]
    asked = [url for url in scaled[0]["args"] if "worker" in url]
    assert asked == ["http://fleet-postback-worker-small.inference.svc:9464/readyz"], "the other may have no pod"
    resting = _test_pod(AT_REST)["containers"][0]["args"][2:]
    assert resting == ["http://fleet-postback-exporter.inference.svc:9464/readyz"], "no other role has a pod"


def _test_pod(values: Manifest) -> Manifest:
    [pod] = [m for m in render(values) if m["kind"] == "Pod"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    spec: Manifest = pod["spec"]
    return spec


EXTRA = "POSTBACK_ENGINE__VLLM__EXTRA"
VLLM = {"engine": "vllm", "model": "org/model"}
DIGEST = "sha256:" + "0" * 64
POOLS: Manifest = {
    "image": {"repository": "light", "tag": "1"},
    "worker": {
        "replicas": 3,
        "gpus": 2,
        "lane": "big",
        "image": {"repository": "heavy", "tag": "2"},
        "pools": {"idle": {"replicas": 0, "gpus": 0, "lane": ""}, "new": {"image": {"digest": DIGEST}}},
    },
}


def test_a_pool_has_the_workers_values_except_those_that_it_sets_itself_even_to_zero_or_empty() -> None:
    manifests = render(POOLS)

    assert not [m for m in manifests if m["metadata"]["name"] == "fleet-postback-worker"]
    idle, new = (find(manifests, "StatefulSet", f"worker-{pool}")["spec"] for pool in ("idle", "new"))
    assert (idle["replicas"], new["replicas"]) == (0, 3)
    limits = [spec["template"]["spec"]["containers"][0]["resources"]["limits"] for spec in (idle, new)]
    assert [each.get("nvidia.com/gpu") for each in limits] == [None, 2]
    lanes = [
        environment(container_of(manifests, f"worker-{pool}")).get("POSTBACK_WORKER__LANE") for pool in ("idle", "new")
    ]
    assert lanes == [None, "big"]


def test_vllm_is_told_to_use_every_gpu_of_its_pod() -> None:
    """In an earlier version a pod of four GPUs used only one, since vLLM uses one unless it is told otherwise."""
    [example] = [each for each in yaml_blocks(ROOT / "docs" / "DEPLOY.md") if "pools" in each.get("worker", {})]
    for values in (example, MANY):
        manifests = render(values)
        told = {pool: environment(container_of(manifests, f"worker-{pool}")).get(EXTRA) for pool in ("small", "large")}
        assert told == {"small": None, "large": '{"tensor_parallel_size":4}'}
    own = {"name": EXTRA, "value": '{"tensor_parallel_size": 2, "pipeline_parallel_size": 2}'}
    env = container_of(render({"worker": {**VLLM, "gpus": 4, "extraEnv": [own]}}), "worker")["env"]
    assert [each for each in env if each["name"] == EXTRA] == [own]
    assert EXTRA not in environment(container_of(render({"worker": {"gpus": 4}}), "worker")), "echo has no use for it"


def yaml_blocks(page: Path) -> list[Manifest]:
    return [
        yaml.safe_load(each) for each in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    ]


def test_the_objects_of_two_pools_select_no_pod_of_each_other() -> None:
    manifests = render(POOLS)
    labels = {
        pool: find(manifests, "StatefulSet", f"worker-{pool}")["spec"]["template"]["metadata"]["labels"]
        for pool in ("idle", "new")
    }

    for pool, other in (("idle", "new"), ("new", "idle")):
        selectors = [
            find(manifests, "StatefulSet", f"worker-{pool}")["spec"]["selector"]["matchLabels"],
            find(manifests, "PodDisruptionBudget", f"worker-{pool}")["spec"]["selector"]["matchLabels"],
            find(manifests, "Service", f"worker-{pool}")["spec"]["selector"],
        ]
        for selector in selectors:
            assert selector.items() <= labels[pool].items()
            assert not selector.items() <= labels[other].items()


def test_workers_may_run_another_image_than_the_rest_and_a_digest_takes_precedence_over_a_tag() -> None:
    manifests = render(POOLS)

    images = {name: container_of(manifests, name)["image"] for name in ("worker-idle", "worker-new", "delivery")}
    assert images == {"worker-idle": "heavy:2", "worker-new": f"heavy@{DIGEST}", "delivery": "light:1"}
    both = render({"image": {"digest": DIGEST}, "worker": {"image": {"tag": "gpu"}}})
    assert container_of(both, "worker")["image"] == "postback:gpu", "a digest is that of one image only"
    assert container_of(both, "delivery")["image"] == f"postback@{DIGEST}"


def test_each_pool_scales_by_the_jobs_of_its_lane_and_the_exporter_has_the_widest_bounds() -> None:
    manifests = render(MANY)

    scaled = {pool: find(manifests, "ScaledObject", f"worker-{pool}")["spec"] for pool in ("small", "large")}
    for pool, spec in scaled.items():
        assert spec["triggers"][0]["metadata"]["valueLocation"] == f'lanes.#(lane=="{pool}").wanted_replicas'
        assert spec["scaleTargetRef"]["name"] == f"fleet-postback-worker-{pool}"
    bounds = {"MIN_REPLICAS": "0", "MAX_REPLICAS": "16", "START_SECONDS": "600", "MARGIN_SECONDS": "900"}
    swapped = {"large": MANY["worker"]["pools"]["small"] | {"lane": "a"}, "small": MANY["worker"]["pools"]["large"]}
    assert told_to_the_exporter(manifests) == bounds
    assert told_to_the_exporter(render({**MANY, "worker": {**MANY["worker"], "pools": swapped}})) == bounds
    job = next(m for m in manifests if m["kind"] == "Job")["spec"]["template"]["spec"]["containers"][0]
    assert job["args"] == ["topics", "create", "--engine", "large", "--engine", "small"]


def told_to_the_exporter(manifests: list[Manifest]) -> Manifest:
    exporter = find(manifests, "Deployment", "exporter")["spec"]["template"]["spec"]["containers"][0]
    prefix = "POSTBACK_EXPORTER__"
    return {name.removeprefix(prefix): told for name, told in environment(exporter).items() if name.startswith(prefix)}


def test_a_registry_replaces_engine_and_model_in_every_worker(tmp_path: Path) -> None:
    manifests = render(REGISTRY)

    container = container_of(manifests, "worker")
    assert container["args"][0] == "worker"
    assert "--engine" not in container["args"]
    [mount] = [m for m in container["volumeMounts"] if m["name"] == "models"]
    assert "subPath" not in mount, "a changed registry would not reach the pod"
    assert environment(container)["POSTBACK_WORKER__REGISTRY"] == f"{mount['mountPath']}/models.toml"
    [volume] = [v for v in pod_of(manifests, "worker")["volumes"] if v["name"] == "models"]
    made = find(manifests, "ConfigMap", "models")
    assert volume["configMap"]["name"] == made["metadata"]["name"]
    (tmp_path / "models.toml").write_text(made["data"]["models.toml"])
    checked = subprocess.run(
        [Path(sys.executable).with_name("postback"), "models", "check", "--file", tmp_path / "models.toml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stderr
    [given] = [v for v in pod_of(render(MANY), "worker-small")["volumes"] if v["name"] == "models"]
    assert given["configMap"]["name"] == "models"


def test_keys_come_from_secrets_by_the_name_that_their_reader_looks_for() -> None:
    hosted = {"engine": "openai", "model": "m", "apiKey": {"existingSecret": "hosted", "key": "k"}}
    manifests = render({**REGISTRY, "models": {}, "worker": {**hosted, "hubToken": {"existingSecret": "hub"}}})

    env = environment(container_of(manifests, "worker"))
    assert env["POSTBACK_ENGINE__OPENAI__API_KEY"] == {"secretKeyRef": {"name": "hosted", "key": "k"}}
    assert env["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert env["POSTBACK_CACHE__REDIS_URL"] == {"secretKeyRef": {"name": "redis", "key": "url"}}
    assert env["POSTBACK_DELTAS__REDIS_URL"] == {"secretKeyRef": {"name": "redis", "key": "url"}}
    assert (env["POSTBACK_TRUST__SECRET_FILE"], env["POSTBACK_WORKER__TRUST"]) == (
        "/etc/postback/trust/secrets",
        "signed",
    )


def test_models_are_downloaded_into_the_workers_cache_before_it_starts() -> None:
    values = {"download": {"enabled": True, "models": ["org/a@abc", "org/b"]}, "hubToken": {"existingSecret": "hub"}}
    statefulset = find(render({"worker": values | {"cache": {"claimSize": "10Gi"}}}), "StatefulSet", "worker")["spec"]

    pod = statefulset["template"]["spec"]
    asked = [[*each["command"], *each["args"]] for each in pod["initContainers"]]
    assert asked == [["hf", "download", "org/a", "--revision", "abc"], ["hf", "download", "org/b"]]
    for each in pod["initContainers"]:
        assert environment(each)["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
        assert {"name": "cache", "mountPath": "/var/cache/postback"} in each["volumeMounts"]
    [claim] = statefulset["volumeClaimTemplates"]
    assert (claim["metadata"]["name"], claim["spec"]["resources"]["requests"]["storage"]) == ("cache", "10Gi")
    assert "cache" not in {volume["name"] for volume in pod["volumes"]}
    hf = subprocess.run([Path(sys.executable).with_name("hf"), "download", "--help"], capture_output=True, text=True)
    assert "--revision" in hf.stdout, hf.stderr


def test_common_labels_and_annotations_are_on_every_object_and_pod_and_select_nothing() -> None:
    for manifest in render(GATEWAY):
        template = manifest["spec"].get("template", {}).get("metadata") if "spec" in manifest else None
        for metadata in filter(None, (manifest["metadata"], template)):
            assert metadata["labels"]["team"] == "inference", manifest["kind"]
            assert metadata["annotations"]["contact"] == "inference@example.com", manifest["kind"]
        assert "team" not in str(manifest.get("spec", {}).get("selector", ""))


def test_openshift_chooses_the_user_and_the_group() -> None:
    for pod in pods(render(VALUE_SETS["openshift"])):
        assert pod["securityContext"].keys() == {"runAsNonRoot", "fsGroupChangePolicy", "seccompProfile"}


def exporter_of(manifests: list[Manifest]) -> Manifest:
    container: Manifest = find(manifests, "Deployment", "exporter")["spec"]["template"]["spec"]["containers"][0]
    return container


@every_value_set
def test_custom_resources_are_valid_by_their_own_schemas(values: Manifest) -> None:
    custom = [manifest for manifest in render(values) if is_custom(manifest)]

    for manifest in custom:
        validate_custom(manifest)
    kinds = {"ScaledObject", "PodMonitor", "PrometheusRule"}
    made = {
        "scaled": kinds,
        "scaled-gpus": kinds,
        "many-gpus": {*kinds, "Certificate"},
        "meshed": {"HTTPRoute", "ServiceMonitor"},
    }
    [name] = [name for name, each in VALUE_SETS.items() if each is values]
    assert {manifest["kind"] for manifest in custom} == made.get(name, set())


def test_a_misspelt_field_of_a_custom_resource_is_noticed() -> None:
    scaled = find(render(SCALED), "ScaledObject", "worker")
    scaled["spec"]["maxReplicas"] = 4

    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        validate_custom(scaled)


@pytest.mark.parametrize(("role", "stable", "bounds"), [("worker", 720, (0, 24)), ("delivery", 60, (2, 4))])
def test_pods_are_removed_one_at_a_time_and_only_after_the_longest_job_and_the_drain(
    role: str, stable: int, bounds: tuple[int, int]
) -> None:
    manifests = render(SCALED)
    spec = find(manifests, "ScaledObject", role)["spec"]

    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert (down["stabilizationWindowSeconds"], spec["cooldownPeriod"]) == (stable, stable)
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 60}]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == bounds
    assert spec["fallback"] == {"failureThreshold": 3, "behavior": "currentReplicasIfHigher", "replicas": 1}
    target = find(manifests, "StatefulSet", role)
    assert spec["scaleTargetRef"]["name"] == target["metadata"]["name"]
    assert "replicas" not in target["spec"]


def test_keda_asks_the_exporters_service_for_figures_that_its_page_has() -> None:
    manifests = render({**SCALED, "worker": {"lane": "big", "autoscaling": {"enabled": True}}})
    service = find(manifests, "Service", "exporter")
    container = exporter_of(manifests)

    triggers = {role: find(manifests, "ScaledObject", role)["spec"]["triggers"] for role in ROLES}
    for [trigger] in triggers.values():
        assert trigger["type"] == "metrics-api"
        assert trigger["metadata"]["url"] == f"http://{service['metadata']['name']}.inference.svc:9464/backlog"
    assert triggers["worker"][0]["metadata"]["valueLocation"] == 'lanes.#(lane=="big").wanted_replicas'
    assert triggers["delivery"][0]["metadata"]["valueLocation"] == "fresh_callbacks"
    [ours] = find(render(SCALED), "ScaledObject", "worker")["spec"]["triggers"]
    assert (ours["metadata"]["valueLocation"], ours["metadata"]["targetValue"]) == ("wanted_replicas", "1")
    assert service["spec"]["ports"] == [{"name": "metrics", "port": 9464, "targetPort": "metrics"}]
    assert {"name": "metrics", "containerPort": 9464} in container["ports"]
    labels = find(manifests, "Deployment", "exporter")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


def test_the_exporter_s_settings_are_those_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    told = environment(exporter_of(render({**SECURED, "worker": SCALED["worker"], "kafka": {"partitions": 24}})))
    for name, value in told.items():
        monkeypatch.setenv(name, value if isinstance(value, str) else "from-a-secret")

    settings = ExporterSettings()
    assert (settings.min_replicas, settings.max_replicas) == (0, 24)
    assert (settings.start_seconds, settings.margin_seconds) == (240, 600)
    assert FleetSettings().kafka.partitions == 24


def test_kedas_requests_authenticate_themselves_where_a_proxy_asks_for_it() -> None:
    reference = {"name": "proxy", "kind": "ClusterTriggerAuthentication"}
    asked = {"authenticationRef": reference, "authMetadata": {"authMode": "bearer"}}
    scaling = {**SCALED["worker"]["autoscaling"], **asked}
    manifests = render({**SCALED, "worker": {**SCALED["worker"], "autoscaling": scaling}})
    scaled = find(manifests, "ScaledObject", "worker")
    validate_custom(scaled)
    [trigger] = scaled["spec"]["triggers"]
    [other] = find(manifests, "ScaledObject", "delivery")["spec"]["triggers"]

    assert (trigger["authenticationRef"], trigger["metadata"]["authMode"]) == (reference, "bearer")
    assert "authenticationRef" not in other
    assert "authMode" not in other["metadata"]


def test_the_gpu_monitor_keeps_the_gpus_of_the_releases_workers_for_the_job_of_the_rules() -> None:
    manifests = render(SCALED)
    [monitor] = [one for one in manifests if one["kind"] == "PodMonitor" and one["metadata"]["name"].endswith("-gpu")]
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    [kept] = endpoint["metricRelabelings"]
    workers, namespace = find(manifests, "StatefulSet", "worker")["metadata"]["name"], "inference"
    assert f'{{job="{endpoint["relabelings"][0]["replacement"]}"}}' in RULES.read_text()

    def keeps(name: str, of: str, pod: str) -> bool:
        assert kept["sourceLabels"] == ["__name__", "namespace", "pod"]
        # Prometheus also joins the labels with `;`, and anchors the expression.
        return re.fullmatch(kept["regex"], f"{name};{of};{pod}") is not None

    assert keeps("DCGM_FI_DEV_GPU_UTIL", namespace, f"{workers}-0")
    assert keeps("DCGM_FI_DEV_GPU_UTIL", namespace, f"{workers}-large-11")
    assert not keeps("DCGM_FI_DEV_GPU_UTIL", "others", f"{workers}-0")
    assert not keeps("DCGM_FI_DEV_GPU_UTIL", namespace, "training-0")
    assert not keeps("DCGM_FI_DEV_GPU_UTIL", "", "")  # no pod holds this GPU
    assert not keeps("go_goroutines", namespace, f"{workers}-0")


def test_the_operators_rules_are_those_that_promtool_tested() -> None:
    [rule] = [manifest for manifest in render(SCALED) if manifest["kind"] == "PrometheusRule"]

    assert rule["spec"] == yaml.safe_load(RULES.read_text())
    assert rule["metadata"]["labels"]["release"] == "kps"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"worker": {"replica": 3}}, "replica"),
        ({"worker": {"engine": "gpt"}}, "engine"),
        ({"worker": {"extraArgs": ["--with-delivery"]}}, "extraArgs"),
        ({"worker": {"engine": "vllm"}}, "worker.model: the engine vllm needs one"),
        ({"worker": {"engine": "openai"}}, "POSTBACK_ENGINE__OPENAI__MODEL in worker.extraEnv"),
        ({"kafka": {"tierDelaysSeconds": [0]}}, "tierDelaysSeconds"),
        ({"kafka": {"bootstrapServers": ""}}, "bootstrapServers"),
        ({"keyring": {"existingSecret": ""}}, "existingSecret"),
        ({"kafka": {"sasl": {"mechanism": "PLAIN"}}}, "kafka.sasl.existingSecret"),
        ({"kafka": {"tls": {"enabled": True, "clientCertificate": True}}}, "existingSecret"),
        ({"kafka": {"extra": {"sasl.password": "in plain sight"}}}, "sasl.password"),
        ({"delivery": {"extraVolumes": {"name": "not a list"}}}, "extraVolumes"),
        ({"delivery": {"drainSeconds": 20}}, "drainSeconds"),
        ({"egress": {"allowCallbacks": ["internal.example"]}}, "allowCallbacks"),
        ({"egress": {"deny": ["https://internal.example"]}}, "deny"),
        ({"extraEnv": [{"name": "HF_TOKEN", "value": "in plain sight"}]}, "extraEnv"),
        ({"extraEnv": [{"name": "A", "valu": "b"}]}, "valu"),
        ({"probes": {"liveness": {"timeout": 5}}}, "timeout"),
        ({"worker": {"gpuResource": "gpu"}}, "gpuResource"),
        ({"worker": {"resources": {"limit": {}}}}, "limit"),
        ({"tolerations": [{"keys": "a"}]}, "keys"),
        ({"gateway": {"enabled": True}}, "gateway.tls.existingSecret: the door needs a certificate"),
        (gateway(replicas=2), "SQLite serves one pod and 2 are asked for"),
        (gateway(pools={"a": {}, "b": {}}), "SQLite serves one pod and 2 are asked for"),
        (gateway(store={"existingSecret": "store"}), "gateway.pepper.existingSecret"),
        (gateway(replicas=2, **POSTGRESQL), "gateway.files.place: 2 pods share"),
        (gateway(roles=["door", "relay", "view"]), "no pod has the part expansion"),
        (gateway(roles=["window"]), "roles"),
        (gateway(pools={"a": {"tls": {"existingSecret": "other"}}}), "pools"),
        (gateway(tls={"certManager": {"enabled": True}}), "gateway.tls.certManager.issuer"),
        (
            gateway(tls={"existingSecret": "a", "certManager": {"enabled": True, "issuer": {"name": "b"}}}),
            "gateway.tls.existingSecret: gateway.tls.certManager is enabled too",
        ),
        (gateway(tls={"existingSecret": "a", "clientCA": {"required": True}}), "gateway.tls.clientCA.existingSecret"),
        (gateway(ingress={"enabled": True}), "gateway.ingress.host"),
        (gateway(httpRoute={"enabled": True}), "gateway.httpRoute.parentRefs"),
        (gateway(tls={"enabled": False, "existingSecret": "a"}), "gateway.tls.enabled: the door speaks plain HTTP"),
        (gateway(extraEnv=[{"name": "POSTBACK_STORE__URL", "value": "postgresql://u:in plain sight@h/d"}]), "extraEnv"),
        ({"worker": {"pools": {"a": {"replica": 1}}}}, "replica"),
        ({"worker": {"pools": {"a": {"pools": {}}}}}, "pools"),
        ({"worker": {"pools": {"Big": {}}}}, "Big"),
        ({"worker": {"pools": {"p" * 60: {}}}}, "shorten the pool's name"),
        ({"worker": {"pools": {"a": {"engine": "vllm"}}}}, "worker.model: the engine vllm needs one"),
        (
            {"worker": {"autoscaling": {"enabled": True}, "pools": {"a": {}, "b": {}}}},
            "the pools a and b scale by the same jobs",
        ),
        ({"image": {"digest": "latest"}}, "digest"),
        (
            {"worker": {**VLLM, "gpus": 4, "extraEnv": [{"name": EXTRA, "value": '{"max_num_batched_tokens": 4096}'}]}},
            "worker.gpus: the pod has 4 GPUs, and vLLM would use 1 of them",
        ),
        (
            {"worker": {**VLLM, "gpus": 4, "extraEnvFrom": [{"secretRef": {"name": "more"}}]}},
            'such as {"tensor_parallel_size": 4}',
        ),
        ({**REGISTRY, "worker": {"model": "m"}}, "the model registry names the models"),
        ({"models": {"registry": "a = 1", "existingConfigMap": "b"}}, "models.existingConfigMap"),
        ({"worker": {"download": {"enabled": True}}}, "worker.download.models"),
        ({"worker": {"cache": {"claimSize": "1Gi", "existingClaim": "a"}}}, "worker.cache.claimSize"),
        ({"trust": {"required": True}}, "trust.existingSecret"),
        (
            {"worker": {"extraEnv": [{"name": "POSTBACK_ENGINE__OPENAI__API_KEY", "value": "in plain sight"}]}},
            "extraEnv",
        ),
        ({"worker": {"autoscaling": {"enabled": True, "maxReplicas": 13}}}, "13 replicas cannot share 12 partitions"),
        ({"worker": {"autoscaling": {"enabled": True, "minReplicas": 5}}}, "worker.autoscaling.minReplicas"),
        ({"worker": {"autoscaling": {"enabled": True, "longestJobSeconds": 3590}}}, "longestJobSeconds"),
        ({"delivery": {"autoscaling": {"enabled": True}}, "exporter": {"enabled": False}}, "set exporter.enabled"),
        ({"delivery": {"autoscaling": {"lane": "big"}}}, "lane"),
        ({"delivery": {"autoscaling": {"authenticationRef": {"kind": "TriggerAuthentication"}}}}, "name"),
        ({"worker": {"autoscaling": {"authMetadata": {"token": "abc"}}}}, "token"),
        ({"worker": {"lane": "batch"}}, "lane"),
        ({"monitoring": {"podMonitor": {"interval": "often"}}}, "interval"),
        ({"monitoring": {"gpuMonitor": {"namespace": ""}}}, "namespace"),
        (
            {"monitoring": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}},
            "monitoring.serviceMonitor.enabled: monitoring.podMonitor is enabled too",
        ),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(values: Manifest, named: str) -> None:
    error = refusal(values)

    assert named in error
    assert "in plain sight" not in error
