"""The chart: its Kubernetes objects, and the settings that the program reads from them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from producers.connection import connection_config
from schemas.settings import FleetSettings
from tests.go_tools import HELM, ensure
from tests.integration.deployment import (
    AT_REST,
    AUTHORITIES,
    CHART,
    DEFAULTS,
    DENIED,
    EXAMPLES,
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
from tests.kubeconform import Kubeconform
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressSettings
from workers.inference.settings import WorkerSettings

# The first run builds Helm or compose-go's command, which takes minutes.
pytestmark = pytest.mark.timeout(1800)


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


def test_the_engines_processes_get_the_shared_memory_that_was_asked_for() -> None:
    pod = pod_of(render(ON_GPUS), "worker")

    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in pod["volumes"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}} in pod["volumes"]


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


@pytest.mark.parametrize("role", ROLES)
def test_both_roles_allow_the_same_internal_callbacks(role: str) -> None:
    allowed = environment(container_of(render(SECURED), role))["POSTBACK_EGRESS__ALLOW_CALLBACKS"]

    assert allowed == "10.1.0.0/16,10.2.0.0/16"


@pytest.mark.parametrize("role", ROLES)
def test_both_roles_deny_what_the_operator_denies(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = environment(container_of(render(SECURED), role))["POSTBACK_EGRESS__DENY"]

    monkeypatch.setenv("POSTBACK_EGRESS__DENY", denied)
    assert denied == ",".join(DENIED)
    assert len(EgressSettings().deny) == len(DENIED)


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


def test_an_operators_options_come_last_on_the_command_line_and_so_win() -> None:
    assert container_of(render(ON_GPUS), "delivery")["args"][-2:] == ["--host", "::"]


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


@pytest.mark.parametrize("role", ROLES)
def test_pods_leave_their_spread_to_the_scheduler_whose_defaults_need_no_zone_labels(role: str) -> None:
    assert "topologySpreadConstraints" not in pod_of(render(DEFAULTS), role)


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
    ],
)
def test_values_that_cannot_work_are_refused_by_name(values: Manifest, named: str) -> None:
    done = helm("template", "fleet", str(CHART), values=values)

    assert done.returncode != 0
    assert named in done.stderr
    assert "in plain sight" not in done.stderr


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
