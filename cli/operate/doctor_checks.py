"""The checks of `postback doctor`, listed from the settings, this process's environment and the command's options.

The checks that need the libraries of workers and of the gateway are here, and those of an engine in `doctor_engine`;
those of Kafka, the fleet and files are in `cli.operations.doctor`.
"""

from __future__ import annotations

import os
import resource
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, SSLContext
from tempfile import gettempdir
from typing import TYPE_CHECKING

from cryptography import x509

from cli.operate import doctor_engine
from cli.operations.certificates import State, is_named_in, server_names, state_at
from cli.operations.doctor import brokers, fleet, topics
from cli.operations.doctor.findings import Check, Finding, fault, fault_of, listed, warning
from cli.send.job_warnings import FIXES
from cli.shared.variables import ROOMS, complaints, settings_class
from schemas.settings import FleetSettings, KafkaSettings, SettingsRefused, read_settings
from telemetry.atomic_file import access_problem
from telemetry.clock import Clock, SystemClock
from workers.system.memory_limit import BESIDE_WINDOW, COPIES, MIB, SMALLEST_WINDOW, memory_limit_bytes
from workers.system.tls_files import TlsFileUnusable, load_key

if TYPE_CHECKING:
    from redis import Redis

_LARGEST_BYTES = 16 * 1024 * 1024
_CLOCK = SystemClock()
BROKERS = "brokers"
_DATABASE_URL = "sqlite:///"
_ALLOW = "POSTBACK_EGRESS__ALLOW_CALLBACKS"
_LEAST_FILES = 4096
"""A lower hard limit of open files is a fault, since each callback in flight and each idle connection uses a file."""
_LEAST_MEMORY = BESIDE_WINDOW + COPIES * SMALLEST_WINDOW
_FAULT_DISK = 256 * MIB
_WARN_DISK = 2 * 1024 * MIB
_REDIS_SECONDS = 3.0
_EXTRAS = {"worker": "worker", "deliver": "worker", "gateway": "gateway"}
"""Maps each role that needs more than the base install to the extra that installs the role's packages."""
_PACKAGES = {"worker": ("aiohttp", "confluent_kafka", "uvloop"), "gateway": ("sqlalchemy", "starlette", "uvicorn")}
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

_WHOLE_URL = "give the callback a whole https URL with a host name"


@dataclass(frozen=True, slots=True)
class Door:
    """Files of certificates to check, with the key and the name that belong to the first file."""

    certificates: Sequence[Path] = ()
    key: Path | None = None
    host: str | None = None


_NO_DOOR = Door()


def checks(
    roles: Sequence[str] = (),
    callbacks: Sequence[str] = (),
    door: Door = _NO_DOOR,
    engine: str | None = None,
    model: str | None = None,
) -> list[Check]:
    """Return the checks. If the fleet's settings cannot be read, return only the checks that do not need them.

    `model` overrides the engine's model of the settings.
    """
    environment = {name.upper(): value for name, value in os.environ.items() if value}
    of_certificates = {f"--certificate {path}": path for path in door.certificates}
    of_keys = {"--key": door.key} if door.key else {}
    found = [
        Check("settings-names", partial(check_names, os.environ)),
        Check("settings-values", check_values),
        Check("secret-files", lambda: check_secret_files(_files(environment, _SECRET_FILES) | of_keys)),
        Check("certificates", lambda: check_certificates(_files(environment, _CERTIFICATES) | of_certificates)),
        Check("packages", partial(check_packages, roles)),
        Check("open-files", check_files_limit),
        Check("memory", check_memory),
        Check("disk", partial(check_disk, _folders(environment))),
        *_services(environment, roles),
    ]
    if door.key or door.host:
        found.append(Check("door", partial(check_door, door)))
    if engine is not None:
        found.append(Check("engine", partial(doctor_engine.check_engine, engine, model)))
    try:
        read = read_settings(FleetSettings)
    except SettingsRefused:
        return found  # the check of settings reports the refused variables
    kafka, lane = read.kafka, environment.get("POSTBACK_WORKER__LANE")
    return [
        *found,
        Check("kafka-key", partial(check_kafka_key, kafka)),
        Check("keyring", partial(_check_keyring, read.keyring, required="deliver" in roles)),
        *(Check(f"callback-{place}", partial(_check_callback, url, read)) for place, url in enumerate(callbacks, 1)),
        Check(BROKERS, partial(brokers.check_brokers, kafka)),
        Check("topics", partial(topics.check_topics, kafka, (lane,) if lane else ()), BROKERS),
        Check("access", partial(topics.check_access, kafka, roles), BROKERS),
        Check("groups", partial(fleet.check_groups, kafka), BROKERS),
        Check("clock", partial(fleet.check_clock, kafka), BROKERS),
        Check("workers", partial(fleet.check_workers, kafka), BROKERS),
        Check("dead-letters", partial(fleet.check_dead_letters, kafka), BROKERS),
        Check("endpoints", partial(fleet.check_endpoints, kafka), BROKERS),
    ]


