"""OpenAI's official SDKs over real TLS, unchanged but for base URL and key: files and batches from end to end."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, ConflictError, NotFoundError, OpenAI
from openai.types import Batch, CreateEmbeddingResponse

from tests.integration.certificates import Authority
from tests.integration.gateway.gateway_process import Gateway
from tests.node_tools import modules, node
from tests.unit.batch_rig import jsonl, line

SDK = "openai@7.59.0"
ENDED = ("completed", "failed", "expired", "cancelled")
UNKNOWN_MODEL = {"model": "no-such-model", "messages": [{"role": "user", "content": "?"}]}
INPUT = jsonl([*(line(number) for number in range(20)), line(20, body=UNKNOWN_MODEL)])


@pytest.fixture
def client(tls_gateway: Gateway, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAI]:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    with OpenAI(base_url=f"{tls_gateway.url}/v1", api_key=tls_gateway.key("python"), max_retries=0) as made:
        yield made


def created(client: OpenAI, content: bytes = INPUT) -> Batch:
    file = client.files.create(file=("input.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )


def until(client: OpenAI, batch: Batch, *statuses: str) -> Batch:
    end = time.monotonic() + 120
    while batch.status not in statuses:
        assert time.monotonic() < end, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def content(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    return [] if file_id is None else [json.loads(text) for text in client.files.content(file_id).text.splitlines()]


def assert_halves(output: list[dict[str, Any]], error: list[dict[str, Any]]) -> None:
    """Assert that all lines of INPUT except the last are answered."""
    assert [each["custom_id"] for each in output] == [f"row-{number}" for number in range(20)]
    assert {each["response"]["body"]["object"] for each in output} == {"chat.completion"}
    assert [each["custom_id"] for each in error] == ["row-20"]
    assert error[0]["response"]["status_code"] == 400


def test_a_batch_from_pythons_sdk_is_cancelled_and_another_runs(client: OpenAI, tls_gateway: Gateway) -> None:
    doomed = until(client, created(client), "in_progress")
    assert client.batches.cancel(doomed.id).status == "cancelling"
    batch = created(client)
    # The worker starts only now, so that it meets cancelled lines before the others.
    tls_gateway.product.worker("w")
    cancelled = until(client, doomed, *ENDED)
    ended = until(client, batch, *ENDED)

    assert (cancelled.status, cancelled.output_file_id) == ("cancelled", None)
    lost = content(client, cancelled.error_file_id)
    assert [each["custom_id"] for each in lost] == [f"row-{number}" for number in range(21)]
    assert {each["error"]["code"] for each in lost[:20]} == {"batch_cancelled"}

    assert ended.status == "completed"
    assert ended.request_counts is not None
    assert ended.request_counts.to_dict() == {"total": 21, "completed": 20, "failed": 1}
    assert_halves(content(client, ended.output_file_id), content(client, ended.error_file_id))
    assert [one.id for one in client.batches.list(limit=1)] == [batch.id, doomed.id]
    names = [one.filename for one in client.files.list(limit=2, order="asc")]
    assert names.count("input.jsonl") == 2
    assert len(names) == 5
    with pytest.raises(ConflictError):
        client.batches.cancel(ended.id)
    with pytest.raises(NotFoundError):
        client.batches.retrieve("batch_absent")
    assert client.files.delete(ended.output_file_id or "").deleted
    assert_texts_are_embedded(client)


def assert_texts_are_embedded(client: OpenAI) -> None:
    body = {"input": ["a river", "a house", "a river"]}
    file = client.files.create(file=("texts.jsonl", jsonl([line(0, url="/v1/embeddings", body=body)])), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    [output] = content(client, until(client, batch, *ENDED).output_file_id)
    embedded = CreateEmbeddingResponse.model_validate(output["response"]["body"])
    river, house, again = (each.embedding for each in embedded.data)
    assert river == again != house
    assert embedded.usage.prompt_tokens == 6
    # The SDK asks for the vector in base64.
    awaited = client.embeddings.create(model="echo", input="a river", dimensions=4)
    assert awaited.data[0].embedding == pytest.approx(river[:4])
    asked = {"query": "a river", "documents": ["a house", "a river"], "top_n": 1}
    ranked = client.post("/rerank", cast_to=dict[str, Any], body=asked)
    assert ranked["results"] == [{"index": 1, "relevance_score": 1.0}]


def test_a_bad_line_is_named_to_pythons_sdk(client: OpenAI) -> None:
    failed = until(client, created(client, jsonl([line(0), line(0)])), *ENDED)

    assert failed.status == "failed"
    assert failed.errors is not None
    assert [(error.code, error.line) for error in failed.errors.data or []] == [("duplicate_custom_id", 2)]


def test_a_file_from_pythons_sdk_arrives_in_parts(client: OpenAI, tmp_path: Path) -> None:
    source = tmp_path / "input.jsonl"
    source.write_bytes(INPUT)
    md5 = hashlib.md5(INPUT, usedforsecurity=False).hexdigest()

    done = client.uploads.upload_file_chunked(
        file=source, mime_type="application/jsonl", purpose="batch", part_size=1000, md5=md5
    )

    assert (done.status, done.bytes, done.filename) == ("completed", len(INPUT), "input.jsonl")
    assert done.file is not None
    assert client.files.content(done.file.id).read() == INPUT
    assert client.files.retrieve(done.file.id) == done.file


def test_parts_from_pythons_sdk_are_ordered_joined_once_or_cancelled(client: OpenAI) -> None:
    def begun() -> str:
        return client.uploads.create(bytes=6, filename="x", mime_type="text/plain", purpose="user_data").id

    upload_id, doomed = begun(), begun()
    late, early = (client.uploads.parts.create(upload_id, data=data) for data in (b"def", b"abc"))
    with pytest.raises(BadRequestError):
        client.uploads.complete(upload_id, part_ids=[late.id])
    with ThreadPoolExecutor(4) as threads:
        completes = [threads.submit(client.uploads.complete, upload_id, part_ids=[early.id, late.id]) for _ in range(4)]
        done = [each.result() for each in completes]

    assert {each.status for each in done} == {"completed"}
    (file,) = {each.file.id for each in done if each.file is not None}
    assert client.files.content(file).read() == b"abcdef"
    assert client.uploads.cancel(doomed).status == "cancelled"
    for call in (lambda: client.uploads.parts.create(doomed, data=b"abc"), lambda: client.uploads.cancel(upload_id)):
        with pytest.raises(ConflictError):
            call()


def test_a_batch_a_response_and_an_endpoint_from_nodes_sdk_work(
    tls_gateway: Gateway, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "input.jsonl").write_bytes(INPUT)
    script = tmp_path / "client.mjs"
    script.write_bytes(Path(__file__).with_name("openai_batches.mjs").read_bytes())
    (tmp_path / "node_modules").symlink_to(modules(SDK))
    environment = {
        **os.environ,
        "NODE_EXTRA_CA_CERTS": str(authority.ca_file),
        "BASE_URL": f"{tls_gateway.url}/v1",
        "API_KEY": tls_gateway.key("node"),
    }
    done = subprocess.run(
        [node(), script, tmp_path / "input.jsonl"], capture_output=True, text=True, env=environment, timeout=120
    )

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["joined"]["status"], said["joined"]["file"]["bytes"]) == ("completed", len(INPUT))
    assert (said["uploaded"]["bytes"], said["uploaded"]["filename"]) == (len(INPUT), "input.jsonl")
    assert said["batch"]["status"] == "completed"
    assert said["batch"]["request_counts"] == {"total": 21, "completed": 20, "failed": 1}
    assert said["listed"] == [said["batch"]["id"]] == [said["repeated"]]
    output_files = [said["batch"]["output_file_id"], said["batch"]["error_file_id"]]
    assert sorted(said["files"]) == sorted([said["uploaded"]["id"], *output_files])
    assert said["refused"] == 409
    assert_halves(said["output"], said["error"])
    assert (said["text"], said["finished"]) == ("Hello", 409)
    assert (said["tested"], said["event"]) == (200, "response.completed")
    assert said["forged"] == "InvalidWebhookSignatureError"
    assert said["endpoints"] == [said["endpoint"]]
    assert said["rotated"] is said["deleted"] is True
