"""The documents: generated pages are fresh and complete, and pages name files that exist."""

from __future__ import annotations

import ast
import copy
import json
import re
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address, ip_network
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batches import expansion
from schemas.codec import Origin, read_job, read_result
from schemas.codes import DEAD_LETTER_REASONS, ERROR_CODES
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.result import Result, Support
from scripts.publish import chart_reference, chart_schema, job_reference
from scripts.publish.asyncapi import PRODUCER_HEADERS
from scripts.publish.catalogue import sections
from scripts.publish.chart_reference import (
    CHART,
    ChartValue,
    ValueUnexplained,
    chart_values,
    special_networks,
)
from scripts.publish.job_examples import (
    CALLED,
    CALLING,
    CHAT,
    FAILURE,
    HEADER_EXAMPLES,
    JOB,
    KIND_JOBS,
    KIND_RESULTS,
    REFERRING,
    REFUSAL,
    RESULT,
    SAMPLED,
    SAMPLING,
    SCORED,
    SEEING,
)
from scripts.publish.job_reference import OUTCOMES, SUPPORT
from scripts.publish.reference import ROOT, documents
from telemetry.actions import SECTIONS, Action
from telemetry.metrics import Metrics
from tests.drawn import drawn
from workers.delivery.deliver import DISABLED, UNUSABLE
from workers.delivery.post import FailureReason
from workers.delivery.retries import EXHAUSTED, GONE, REFUSED
from workers.egress.addresses import SPECIAL_IPV4, SPECIAL_IPV6
from workers.stage.defects import HANDLER_DEFECT
from workers.stage.settler import SettlerState

READ_ALONE = re.compile(r"environ(?:\.get\(|\[)\"(POSTBACK_[A-Z_]+)\"")
MOST_SETTINGS = 130
PACKAGES = ("cli", "gateway", "producers", "schemas", "telemetry", "workers")


def sources(*packages: str) -> list[str]:
    return [path.read_text(encoding="utf-8") for package in packages for path in (ROOT / package).rglob("*.py")]


def test_the_generated_documents_are_those_in_the_repository() -> None:
    stale = [str(path) for path, text in documents().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python -m scripts.publish"


def test_each_variable_that_code_reads_is_listed_once_with_a_description() -> None:
    variables = [variable for section in sections() for variable in section.variables]
    listed = {variable.name for variable in variables}
    read = set(READ_ALONE.findall("\n".join(sources(*PACKAGES))))

    assert len(listed) == len(variables) > 100
    assert [variable.name for variable in variables if not variable.meaning] == []
    assert "POSTBACK_LOG_LEVEL" in read
    assert read <= listed


def test_operators_have_few_settings() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `POSTBACK_", page, re.MULTILINE)
    assert len(rows) <= MOST_SETTINGS, "a setting whose value no operator has a reason to change is a constant"


def test_the_text_of_a_metric_lists_the_values_of_its_labels() -> None:
    said = {family.name: family.documentation for family in Metrics().registry.collect()}

    assert all(outcome in said["postback_jobs"] for outcome in Outcome)
    assert all(reason in said["postback_callbacks"] for reason in FailureReason)
    assert all(
        state.value in said["postback_repairs"]
        for state in SettlerState
        if state not in (SettlerState.READY, SettlerState.SETTLING)
    )


# -- jobs and results --------------------------------------------------------------------------------------------------


PLACE = Origin("AAAAAAAAAAAAAAAAAAAAAA", 0, 0)
CODE = re.compile(r"[a-z]+(_[a-z]+)*")


def code_constants(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
            yield node.value


def made_in(tree: ast.AST) -> Iterator[str]:
    """Each error code that this module writes: `code=…`, `code = …`, `Failure(…, …)` and `failed(received, …, …)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "code" for t in node.targets):
            yield from code_constants(node.value)
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        places = {
            "ResultError": [keyword.value for keyword in node.keywords if keyword.arg == "code"],
            "Failure": node.args[:1],
            "failed": node.args[1:2] if len(node.args) == 3 else [],
        }
        for place in places.get(called.removeprefix("_"), []):
            if isinstance(place, ast.Constant):
                yield str(place.value)


@pytest.fixture(scope="module")
def trees() -> list[ast.AST]:
    """The sources that write error codes; the list of codes itself is left out."""
    paths = [path for package in ("schemas", "workers") for path in (ROOT / package).rglob("*.py")]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths if path.name != "codes.py"]


