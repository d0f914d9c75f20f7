"""The client library has one interface over both transports: tested with a real gateway, Kafka and an echo worker."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from postback_client import Batch, HttpClient, Job, KafkaClient, NotFound, PostbackClient, StillWaiting
from tests.fleet_here import FleetHere
from tests.integration.gateway.gateway_process import Gateway, running_gateway, start_gateway
from tests.messages import value_of
from tests.product import Product, eventually
from tests.unit.batch_rig import jsonl, line

TENANT = "acme"
PATIENCE_SECONDS = 120.0


@pytest.fixture(scope="module")
def clients(shared_gateway: Gateway, module_fleet_here: FleetHere) -> Iterator[dict[str, PostbackClient]]:
    """A client of each transport. Each client has a job that is cancelled before the worker starts."""
    kafka = module_fleet_here.kafka
    with (
        HttpClient(shared_gateway.url, shared_gateway.key(TENANT)) as https,
        KafkaClient(kafka.bootstrap_servers, tenant=TENANT, topic_prefix=kafka.topic_prefix) as direct,
    ):
        made: dict[str, PostbackClient] = {"https": https, "kafka": direct}
        for name, client in made.items():
            assert client.submit([Job(prompt="q", job_id=f"doomed-{name}")]) == [f"doomed-{name}"]
            with pytest.raises(StillWaiting) as waiting:
                client.wait([f"doomed-{name}"], timeout=0.2)
            assert waiting.value.job_ids == [f"doomed-{name}"]
            client.cancel(f"doomed-{name}")
        control = kafka.topics.control
        eventually(lambda: len(module_fleet_here.read(control)) == 2, 60, "the cancellations are not in Kafka")
        module_fleet_here.worker("w")
        yield made


@pytest.mark.broker
@pytest.mark.parametrize("transport", ["https", "kafka"])
class TestEitherTransport:
    @pytest.fixture
    def client(self, clients: dict[str, PostbackClient], transport: str) -> PostbackClient:
        return clients[transport]

    def test_a_job_that_was_cancelled_in_time_ends_as_cancelled(self, client: PostbackClient, transport: str) -> None:
        (result,) = client.wait([f"doomed-{transport}"], timeout=PATIENCE_SECONDS)
        assert result.outcome == "cancelled"

    def test_results_come_in_the_order_of_the_ids_with_the_jobs_own_fields(self, client: PostbackClient) -> None:
        jobs = [Job(prompt=f"question {n}", custom_id=f"c{n}", metadata={"n": str(n)}) for n in range(30)]
        job_ids = client.submit(jobs, lane="bulk")
        results = client.wait(reversed(job_ids), timeout=PATIENCE_SECONDS)
        assert [result.job_id for result in results] == job_ids[::-1]
        assert [result.custom_id for result in results] == [f"c{n}" for n in reversed(range(30))]
        assert all(result.succeeded and result.text for result in results)
        assert results[0].metadata == {"n": "29"}

    def test_each_call_streams_each_result_once(self, client: PostbackClient) -> None:
        first, second = client.submit([{"prompt": "a"}]), client.submit([{"prompt": "b"}, {"prompt": "c"}])
        streamed = [result.job_id for result in client.stream([*second, *first, *first], timeout=PATIENCE_SECONDS)]
        assert sorted(streamed) == sorted([*first, *second])
        assert [result.job_id for result in client.wait(first, timeout=PATIENCE_SECONDS)] == first
        assert list(client.stream([])) == []


def test_an_unknown_job_is_not_waited_for(clients: dict[str, PostbackClient]) -> None:
    with pytest.raises(NotFound):
        clients["https"].wait(["no-such-job"], timeout=PATIENCE_SECONDS)


def test_a_batch_is_uploaded_followed_and_downloaded(
    clients: dict[str, PostbackClient], shared_gateway: Gateway, tmp_path: Path
) -> None:
    source, target = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    source.write_bytes(jsonl([line(number) for number in range(20)]))
    sent: list[int] = []
    seen: list[Batch] = []
    received: list[int] = []
    with HttpClient(shared_gateway.url, shared_gateway.key("batcher")) as client:
        batch = client.batches.create(source, metadata={"a": "b"}, on_bytes=sent.append)
        ended = client.batches.wait(batch.id, PATIENCE_SECONDS, on_batch=seen.append)
        client.files.download(ended.output_file_id or "", target, on_bytes=received.append)
        assert [each.id for each in client.batches.list()] == [batch.id]
    assert (ended.status, ended.request_counts.completed, ended.metadata) == ("completed", 20, {"a": "b"})
    assert (sent[-1], received[-1]) == (source.stat().st_size, target.stat().st_size)
    assert seen[-1] == ended
    answers = [json.loads(text)["custom_id"] for text in target.read_text().splitlines()]
    assert answers == [f"row-{number}" for number in range(20)]
    assert list(tmp_path.iterdir()) in ([source, target], [target, source])


def test_a_gateway_that_is_killed_amid_a_submission_doubles_no_job_and_loses_no_part(
    product: Product, tmp_path: Path
) -> None:
    begun, killed, sent = Event(), Event(), list[int]()
    large, state = tmp_path / "large.bin", tmp_path / "state"
    large.write_bytes(bytes(5 * 1024 * 1024))

    def end(done: int) -> None:
        if done:
            raise ZeroDivisionError("stands for the end of the process")

    def jobs() -> Iterator[Job]:
        for number in range(600):
            if number == 100:
                begun.set()
            if number == 500:
                assert killed.wait(PATIENCE_SECONDS)
            yield Job(prompt=f"question {number}")

    with running_gateway(product) as first, ThreadPoolExecutor(1) as thread:
        port, topic = str(first.port), product.kafka.topics.requests()
        with HttpClient(first.url, first.key(TENANT), jobs_together=5) as client:
            with pytest.raises(ZeroDivisionError):
                client.files.upload(large, state=state, on_bytes=end)
            submitting = thread.submit(client.submit, jobs())
            assert begun.wait(PATIENCE_SECONDS)
            first.kill()
            killed.set()
            start_gateway(product, "--port", port, store=first.store).wait_until_ready()
            job_ids = submitting.result(PATIENCE_SECONDS)
            file = client.files.upload(large, state=state, on_bytes=sent.append)
            client.files.download(file.id, tmp_path / "again.bin")
        assert (sent[0], sent[-1]) == (4 * 1024 * 1024, 5 * 1024 * 1024)
        assert (tmp_path / "again.bin").read_bytes() == large.read_bytes()
        eventually(lambda: len(product.read(topic)) >= len(job_ids), 60, "jobs are missing in Kafka")
    assert len(job_ids) == 600
    assert Counter(json.loads(value_of(message))["job_id"] for message in product.read(topic)) == Counter(job_ids)
