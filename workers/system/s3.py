"""The client of S3-compatible storage, for workers and the gateway. Importing this module needs boto3, the extra `s3`.

A client's calls may raise any error: boto3's parsers raise plain ValueErrors and KeyErrors for answers that are not
S3's. So callers map `Exception`, and `refusal` reads the storage's own errors.
"""

from __future__ import annotations

import re
from typing import Any, Final

import boto3
from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from botocore.config import Config
from botocore.exceptions import ClientError

from workers.system.s3_exchange import watched

_CODE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_NO_STATUS: Final = 500


class _WatchedConnection:
    """Names its socket to the exchange of its thread before each request."""

    def request(self, *arguments: Any, **options: Any) -> None:
        if self.sock is None:  # type: ignore[attr-defined]
            self.connect()  # type: ignore[attr-defined]
        watched(self.sock)  # type: ignore[attr-defined]
        super().request(*arguments, **options)  # type: ignore[misc]


class _PlainConnection(_WatchedConnection, AWSHTTPConnection):  # type: ignore[misc]
    """A connection without TLS."""


class _TlsConnection(_WatchedConnection, AWSHTTPSConnection):  # type: ignore[misc]
    """A connection with TLS."""


AWSHTTPConnectionPool.ConnectionCls = _PlainConnection
AWSHTTPSConnectionPool.ConnectionCls = _TlsConnection


def s3_client(endpoint: str | None, **options: Any) -> Any:
    """Return a client, which threads may share. `options` are those of botocore's Config.

    Raises BotoCoreError and ValueError for settings that boto3 cannot use.
    """
    # Do not require the newer checksums, which servers other than Amazon's perhaps do not know.
    config = Config(response_checksum_validation="when_required", **options)
    client = boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
    client.meta.events.register("before-call.s3.HeadBucket", _last_redirect)
    return client


def refusal(error: ClientError) -> tuple[int, str]:
    """Return the status and the code of the storage's error; `unknown` replaces a code that is no short word."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", _NO_STATUS)
    return status, code if _CODE.fullmatch(code) else "unknown"


def _last_redirect(context: dict[str, Any], **_: object) -> None:
    """Follow no redirect of HeadBucket, with which botocore asks for a bucket's region.

    botocore asks HeadBucket after a redirect that names no region, and asks again if that answer is a redirect too. A
    storage that redirects for ever would otherwise end in a RecursionError.
    """
    context["s3_redirect"]["redirected"] = True
