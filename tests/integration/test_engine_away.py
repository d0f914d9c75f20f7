"""A real worker whose engine's server fails: the worker's logs, readiness and end."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.fleet_here import FleetHere
from tests.http_handler import Answering, handling
from tests.product import Product, Role, eventually
from workers.engines.vllm.loading import IMAGE

pytestmark = pytest.mark.broker

KEY = "sk-very-private"


class Server(ThreadingHTTPServer):
    """A server of OpenAI's protocol that refuses requests while a status is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.listing = self.generating = 200

    @property
    def settings(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.server_port}/v1"
        return {"POSTBACK_ENGINE__OPENAI__BASE_URL": url, "POSTBACK_ENGINE__OPENAI__API_KEY": KEY}


class _Answer(Answering):
    server: Server

    def do_GET(self) -> None:
        self._say(self.server.listing, {"object": "list", "data": [{"id": "m1", "object": "model"}]})

    def do_POST(self) -> None:
        self.body()
        choice = {"message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}
        self._say(self.server.generating, {"choices": [choice]})

    def _say(self, status: int, answer: Any) -> None:
        self.answer_json(status, answer if status == 200 else {"error": {"message": f"{KEY} is unknown"}})


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_refused_key_is_shown_in_readyz_until_it_is_accepted_and_the_waiting_jobs_are_answered(
    fleet_here: FleetHere, server: Server
) -> None:
    fleet_here.callbacks.up()
    server.generating = 401
    worker = fleet_here.worker("w1", "--engine", "openai", "--model", "m1", "--with-delivery", **server.settings)
    fleet_here.submit([{"job_id": "waits", "prompt": "Which city?", "callback_url": fleet_here.callbacks.url}])
    eventually(lambda: "engine has not answered" in " ".join(worker.ready()[1]), 60, "the worker stays ready")
    ready, [reason] = worker.ready()
    assert not ready
    assert reason.endswith(" s: the server refuses POSTBACK_ENGINE__OPENAI__API_KEY (401)")
    assert worker.alive()

    server.generating = 200
    fleet_here.wait_for_callbacks(1, 90)
    eventually(lambda: worker.ready() == (True, []), 60, worker.said)
    assert worker.terminate() == 0
    assert KEY not in worker.said()


def test_a_worker_is_alive_once_its_engine_has_answered(fleet_here: FleetHere, server: Server) -> None:
    """A worker whose engine never answers is never alive, so a startup probe ends it.

    In an earlier version, `/healthz` was 200 from the start.
    """
    server.listing = 503
    worker = fleet_here.worker("w1", "--engine", "openai", "--model", "m1", **server.settings)
    eventually(lambda: "engine-wait" in worker.said(), 60, "the engine is not waited for")
    assert not worker.alive()
    server.listing = 200
    eventually(worker.alive, 60, "the worker does not start")


def test_jobs_may_name_a_model_that_only_a_setting_names(fleet_here: FleetHere, server: Server) -> None:
    """In an earlier version, the registry did not know the setting's model, and each job for it was rejected."""
    fleet_here.worker("w1", "--engine", "openai", POSTBACK_ENGINE__OPENAI__MODEL="m1", **server.settings)
    fleet_here.submit([{"job_id": model, "prompt": "Which city?", "model_id": model} for model in ("m1", "m2")])
    fleet_here.wait_for_results(2, 60)
    assert fleet_here.outcomes() == {"m1": "succeeded", "m2": "rejected"}


def test_a_worker_whose_key_is_refused_when_it_starts_ends_with_one_line_that_names_the_setting(
    fleet_here: FleetHere, server: Server
) -> None:
    server.listing = 401
    worker = fleet_here.worker("w1", "--engine", "openai", "--model", "m1", **server.settings)
    assert worker.ended(60) == 1
    said = "(401): set POSTBACK_ENGINE__OPENAI__API_KEY to a key that the server takes"
    assert worker.lines()[-1]["message"] == (
        f"the server at http://127.0.0.1:{server.server_port} refuses to list its models {said}"
    )
    assert KEY not in worker.said()


# -- vLLM that does not load ---------------------------------------------------------------------------------------


class _Gate(Answering):
    """A Hugging Face hub that refuses access to a model."""

    def do_HEAD(self) -> None:
        told = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to the model is restricted."}
        self.answer(401, headers=told)


@pytest.fixture
def hub() -> Iterator[str]:
    """The hub's address."""
    with handling(_Gate) as url:
        yield url


def ends_with(worker: Role, said: str) -> None:
    """Assert exit status 1, this last line, and no traceback."""
    assert worker.ended(400) == 1
    assert worker.lines()[-1]["message"] == said
    assert "Traceback" not in worker.said()


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_worker_whose_model_is_gated_ends_with_one_line_that_names_the_token(
    product: Product, hub: str, tmp_path: Path
) -> None:
    # Another test's engine may have turned the hub off in this process's environment, so it is turned on here.
    online = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    worker = product.worker("w1", "--engine", "vllm", "--model", "acme/large", **online)
    ends_with(
        worker,
        "the model acme/large is gated: accept its terms on the Hugging Face hub, and set HF_TOKEN of that account",
    )


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_worker_whose_model_is_not_there_ends_with_one_line_that_says_what_a_model_is(
    product: Product, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    ends_with(
        product.worker("w1", "--engine", "vllm", "--model", str(nowhere)),
        f"there is no model {nowhere}: --model is a folder with a config.json, or a name on the Hugging Face hub, "
        "where a private one needs HF_TOKEN",
    )


def test_a_worker_without_vllm_ends_with_one_line_that_says_how_to_get_it(product: Product, tmp_path: Path) -> None:
    (tmp_path / "vllm.py").write_text("raise ModuleNotFoundError(\"No module named 'vllm'\", name='vllm')\n")
    ends_with(
        product.worker("w1", "--engine", "vllm", "--model", "m", PYTHONPATH=str(tmp_path)),
        "there is no vLLM here: build the image with --target worker-gpu, or pip install 'postback[worker,vllm]'",
    )


@pytest.mark.parametrize("file", ["docs/DEPLOY.md", "Dockerfile"])
def test_the_image_that_has_vllm_has_one_name(file: str) -> None:
    named = re.findall(r"vllm/vllm-openai:v[\w.]+", (Path(__file__).parents[2] / file).read_text())
    assert set(named) == {IMAGE}
