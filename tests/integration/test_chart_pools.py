"""The chart's kinds of workers: pools, images, models, caches, and what an upgrade does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.deployment import (
    DEFAULTS,
    GATEWAY,
    REGISTRY,
    ROOT,
    VALUE_SETS,
    Manifest,
    container_of,
    environment,
    find,
    pod_of,
    pods,
    refusal,
    render,
)

# The first run builds Helm, which takes minutes.
pytestmark = pytest.mark.timeout(1800)

MANY, ONE = VALUE_SETS["many-gpus"], VALUE_SETS["one-gpu"]
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


def test_an_operators_additions_to_a_pod_stand_beside_the_charts_own_parts() -> None:
    pod = pod_of(render(REGISTRY), "worker")

    assert [each["name"] for each in pod["containers"]] == ["worker", "proxy"]
    assert [each["name"] for each in pod["initContainers"]] == ["wait"]


def test_an_upgrade_may_stop_at_a_part_of_the_pods() -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}

    updated = find(render({"worker": {"updateStrategy": strategy}}), "StatefulSet", "worker")["spec"]
    assert updated["updateStrategy"] == strategy


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


def test_pods_may_use_a_service_account_of_the_operators() -> None:
    manifests = render({"serviceAccount": {"create": False, "name": "ours"}})

    assert not [m for m in manifests if m["kind"] == "ServiceAccount"]
    assert pod_of(manifests, "worker")["serviceAccountName"] == "ours"
    assert pod_of(render(DEFAULTS), "worker")["serviceAccountName"] == "fleet-postback"


@pytest.mark.parametrize(
    ("values", "named"),
    [
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
    ],
)
def test_values_that_cannot_work_are_refused_by_name(values: Manifest, named: str) -> None:
    error = refusal(values)

    assert named in error
    assert "in plain sight" not in error
