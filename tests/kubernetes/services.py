"""The cluster's DNS and kube-proxy for HTTP clients: a proxy that knows Services by their names."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from urllib.parse import urlsplit

import requests

from tests.http_handler import Answering, handling
from tests.kubernetes.api import Api
from tests.kubernetes.release import is_ready

_SECONDS = 10.0


def proxying(api: Api) -> AbstractContextManager[str]:
    """Serve a proxy for `http_proxy`: GET requests to NAME.NAMESPACE.svc reach one of the Service's ready pods."""

    class Handler(Answering):
        def do_GET(self) -> None:
            wanted = urlsplit(self.path)
            endpoint = _endpoint(api, wanted.hostname or "", wanted.port)
            if endpoint is None:
                self.answer(502, b"the Service has no ready pod", "text/plain")
                return
            try:
                answer = requests.get(f"http://{endpoint}{wanted.path}", timeout=_SECONDS)
            except requests.RequestException:
                self.answer(502, b"the pod does not answer", "text/plain")
                return
            self.answer(answer.status_code, answer.content, answer.headers.get("Content-Type", "text/plain"))

    return handling(Handler)


def _endpoint(api: Api, host: str, port: int | None) -> str | None:
    """Return address and port of a ready pod that the Service selects.

    The pods' addresses are loopback addresses, which Kubernetes keeps out of its EndpointSlices.
    """
    named = re.fullmatch(r"([a-z0-9-]+)\.([a-z0-9-]+)\.svc", host)
    service = named and api.find(f"/api/v1/namespaces/{named[2]}/services/{named[1]}")
    if not named or not service:
        return None
    chosen = ",".join(f"{name}={value}" for name, value in service["spec"]["selector"].items())
    targets = [each["targetPort"] for each in service["spec"]["ports"] if each["port"] == port]
    found = [
        f"{pod['status']['podIP']}:{each['containerPort']}"
        for pod in api.items(f"/api/v1/namespaces/{named[2]}/pods", labelSelector=chosen)
        if is_ready(pod)
        for container in pod["spec"]["containers"]
        for each in container.get("ports", [])
        if each.get("name") in targets or each["containerPort"] in targets
    ]
    return found[0] if found else None
