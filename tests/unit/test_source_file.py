"""Files of an operator's own sources: mistakes, and any content of files and answers."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.drawn import drawn
from tests.integration.inside.page import NAMES, SECRETS, written
from workers.enrichment.evidence import Found, Unreadable
from workers.enrichment.search.base import SearchMisconfigured, SearchQuery
from workers.enrichment.search.inside import InsideSource, Items, filled, filled_value
from workers.enrichment.search.source_file import ItemFields, SourceFile, TenantAccess, read_source_file

HTTP = """kind = "http_json"
url = "https://bureau.example/search?q={query}"
read.text = "text"
tenants.acme = {}
"""
SQL = """kind = "sql"
url = "sqlite:////srv/x.db"
statement = "SELECT text FROM t LIMIT :limit"
tenants.acme = {}
"""
MCP = """kind = "mcp"
url = "https://notes.example/mcp"
tool = "find"
tenants.acme = {}
"""


def refusal(folder: Path, text: str, name: str = "x.toml") -> str:
    """The reason for refusing the file, without the folder's path."""
    path = folder / name
    path.write_text(text)
    with pytest.raises(SearchMisconfigured) as caught:
        read_source_file(path)
    return str(caught.value).replace(f"{folder}/", "")


def test_the_files_of_the_page_are_read(tmp_path: Path) -> None:
    allowed = {"bureau": {"bank", "insurer"}, "graph": {"bank"}}
    for name in NAMES:
        written(tmp_path, name, {}, **dict.fromkeys(SECRETS, "s"))
        assert read_source_file(tmp_path / f"{name}.toml").tenants.keys() == allowed.get(name, {"clinic"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kind = ", "x.toml: is not TOML: Invalid value (at end of document)"),
        ("", "x.toml: kind: is missing; it is http_json, sql or mcp"),
        ('kind = "soap"', "x.toml: kind: is not known; it is http_json, sql or mcp"),
        (HTTP.replace("tenants.acme = {}", ""), 'tenants: is missing; add [tenants.NAME], or [tenants."*"] for all'),
        (HTTP.replace("acme = {}", '"a b" = {}'), "tenants.a b.[key]: is no valid name here"),
        (HTTP + "x = 1", "x.toml: x: is no field of this kind of source; delete it or correct its name"),
        ("paegs = 2\n" + HTTP, "paegs: is no field of this kind of source"),
        ("pages = 99\n" + HTTP, "pages: Input should be less than or equal to 20"),
        ('pages = "2"\n' + HTTP, "pages: Input should be a valid integer"),
        (HTTP.replace('read.text = "text"', 'read.text = "["'), "read.text: is no JMESPath expression; see jmespath"),
        (HTTP.replace('read.text = "text"', 'read.id = "id"'), "read: finds no content; add text, content or link"),
        (HTTP.replace("bureau.example", "{query}"), "url: is no URL of this kind; http_json and mcp take http:// or"),
        (HTTP.replace("https://", "https://me:pw-71@"), "url: is no URL of this kind"),
        (HTTP.replace("{query}", "{qurey}"), "url: `{qurey}` is unknown here; there are: any, cursor, limit, offset"),
        ('parameters.id = "(?=x)"\n' + HTTP, "parameters.id: is no regular expression; write one without look-around"),
        ('parameters.query = "x"\n' + HTTP, "`query` has two meanings; choose another name for one of them"),
        ('headers.X = "{query}"\n' + HTTP, "headers.X: `{query}` is unknown here; there are: tenant"),
        ("body.a = 1\n" + HTTP, 'body: a GET has none; set method = "POST"'),
        ('method = "POST"\nbody.a = ["q: {query}"]\n' + HTTP, "body.a.0: `{query}` is part of a longer text; give"),
        ('secrets.key = "nosuch"\n' + HTTP, "secrets.key: nosuch cannot be read: No such file or directory"),
        ('secrets.key = "empty"\n' + HTTP, "secrets.key: empty holds no secret: one line of printable ASCII is need"),
        ('secrets.key = "key"\n' + HTTP.replace("{query}", "{key}"), "url: `{key}` is a secret; secrets are allowed"),
        (HTTP.replace("{}", '{ values = { a = "1" } }\ntenants.b = {}'), "tenants.b.values: has no `a`; give every"),
        (HTTP.replace("{}", '{ secrets = { a = "key" } }\ntenants.b = {}'), "tenants.b.secrets: has no `a`; add it th"),
        (SQL.replace("SELECT", "DELETE"), "statement: is not one statement; begin with SELECT or WITH, without a semi"),
        (SQL.replace(" LIMIT :limit", "; SELECT 1"), "statement: is not one statement"),
        (SQL.replace(" LIMIT :limit", ""), "statement: has no `:limit`; end it with LIMIT :limit"),
        (SQL.replace(" LIMIT", " WHERE a = :b AND c::text = ':d' LIMIT"), "statement: `:b` is unknown; there are: any"),
        (SQL.replace("sqlite:////srv/x.db", "mysql://x"), "sql takes sqlite:/// or postgresql+psycopg://"),
        (MCP.replace('tool = "find"', ""), "tool: is missing; add it"),
        ('arguments.q = "{x}"\n' + MCP, "arguments.q: `{x}` is unknown here; there are: any, limit, query, tenant, wo"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_field_and_fix(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "key").write_text("secret-51\n")
    said = refusal(tmp_path, text)
    assert why in said
    assert "pw-71" not in said
    assert "secret-51" not in said


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    said = refusal(tmp_path, "pages = 99\nper_second = 0\n" + HTTP)
    assert "pages:" in said
    assert "per_second:" in said


def test_a_file_is_named_like_a_provider_and_is_text_of_a_bounded_size(tmp_path: Path) -> None:
    assert "the source gets the file's name" in refusal(tmp_path, HTTP, "My Bureau.toml")
    assert "is larger than 262144 bytes" in refusal(tmp_path, "#" * 300_000)
    assert "nested too deeply" in refusal(tmp_path, f"x = {'[' * 5000}")
    (tmp_path / "x.toml").write_bytes(b"\xff")
    with pytest.raises(SearchMisconfigured, match="is not UTF-8 text"):
        read_source_file(tmp_path / "x.toml")


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
VALUES = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.text(max_size=4), LEAVES, max_size=3)
_FIELDS = "kind url headers body read next pages statement tool arguments tenants secrets parameters per_second"
FIELDS = st.sampled_from(_FIELDS.split(" "))
KINDS = st.sampled_from(["http_json", "sql", "mcp"])


@given(
    kind=KINDS, tables=st.dictionaries(FIELDS, VALUES | st.text(max_size=40), max_size=6), noise=st.text(max_size=60)
)
@example(kind="sql", tables={"statement": "SELECT :limit" + "\\:" * 50}, noise="")
@settings(max_examples=drawn(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_read_or_refused_by_name(tmp_path: Path, kind: str, tables: dict[str, Any], noise: str) -> None:
    path = tmp_path / "x.toml"
    known = {"http_json": HTTP, "sql": SQL, "mcp": MCP}[kind]
    kept = [line for line in known.splitlines() if line.split(" ")[0].split(".")[0] not in tables]
    lines = []
    for name, value in tables.items():
        with suppress(ValueError):
            lines.append(f"{name} = {json.dumps(value, allow_nan=False)}")
    for text in ("\n".join([*lines, *kept]), known + noise):
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            read_source_file(path)
        except SearchMisconfigured as refused:
            assert str(path) in str(refused)


class NeverAsked(InsideSource):
    """A source for the tests of placeholders and of results."""

    async def search(self, query: SearchQuery) -> list[Found]:
        raise AssertionError(query)


SOURCE = NeverAsked("bureau", SourceFile(tenants={"*": TenantAccess()}), Path())
ALL = ItemFields.model_validate(
    {name: name for name in ("id", "title", "text", "content", "media_type", "date", "link")}
)
PARTS = st.fixed_dictionaries({}, optional=dict.fromkeys(ALL.model_dump(exclude={"items"}), VALUES))


@given(answer=VALUES | st.lists(PARTS, max_size=3))
@example(answer={"text": "a\ud800", "id": "\ud800", "title": "\x00", "link": "http://[", "date": "2024-13-99x"})
@example(answer={"content": "====", "media_type": "text/html; charset=x"})
def test_any_answer_becomes_results_or_a_reason(answer: object) -> None:
    assert_results_or_a_reason(answer)


def test_a_deep_answer_becomes_results_or_a_reason() -> None:
    assert_results_or_a_reason({"text": json.loads("[" * 900 + "]" * 900)})


def assert_results_or_a_reason(answer: object) -> None:
    try:
        items = Items(ALL).of(answer)
    except Unreadable:
        return
    for one in filter(None, map(SOURCE.result_of, items)):
        assert isinstance(one, Found)
        assert one.id is not None
        assert one.id.startswith("bureau:")
        assert one.id.isascii()
        json.dumps([one.title, one.text, one.url], ensure_ascii=False).encode()
        assert one.text or one.content or one.url


@given(values=st.dictionaries(st.sampled_from(["query", "x"]), st.text(max_size=20)))
def test_a_value_never_becomes_a_placeholder_or_another_part_of_a_url(values: dict[str, str]) -> None:
    values = {"query": "{x}", "x": "secret", **values, "limit": "3"}
    if values["query"] not in (".", ".."):
        url = filled("https://a.example/{query}?q={query}", values, encode=True)
        assert url.count("/") == 3
        assert url.count("?") == 1
        assert "#" not in url
        assert "{" not in url
    assert filled_value({"a": ["{query}", "{limit}", "{nosuch}"]}, values) == {"a": [values["query"], 3, "{nosuch}"]}


def test_a_path_of_dots_is_never_asked_for() -> None:
    with pytest.raises(Unreadable, match="made of dots only"):
        filled("https://a.example/{query}", {"query": ".."}, encode=True)


@given(text=st.text(max_size=60))
def test_any_query_has_placeholders_or_a_reason(text: str) -> None:
    with suppress(Unreadable):
        values = SOURCE.values_of(SearchQuery(text, 5, "acme"))
        assert values["tenant"] == "acme"
        assert values["any"].count('"') == 2 * len(values["words"].split())
