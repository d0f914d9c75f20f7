"""In a dry run, a real API server accepts every object of the chart, even the custom resources of other projects.

The server checks an object as for `kubectl apply --dry-run=server`: by its schemas, by its validation in Go, and by the
admission to a `restricted` namespace. The server keeps no object.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests import custom_resources
from tests.integration.deployment import MESHED, SCALED, VALUE_SETS, Manifest, every_value_set, find, render
from tests.kubernetes.api import Api, Refused
from tests.kubernetes.build import TEST_SECONDS
from tests.kubernetes.control_plane import ControlPlane
from tests.kubernetes.programs import WAIT_SECONDS
from tests.kubernetes.release import RESTRICTED
from tests.product import eventually

pytestmark = pytest.mark.timeout(TEST_SECONDS)

_NAMESPACE = "inference"
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_PRIORITIES = "/apis/scheduling.k8s.io/v1/priorityclasses"


@pytest.fixture(scope="module")
def server(control_plane: ControlPlane) -> Iterator[Api]:
    """An API server that knows the custom resources and a priority, with the namespace of rendered charts."""
    api = control_plane.api
    for definition in custom_resources.definitions():
        path = f"{_DEFINITIONS}/{definition['metadata']['name']}"
        api.apply(path, definition)
        for version in definition["spec"]["versions"]:
            served = f"/apis/{definition['spec']['group']}/{version['name']}/{definition['spec']['names']['plural']}"
            eventually(partial(api.answers, served), WAIT_SECONDS, f"{served} is not served")
    api.create("/api/v1/namespaces", {"metadata": {"name": _NAMESPACE, "labels": RESTRICTED}})
    priority = MESHED["priorityClassName"]
    api.create(_PRIORITIES, {"metadata": {"name": priority}, "value": 1})
    account = f"/api/v1/namespaces/{_NAMESPACE}/serviceaccounts/default"
    eventually(lambda: api.answers(account), WAIT_SECONDS, "the namespace has no account for pods")
    yield api
    api.delete(f"{_PRIORITIES}/{priority}")
    api.delete(f"/api/v1/namespaces/{_NAMESPACE}")


@every_value_set
def test_the_api_server_takes_every_object_of_the_chart(server: Api, values: Manifest) -> None:
    for manifest in render(values):
        taken = _create(server, manifest)

        assert taken["metadata"]["name"] == manifest["metadata"]["name"]
        assert server.find(f"{server.collection(manifest, _NAMESPACE)}/{taken['metadata']['name']}") is None


def test_the_sets_of_values_have_an_object_of_every_kind_that_the_chart_makes() -> None:
    made = {manifest["kind"] for values in VALUE_SETS.values() for manifest in render(values)}

    assert made == {
        *("StatefulSet", "Deployment", "Job", "Pod", "Service", "ConfigMap", "ServiceAccount", "Ingress"),
        *("PodDisruptionBudget", "NetworkPolicy", "ScaledObject", "PodMonitor", "PrometheusRule", "Certificate"),
        *("ServiceMonitor", "HTTPRoute"),
    }


def test_the_api_server_refuses_an_unknown_field_and_a_value_of_a_wrong_form(server: Api) -> None:
    manifests = render(SCALED)
    misspelt, mistaken = find(manifests, "ScaledObject", "worker"), find(manifests, "PodDisruptionBudget", "worker")
    misspelt["spec"]["maxReplicas"] = 4
    mistaken["spec"]["maxUnavailable"] = "a few"

    for manifest, named in ((misspelt, "maxReplicas"), (mistaken, "a few")):
        with pytest.raises(Refused, match=named):
            _create(server, manifest)


def _create(server: Api, manifest: Manifest) -> Manifest:
    return server.create(server.collection(manifest, _NAMESPACE), manifest, dryRun="All", fieldValidation="Strict")
