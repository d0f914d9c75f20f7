"""The chart's exporter, its ScaledObjects and the objects for Prometheus' operator."""

from __future__ import annotations

import re

import jsonschema
import pytest
import yaml

from cli.operations.exporter.replicas import ExporterSettings
from schemas.settings import FleetSettings
from scripts.publish.reference import RULES
from tests import custom_resources
from tests.integration.deployment import (
    CHART,
    DEFAULTS,
    ROLES,
    SCALED,
    SECURED,
    VALUE_SETS,
    Manifest,
    environment,
    every_value_set,
    find,
    helm,
    render,
)

# The first run builds Helm, which takes minutes.
pytestmark = pytest.mark.timeout(1800)


def exporter_of(manifests: list[Manifest]) -> Manifest:
    container: Manifest = find(manifests, "Deployment", "exporter")["spec"]["template"]["spec"]["containers"][0]
    return container


@every_value_set
def test_custom_resources_are_valid_by_their_own_schemas(values: Manifest) -> None:
    custom = [manifest for manifest in render(values) if custom_resources.is_custom(manifest)]

    for manifest in custom:
        custom_resources.validate(manifest)
    kinds = {"ScaledObject", "PodMonitor", "PrometheusRule"}
    made = {
        "scaled": kinds,
        "many-gpus": {*kinds, "Certificate"},
        "meshed": {"HTTPRoute", "ServiceMonitor"},
    }
    [name] = [name for name, each in VALUE_SETS.items() if each is values]
    assert {manifest["kind"] for manifest in custom} == made.get(name, set())


def test_a_misspelt_field_of_a_custom_resource_is_noticed() -> None:
    scaled = find(render(SCALED), "ScaledObject", "worker")
    scaled["spec"]["maxReplicas"] = 4

    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        custom_resources.validate(scaled)


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


@pytest.mark.parametrize("role", ROLES)
def test_without_autoscaling_the_values_set_the_replicas(role: str) -> None:
    manifests = render(DEFAULTS)

    assert find(manifests, "StatefulSet", role)["spec"]["replicas"] == {"worker": 1, "delivery": 2}[role]
    assert not [manifest for manifest in manifests if custom_resources.is_custom(manifest)]


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


@pytest.mark.parametrize(
    ("values", "named"),
    [
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
def test_values_that_cannot_scale_are_refused_by_name(values: Manifest, named: str) -> None:
    done = helm("template", "fleet", str(CHART), values=values)

    assert done.returncode != 0
    assert named in done.stderr


def test_kedas_requests_authenticate_themselves_where_a_proxy_asks_for_it() -> None:
    reference = {"name": "proxy", "kind": "ClusterTriggerAuthentication"}
    asked = {"authenticationRef": reference, "authMetadata": {"authMode": "bearer"}}
    scaling = {**SCALED["worker"]["autoscaling"], **asked}
    manifests = render({**SCALED, "worker": {**SCALED["worker"], "autoscaling": scaling}})
    scaled = find(manifests, "ScaledObject", "worker")
    custom_resources.validate(scaled)
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
