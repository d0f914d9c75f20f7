"""The chart's network policies agree with the egress guard, and the pod of `helm test` with a process's own pages."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.health import READY, HealthServer, Readiness
from telemetry.metrics import Metrics
from tests.integration.deployment import (
    AT_REST,
    DEFAULTS,
    GATEWAY,
    SECURED,
    VALUE_SETS,
    Manifest,
    environment,
    every_value_set,
    find,
    render,
)
from workers.egress import is_public_address

# The first run builds Helm, which takes minutes.
pytestmark = pytest.mark.timeout(1800)

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