def _services(environment: Mapping[str, str], roles: Sequence[str]) -> Iterator[Check]:
    if "gateway" in roles or "POSTBACK_STORE__URL" in environment:
        yield Check("store", check_store)
    if environment.get("POSTBACK_FILES__PLACE", "").startswith("s3://"):
        yield Check("files", check_bucket)
    for name in ("access", "cache", "deltas"):
        variable = f"POSTBACK_{name.upper()}__REDIS_URL"
        if variable in environment:
            uses = _speaks if name == "deltas" else _keeps
            yield Check(f"redis-{name}", partial(check_redis, variable, environment[variable], uses))
    if languages := environment.get("POSTBACK_ENRICHMENT__OCR"):
        yield Check("ocr", partial(check_ocr, languages))
    judge = environment.get("POSTBACK_ENRICHMENT__ENTAILMENT")
    if "worker" in roles or judge:
        yield Check("entailment", partial(check_entailment, judge))
    if registry := environment.get("POSTBACK_WORKER__REGISTRY"):
        yield Check("models", partial(doctor_engine.check_registry, Path(registry)))


# -- settings --------------------------------------------------------------------------------------------------------


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
        try:
            made = settings_class(room)
        except ModuleNotFoundError:
            continue  # the class's extra is not installed, so no role on this machine reads these settings
        try:
            settings = read_settings(made)
            if isinstance(settings, FleetSettings):
                _ = settings.trust.secrets
        except SettingsRefused as refused:
            yield fault(str(refused), "correct it; docs/reference/settings.md has the allowed values")


def _files(environment: Mapping[str, str], variables: tuple[str, ...]) -> dict[str, Path]:
    """Return the paths that the variables give, and those of the client certificates, which also hold their keys.

    A setting that is refused, which has its own check, gives none.
    """
    from workers.delivery.settings import DeliverySettings

    # "probe" is no path but tells librdkafka to search for a file.
    named = {name: Path(environment[name]) for name in variables if environment.get(name, "probe") != "probe"}
    try:
        settings = read_settings(DeliverySettings)
    except SettingsRefused:
        return named
    whose = settings.client_certificates.items()
    return named | {f"POSTBACK_DELIVERY__CLIENT_CERTIFICATES[{tenant}]": path for tenant, path in whose}


def _folders(environment: Mapping[str, str]) -> dict[str, Path]:
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


# -- files of secrets, and certificates -----------------------------------------------------------------------------


def check_secret_files(files: Mapping[str, Path]) -> Iterator[Finding]:
    """Yield the faults of files of secrets: missing, unreadable or open to others.

    `files` maps each variable's name to a path.
    """
    for variable, path in files.items():
        try:
            with path.open("rb"):
                problem = access_problem(path.stat(), path, by_root=True)
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or "no path of a file").lower()
            yield fault(f"the file of {variable} cannot be read ({reason})", f"correct the path in {variable}")
            continue
        if problem is not None:
            yield fault(f"the file of {variable}: {problem.problem}", problem.fix)


def check_certificates(files: Mapping[str, Path], clock: Clock = _CLOCK) -> Iterator[Finding]:
    """Yield the certificates that are expired or expire soon.

    `files` maps each variable or option to the path of a PEM file.
    """
    now = datetime.fromtimestamp(clock.time(), UTC)
    for name, path in files.items():
        certificates = _certificates(path)
        if certificates is None:
            yield fault(f"the file of {name} holds no certificate in PEM", f"correct the path in {name}")
            continue
        for certificate in certificates:
            yield from _lifetime(name, certificate, now)


