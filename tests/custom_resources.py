"""Validates custom resources by the schemas of their own projects, from Go modules at pinned versions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.go_tools import downloaded

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


def validate(manifest: dict[str, Any]) -> None:
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
