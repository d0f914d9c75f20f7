"""A batch survives SIGKILL of its gateway at each step: upload, check, expansion, counting, finalising."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.integration.gateway.gateway_process import Gateway, start_gateway
from tests.product import Product, eventually
from tests.unit.batch_rig import CHAT, lines

TOTAL = 1500
STEP_SECONDS = 120


class Killed:
    """One store, and a gateway that is killed and started again."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self.now = start_gateway(product)
        self.now.wait_until_ready()
        self.key = self.now.key()

    def again(self) -> None:
        """Kill the gateway with SIGKILL, and start another one on its store."""
        self.now.kill()
        self.now.client.close()
        self.now = start_gateway(self._product, store=self.now.store)
        self.now.wait_until_ready()

    def batch(self, batch_id: str) -> dict[str, Any]:
        return dict(self.now.get(f"/v1/batches/{batch_id}", self.key).json())

    def until(self, batch_id: str, *statuses: str, answered: int = 0) -> dict[str, Any]:
        def reached() -> bool:
            batch = self.batch(batch_id)
            counts = batch["request_counts"]
            return batch["status"] in statuses and counts["completed"] + counts["failed"] >= answered

        eventually(reached, STEP_SECONDS, lambda: f"the batch stays {self.batch(batch_id)}")
        return self.batch(batch_id)

    def lines(self, file_id: str) -> list[dict[str, Any]]:
        answer = self.now.get(f"/v1/files/{file_id}/content", self.key)
        return [json.loads(text) for text in answer.text.splitlines()]


@pytest.fixture
def killed(product: Product) -> Iterator[Killed]:
    made = Killed(product)
    yield made
    made.now.client.close()


def cut_off_upload(gateway: Gateway, key: str) -> Iterator[bytes]:
    """Send the start of a form, kill the gateway, and send more of the form."""
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    for _ in range(20):
        yield b"x" * 65_536
    eventually(lambda: gateway.get("/v1/files", key).status_code == 200, STEP_SECONDS, "the gateway does not answer")
    gateway.kill()
    yield b"x" * 65_536


def test_a_batch_survives_the_kill_of_its_gateway_at_each_step(killed: Killed, product: Product) -> None:
    form, content = {"content-type": "multipart/form-data; boundary=b"}, lines(TOTAL)
    terms = {"bytes": len(content), "filename": "in.jsonl", "mime_type": "text/plain", "purpose": "batch"}
    upload = f"/v1/uploads/{killed.now.post('/v1/uploads', killed.key, json=terms).json()['id']}"
    parts = [killed.now.post(f"{upload}/parts", killed.key, files={"data": content[:5000]}).json()["id"]]
    with pytest.raises(requests.ConnectionError):
        killed.now.post("/v1/files", killed.key, data=cut_off_upload(killed.now, killed.key), headers=form)
    killed.again()
    assert killed.now.get("/v1/files", killed.key).json()["data"] == []

    parts += [killed.now.post(f"{upload}/parts", killed.key, files={"data": content[5000:]}).json()["id"]]
    joined = [killed.now.post(f"{upload}/complete", killed.key, json={"part_ids": parts}).json() for _ in range(2)]
    file_id = joined[0]["file"]["id"]
    assert joined[0] == joined[1]
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    batch_id = killed.now.post("/v1/batches", killed.key, json=body).json()["id"]
    killed.again()
    killed.until(batch_id, "in_progress")
    killed.again()
    product.worker("w")
    killed.until(batch_id, "in_progress", "finalizing", "completed", answered=1)
    killed.again()
    killed.until(batch_id, "finalizing", "completed")
    killed.again()
    ended = killed.until(batch_id, "completed")

    assert ended["request_counts"] == {"total": TOTAL, "completed": TOTAL, "failed": 0}
    done = killed.lines(ended["output_file_id"])
    assert [each["custom_id"] for each in done] == [f"row-{number}" for number in range(TOTAL)]
    assert ended["error_file_id"] is None
    listed = killed.now.get("/v1/files", killed.key).json()["data"]
    assert [file["id"] for file in listed] == [ended["output_file_id"], file_id]
    outcomes = product.outcomes()
    assert set(outcomes) == {f"{batch_id}.{number}" for number in range(TOTAL)}
