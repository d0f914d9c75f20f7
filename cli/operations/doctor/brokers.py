"""Checks the way to the brokers: names, ports, TLS, passwords, versions, and the addresses that brokers advertise.

A Kafka client only reports that no broker answers. This check does the steps of a connection one by one, so that the
finding can name the step that fails.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Any, NamedTuple

from kafka.admin import ConfigResourceType

from cli.operations.doctor.findings import Finding, fault, warning
from producers.connection import admin_client, connection_config
from producers.errors import AccessRefused, BrokerUnreachable
from producers.topic_configs import shown_configs
from schemas.broker_hint import broker_hint
from schemas.settings import KafkaSettings
from schemas.topics import LANES_KEPT_MS

PROBE_SECONDS = 3.0
"""Longest wait for one TCP connection or TLS handshake."""
OLDEST_KAFKA = (4, 0)
"""The first version of Kafka that has the consumer groups of KIP-848. Every role uses such a group."""
_BOOTSTRAP = "POSTBACK_KAFKA__BOOTSTRAP_SERVERS"
_EXTRA = "POSTBACK_KAFKA__EXTRA__"
_PROTOCOL = f"{_EXTRA}SECURITY_PROTOCOL"
_OFFSETS_MINUTES = LANES_KEPT_MS // 60_000


class Address(NamedTuple):
    """A server's host and port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def check_brokers(settings: KafkaSettings) -> Iterator[Finding]:
    """Yield the faults on the way to the brokers. Raises ProducerError."""
    addresses = parsed_addresses(settings.bootstrap_servers)
    if addresses is None:
        yield fault(f"{_BOOTSTRAP} is no list of HOST:PORT", f"set it as in `export {_BOOTSTRAP}=kafka-1:9092`")
        return
    closed = {address: found for address in addresses if (found := probe(address)) is not None}
    open_addresses = [address for address in addresses if address not in closed]
    for address, problem in closed.items():
        fix = f"correct {_BOOTSTRAP}" if open_addresses else broker_hint(str(address))
        yield (warning if open_addresses else fault)(f"{address} {problem}", fix)
    if not open_addresses:
        return
    config = connection_config(settings)
    if (tls := _tls_fault(open_addresses[0], config)) is not None:
        yield tls
        return
    try:
        with admin_client(settings) as admin:
            yield from _answers(admin)
    except (BrokerUnreachable, AccessRefused):
        yield _no_answer(open_addresses[0], config)


def parsed_addresses(servers: str) -> list[Address] | None:
    """Return the addresses of a comma-separated list; None if one of them is not HOST:PORT."""
    found = []
    for server in servers.split(","):
        host, _, port = server.strip().rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 65_536:
            return None
        found.append(Address(host.removeprefix("[").removesuffix("]"), int(port)))
    return found


def probe(address: Address) -> str | None:
    """Return the reason why no TCP connection opens, as a phrase to follow the address; None if one opens."""
    try:
        socket.create_connection(address, PROBE_SECONDS).close()
    except (socket.gaierror, UnicodeError):
        return "has a name that does not resolve on this machine"
    except ConnectionRefusedError:
        return "refuses connections: no process listens there"
    except TimeoutError:
        return f"does not answer within {PROBE_SECONDS:g} s, as behind a firewall"
    except OSError as error:
        return f"cannot be reached ({error.strerror or type(error).__name__})"
    return None


def _tls_fault(address: Address, config: dict[str, Any]) -> Finding | None:
    """Return the fault of a TLS handshake, if the settings ask for TLS. The probe sends no password."""
    protocol = config.get("security_protocol", "PLAINTEXT")
    if not protocol.endswith("SSL") or (problem := _tls_problem(address, _verifying(config))) is None:
        return None
    if _tls_problem(address, _trusting_anyone()) is not None:
        return _other_protocol(address, protocol, "speaks no TLS", protocol.replace("SSL", "PLAINTEXT"))
    return fault(
        f"TLS with {address} fails ({problem})",
        f"set {_EXTRA}SSL_CA_LOCATION to the authority of the broker's certificate, "
        "and name the broker as the certificate does",
    )


def _no_answer(address: Address, config: dict[str, Any]) -> Finding:
    """Return the fault of a port that is open, but does not answer by the protocol in the settings."""
    protocol = config.get("security_protocol", "PLAINTEXT")
    if not protocol.endswith("SSL") and _tls_problem(address, _trusting_anyone()) is None:
        return _other_protocol(address, protocol, "speaks TLS", protocol.replace("PLAINTEXT", "SSL"))
    if protocol.startswith("SASL"):
        return fault(
            f"{address} does not let this user in over {protocol}",
            f"correct {_EXTRA}SASL_USERNAME, {_EXTRA}SASL_PASSWORD and {_EXTRA}SASL_MECHANISM; if the port asks for no "
            f"user, set {_PROTOCOL}={protocol.removeprefix('SASL_')}",
        )
    return fault(
        f"{address} accepts connections and answers no Kafka request over {protocol}",
        f"if the broker asks for a user, set {_PROTOCOL}=SASL_{protocol} and {_EXTRA}SASL_…; else look at its log",
    )


def _other_protocol(address: Address, protocol: str, speaks: str, right: str) -> Finding:
    return fault(f"{address} {speaks}, and the protocol is set to {protocol}", f"set {_PROTOCOL}={right}")


def _trusting_anyone() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _verifying(config: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=config.get("ssl_cafile"))
    context.check_hostname = config.get("ssl_check_hostname", True)
    return context


def _tls_problem(address: Address, context: ssl.SSLContext) -> str | None:
    try:
        with (
            socket.create_connection(address, PROBE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=address.host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except OSError as error:
        return type(error).__name__


def _answers(admin: Any) -> Iterator[Finding]:
    """Yield the faults that the brokers' own answers show."""
    # Use the list in the connection's first answer, because a new request would go to a broker that may be out of
    # reach.
    for each in admin._manager.cluster.brokers():
        address = Address(each.host, each.port)
        if (problem := probe(address)) is not None:
            yield fault(
                f"broker {each.node_id} sends clients to {address}, which {problem}",
                f"set advertised.listeners of broker {each.node_id} to an address that this machine reaches",
            )
        else:
            version = admin.get_broker_version_data(each.node_id).broker_version
            name = str(each.node_id)
            # Without DescribeConfigs on the cluster, the answer has no properties.
            config = shown_configs(admin, [name], ConfigResourceType.BROKER).get(name, {})
            yield from broker_findings(each.node_id, version, config)


def broker_findings(broker: int, version: tuple[int, ...], config: dict[str, str]) -> Iterator[Finding]:
    """Yield the faults of a broker's version, and of its settings as far as the broker shows them."""
    if version[:2] < OLDEST_KAFKA:
        yield fault(
            f"broker {broker} runs Kafka {'.'.join(map(str, version))}, whose groups cannot be joined",
            f"upgrade it to Apache Kafka {'.'.join(map(str, OLDEST_KAFKA))} or later",
        )
    protocols = config.get("group.coordinator.rebalance.protocols")
    if protocols is not None and "consumer" not in protocols:
        yield fault(
            f"broker {broker} allows only groups of the protocols {protocols}",
            "set group.coordinator.rebalance.protocols=classic,consumer on the brokers",
        )
    minutes = config.get("offsets.retention.minutes", "")
    if minutes.isdigit() and int(minutes) < _OFFSETS_MINUTES:
        yield warning(
            f"broker {broker} forgets the offsets of an idle group after {minutes} minutes, before jobs expire",
            f"set offsets.retention.minutes={_OFFSETS_MINUTES} on the brokers",
        )
