"""Complaints about environment variables that no setting reads."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from console.catalogue import names
from console.variables import complaints

MEANT = "is ignored: no setting has that name; {} may be meant"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("POSTBACK_KAFKA__BOOTSTRAP_SERVER", "POSTBACK_KAFKA__BOOTSTRAP_SERVERS"),
        ("POSTBACK_KAFKA_BOOTSTRAP_SERVERS", "POSTBACK_KAFKA__BOOTSTRAP_SERVERS"),
        ("POSTBACK_KAFKA__PARTITION", "POSTBACK_KAFKA__PARTITIONS"),
        ("POSTBACK_EGRESS__ALLOW_CALLBACK", "POSTBACK_EGRESS__ALLOW_CALLBACKS"),
        ("POSTBACK_DELIVERY__DISABLE_AFTER", "POSTBACK_DELIVERY__DISABLE_AFTER_SECONDS"),
        ("POSTBACK_LOGLEVEL", "POSTBACK_LOG_LEVEL"),
        ("postback_keyrings", "POSTBACK_KEYRING"),
    ],
)
def test_a_misspelt_setting_is_reported_with_the_name_that_may_be_meant(name: str, meant: str) -> None:
    assert complaints({name: "s3cret"}) == [f"{name} {MEANT.format(meant)}"]


@pytest.mark.parametrize("rest", ["CONCURRENCY", "QUEUE_RECORDS", "WAIT_SECONDS"])
def test_a_renamed_setting_is_reported_with_its_new_name(rest: str) -> None:
    assert complaints({f"POSTBACK_DELIVERY__ENDPOINT_{rest}": "1"}) == [
        f"POSTBACK_DELIVERY__ENDPOINT_{rest} is ignored: it is called POSTBACK_DELIVERY__DESTINATION_{rest} now"
    ]


def test_a_variable_that_resembles_no_setting_is_named_too() -> None:
    assert complaints({"POSTBACK_COLOUR": "blue"}) == ["POSTBACK_COLOUR is ignored: no setting has that name"]


def test_every_setting_is_known_however_it_is_spelt() -> None:
    settings = [name.replace("*", "SASL_PASSWORD") for name in names()]

    assert "POSTBACK_REPLICA" in settings
    assert "POSTBACK_KAFKA" in settings  # this variable gives the whole section as JSON
    assert complaints(dict.fromkeys((*settings, *map(str.lower, settings)), "x")) == []


def test_variables_without_our_prefix_are_left_alone() -> None:
    of_kubernetes = {
        "POSTBACK_WORKER_SERVICE_HOST": "10.0.0.7",
        "POSTBACK_WORKER_SERVICE_PORT": "9100",
        "POSTBACK_WORKER_SERVICE_PORT_METRICS": "9100",
        "POSTBACK_WORKER_PORT": "tcp://10.0.0.7:9100",
        "POSTBACK_WORKER_PORT_9100_TCP_ADDR": "10.0.0.7",
    }
    assert complaints({"PATH": "/bin", "POSTBACKLOG": "1", **of_kubernetes}) == []


def test_a_provider_of_another_package_has_settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = [EntryPoint("acme", "acme:provider", "postback.search")]
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: installed if group == "postback.search" else []
    )

    assert complaints({"POSTBACK_SEARCH__ACME__KEY": "s3cret"}) == []
    assert len(complaints({"POSTBACK_SEARCH__ACNE__KEY": "s3cret"})) == 1
