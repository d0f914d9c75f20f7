"""Credentials on real sockets, one tenant's tries to reach another's objects, and jobs that leave the door signed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from gateway.access.keys import checksum, new_key
from gateway.door.app import routes
from tests.fleet_here import FleetHere
from tests.integration.gateway.gateway_process import Gateway, running_gateway
from tests.postback_command import postback_here
from tests.product import eventually
from tests.unit.gateway_rig import gateway_rig

pytestmark = pytest.mark.broker

SECRET = "s" * 32
PUBLIC = {"/docs", "/openapi.json"}
CHAT = "/v1/chat/completions"
ENDPOINT = {"name": "hooks", "url": "https://example.com/in", "event_types": ["batch.completed"]}
UPLOAD = {"bytes": 3, "filename": "x", "mime_type": "text/plain", "purpose": "user_data"}
PART = {
    "data": '--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\nabc\r\n--b--\r\n',
    "headers": {"content-type": "multipart/form-data; boundary=b"},
}


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    file = tmp_path_factory.mktemp("trust") / "secrets"
    file.write_text(SECRET)
    return {"POSTBACK_TRUST__SECRET_FILE": str(file)}


@pytest.fixture(scope="module")
def gateway(module_fleet_here: FleetHere, trust: dict[str, str]) -> Iterator[Gateway]:
    # More failures are allowed than by default, since all refused credentials of these tests come from one address.
    limits = {"POSTBACK_ACCESS__KEY_CACHE_SECONDS": "0.5", "POSTBACK_ACCESS__FAILURES_PER_MINUTE": "10000"}
    with running_gateway(module_fleet_here, **limits, **trust) as started:
        module_fleet_here.worker("signed", "--engine", "echo", POSTBACK_WORKER__TRUST="signed", **trust)
        yield started


def status(gateway: Gateway, key: str | None) -> int:
    return gateway.get("/v1/jobs", key).status_code


def all_routes(folder: Path) -> dict[str, set[str]]:
    """Each route's path with its methods."""
    found: dict[str, set[str]] = {}
    with gateway_rig(folder) as rig:
        for route in routes(rig.door):
            found.setdefault(route.path, set()).update((route.methods or set()) - {"HEAD"})
    return found


def test_no_route_answers_without_a_credential(gateway: Gateway, tmp_path: Path) -> None:
    for path, methods in all_routes(tmp_path).items():
        for method in methods:
            answer = gateway.request(method, path.replace("{", "").replace(":path}", "").replace("}", ""), data=b"{}")
            assert answer.status_code == (200 if path in PUBLIC else 401), (method, path)
            if path not in PUBLIC:
                error = answer.json()["error"]
                assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"


def test_unusable_credentials_are_refused(gateway: Gateway) -> None:
    key = gateway.created("--tenant", "acme")["key"]
    start = key[:20] + "A" * 43
    unusable = [
        *("", "x", "pk_", key[:-1], key + "A", key[:-1] + ("A" if key[-1] != "A" else "B"), new_key()[1]),
        *(start + checksum(start), key.swapcase(), f"{key},{key}", f"{key}.{key}.{key}"),
    ]
    assert status(gateway, key) == 200
    assert [status(gateway, each) for each in unusable] == [401] * len(unusable)
    answers = [gateway.get("/v1/jobs", headers={"authorization": f"{scheme} {key}"}) for scheme in ("Basic", "Token")]
    assert [answer.status_code for answer in answers] == [401] * 2
    assert gateway.get(f"/v1/jobs?api_key={key}").status_code == 401
    assert gateway.get("/v1/jobs", headers={"x-api-key": key}).status_code == 401


def test_expired_and_revoked_keys_are_refused(gateway: Gateway) -> None:
    short = gateway.created("--tenant", "acme", "--expires", "2s")["key"]
    revoked = gateway.created("--tenant", "acme")
    assert status(gateway, revoked["key"]) == 200
    assert postback_here("api-keys", "revoke", revoked["id"], env=gateway.environment()).returncode == 0
    for key in (short, revoked["key"]):
        eventually(lambda: status(gateway, key) == 401, 30, "the key is still accepted")  # noqa: B023


def test_a_key_of_another_door_is_refused(gateway: Gateway, tmp_path: Path) -> None:
    env = {**gateway.environment(), "POSTBACK_STORE__URL": f"sqlite:///{tmp_path / 'other.db'}"}
    foreign = json.loads(postback_here("api-keys", "create", "--tenant", "acme", "--json", env=env).stdout)["key"]
    assert status(gateway, foreign) == 401


