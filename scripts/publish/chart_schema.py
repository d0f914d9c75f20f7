"""Makes the chart's `values.schema.json` from values.yaml, for `python -m scripts.publish`.

Types are those of the defaults, descriptions are the comments, and no section has further names. RULES adds bounds.
"""

from __future__ import annotations

import json
import re
from typing import Any

from scripts.publish.chart_reference import CHART, ChartValue, chart_values
from workers.engines import ENGINES

Schema = dict[str, Any]

_LINK = re.compile(r"\[([^]]+)\]\([^)]+\)")
_INNERMOST = re.compile(r'": (\{[^{}\[\]]*\}|\[[^{}\[\]]*\])')
"""Matches objects and arrays that hold no other, each of which becomes one line of the schema."""
_TYPES = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
_TEXT: Schema = {"type": "string"}
_NAMED: Schema = {"minLength": 1}
_WORDS: Schema = {"items": _TEXT}
_TEXTS: Schema = {"additionalProperties": _TEXT}
_QUANTITIES: Schema = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
_POSITIVE: Schema = {"minimum": 1}
_INTERVAL: Schema = {"pattern": "^[0-9]+(ms|s|m)$"}
_QUANTITY: Schema = {"pattern": "^[0-9]+([KMGT]i?)?$"}
_QUANTITY_OR_EMPTY: Schema = {"pattern": "^([0-9]+([KMGT]i?)?)?$"}
_CIDRS: Schema = {"items": {**_TEXT, "pattern": "^[0-9a-fA-F.:]+/[0-9]{1,3}$"}}
_LANE: Schema = {"not": {"enum": ["batch", "shadow"]}}
_PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
_ONE_ADDRESS = "[0-9a-fA-F.:]+/[0-9]{1,3}|([0-9]{1,3}\\.){3}[0-9]{1,3}"
_POOL_NAME: Schema = {"pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"}
_ONE_GATEWAY = ("enabled", "store", "pepper", "files", "storage", "tls", "service", "ingress", "httpRoute")
"""The values that all pods of the gateway have alike."""


