"""`postback trace`: one job from its submission to its callbacks, found among many."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.store.store import Store
from gateway.store.tables import job_attempts, jobs
from gateway.view.writing import write_results
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Citation, Result, ResultError, SourceDetails, Support, Timings
from tests.postback_command import environment_of, postback_here
from tests.unit.batch_rig import put_batch, result_record

ENV = environment_of(None)
RESULT = Result(
    job_id="job-1",
    outcome=Outcome.SUCCEEDED,
    model_id="small",
    engine="vllm",
    text="Aspirin thins the blood. \x1b[31mReally.",
    sources=["pmid:1"],
    source_details=[SourceDetails(id="pmid:1", url="https://x.example/1", title="On aspirin")],
    citations=[Citation(start=0, end=24, source="pmid:1", support=Support.EXACT)],
    notes=["source 2 was left out: it was late"],
    timings=Timings(queued_ms=1, enrich_ms=2, infer_ms=3),
    created_at=1_700_000_000,
)
FAILED = Result(
    job_id=f"batch_{'0' * 32}.1",
    outcome=Outcome.FAILED,
    error=ResultError(code="internal_error", message="the engine failed"),
    created_at=1_700_000_000,
)


def row(tenant: str, result: Result, **changed: Any) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "job_id": result.job_id,
        "url": "/v1/jobs",
        "status": str(result.outcome),
        "created_at": 1_700_000_000_000,
        "not_before": 1_700_000_000_500,
        "finished_at": 1_700_000_001_000,
        "submitted_by": "key:1",
        "prompt_sha256": "ab" * 32,
        "metadata": {},
        "result": write_result(result),
        **changed,
    }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    url = f"sqlite:///{tmp_path}/store.db"
    opened = Store.open(url)
    batch = f"batch_{'0' * 32}"
    rows = [row("acme", RESULT), row("other", RESULT)]
    attempt = {"topic_partition": 0, "tenant": "acme", "job_id": "job-1", "webhook_id": "msg_1"}
    details = [{"origin": "https://h.example", "status": 503, "error": "server_error", "attempt": 1}]
    details.append({"origin": "https://h.example", "status": 204, "error": None, "attempt": 2})

    def fill(connection: Any) -> None:
        connection.execute(jobs.insert(), rows)
        connection.execute(
            job_attempts.insert(),
            [{**attempt, "topic_offset": n, "at": 1_700_000_002_000 + n, "details": d} for n, d in enumerate(details)],
        )
        put_batch(connection, batch, 2, status="completed")
        write_results(connection, [result_record(FAILED)])

    opened.submit(fill).result()
    opened.close()
    yield url


def test_one_page_names_the_submitter_the_model_and_the_callbacks(store: str) -> None:
    page = postback_here("trace", "job-1", "--tenant", "acme", "--store", store, env=ENV)
    assert page.returncode == 0, page.stderr
    assert page.stdout.splitlines() == [
        "job        job-1, tenant acme, succeeded",
        "submitted  2023-11-14T22:13:20.000+00:00 by key:1 through /v1/jobs",
        "scheduled  for 2023-11-14T22:13:20.500+00:00",
        f"prompt     sha256 {'ab' * 32}",
        "model      small on engine vllm",
        "phases     queued 1 ms, sources 2 ms, model 3 ms",
        "finished   2023-11-14T22:13:21.000+00:00 as succeeded",
        "note       source 2 was left out: it was late",
        "source     pmid:1 “On aspirin”",
        "citation   exact by pmid:1: “Aspirin thins the blood.”",
        "callback   2023-11-14T22:13:22.000+00:00 attempt 1 to https://h.example failed (server_error), status 503",
        "callback   2023-11-14T22:13:22.001+00:00 attempt 2 to https://h.example delivered, status 204",
    ]


def test_without_a_tenant_each_tenants_job_of_that_id_is_shown(store: str) -> None:
    found = postback_here("trace", "job-1", "--store", store, "--json", env=ENV).stdout.splitlines()
    assert [json.loads(line)["tenant"] for line in found] == ["acme", "other"]
    assert json.loads(found[0])["result"]["citations"][0]["text"] == "Aspirin thins the blood."


def test_a_batchs_line_names_its_file_and_its_error(store: str) -> None:
    page = postback_here("trace", FAILED.job_id, "--store", store, env=ENV).stdout
    assert f"batch      batch_{'0' * 32}, line 1, file file-1" in page
    assert "error      internal_error: the engine failed" in page
    assert "callback   none was tried" in page
    waiting = postback_here("trace", f"batch_{'0' * 32}.0", "--store", store, env=ENV)
    assert waiting.returncode == 0, waiting.stderr


def test_an_unknown_job_is_named(store: str) -> None:
    refused = postback_here("trace", "job-7", "--store", store, env=ENV)
    assert refused.returncode == 1
    assert "has no job job-7" in refused.stderr