def test_a_credential_does_no_more_than_its_scopes(gateway: Gateway) -> None:
    reader = gateway.created("--tenant", "acme", "--scopes", "read")["key"]
    writer = gateway.created("--tenant", "acme", "--scopes", "submit")["key"]
    assert gateway.get("/v1/jobs", reader).status_code == 200
    assert gateway.get("/v1/jobs", writer).status_code == 403
    for method, path in [("POST", "/v1/jobs"), ("POST", "/v1/jobs/x/cancel"), ("DELETE", "/v1/files/x")]:
        assert gateway.request(method, path, reader, json={"prompt": "Hello"}).status_code == 403
    for path in ("/v1/admin/api_keys", "/v1/admin/tenants"):
        assert gateway.get(path, gateway.created("--tenant", "acme")["key"]).status_code == 403


def line(number: int) -> bytes:
    body = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}
    return json.dumps({"custom_id": str(number), "method": "POST", "url": CHAT, "body": body}).encode()


def answered(gateway: Gateway, path: str, key: str, status: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [{}]

    def done() -> bool:
        found[0] = gateway.get(path, key).json()
        return bool(found[0].get("status") == status)

    eventually(done, 120, lambda: f"{path} stays {found[0]}")
    return found[0]


@pytest.fixture(scope="module")
def owned(gateway: Gateway) -> dict[str, str]:
    """The ids of one tenant's objects of every kind; the worker has answered the jobs."""
    key = gateway.key("acme")
    job = gateway.post("/v1/jobs", key, json={"prompt": "Hello"}, headers={"idempotency-key": "shared"}).json()["id"]
    response = gateway.post("/v1/responses", key, json={"model": "echo", "input": "Hello", "background": True}).json()
    upload = {"file": ("in.jsonl", b"\n".join(map(line, range(3))))}
    file = gateway.post("/v1/files", key, files=upload, data={"purpose": "batch"}).json()["id"]
    asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    batch = gateway.post("/v1/batches", key, json=asked).json()["id"]
    endpoint = gateway.post("/v1/webhook_endpoints", key, json=ENDPOINT).json()["id"]
    uploading = gateway.post("/v1/uploads", key, json=UPLOAD).json()["id"]
    part = gateway.post(f"/v1/uploads/{uploading}/parts", key, files={"data": b"abc"}).json()["id"]
    answered(gateway, f"/v1/jobs/{job}", key, "succeeded")
    answered(gateway, f"/v1/responses/{response['id']}", key, "completed")
    output = answered(gateway, f"/v1/batches/{batch}", key, "completed")["output_file_id"]
    ids = {"job": job, "response": response["id"], "file": file, "output": output, "batch": batch}
    ids |= {"upload": uploading, "part": part}
    return ids | {"endpoint": endpoint, "line": f"{batch}.0", "key": key}


Request = tuple[str, str, dict[str, Any]]
"""Method, path and arguments."""


def tries(owned: dict[str, str]) -> list[Request]:
    """Requests for each object: method, path and arguments."""
    file = {"input_file_id": "ID", "endpoint": CHAT, "completion_window": "24h"}
    of_jobs: list[Request] = [("GET", "/v1/jobs/ID", {}), ("POST", "/v1/jobs/ID/cancel", {})]
    of_responses: list[Request] = [
        ("GET", "/v1/responses/ID", {}),
        ("GET", "/v1/responses/ID/input_items", {}),
        ("POST", "/v1/responses/ID/cancel", {}),
        ("DELETE", "/v1/responses/ID", {}),
    ]
    of_files: list[Request] = [
        ("GET", "/v1/files/ID", {}),
        ("GET", "/v1/files/ID/content", {}),
        ("DELETE", "/v1/files/ID", {}),
        ("POST", "/v1/batches", {"json": file}),
    ]
    of_endpoints: list[Request] = [
        ("GET", "/v1/webhook_endpoints/ID", {}),
        ("POST", "/v1/webhook_endpoints/ID", {"json": {"name": "mine"}}),
        ("POST", "/v1/webhook_endpoints/ID/rotate_secret", {}),
        ("POST", "/v1/webhook_endpoints/ID/test", {"json": {"event_type": "batch.completed"}}),
        ("DELETE", "/v1/webhook_endpoints/ID", {}),
    ]
    of_uploads: list[Request] = [
        ("POST", "/v1/uploads/ID/parts", PART),
        ("POST", "/v1/uploads/ID/complete", {"json": {"part_ids": [owned["part"]]}}),
        ("POST", "/v1/uploads/ID/cancel", {}),
    ]
    of_batches: list[Request] = [("GET", "/v1/batches/ID", {}), ("POST", "/v1/batches/ID/cancel", {})]
    named: dict[str, list[Request]]
    named = {"job": of_jobs, "line": of_jobs, "response": of_responses, "file": of_files, "output": of_files}
    named |= {"batch": of_batches, "endpoint": of_endpoints, "upload": of_uploads}
    return [
        (method, path.replace("ID", owned[kind]), json.loads(json.dumps(arguments).replace("ID", owned[kind])))
        for kind, requests_ in named.items()
        for method, path, arguments in requests_
    ]


def absent(text: str, owned: dict[str, str]) -> str:
    """The request for an object that does not exist: the last letters of each id are changed."""
    for name in ("line", "job", "response", "file", "output", "batch", "endpoint", "upload", "part"):
        identifier = owned[name].removesuffix(".0")
        text = text.replace(identifier, identifier[:-8] + "00000000")
    return text


def seen(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_another_tenants_objects_look_like_absent_ones(gateway: Gateway, owned: dict[str, str]) -> None:
    stranger, tried = gateway.key("globex"), 0
    before = {path: gateway.get(path, owned["key"]).content for path in ("/v1/webhook_endpoints", "/v1/files")}
    for method, path, arguments in tries(owned):
        found = gateway.request(method, path, stranger, **arguments)
        nothing = gateway.request(
            method, absent(path, owned), stranger, **json.loads(absent(json.dumps(arguments), owned))
        )
        assert found.status_code in (400, 404), (method, path, found.text)
        assert seen(found) == seen(nothing), (method, path)
        tried += 1
    lists = ["/v1/jobs", "/v1/files", "/v1/batches", "/v1/webhook_endpoints"]
    lists += [f"/v1/jobs?batch={owned['batch']}", f"/v1/jobs?after={owned['job']}", "/v1/jobs?status=succeeded"]
    lists += [f"/v1/files?after={owned['file']}", f"/v1/batches?after={owned['batch']}", "/v1/files?purpose=batch"]
    lists += [f"/v1/webhook_endpoints?after={owned['endpoint']}", "/v1/jobs?model=echo", "/v1/jobs?order=asc"]
    lists += ["/v1/files?order=asc", "/v1/batches?limit=1"]
    for path in lists:
        listed = gateway.get(path, stranger)
        assert listed.status_code in (200, 404)
        assert listed.json().get("data", []) == []
        tried += 1
    assert tried >= 40
    assert before == {path: gateway.get(path, owned["key"]).content for path in before}
    assert gateway.get(f"/v1/jobs/{owned['job']}", owned["key"]).json()["status"] == "succeeded"
    mine = gateway.post("/v1/uploads", stranger, json=UPLOAD).json()["id"]
    parts = {"part_ids": [owned["part"]]}
    taken = gateway.post(f"/v1/uploads/{mine}/complete", stranger, json=parts)
    assert (taken.status_code, taken.json()["error"]["code"]) == (400, "part_not_found")
    completed = gateway.post(f"/v1/uploads/{owned['upload']}/complete", owned["key"], json=parts)
    assert completed.json()["status"] == "completed"


def test_the_body_and_the_headers_of_a_request_choose_no_tenant(gateway: Gateway, owned: dict[str, str]) -> None:
    stranger = gateway.key("globex")
    for headers in (
        {"tenant": "acme"},
        {"x-tenant": "acme"},
        {"x-forwarded-user": "acme"},
        {"openai-organization": "acme"},
    ):
        assert gateway.get(f"/v1/jobs/{owned['job']}", stranger, headers=headers).status_code == 404
    assert gateway.get(f"/v1/jobs/{owned['job']}?tenant=acme", stranger).status_code in (400, 404)
    assert gateway.post("/v1/jobs", stranger, json={"prompt": "Hello", "tenant": "acme"}).status_code == 400
    again = gateway.post("/v1/jobs", stranger, json={"prompt": "Hello"}, headers={"idempotency-key": "shared"})
    assert again.status_code == 202
    assert again.json()["id"] != owned["job"]
    same = gateway.post("/v1/jobs", stranger, json={"prompt": "Hello", "job_id": owned["job"]})
    assert same.status_code == 202
    answered(gateway, f"/v1/jobs/{owned['job']}", stranger, "succeeded")


def test_another_tenants_events_are_not_streamed(gateway: Gateway, owned: dict[str, str]) -> None:
    stranger = gateway.key("initech")
    mine = gateway.post("/v1/jobs", stranger, json={"prompt": "Hello"}).json()["id"]
    answered(gateway, f"/v1/jobs/{mine}", stranger, "succeeded")
    read = ""
    with gateway.get("/v1/events?after=0", stranger, stream=True) as stream:
        for piece in stream.iter_lines(decode_unicode=True):
            read += f"{piece}\n"
            if piece.startswith("data:") and mine in piece:
                break
    assert not any(owned[kind] in read for kind in ("job", "response", "batch"))


def test_jobs_and_batches_leave_the_door_signed(module_fleet_here: FleetHere, owned: dict[str, str]) -> None:
    results = {result["job_id"]: result["outcome"] for result in module_fleet_here.results()}
    assert results[owned["job"]] == results[owned["line"]] == "succeeded"
    assert [letter["reason"] for letter in module_fleet_here.dead_letters()] == []
