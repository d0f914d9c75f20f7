"""Running gateways that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from schemas.settings import KafkaSettings
from tests.fleet_here import FleetHere, running_here
from tests.integration.certificates import Authority
from tests.integration.gateway.gateway_process import Gateway, running_gateway


@pytest.fixture(scope="module")
def module_fleet_here(module_fleet: KafkaSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetHere]:
    """One fleet in this process for the tests of a module."""
    with running_here(module_fleet, tmp_path_factory.mktemp("product")) as started:
        yield started


@pytest.fixture(scope="module")
def shared_gateway(module_fleet_here: FleetHere) -> Iterator[Gateway]:
    """One gateway for the tests of a module, over plain HTTP; each test uses a tenant of its own."""
    with running_gateway(module_fleet_here) as started:
        yield started


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private CA."""
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls_gateway(module_fleet_here: FleetHere, authority: Authority) -> Iterator[Gateway]:
    """One gateway for the tests of a module, over TLS."""
    with running_gateway(module_fleet_here, tls=authority, replica="tls-door") as started:
        yield started