def check_door(door: Door) -> Iterator[Finding]:
    """Yield a fault if the first certificate has another key, or is for other names."""
    path, name = door.certificates[0], f"--certificate {door.certificates[0]}"
    certificates = _certificates(path)
    if certificates is None:
        return  # the check of certificates reports the file
    if door.key is not None:
        yield from _key_fault(path, door.key, None, "--key")
    names = server_names(certificates[0])
    if door.host is not None and not is_named_in(door.host, names):
        yield fault(
            f"the certificate of {name} is for {listed(names) or 'no server'}, and not for {door.host}",
            f"issue one with that name, as `postback certs issue DIR NAME --server --san {door.host}`",
        )


def check_kafka_key(kafka: KafkaSettings) -> Iterator[Finding]:
    """Yield a fault if the key of Kafka's client certificate is another one's, or its passphrase is wrong."""
    config = kafka.client_config()
    certificate, key = config.get("ssl.certificate.location"), config.get("ssl.key.location")
    if certificate and key and _certificates(Path(certificate)) is not None:
        yield from _key_fault(Path(certificate), Path(key), config.get("ssl.key.password"), f"{_KAFKA}SSL_KEY_LOCATION")


def _key_fault(certificate: Path, key: Path, passphrase: str | None, name: str) -> Iterator[Finding]:
    try:
        load_key(SSLContext(PROTOCOL_TLS_CLIENT), certificate, key, passphrase)
    except TlsFileUnusable as error:
        if key.is_file():  # the check of files of secrets reports a missing file
            yield fault(f"the key of {name} cannot be used: {error.reason}", f"correct the path in {name}, or the key")


def _certificates(path: Path) -> list[x509.Certificate] | None:
    """Return the file's certificates; None if it cannot be read or has none."""
    try:
        with path.open("rb") as file:
            return x509.load_pem_x509_certificates(file.read(_LARGEST_BYTES))
    except (OSError, ValueError):
        return None


def _lifetime(name: str, certificate: x509.Certificate, now: datetime) -> Iterator[Finding]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    state = state_at(now, begin, end)
    about = f"a certificate of {name} ({_common_name(certificate)})"
    renew = f"replace the file of {name}; `postback certs renew` does so for certificates of `postback certs`"
    if begin > now:
        yield fault(f"{about} is not valid yet, or this machine's clock is slow", renew)
    elif state is State.EXPIRED:
        yield fault(f"{about} expired {_days_left(now, end)}", renew)
    elif state is State.EXPIRING:
        yield warning(f"{about} expires {_days_left(now, end)}", renew)


def _days_left(now: datetime, end: datetime) -> str:
    """Return the time to the end as text for people, such as `in 12 days` or `3 days ago`."""
    days = abs(end - now).days
    count = "less than a day" if days == 0 else "1 day" if days == 1 else f"{days} days"
    return f"{count} ago" if end < now else f"in {count}"


def _common_name(certificate: x509.Certificate) -> str:
    try:
        names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    except ValueError:
        names = []
    return str(names[0].value) if names else "without a name"


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
        yield fault(
            f"the guard refuses callbacks to {origin}: {refused.reason}",
            FIXES.get(str(refused.reason), _WHOLE_URL),
        )
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


# -- services beside Kafka -------------------------------------------------------------------------------------------


def check_packages(roles: Sequence[str]) -> Iterator[Finding]:
    """Yield a fault for each role whose packages are not installed."""
    for role in roles:
        extra = _EXTRAS.get(role)
        absent = [name for name in _PACKAGES.get(extra or "", ()) if find_spec(name) is None]
        if absent:
            yield fault(f"`postback {role}` needs {absent[0]}", f"run `pip install 'postback[{extra}]'`")


def check_store() -> Iterator[Finding]:
    """Yield the faults of the gateway's database. The check makes no table and no file. Raises SettingsRefused."""
    from gateway.errors import StoreAway
    from gateway.store.schema import examine_store
    from gateway.store.settings import StoreSettings

    try:
        examine_store(read_settings(StoreSettings).url)
    except StoreAway as away:
        yield fault_of(away, "start the database, or correct POSTBACK_STORE__URL")


