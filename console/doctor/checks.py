"""Makes the list of all checks from the fleet's settings, this process's environment and the command's options."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import gettempdir

from console.doctor import egress, engine, keyring, machine, services, settings
from operators.doctor import access, brokers, clocks, files, fleet, groups, topics
from operators.doctor.findings import Check
from schemas.settings import FleetSettings, SettingsRefused, read_settings

BROKERS = "brokers"
_DATABASE_URL = "sqlite:///"


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of the command."""

    roles: tuple[str, ...] = ()
    engine: str | None = None
    model: str | None = None
    callbacks: tuple[str, ...] = ()
    certificates: tuple[Path, ...] = field(default=())


def checks(asked: Asked) -> list[Check]:
    """Return the checks. If the fleet's settings cannot be read, return only the checks that do not need them."""
    environment = {name.upper(): value for name, value in os.environ.items()}
    found = [
        Check("settings-names", partial(settings.check_names, os.environ)),
        Check("settings-values", settings.check_values),
        Check("secret-files", partial(files.check_secret_files, settings.secret_files(environment))),
        Check("certificates", partial(files.check_certificates, _certificates(environment, asked))),
        Check("packages", partial(services.check_packages, asked.roles)),
        Check("open-files", machine.check_files_limit),
        Check("memory", machine.check_memory),
        Check("disk", partial(machine.check_disk, _folders(environment))),
        *_services(environment, asked),
    ]
    try:
        read = read_settings(FleetSettings)
    except SettingsRefused:
        return found  # the check of settings reports the refused variables
    found.append(Check("keyring", partial(keyring.check_keyring, read.keyring, required="deliver" in asked.roles)))
    found += [
        Check(f"callback-{number}", partial(egress.check_callback, url, read))
        for number, url in enumerate(asked.callbacks, 1)
    ]
    return [*found, *_of_kafka(read, asked, environment)]


def _of_kafka(read: FleetSettings, asked: Asked, environment: dict[str, str]) -> Iterable[Check]:
    kafka = read.kafka
    lane = environment.get("POSTBACK_WORKER__LANE")
    yield Check(BROKERS, partial(brokers.check_brokers, kafka))
    looks = {
        "topics": partial(topics.check_topics, kafka, (lane,) if lane else ()),
        "access": partial(access.check_access, kafka, asked.roles),
        "access-groups": partial(access.check_groups_access, kafka, asked.roles),
        "groups": partial(groups.check_groups, kafka),
        "offsets": partial(groups.check_offsets, kafka),
        "clock": partial(clocks.check_clock, kafka),
        "worker-clocks": partial(clocks.check_worker_clocks, kafka),
        "versions": partial(fleet.check_versions, kafka),
        "names": partial(fleet.check_names, kafka),
        "dead-letters": partial(fleet.check_dead_letters, kafka),
        "endpoints": partial(fleet.check_endpoints, kafka),
    }
    yield from (Check(name, look, needs=BROKERS) for name, look in looks.items())


def _services(environment: dict[str, str], asked: Asked) -> Iterator[Check]:
    if "gateway" in asked.roles or "POSTBACK_STORE__URL" in environment:
        yield Check("store", services.check_store)
    if environment.get("POSTBACK_FILES__PLACE", "").startswith("s3://"):
        yield Check("files", services.check_bucket)
    for name in ("access", "cache"):
        variable = f"POSTBACK_{name.upper()}__REDIS_URL"
        if environment.get(variable):
            yield Check(f"redis-{name}", partial(services.check_redis, variable, environment[variable]))
    if languages := environment.get("POSTBACK_ENRICHMENT__OCR"):
        yield Check("ocr", partial(services.check_ocr, languages))
    judge = environment.get("POSTBACK_ENRICHMENT__ENTAILMENT")
    if "worker" in asked.roles or judge:
        yield Check("entailment", partial(services.check_entailment, judge))
    if asked.engine is not None:
        yield Check("engine", partial(engine.check_engine, asked.engine, asked.model))
    if registry := environment.get("POSTBACK_WORKER__REGISTRY"):
        yield Check("models", partial(engine.check_registry, Path(registry)))


def _certificates(environment: dict[str, str], asked: Asked) -> dict[str, Path]:
    given = {f"--certificate {path}": path for path in asked.certificates}
    return settings.certificate_files(environment) | given


def _folders(environment: dict[str, str]) -> dict[str, Path]:
    """Return the folders that this machine's processes write to, by setting."""
    folders = {"the temporary folder": Path(gettempdir())}
    url = environment.get("POSTBACK_STORE__URL", "")
    if url.startswith(_DATABASE_URL):
        folders["POSTBACK_STORE__URL"] = Path(url.removeprefix(_DATABASE_URL)).parent
    place = environment.get("POSTBACK_FILES__PLACE", "")
    if place and "://" not in place:
        folders["POSTBACK_FILES__PLACE"] = Path(place)
    if disk := environment.get("POSTBACK_CACHE__DISK_PATH"):
        folders["POSTBACK_CACHE__DISK_PATH"] = Path(disk).parent
    return folders
