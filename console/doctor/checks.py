"""The checks of `postback doctor`, listed from the settings, this process's environment and the command's options.

The checks of this machine, of the keyring and of callback URLs are here; those of settings, services and engines stand
beside this module, and those of Kafka, the fleet and files in `operators.doctor`.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import gettempdir

from console.doctor import engine, services, settings
from operators.doctor import access, brokers, clocks, files, fleet, groups, topics
from operators.doctor.findings import Check, Finding, fault, warning
from schemas.settings import FleetSettings, SettingsRefused, read_settings
from workers.system.memory_limit import BESIDE_WINDOW, COPIES, MIB, SMALLEST_WINDOW, memory_limit_bytes

BROKERS = "brokers"
_DATABASE_URL = "sqlite:///"
_ALLOW = "POSTBACK_EGRESS__ALLOW_CALLBACKS"
_LEAST_FILES = 4096
"""A lower hard limit of open files is a fault, since each callback in flight and each idle connection uses a file."""
_LEAST_MEMORY = BESIDE_WINDOW + COPIES * SMALLEST_WINDOW
_FAULT_DISK = 256 * MIB
_WARN_DISK = 2 * 1024 * MIB


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
        Check("open-files", check_files_limit),
        Check("memory", check_memory),
        Check("disk", partial(check_disk, _folders(environment))),
        *_services(environment, asked),
    ]
    try:
        read = read_settings(FleetSettings)
    except SettingsRefused:
        return found  # the check of settings reports the refused variables
    found.append(Check("keyring", partial(_check_keyring, read.keyring, required="deliver" in asked.roles)))
    found += [
        Check(f"callback-{number}", partial(_check_callback, url, read))
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


# -- this machine ----------------------------------------------------------------------------------------------------


def check_files_limit() -> Iterator[Finding]:
    """Yield a fault if the hard limit of open files is too low. Roles raise the soft limit to the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < _LEAST_FILES:
        yield fault(
            f"a process here may open {hard} files, and {_LEAST_FILES} are needed",
            "raise the hard limit: `ulimit -Hn 65536` as root, LimitNOFILE=65536 in systemd",
        )


def check_memory(root: Path = Path("/")) -> Iterator[Finding]:
    """Yield a fault if the memory limit leaves no room for delivery's smallest window."""
    limit = memory_limit_bytes(root)
    if limit < _LEAST_MEMORY:
        yield fault(
            f"the memory limit is {limit // MIB} MiB, and a process needs {_LEAST_MEMORY // MIB} MiB",
            "raise the container's memory limit, as `resources.limits.memory` in the chart",
        )


def check_disk(
    folders: Mapping[str, Path], free_of: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
) -> Iterator[Finding]:
    """Yield a fault or a warning for each disk with little space. `folders` maps a setting to its folder.

    For a missing folder, the disk of its nearest existing parent is checked.
    """
    for name, folder in folders.items():
        there = next((each for each in (folder, *folder.absolute().parents) if each.is_dir()), Path("/"))
        free = free_of(there)
        if free < _WARN_DISK:
            weigh = fault if free < _FAULT_DISK else warning
            yield weigh(f"the disk of {name} has {free // MIB} MiB free", f"free space at {there}, or move {name}")


# -- the keyring and callback URLs -----------------------------------------------------------------------------------


def _check_keyring(path: str | None, *, required: bool) -> Iterator[Finding]:
    """Yield the faults of the keyring. A missing path is a fault only if a role requires a keyring."""
    from workers.delivery.keyring import Keyring, KeyringError, KeyringMissing

    if not path:
        if required:
            yield fault("POSTBACK_KEYRING is not set, and delivery signs with its keys", "set it to the keyring's path")
        return
    try:
        Keyring.load(Path(path), by_root=True)
    except KeyringMissing:
        yield fault(f"there is no keyring at {path}", "run `postback keys init`, or correct POSTBACK_KEYRING")
    except KeyringError as error:
        problem, _, fix = str(error).rpartition("; ")
        yield fault(problem, fix)


def _check_callback(url: str, fleet: FleetSettings) -> Iterator[Finding]:
    """Yield the reasons why delivery would not reach a callback URL. Raises SettingsRefused."""
    from telemetry.logs import origin_of
    from workers.egress.policy import EgressRefused, is_allowed, is_named
    from workers.egress.settings import EgressSettings
    from workers.egress.urls import check_url

    policy = read_settings(EgressSettings).callback_policy(development=fleet.env == "development")
    origin = origin_of(url)
    try:
        parsed = check_url(url, policy)
    except EgressRefused as refused:
        yield fault(f"the guard refuses callbacks to {origin}: {refused.reason}", _egress_fix(refused.reason.name))
        return
    host, port = parsed.raw_host or "", parsed.port or 443
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        yield fault(f"the name of {origin} does not resolve on this machine", "correct the URL, or this machine's DNS")
        return
    refused_addresses = sorted(each for each in found if not (is_named(host, policy) or is_allowed(each, policy)))
    if refused_addresses:
        yield fault(
            f"the guard refuses callbacks to {origin}: its address {refused_addresses[0]} is not allowed",
            f"if the address is yours, set {_ALLOW}={refused_addresses[0]} on workers and delivery",
        )
        return
    problems = [
        (each, problem) for each in sorted(found) if (problem := brokers.probe(brokers.Address(each, port))) is not None
    ]
    if len(problems) == len(found):
        yield fault(f"{origin} cannot be reached: {problems[0][0]} {problems[0][1]}", "start it, or open the firewall")


def _egress_fix(reason: str) -> str:
    fixes = {
        "ADDRESS": f"if the address is yours, add its network to {_ALLOW} on workers and delivery",
        "DENIED": "remove it from POSTBACK_EGRESS__DENY if that is wrong",
        "PORT": f"add the port to POSTBACK_EGRESS__PORTS, or the address to {_ALLOW}",
        "SCHEME": "give the callback an https URL; POSTBACK_ENV=development allows http for tests",
    }
    return fixes.get(reason, "give the callback a whole https URL with a host name")
