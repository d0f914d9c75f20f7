"""kubeconform, which checks manifests by JSON schemas that are on this machine, and the chart's custom resources.

Kubernetes' own schemas are those of the package `kubernetes-validate`; those of custom resources come from their
projects' Go modules.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.go_tools import KUBECONFORM, downloaded, ensure

_KEDA = ("github.com/kedacore/keda/v2@v2.21.0", "config/crd/bases")
_PROMETHEUS = ("github.com/prometheus-operator/prometheus-operator@v0.85.0", "example/prometheus-operator-crd")
_GATEWAY_API = ("sigs.k8s.io/gateway-api@v1.4.1", "config/crd/standard")
_CERT_MANAGER = ("github.com/cert-manager/cert-manager@v1.19.1", "deploy/crds")
_DEFINED = {
    "Certificate": (*_CERT_MANAGER, "cert-manager.io_certificates.yaml"),
    "HTTPRoute": (*_GATEWAY_API, "gateway.networking.k8s.io_httproutes.yaml"),
    "ScaledObject": (*_KEDA, "keda.sh_scaledobjects.yaml"),
    "PodMonitor": (*_PROMETHEUS, "monitoring.coreos.com_podmonitors.yaml"),
    "ServiceMonitor": (*_PROMETHEUS, "monitoring.coreos.com_servicemonitors.yaml"),
    "PrometheusRule": (*_PROMETHEUS, "monitoring.coreos.com_prometheusrules.yaml"),
}


def is_custom(manifest: dict[str, Any]) -> bool:
    """True for a resource that Kubernetes does not define itself."""
    return manifest["kind"] in _DEFINED


def validate_custom(manifest: dict[str, Any]) -> None:
    """Raise jsonschema.ValidationError for a wrong or unknown field, which an API server would refuse or drop."""
    group, _, version = manifest["apiVersion"].partition("/")
    definition = _definition(manifest["kind"])
    assert definition["spec"]["group"] == group
    [schema] = [each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == version]
    jsonschema.validate({**manifest, "metadata": {}}, _strict(schema))


def definitions() -> list[dict[str, Any]]:
    """The CustomResourceDefinition of each kind, for an API server."""
    return [_definition(kind) for kind in _DEFINED]


def schemas() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield kind, version and strict schema of each version of a custom resource."""
    for kind in _DEFINED:
        for version in _definition(kind)["spec"]["versions"]:
            yield kind, version["name"], _strict(version["schema"]["openAPIV3Schema"])


@cache
def _definition(kind: str) -> dict[str, Any]:
    module, folder, name = _DEFINED[kind]
    found: dict[str, Any] = yaml.safe_load((Path(downloaded(module)["Dir"]) / folder / name).read_text())
    return found


def _strict(schema: Any) -> Any:
    """Return the schema without unknown fields, and with Kubernetes' own extensions in JSON Schema's words."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {}
    inner = {name: _strict(each) for name, each in schema.items()}
    if isinstance(pattern := schema.get("pattern"), str) and "(?i)" in pattern:
        # Move the flag to the pattern's start, because Go accepts a flag anywhere, and Python only there.
        inner["pattern"] = "(?i)" + pattern.replace("(?i)", "")
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner.setdefault("additionalProperties", False)
    return inner


_PACKAGED = Path(kubernetes_validate.__file__).with_name("kubernetes-json-schema")
_OWN = "{{.NormalizedKubernetesVersion}}-local{{.StrictSuffix}}/{{.ResourceKind}}{{.KindSuffix}}.json"
_CUSTOM = "{{.ResourceKind}}_{{.ResourceAPIVersion}}.json"


class Kubeconform:
    """Checks manifests. `folder` gets the schemas."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for kind, version, schema in schemas():
            (folder / f"{kind.lower()}_{version}.json").write_text(json.dumps(schema))

    def faults(self, manifests: str, version: str) -> dict[str, str]:
        """Return the fault of each object that a Kubernetes of this version would refuse, by `Kind/name`."""
        for manifest in yaml.safe_load_all(manifests):
            if manifest and not is_custom(manifest):
                self._copy(manifest, version)
        locations = [f"-schema-location={self._folder}/{each}" for each in (_OWN, _CUSTOM)]
        done = subprocess.run(
            [ensure(KUBECONFORM), "-strict", "-output=json", f"-kubernetes-version={version}", *locations],
            input=manifests,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert not done.stderr, done.stderr
        found = json.loads(done.stdout)["resources"]
        return {f"{each['kind']}/{each['name']}": each["msg"] for each in found}

    def _copy(self, manifest: dict[str, Any], version: str) -> None:
        """Copy the schema of a kind with the definitions, which the package's files look for under `/api`."""
        group, _, name = manifest["apiVersion"].rpartition("/")
        suffix = "-".join(part for part in (manifest["kind"].lower(), group.partition(".")[0], name) if part)
        place = f"v{version}-local-strict"
        for file in (f"{suffix}.json", "_definitions.json"):
            target = self._folder / place / file
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                schema = json.loads((_PACKAGED / place / file).read_text())
                # The `$id` is an address, from which kubeconform would load the definitions.
                del schema["$id"]
                target.write_text(json.dumps(schema).replace('"/api/_definitions', '"_definitions'))
