"""The chart and compose.yaml, rendered and parsed by the real tools, and sets of values for the tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.go_tools import COMPOSE, HELM, ensure
from workers.enrichment.settings import EnrichmentSettings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "postback"
EXAMPLES = ROOT / "helm" / "values"
ROLES = ("worker", "delivery")
OLDEST_KUBERNETES = "1.30.0"
"""The oldest release that the chart's kubeVersion allows."""

Manifest = dict[str, Any]

OWN_BYTES = 512 * 2**20
"""Memory of a worker without an engine in its process, with a margin."""


def readers_bytes() -> int:
    """Upper bound on the memory of enrichment's processes: the members, and one more that only ranks passages."""
    settings = EnrichmentSettings()
    return (settings.members + 1) * settings.member_bytes


DEFAULTS: Manifest = {}
DENIED = ["34.118.224.0/20", "2600:1900::/28", "198.51.100.7", "*.corp.example"]
SECURED = {
    "kafka": {
        "bootstrapServers": "kafka-0.example:9093,kafka-1.example:9093",
        "topicPrefix": "blue.",
        "sasl": {"mechanism": "SCRAM-SHA-512", "existingSecret": "kafka-user", "passwordKey": "pass"},
        "tls": {"enabled": True, "existingSecret": "kafka-tls", "clientCertificate": True},
        "extra": {"queued.min.messages": 10000000, "socket.keepalive.enable": True},
        "tierDelaysSeconds": [0.5, 60, 432000],
    },
    "keyring": {"existingSecret": "blue-keys", "key": "ring.json"},
    "egress": {"allowCallbacks": ["10.1.0.0/16", "10.2.0.0/16"], "allowFetch": ["fd00::/8"], "deny": DENIED},
    "topics": {
        "engines": ["big", "small"],
        "fixConfig": True,
        "extraEnv": [
            {
                "name": "POSTBACK_KAFKA__EXTRA__SSL_KEY_PASSWORD",
                "valueFrom": {"secretKeyRef": {"name": "kafka-tls", "key": "password"}},
            }
        ],
        "extraEnvFrom": [{"secretRef": {"name": "more"}}],
    },
    "networkPolicy": {"enabled": True},
    "imagePullSecrets": [{"name": "registry"}],
    "serviceAccount": {"annotations": {"team": "inference"}},
}
ON_GPUS = {
    "image": {"repository": "registry.example/postback", "tag": "0.1.0-gpu"},
    "worker": {
        "replicas": 3,
        "engine": "vllm",
        "model": "org/model",
        "gpus": 2,
        "drainSeconds": 120,
        "marginSeconds": 45,
        "startupSeconds": 601,
        "shmSize": "8Gi",
        "runtimeClassName": "nvidia",
        "priorityClassName": "inference",
        "cache": {"existingClaim": "models"},
        "resources": {"requests": {"cpu": "8"}, "limits": {"memory": "64Gi"}},
        "extraEnv": [
            {"name": "POSTBACK_WORKER__LANE", "value": "big"},
            {"name": "POSTBACK_ENGINE__VLLM__EXTRA", "value": '{"tensor_parallel_size": 2}'},
        ],
        "extraEnvFrom": [{"secretRef": {"name": "hub-token"}}],
        "extraVolumes": [{"name": "profiles", "configMap": {"name": "profiles"}}],
        "extraVolumeMounts": [{"name": "profiles", "mountPath": "/etc/postback/profiles", "readOnly": True}],
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "podDisruptionBudget": {"maxUnavailable": "25%"},
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
    },
    "delivery": {"extraArgs": ["--host", "::"]},
}
AUTHORITIES: Manifest = yaml.safe_load(
    re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "DEPLOY.md").read_text(), re.MULTILINE | re.DOTALL)[-1]
)
"""The last example of docs/DEPLOY.md: a private authority and client certificates for delivery."""
AT_REST = {"topics": {"create": False}, "worker": {"replicas": 0}, "delivery": {"replicas": 0}}
SCALED: Manifest = {
    "kafka": {"partitions": 24},
    "worker": {
        "drainSeconds": 120,
        "autoscaling": {"enabled": True, "maxReplicas": 24, "longestJobSeconds": 600, "startSeconds": 240},
    },
    "delivery": {"autoscaling": {"enabled": True, "minReplicas": 2}},
    "monitoring": {
        "podMonitor": {"enabled": True},
        "gpuMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True, "labels": {"release": "kps"}},
    },
}
GATEWAY: Manifest = {
    "gateway": {"enabled": True, "tls": {"existingSecret": "door"}},
    "commonLabels": {"team": "inference"},
    "commonAnnotations": {"contact": "inference@example.com"},
}
"""A gateway in one pod, on SQLite."""
REGISTRY: Manifest = {
    "models": {"registry": 'default = "small"\n\n[engines.local]\nkind = "echo"\n\n[models.small]\nengine = "local"\n'},
    "redis": {"existingSecret": "redis"},
    "trust": {"existingSecret": "trust", "required": True},
    "worker": {
        "extraContainers": [{"name": "proxy", "image": "proxy:1"}],
        "extraInitContainers": [{"name": "wait", "image": "wait:1"}],
    },
}
MESHED: Manifest = {
    "extraEnv": [
        {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
        {"name": "POSTBACK_LOG_LEVEL", "value": "info"},
    ],
    "extraEnvFrom": [{"configMapRef": {"name": "everywhere"}}],
    "priorityClassName": "fleet",
    "nodeSelector": {"pool": "inference"},
    "tolerations": [{"key": "inference", "operator": "Exists"}],
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
    "probes": {"liveness": {"timeoutSeconds": 20}},
    "worker": {
        "gpus": 1,
        "gpuResource": "amd.com/gpu",
        "priorityClassName": "inference",
        "extraEnv": [{"name": "POSTBACK_LOG_LEVEL", "value": "debug"}],
    },
    "gateway": {
        "enabled": True,
        "tls": {"enabled": False},
        "service": {"port": 80},
        "httpRoute": {
            "enabled": True,
            "parentRefs": [{"name": "public", "namespace": "gateways"}],
            "hostnames": ["inference.example.com"],
        },
    },
    "networkPolicy": {"enabled": True},
    "monitoring": {"serviceMonitor": {"enabled": True, "labels": {"release": "kps"}}},
}
"""A fleet whose gateway stands behind a mesh, with values for every pod."""
VALUE_SETS: dict[str, Manifest] = {
    "defaults": DEFAULTS,
    "secured": SECURED,
    "on-gpus": ON_GPUS,
    "at-rest": AT_REST,
    "authorities": AUTHORITIES,
    "scaled": SCALED,
    "gateway": GATEWAY,
    "registry": REGISTRY,
    "meshed": MESHED,
    **{path.stem: yaml.safe_load(path.read_text()) for path in sorted(EXAMPLES.glob("*.yaml"))},
}
every_value_set = pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS.keys())