def _closed(**properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _pools(component: str, *shared: str) -> Schema:
    """The schema of `pools`: values of the component, but those which all pools share."""
    without = {"not": {"anyOf": [{"required": [name]} for name in ("pools", *shared)]}}
    values = {"allOf": [{"$ref": f"#/properties/{component}"}, without]}
    return {"propertyNames": _POOL_NAME, "additionalProperties": values}


_SECONDS: Schema = {"type": "integer", "minimum": 1}
_PROBE = _closed(
    initialDelaySeconds={"type": "integer", "minimum": 0},
    periodSeconds=_SECONDS,
    timeoutSeconds=_SECONDS,
    failureThreshold=_SECONDS,
)
DEFINITIONS: dict[str, Schema] = {
    # A secret is named, and not written: the objects of a release are in plain sight.
    "variable": {
        **_closed(name=_TEXT, value=_TEXT, valueFrom={"type": "object"}),
        "required": ["name"],
        "if": {"properties": {"name": {"pattern": "(API_KEY|PASSWORD|SECRET|TOKEN|ACCESS_KEY|STORE__URL|REDIS_URL)$"}}},
        "then": {"not": {"required": ["value"]}},
    },
    "variables": _closed(prefix=_TEXT, configMapRef={"type": "object"}, secretRef={"type": "object"}),
    "toleration": _closed(
        key=_TEXT, operator=_TEXT, value=_TEXT, effect=_TEXT, tolerationSeconds={"type": "integer", "minimum": 0}
    ),
    "resources": _closed(requests=_QUANTITIES, limits=_QUANTITIES, claims={"type": "array"}),
}

RULES: dict[str, Schema] = {
    # by the last name of a value
    "annotations": _TEXTS,
    "labels": _TEXTS,
    "podAnnotations": _TEXTS,
    "podLabels": _TEXTS,
    "commonLabels": _TEXTS,
    "commonAnnotations": _TEXTS,
    "nodeSelector": _TEXTS,
    "extraArgs": _WORDS,
    "extraEnv": {"items": {"$ref": "#/definitions/variable"}},
    "extraEnvFrom": {"items": {"$ref": "#/definitions/variables"}},
    "tolerations": {"items": {"$ref": "#/definitions/toleration"}},
    "resources": {"$ref": "#/definitions/resources"},
    "nameOverride": {"maxLength": 40},
    "fullnameOverride": {"maxLength": 40},
    "key": _NAMED,
    "caKey": _NAMED,
    "usernameKey": _NAMED,
    "passwordKey": _NAMED,
    "interval": _INTERVAL,
    "sizeLimit": _QUANTITY,
    "claimSize": _QUANTITY_OR_EMPTY,
    "shmSize": _QUANTITY_OR_EMPTY,
    "drainSeconds": {"minimum": 1, "maximum": 600},
    "marginSeconds": {"minimum": 5},
    "startupSeconds": {"minimum": 5},
    "maxReplicas": _POSITIVE,
    "longestJobSeconds": {"minimum": 1, "maximum": 3599},
    "downPeriodSeconds": {"minimum": 1, "maximum": 1800},
    "pollingSeconds": _POSITIVE,
    "maxUnavailable": {"type": ["integer", "string"], "pattern": "^[0-9]+%$"},
    "authenticationRef": {
        **_closed(
            name={**_TEXT, **_NAMED},
            kind={"enum": ["TriggerAuthentication", "ClusterTriggerAuthentication"]},
        ),
        "dependencies": {"kind": ["name"]},
    },
    # A secret belongs into the TriggerAuthentication.
    "authMetadata": _closed(
        authMode={"enum": ["apiKey", "basic", "bearer", "custom"]},
        method={"enum": ["header", "query"]},
        keyParamName=_TEXT,
    ),
    "updateStrategy": _closed(type={"enum": ["RollingUpdate", "OnDelete"]}, rollingUpdate={"type": "object"}),
    # by the whole path of a value
    "env": {"enum": ["development", "production"]},
    "probes.liveness": _PROBE,
    "probes.readiness": _PROBE,
    "image.digest": {"pattern": "^(sha256:[0-9a-f]{64})?$"},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "kafka.bootstrapServers": _NAMED,
    "kafka.topicPrefix": {"pattern": "^[A-Za-z0-9._-]{0,64}$"},
    "kafka.partitions": {"minimum": 1, "maximum": 10000},
    "kafka.replicationFactor": {"minimum": 1, "maximum": 10},
    "kafka.tierDelaysSeconds": {"maxItems": 64, "items": {"type": "number", "minimum": 0.001, "maximum": 432000}},
    "kafka.sasl.mechanism": {"enum": ["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]},
    "kafka.tls": {
        "if": {"properties": {"clientCertificate": {"const": True}}, "required": ["clientCertificate"]},
        "then": {"properties": {"existingSecret": _NAMED}},
    },
    "kafka.extra": {
        "propertyNames": {"pattern": "^[a-z0-9.]+$", "not": {"pattern": "password|secret|token|\\.pem$"}},
        "additionalProperties": {"type": ["string", "integer", "boolean"]},
    },
    "keyring.existingSecret": _NAMED,
    "egress.allowCallbacks": _CIDRS,
    "egress.allowFetch": _CIDRS,
    "egress.deny": {
        "items": {**_TEXT, "pattern": f"^({_ONE_ADDRESS}|(\\*\\.)?[A-Za-z0-9._-]*[A-Za-z][A-Za-z0-9_-]*\\.?)$"}
    },
    "egress.ports": {"minItems": 1, "items": _PORT},
    "topics.engines": {"items": {**_TEXT, **_LANE, "pattern": "^[A-Za-z0-9_-]{1,64}$"}},
    "topics.activeDeadlineSeconds": _POSITIVE,
    "monitoring.gpuMonitor.namespace": _NAMED,
    "monitoring.gpuMonitor.matchLabels": {**_TEXTS, "minProperties": 1},
    "monitoring.gpuMonitor.port": _NAMED,
    "worker.pools": _pools("worker"),
    "worker.image": {"$ref": "#/properties/image"},
    "worker.lane": {**_LANE, "pattern": "^[A-Za-z0-9_-]{0,64}$"},
    "worker.gpuResource": {"pattern": "^[a-z0-9.-]+/[A-Za-z0-9._-]+$"},
    "worker.autoscaling.startSeconds": {"maximum": 7200},
    "worker.download.models": {"items": {**_TEXT, "pattern": "^[^@]+(@[^@]+)?$"}},
    "worker.download.command": {**_WORDS, "minItems": 1},
    # Delivery has pods of its own: they hold the keyring, a worker does not.
    "worker.extraArgs": {"items": {**_TEXT, "not": {"const": "--with-delivery"}}},
    # Longer than the longest deadline of one attempt (25 s).
    "delivery.drainSeconds": {"minimum": 26, "maximum": 600},
    "delivery.autoscaling.callbacksPerReplica": _POSITIVE,
    "gateway.pools": _pools("gateway", *_ONE_GATEWAY),
    "gateway.roles": {"minItems": 1, "uniqueItems": True, "items": {"enum": ["door", "relay", "view", "expansion"]}},
    "gateway.files.place": {"pattern": "^(s3://.+)?$"},
    "gateway.storage.size": _QUANTITY,
    "gateway.tls.certManager.issuer": _closed(
        name={**_TEXT, **_NAMED}, kind={**_TEXT, **_NAMED}, group={**_TEXT, **_NAMED}
    ),
    "gateway.tls.certManager.dnsNames": {"items": {**_TEXT, **_NAMED}},
    "gateway.service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "gateway.service.port": _PORT,
    "gateway.httpRoute.hostnames": {"items": {**_TEXT, **_NAMED}},
}
"""Bounds that a value's default does not state, by the last name of several values, or by the path of one value.

A rule by path goes before a rule by name.
"""


class RuleWithoutValue(Exception):  # noqa: N818 - named after the file's fault
    """A rule names no value of values.yaml."""


def schema() -> str:
    """Return the text of the schema. Raises ValueUnexplained and RuleWithoutValue."""
    made: Schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the postback chart",
        **_closed(**{"global": {"type": "object", "description": "Values that Helm defines itself."}}),
        "definitions": DEFINITIONS,
    }
    places: dict[tuple[str, ...], Schema] = {(): made}
    values = [each for each in chart_values((CHART / "values.yaml").read_text(encoding="utf-8")) if each.meaning]
    for value in values:
        place = places[value.path] = _schema_of(value)
        places[value.path[:-1]]["properties"][value.path[-1]] = place
    places["worker", "engine"]["enum"] = list(ENGINES)
    made["required"] = [value.path[0] for value in values if len(value.path) == 1 and value.is_section]
    unknown = RULES.keys() - {".".join(value.path) for value in values} - {value.path[-1] for value in values}
    if unknown:
        raise RuleWithoutValue(f"values.yaml has no {', '.join(sorted(unknown))}; correct RULES of chart_schema.py")
    text = json.dumps(made, indent=2, ensure_ascii=False)
    return _INNERMOST.sub(lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text) + "\n"


def _schema_of(value: ChartValue) -> Schema:
    found: Schema = {"description": _LINK.sub(r"\1", value.meaning)}
    if value.is_section:
        found |= _closed()
    else:
        found["type"] = _TYPES[type(value.default)]
        found |= {"minimum": 0} if found["type"] == "integer" else {}
        found |= {"items": {"type": "object"}} if found["type"] == "array" else {}
    return found | RULES.get(".".join(value.path), RULES.get(value.path[-1], {}))
