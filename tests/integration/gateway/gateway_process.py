"""A running gateway with a store of its own, API keys, and requests to it.

    with running_gateway(fleet_here) as gateway:         # or the fixture `shared_gateway`
        gateway.get("/v1/models", key=gateway.key("acme"))

`running_gateway(fleet_here, tls=authority)` serves over TLS with a certificate for 127.0.0.1.
`fleet_here.worker("w", ...)` and `fleet_here.deliver("d")` start an echo worker and delivery on the same fleet.
With a `Product` instead of a `FleetHere`, the gateway is a process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.integration.certificates import Authority
from tests.postback_command import environment_of, postback_here
from tests.product import Fleet, Role, RoleProcess, eventually

START_SECONDS = 180.0


@dataclass
class Gateway:
    """One gateway.

    The store outlives the gateway, so that a test can start another gateway beside or after this one.
    """

    role: Role
    product: Fleet[Role]
    store: str
    tls: Authority | None = None
    client: requests.Session = field(default_factory=requests.Session)

    @property
    def url(self) -> str:
        """The door's URL, without `/v1`."""
        return self._announced()[-1]

    @property
    def port(self) -> int:
        """The door's port."""
        return int(self.url.rpartition(":")[2])

    def key(self, tenant: str = "acme", scopes: str | None = None) -> str:
        """Create an API key with the command. `scopes` are separated by commas; by default all scopes of a tenant."""
        chosen = [] if scopes is None else ["--scopes", scopes]
        return self.created("--tenant", tenant, *chosen)["key"]

    def created(self, *options: str) -> dict[str, str]:
        """Create an API key with these options of the command; return its `id` and `key`."""
        made = postback_here("api-keys", "create", "--json", *options, env=self.environment())
        assert made.returncode == 0, made.stderr
        found: dict[str, str] = json.loads(made.stdout)
        return found

    def environment(self) -> dict[str, str]:
        """The environment of commands that work on the gateway's store and fleet."""
        return environment_of(
            self.product.kafka,
            POSTBACK_ENV="development",
            POSTBACK_STORE__URL=self.store,
            **_pepper(self.product, self.store),
            POSTBACK_KEYRING=str(self.product.folder / "keyring.json"),
        )

    def request(self, method: str, path: str, key: str | None = None, **arguments: Any) -> requests.Response:
        """Send one request; `key` is the API key."""
        headers = {**arguments.pop("headers", {}), **({} if key is None else {"authorization": f"Bearer {key}"})}
        arguments.setdefault("timeout", 60)
        verify = str(self.tls.ca_file) if self.tls else True
        return self.client.request(method, f"{self.url}{path}", headers=headers, verify=verify, **arguments)

    def get(self, path: str, key: str | None = None, **arguments: Any) -> requests.Response:
        return self.request("GET", path, key, **arguments)

    def post(self, path: str, key: str | None = None, **arguments: Any) -> requests.Response:
        return self.request("POST", path, key, **arguments)

    def wait_until_ready(self) -> None:
        eventually(lambda: bool(self._announced()), START_SECONDS, lambda: f"no URL is announced: {self._tail()}")
        eventually(lambda: self.role.ready()[0], START_SECONDS, lambda: f"not ready: {self._tail()}")

    def kill(self) -> None:
        """Kill the gateway's process."""
        assert isinstance(self.role, RoleProcess)
        self.role.kill()

    def _announced(self) -> list[str]:
        return re.findall(r"the API is at (https?://\S+) under /v1", self.role.said())

    def _tail(self) -> str:
        return f"exit status {self.role.ended()}\n{self.role.said()[-3000:]}"


def start_gateway(
    product: Fleet[Role],
    *arguments: str | Path,
    store: str | None = None,
    tls: Authority | None = None,
    replica: str = "door",
    **settings: str,
) -> Gateway:
    """Start a gateway on a free port. The gateway ends with `product`, whose kind decides if it is a process.

    `store` is the database's URL; by default a new SQLite file. `settings` are variables of the environment.
    """
    url = store or f"sqlite:///{product.folder / f'store-{len(product.roles)}.db'}"
    chain = str(tls.chain_file()) if tls else ""
    certificate = ("--tls-cert", chain, "--tls-key", chain) if tls else ()
    options = ("--port", "0", "--store", url, *certificate, *map(str, arguments))
    return Gateway(product.gateway(replica, *options, **_pepper(product, url), **settings), product, url, tls)


def _pepper(product: Fleet[Role], store: str) -> dict[str, str]:
    """The setting of the pepper's file; none for SQLite, whose default is a file beside the database."""
    return {} if store.startswith("sqlite") else {"POSTBACK_ACCESS__PEPPER_FILE": str(product.folder / "pepper")}


@contextmanager
def running_gateway(product: Fleet[Role], *arguments: str | Path, **options: Any) -> Iterator[Gateway]:
    """A gateway that is ready and ends with the block. Takes the arguments of `start_gateway`."""
    started = start_gateway(product, *arguments, **options)
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.client.close()
        started.role.end()
