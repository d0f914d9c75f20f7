"""Checks the settings: variables that no process reads, values that are refused, and files that the variables name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

from console.variables import complaints
from operators.doctor.findings import Finding, fault
from schemas.settings import FleetSettings, SettingsRefused, read_settings

ROOMS = (
    "console.gateway_settings:GatewayClientSettings",
    "gateway.access.settings:AccessSettings",
    "gateway.blobs.settings:FilesSettings",
    "gateway.door.settings:GatewaySettings",
    "gateway.store.settings:StoreSettings",
    "operators.exporter.settings:ExporterSettings",
    "schemas.settings:FleetSettings",
    "workers.screening.settings:ScreeningSettings",
    "workers.delivery.settings:DeliverySettings",
    "workers.egress.settings:EgressSettings",
    "workers.engines.registry:engine_settings",
    "workers.enrichment.cache.settings:CacheSettings",
    "workers.enrichment.fetching.settings:PayloadSettings",
    "workers.enrichment.search.settings:SearchSettings",
    "workers.enrichment.settings:EnrichmentSettings",
    "workers.inference.settings:WorkerSettings",
)
"""Names each settings class, or the function that makes it. Importing them all needs the packages of all extras."""

_KAFKA = "POSTBACK_KAFKA__EXTRA__"
_SECRET_FILES = (
    *("POSTBACK_TRUST__SECRET_FILE", "POSTBACK_ACCESS__PEPPER_FILE", "POSTBACK_GATEWAY_KEY_FILE"),
    *(f"{_KAFKA}SSL_KEY_LOCATION", f"{_KAFKA}SASL_PASSWORD_FILE", f"{_KAFKA}SSL_KEY_PASSWORD_FILE"),
    *(f"{_KAFKA}SSL_KEYSTORE_PASSWORD_FILE", f"{_KAFKA}SASL_OAUTHBEARER_CLIENT_SECRET_FILE"),
)
_CERTIFICATES = (
    *(f"{_KAFKA}SSL_CA_LOCATION", f"{_KAFKA}SSL_CERTIFICATE_LOCATION"),
    *("POSTBACK_DELIVERY__CA_FILE", "POSTBACK_GATEWAY_CA_FILE"),
)
_CLIENT_CERTIFICATES = "POSTBACK_DELIVERY__CLIENT_CERTIFICATES"


def check_names(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the variables with Postback's prefix that no process reads."""
    for complaint in complaints(environment):
        problem, _, meant = complaint.partition("; ")
        name = meant.removesuffix(" may be meant")
        yield fault(
            problem, f"rename it to {name}" if name else "remove it; docs/reference/settings.md lists all names"
        )


def check_values() -> Iterator[Finding]:
    """Yield the settings with values that are refused. No value is shown."""
    for room in ROOMS:
        module, _, name = room.partition(":")
        try:
            made = getattr(import_module(module), name)
        except ModuleNotFoundError:
            continue  # the class's extra is not installed, so no role on this machine reads these settings
        try:
            settings = read_settings(made if isinstance(made, type) else made())
            if isinstance(settings, FleetSettings):
                _ = settings.trust.secrets
        except SettingsRefused as refused:
            yield fault(str(refused), "correct it; docs/reference/settings.md has the allowed values")


def secret_files(environment: Mapping[str, str]) -> dict[str, Path]:
    """Return the paths of the files of secrets, by variable; the keyring is left out, as it has its own check."""
    return _named(environment, _SECRET_FILES) | _client_certificates()


def certificate_files(environment: Mapping[str, str]) -> dict[str, Path]:
    """Return the paths of the files of certificates, by variable."""
    named = _named(environment, _CERTIFICATES) | _client_certificates()
    # "probe" is left out, because it is no path but tells librdkafka to search for a file.
    return {name: path for name, path in named.items() if str(path) != "probe"}


def _named(environment: Mapping[str, str], variables: tuple[str, ...]) -> dict[str, Path]:
    values = {name.upper(): value for name, value in environment.items()}
    return {name: Path(values[name]) for name in variables if values.get(name)}


def _client_certificates() -> dict[str, Path]:
    """Return the client certificates' files, which also hold their keys; none if the settings are refused."""
    from workers.delivery.settings import DeliverySettings

    try:
        settings = read_settings(DeliverySettings)
    except SettingsRefused:
        return {}
    return {f"{_CLIENT_CERTIFICATES}[{tenant}]": path for tenant, path in settings.client_certificates.items()}