def test_the_pages_jobs_and_results_are_valid_and_have_every_field_and_header() -> None:
    names = ("tenant", "traceparent", "schema", "idempotency-key")
    headers = [(name, HEADER_EXAMPLES[name].encode()) for name in names]
    jobs: list[dict[str, Any]] = [JOB, CHAT, SEEING, REFERRING, SAMPLING, CALLING, *KIND_JOBS.values()]
    results: list[dict[str, Any]] = [RESULT, CALLED, SAMPLED, SCORED, REFUSAL, FAILURE, *KIND_RESULTS.values()]

    for example in jobs:
        received = read_job(json.dumps(example).encode(), headers, PLACE, 1764022000000)
        assert (received.unknown, received.tenant) == (None, "acme"), example
    for example in results:
        assert read_result(json.dumps(example).encode()) == Result.model_validate(example), example
    assert {*chain(*jobs)} == Job.model_fields.keys()
    assert {*chain(*results)} == Result.model_fields.keys()
    assert list(HEADER_EXAMPLES) == list(PRODUCER_HEADERS)
    assert (list(OUTCOMES), list(SUPPORT)) == (list(Outcome), list(Support))
    assert "512 KiB" in job_reference.page()


def test_each_error_code_and_each_reason_of_a_dead_letter_has_a_meaning_and_no_other_has(trees: list[ast.AST]) -> None:
    made = {code for tree in trees for code in made_in(tree)}
    constants = {code for tree in trees for code in code_constants(tree)}
    of_callbacks, of_batches = {EXHAUSTED, REFUSED, GONE, DISABLED, UNUSABLE}, {expansion.UNUSABLE}

    assert len(made) > 6
    assert sorted(made - ERROR_CODES.keys()) == [], "declare them in schemas/codes.py"
    assert sorted(ERROR_CODES.keys() - constants) == [], "no source has these: remove them from schemas/codes.py"
    assert of_callbacks | of_batches | {HANDLER_DEFECT, "rejected"} <= DEAD_LETTER_REASONS.keys()
    assert sorted(DEAD_LETTER_REASONS.keys() - constants - of_batches) == []


# -- the chart's values ------------------------------------------------------------------------------------------------


SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
VALUES = (CHART / "values.yaml").read_text()
DEFAULTS: dict[str, Any] = yaml.safe_load(VALUES)


def test_the_chart_takes_its_own_values_and_refuses_a_misspelt_name_in_each_section() -> None:
    jsonschema.validate(DEFAULTS, SCHEMA)
    sections = [value.path for value in chart_values(VALUES) if value.is_section]
    for path in [(), *sections, ("worker", "image"), ("worker", "resources"), ("probes", "liveness")]:
        values = copy.deepcopy(DEFAULTS)
        place = values
        for name in path:
            place = place[name]
        place["replcias"] = 1
        with pytest.raises(jsonschema.ValidationError, match="replcias"):
            jsonschema.validate(values, SCHEMA)


def test_every_value_of_the_schema_is_described_by_its_comment() -> None:
    for value in (each for each in chart_values(VALUES) if each.meaning):
        schema = SCHEMA
        for name in value.path:
            schema = schema["properties"][name]
        assert schema["description"].split()[0] == value.meaning.lstrip("[").split()[0].rstrip("]"), value.path


def test_a_rule_for_a_value_that_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chart_schema.RULES, "worker.gone", {"minimum": 1})
    with pytest.raises(chart_schema.RuleWithoutValue, match=r"values\.yaml has no worker\.gone"):
        chart_schema.schema()


def test_every_value_stands_on_the_page_once() -> None:
    lines = chart_reference.page(VALUES).splitlines()

    for value in chart_values(VALUES):
        if not value.is_section:
            rows = [line for line in lines if line.startswith(f"| `{'.'.join(value.path)}` |")]
            assert len(rows) == 1, value.path


def test_a_value_without_a_comment_is_an_error() -> None:
    with pytest.raises(ValueUnexplained, match=r"a\.c has no comment"):
        list(chart_values("# A section.\na:\n  # Explained.\n  b: 1\n  c: 2\n"))


def test_a_mapping_without_comments_inside_is_one_value() -> None:
    text = "# Requests.\nresources:\n  requests: {cpu: 1}\n  limits: {cpu: 2}\n"

    [value] = [each for each in chart_values(text) if each.meaning]
    assert value == ChartValue(
        ("resources",), "Requests.", {"requests": {"cpu": 1}, "limits": {"cpu": 2}}, is_section=False
    )


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
@settings(max_examples=drawn(60))
def test_the_charts_special_networks_hold_each_address_that_the_guards_tables_hold(address: Any) -> None:
    held = any(address in ip_network(cidr) for cidrs in special_networks().values() for cidr in cidrs)
    tabled = any(address in ip_network(cidr) for cidr, _ in (*SPECIAL_IPV4, *SPECIAL_IPV6))

    assert held == (tabled or (address.version == 6 and address not in ip_network("2000::/3")))


