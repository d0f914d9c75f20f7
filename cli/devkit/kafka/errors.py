"""Errors of the embedded Kafka.

BrokerError
├── MissingPrerequisite   Java, Maven or setpriv is not installed and could not be installed
├── DownloadFailed        Maven did not fetch Kafka's jars
├── DataMismatch          the data directory does not fit the requested cluster
├── PortInUse             another process listens on a port that a broker needs
├── BrokerDied            a broker's process ended before it served
└── NotServing            a broker's process lives, but did not serve in time
"""

from __future__ import annotations

from schemas.operator_error import OperatorError


class BrokerError(OperatorError):
    """The embedded Kafka failed."""


class MissingPrerequisite(BrokerError):  # noqa: N818 - the tree above names events
    """A program that the embedded Kafka needs is not installed."""

    def __init__(self, program: str, package: str, detail: str = "") -> None:
        super().__init__(
            f"{program} is needed to run the embedded Kafka and was not found. "
            f"Install it (Debian and Ubuntu: apt-get install {package}), "
            "or set POSTBACK_KAFKA__BOOTSTRAP_SERVERS to a Kafka that is running already."
            + (f"\nInstalling it failed:\n{detail}" if detail else "")
        )


class DownloadFailed(BrokerError):  # noqa: N818
    """Maven could not copy Kafka's jars."""

    def __init__(self, output: str) -> None:
        super().__init__(f"Maven could not fetch Kafka's jars:\n{output}")


class DataMismatch(BrokerError):  # noqa: N818
    """The data directory does not fit the requested cluster."""


class PortInUse(BrokerError):  # noqa: N818
    """Another process listens on the port."""

    def __init__(self, port: int) -> None:
        super().__init__(
            f"Port {port} on 127.0.0.1 is in use. Stop the process that listens there, or choose another port."
        )
        self.port = port


class BrokerDied(BrokerError):  # noqa: N818
    """The process ended before it served."""

    def __init__(self, node_id: int, log_tail: str) -> None:
        super().__init__(f"Broker {node_id} ended while it was starting. The end of its log:\n{log_tail}")


class NotServing(BrokerError):  # noqa: N818
    """The process lives but does not answer."""

    def __init__(self, node_ids: list[int], seconds: float) -> None:
        ids = ", ".join(map(str, node_ids))
        super().__init__(f"Broker {ids} did not serve within {seconds:g} s. See kafka.log in its data directory.")
