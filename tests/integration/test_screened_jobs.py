"""The input filter on a real worker and a real broker: callbacks name what the rules flag, redact and reject."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.settings import KafkaSettings
from tests.fleet_here import FleetHere
from tests.postback_command import environment_of, postback_here
from tests.screening_rules import CARD, pii, regex, words

pytestmark = pytest.mark.broker


def test_jobs_are_flagged_redacted_and_rejected_by_the_rules_of_the_worker(
    fleet_here: FleetHere, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    private = pii(more='fields = ["prompt", "messages", "search", "metadata"]', name="private")
    project = regex("falcon", "reject", 'except_tenants = ["research"]', "project")
    rules.write_text("".join(f"[[rule]]\n{rule}\n" for rule in (private, project, words(name="toxicity"))))
    fleet_here.callbacks.up()
    url = {"callback_url": fleet_here.callbacks.url}
    worker = fleet_here.worker("w1", "--engine", "echo", "--with-delivery", POSTBACK_SCREENING__RULES=str(rules))

    fleet_here.submit(
        [
            {"job_id": "plain", "prompt": "What is the capital of France?", **url},
            {"job_id": "flagged", "prompt": "Who is the bastard?", **url},
            {"job_id": "redacted", "prompt": f"pay {CARD} now", "metadata": {"card": CARD}, **url},
            {"job_id": "again", "prompt": "pay [redacted:card] now", **url},
            {"job_id": "refused", "prompt": f"falcon {CARD}", "metadata": {"card": CARD}, "custom_id": "row-1", **url},
        ]
    )
    fleet_here.wait_for_callbacks(5, 60)
    fleet_here.wait_until_nothing_is_left()

    assert fleet_here.outcomes() == {
        **dict.fromkeys(("plain", "flagged", "redacted", "again"), "succeeded"),
        "refused": "rejected",
    }
    data = {name: one[0].event["data"] for name, one in fleet_here.callbacks.events.items()}
    assert "screening" not in data["plain"]
    assert data["flagged"]["text"] == "Who is the bastard?"
    assert [found["rule"] for found in data["flagged"]["screening"]] == ["toxicity"]
    assert data["redacted"]["text"] == data["again"]["text"] == "pay [redacted:card] now"
    assert data["redacted"]["metadata"] == {"card": "[redacted:card]"}
    of_prompt = {"rule": "private", "kind": "card", "verdict": "redact", "field": "prompt", "count": 1}
    assert data["redacted"]["screening"] == [of_prompt, {**of_prompt, "field": "metadata"}]
    assert data["again"]["screening"] == [of_prompt]
    refused = data["refused"]
    assert refused["error"] == {
        "code": "screened",
        "message": "prompt: the rule project of the input filter rejects it",
    }
    assert refused["custom_id"] == "row-1"
    assert not any(CARD in str(event) for event in data.values())
    [letter] = fleet_here.dead_letters()
    assert letter["reason"] == "screened"
    metrics = worker.metrics()
    verdicts = {name: metrics[f"postback_screened_total{{{name}}}"] for name in ("pass", "flag", "redact", "reject")}
    assert verdicts == {"pass": 1, "flag": 1, "redact": 2, "reject": 1}
    assert CARD not in worker.said() and "falcon" not in worker.said()


def test_a_worker_with_mistakes_in_its_rules_names_them_and_ends(fleet: KafkaSettings, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nname = "a"\nkind = "magic"\n[[rule]]\nname = "b"\nkind = "words"\n')

    done = postback_here("worker", "--engine", "echo", env=environment_of(fleet, POSTBACK_SCREENING__RULES=rules))

    assert done.returncode == 1
    assert "line 1, rule `a`: kind: is not known" in done.stderr
    assert "line 4, rule `b`: has no words" in done.stderr