def test_both_ends_of_each_network_of_the_guard_are_closed() -> None:
    networks = [ip_network(cidr) for cidr, _ in (*SPECIAL_IPV4, *SPECIAL_IPV6)]
    open_ends = [
        (network, end)
        for network in networks
        for end in (network[0], network[-1])
        if not any(ip_address(end) in ip_network(each) for each in special_networks()[f"ipv{network.version}"])
    ]
    assert open_ends == []


# -- log actions -------------------------------------------------------------------------------------------------------


LEVELS = ["debug", "info", "warning", "error", "critical"]
LEVEL_OF = {level: level for level in LEVELS} | {"exception": "error"}
KEBAB = re.compile(r"[a-z]+(-[a-z]+)+")
CATALOGUE: dict[str, Action] = {name: action for actions in SECTIONS.values() for name, action in actions.items()}


def logged_in(source: str) -> Iterator[tuple[str, str | None]]:
    """Each action that this source logs, with its level where the call shows it.

    If a call passes its action as a variable, each hyphenated constant of the module counts as an action.
    """
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    said = [
        (node.func.attr if isinstance(node.func, ast.Attribute) else "", keyword.value)
        for node in calls
        for keyword in node.keywords
        if keyword.arg == "action"
    ]
    said = [(called, value) for called, value in said if called != "add_argument"]
    for called, value in said:
        if isinstance(value, ast.Constant):
            yield str(value.value), LEVEL_OF.get(called)
    if any(not isinstance(value, ast.Constant) for _, value in said):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and KEBAB.fullmatch(node.value):
                yield node.value, None


def test_the_catalogue_has_each_action_that_the_source_logs_and_no_other() -> None:
    logged = [found for source in sources(*PACKAGES) for found in logged_in(source)]
    actions = {action for action, _ in logged}
    highest: dict[str, str] = {}
    for action, level in logged:
        if level is not None:
            highest[action] = max(level, highest.get(action, "debug"), key=LEVELS.index)

    assert sorted(actions - CATALOGUE.keys()) == [], "declare them in telemetry/actions.py and publish"
    assert sorted(CATALOGUE.keys() - actions) == [], "no line logs these: remove them from telemetry/actions.py"
    assert len(highest) > 50
    assert highest == {action: CATALOGUE[action].level for action in highest}


def test_each_action_stands_in_one_section_and_states_the_event_and_the_next_step_in_sentences() -> None:
    assert len(CATALOGUE) == sum(map(len, SECTIONS.values()))
    texts = {name: (action.event, action.remedy or ".") for name, action in CATALOGUE.items()}
    assert [name for name, said in texts.items() if not all(text.endswith(".") for text in said)] == []


# -- pages -------------------------------------------------------------------------------------------------------------


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMED = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.py)(?:::\w+)?`")
TEST_NAMED = re.compile(r"`(test_\w+)`")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
QUOTED = re.compile(r"`[^`\n]+`")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
MOST_WORDS_OF_THE_MAP = 1600


@cache
def files() -> frozenset[str]:
    """Return the path of each file in the project, and each suffix of such a path."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    paths = [path.relative_to(ROOT).parts for folder in folders for path in folder.rglob("*.*")]
    at_root = {path.name for path in ROOT.iterdir() if path.is_file()}
    return frozenset("/".join(parts[start:]) for parts in paths for start in range(len(parts))) | at_root


@cache
def names_of_tests() -> frozenset[str]:
    """The name of each test function."""
    texts = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    return frozenset(re.findall(r"def (test_\w+)\(", "\n".join(texts)))


def prose_of(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors_of(page: Path) -> set[str]:
    headings = HEADING.findall(prose_of(page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_file_and_test_that_a_page_names_exists() -> None:
    absent = set()
    for page in PAGES:
        prose = prose_of(page)
        named = {*NAMED.findall(prose)} - files() | {*TEST_NAMED.findall(prose)} - names_of_tests()
        absent |= {(page.name, name) for name in named}
    assert absent == set()


def test_each_link_of_a_page_leads_to_a_file_and_a_heading_that_exist() -> None:
    broken = []
    for page in PAGES:
        for target in LINK.findall(QUOTED.sub("code", prose_of(page))):
            path, _, anchor = target.partition("#")
            if "://" in path or path.startswith("mailto:"):
                continue
            linked = (page.parent / path).resolve() if path else page
            if not linked.exists() or (anchor and anchor not in anchors_of(linked)):
                broken.append((page.name, target))
    assert broken == []


def test_the_map_is_read_in_ten_minutes() -> None:
    words = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8").split()

    assert len(words) <= MOST_WORDS_OF_THE_MAP
