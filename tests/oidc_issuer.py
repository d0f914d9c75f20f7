"""An OpenID Connect issuer of our own: an HTTPS server with a configuration and keys that a test may rotate."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from joserfc import jwt
from joserfc.jwk import ECKey, Key, RSAKey
from joserfc.jws import JWSRegistry

from gateway.access.oidc.settings import OidcSettings
from tests.integration.certificates import Authority

AUDIENCE = "postback"
CONFIGURATION, KEYS = "/.well-known/openid-configuration", "/keys"


class Issuer:
    """A context manager of the server. `pages` may be changed by a test; `asked` counts requests by path."""

    def __init__(self, authority: Authority) -> None:
        self.asked: list[str] = []
        self.keys: dict[str, Key] = {}
        self.pages: dict[str, Callable[[], tuple[int, bytes]]] = {}
        self._authority = authority
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.socket = authority.server().wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self.rotate("first")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def settings(self, **more: Any) -> OidcSettings:
        """The settings of a service that accepts this issuer's tokens."""
        given = {"issuer": self.url, "audience": AUDIENCE, "ca_file": self._authority.ca_file, **more}
        return OidcSettings.model_validate(given)

    def rotate(self, key_id: str, *, rsa: bool = False) -> Key:
        """Publish a new key in place of all earlier keys."""
        made: Key
        made = RSAKey.generate_key(2048) if rsa else ECKey.generate_key("P-256")
        self.keys = {key_id: made}
        self.publish([{**made.as_dict(private=False), "kid": key_id}])
        return made

    def publish(self, keys: object) -> None:
        """From now on, serve this JWK set, and the configuration that names its URL."""
        self.says(KEYS, {"keys": keys})
        self.says(CONFIGURATION, {"issuer": self.url, "jwks_uri": f"{self.url}{KEYS}"})

    def says(self, path: str, document: object, status: int = 200) -> None:
        """From now on, answer requests for this path with this JSON."""
        content = json.dumps(document).encode()
        self.pages[path] = lambda: (status, content)

    def token(self, now: float, *, header: Mapping[str, Any] | None = None, key: Any = None, **claims: Any) -> str:
        """A valid token of tenant acme; `header` and `claims` replace parts of it, and None removes a claim."""
        key_id, known = next(iter(self.keys.items()))
        algorithm = "RS256" if isinstance(known, RSAKey) else "ES256"
        said = {"iss": self.url, "aud": AUDIENCE, "sub": "alice", "exp": int(now) + 60, "tenant": "acme"}
        said = {**said, "scope": "openid postback:submit postback:read", **claims}
        said = {name: value for name, value in said.items() if value is not None}
        top = {"alg": algorithm, "kid": key_id, **(header or {})}
        registry = JWSRegistry(algorithms=[str(top["alg"])], strict_check_header=False)
        return jwt.encode(top, said, key or known, registry=registry)


def _handler(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            status, content = issuer.pages.get(self.path, lambda: (404, b"{}"))()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_said: Any) -> None:
            """Write no log line."""

    return Handler
