"""The chart's gateway: store, certificates, ways in, and the settings that the program reads from its environment."""

from __future__ import annotations

import pytest

from gateway.access.settings import AccessSettings
from gateway.blobs.settings import FilesSettings
from gateway.door.settings import GatewaySettings
from gateway.role import ROLES
from gateway.store.settings import StoreSettings
from schemas.settings import FleetSettings
from tests.integration.deployment import (
    GATEWAY,
    MESHED,
    VALUE_SETS,
    Manifest,
    container_of,
    environment,
    find,
    pod_of,
    refusal,
    render,
)

# The first run builds Helm, which takes minutes.
pytestmark = pytest.mark.timeout(1800)

MANY = VALUE_SETS["many-gpus"]


def gateway(**values: object) -> Manifest:
    return {"gateway": {**GATEWAY["gateway"], **values}}


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
    assert container["args"][:3] == ["gateway", "--roles", ",".join(ROLES)]


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


def test_clients_may_have_to_show_a_certificate() -> None:
    tls = {"existingSecret": "door", "clientCA": {"existingSecret": "clients", "required": True}}
    container = container_of(render(gateway(tls=tls)), "gateway")

    assert container["args"][container["args"].index("--client-ca") + 1] == "/etc/postback/client-ca/ca.pem"
    assert environment(container)["POSTBACK_GATEWAY__CLIENT_CERTIFICATES"] == "required"


@pytest.mark.parametrize(
    ("values", "named"),
    [
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
    ],
)
def test_a_gateway_that_cannot_work_is_refused_by_name(values: Manifest, named: str) -> None:
    error = refusal(values)

    assert named in error
    assert "in plain sight" not in error
