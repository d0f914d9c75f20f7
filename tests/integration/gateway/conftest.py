"""Running gateways that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from schemas.settings import KafkaSettings
from tests.integration.certificates import Authority
from tests.integration.gateway.gateway_process import Gateway, gateway_process
from tests.product import Product, running


@pytest.fixture(scope="module")
def module_product(module_fleet: KafkaSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """One product for the tests of a module."""
    with running(module_fleet, tmp_path_factory.mktemp("product")) as started:
        yield started


@pytest.fixture(scope="module")
def shared_gateway(module_product: Product) -> Iterator[Gateway]:
    """One gateway for the tests of a module, over plain HTTP; each test uses a tenant of its own."""
    with gateway_process(module_product) as started:
        yield started


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private CA."""
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls_gateway(module_product: Product, authority: Authority) -> Iterator[Gateway]:
    """One gateway for the tests of a module, over TLS."""
    with gateway_process(module_product, tls=authority, replica="tls-door") as started:
        yield started