def helm(*arguments: str, values: Manifest) -> subprocess.CompletedProcess[str]:
    """Run Helm with the values; without a repository of theirs, the image is `postback`."""
    image = {"repository": "postback", **values.get("image", {})}
    return subprocess.run(
        [ensure(HELM), *arguments, "--kube-version", OLDEST_KUBERNETES, "--values", "-"],
        input=yaml.safe_dump({**values, "image": image}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def render(values: Manifest) -> list[Manifest]:
    """Return the objects that Helm makes of the values, including the pod of `helm test`."""
    return [manifest for manifest in yaml.load_all(rendered(values), _LOADER) if manifest]


def rendered(values: Manifest) -> str:
    """Return the text that Helm makes of the values."""
    return _rendered(yaml.safe_dump(values))


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's loader if PyYAML has it, because this loader is ten times faster."""


@cache
def _rendered(values: str) -> str:
    done = helm("template", "fleet", str(CHART), "--namespace", "inference", values=yaml.safe_load(values))
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(values: Manifest) -> str:
    """Return Helm's error about values that the chart refuses."""
    done = helm("template", "fleet", str(CHART), values=values)
    assert done.returncode != 0, "the values were taken"
    return done.stderr


def find(manifests: list[Manifest], kind: str, role: str) -> Manifest:
    return next(m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == f"fleet-postback-{role}")


def pod_of(manifests: list[Manifest], role: str) -> Manifest:
    pod: Manifest = find(manifests, "StatefulSet", role)["spec"]["template"]["spec"]
    return pod


def container_of(manifests: list[Manifest], role: str) -> Manifest:
    container: Manifest = pod_of(manifests, role)["containers"][0]
    return container


def environment(container: Manifest) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    kinds = ("StatefulSet", "Deployment", "Job")
    yield from (m["spec"]["template"]["spec"] for m in manifests if m["kind"] in kinds)
    yield from (m["spec"] for m in manifests if m["kind"] == "Pod")


def own_containers(manifests: list[Manifest]) -> Iterator[Manifest]:
    """Yield the containers that run the program."""
    for pod in pods(manifests):
        yield from (container for container in pod["containers"] if "command" not in container and "args" in container)


@cache
def compose_model() -> Manifest:
    """Parse compose.yaml with the Compose Specification's own parser, in an empty environment."""
    done = subprocess.run(
        [ensure(COMPOSE), "-format", "json", "compose.yaml"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    model: Manifest = json.loads(done.stdout)
    return model


def own_services(compose: Manifest) -> dict[str, Manifest]:
    return {name: service for name, service in compose["services"].items() if "build" in service}