def check_bucket() -> Iterator[Finding]:
    """Yield a fault if the bucket of the gateway's files is away, missing or read-only. Raises SettingsRefused.

    The check writes an empty object and deletes it.
    """
    from gateway.blobs.base import BlobsAway, has_answer
    from gateway.blobs.folder import open_blobs
    from gateway.blobs.settings import FilesSettings

    variable, step = "POSTBACK_FILES__PLACE", "read"
    try:
        blobs = open_blobs(read_settings(FilesSettings), "")
        has_answer(blobs)
        step = "written"
        name = f"doctor-{secrets.token_hex(8)}"
        writer = blobs.create(name)
        writer.write(b"doctor")
        writer.commit()
        step = "deleted from"
        blobs.delete(name)
    except BlobsAway as away:
        found = fault_of(away, f"correct {variable} and its keys")
        yield fault(f"the bucket of {variable} cannot be {step}: {found.problem}", found.fix)


def check_ocr(languages: str) -> Iterator[Finding]:
    """Yield a fault if tesseract or one of the languages is missing."""
    from workers.enrichment.processes.tesseract import Tesseract
    from workers.system.errors import ProcessError

    try:
        Tesseract.find(languages)
    except ProcessError as missing:
        yield fault_of(missing, "install tesseract again")


def check_entailment(judge: str | None) -> Iterator[Finding]:
    """Yield a warning if no judge of answers is named, and a fault if the cross-encoder cannot be loaded."""
    from workers.enrichment.answering.profile import Profiles
    from workers.enrichment.settings import BY_ENGINE, ENTAILMENT_SETTING

    if not judge:
        profiles = Profiles.load()
        names = " and ".join(name for name in profiles.names if profiles[name].requires)
        yield warning(
            f"jobs with the profiles {names} fail as profile_unavailable, since {ENTAILMENT_SETTING} is not set",
            f"set it to a cross-encoder's folder or to {BY_ENGINE}, or use other profiles",
        )
    elif judge != BY_ENGINE and not Path(judge).exists():
        yield fault(f"{ENTAILMENT_SETTING} names no file or folder", f"correct the path, or set it to {BY_ENGINE}")
    elif judge != BY_ENGINE and (find_spec("onnxruntime") is None or find_spec("tokenizers") is None):
        yield fault(
            f"{ENTAILMENT_SETTING} needs onnxruntime and tokenizers", "run `pip install 'postback[worker,entailment]'`"
        )


def _keeps(redis: Redis) -> None:
    """Write a key, as the cache and the gateways' counters do. Raises RedisError."""
    redis.set("postback/doctor", b"", px=1000)


def _speaks(redis: Redis) -> None:
    """Hear and say something that all listeners ignore, as for deltas. Raises RedisError."""
    from workers.system.deltas import OWN_CHANNEL

    with redis.pubsub() as hearing:  # type: ignore[no-untyped-call]
        hearing.subscribe(OWN_CHANNEL)
        hearing.get_message(timeout=_REDIS_SECONDS)
    redis.publish(OWN_CHANNEL, b"")


def check_redis(variable: str, url: str, uses: Callable[[Redis], None]) -> Iterator[Finding]:
    """Yield a fault if the Redis at `url` cannot be used. The URL, which may contain a password, is not shown."""
    if find_spec("redis") is None:
        yield fault(
            f"{variable} is set, and the package redis is not installed", "run `pip install 'postback[worker]'`"
        )
        return
    from redis import Redis
    from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError, RedisError

    try:
        with Redis.from_url(url, socket_timeout=_REDIS_SECONDS, socket_connect_timeout=_REDIS_SECONDS) as client:
            client.ping()
            uses(client)
    except AuthenticationError:
        yield fault(f"the Redis of {variable} refuses the password", f"correct the password in {variable}")
    except ReadOnlyError:
        yield fault(f"the Redis of {variable} takes no writes (ReadOnlyError)", f"name the primary in {variable}")
    except NoPermissionError:
        yield fault(
            f"the Redis of {variable} refuses a command of this user (NoPermissionError)",
            "allow it PING and writes; for deltas PING, PUBLISH, SUBSCRIBE and UNSUBSCRIBE on postback:deltas:*",
        )
    except (RedisError, OSError) as error:
        yield fault(f"the Redis of {variable} fails ({type(error).__name__})", f"start it, or correct {variable}")
    except ValueError:
        yield fault(f"{variable} is no URL of a Redis", f"set {variable}=redis://HOST:6379/0")
