"""Draws jobs from the published JSON schema, and slightly broken jobs. Equal seeds give equal jobs.

Hypothesis draws a pool of values for each field, and a seeded generator combines them, since drawing whole jobs is too
slow. No job may make a process call an outside address. A URL that the guard would let pass is changed: it leads to
the given receiver or, for a page, to loopback.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from jsonschema import Draft202012Validator

import schemas
from schemas.codec import Origin, read_address
from schemas.job import MAX_JOB_BYTES
from schemas.kinds import QUESTIONS
from schemas.topics import DEADLINE, IDEMPOTENCY_KEY, JOB_ID, PRIORITY, SCHEMA, TENANT, TRACEPARENT, WEBHOOK_ID
from workers.egress import EgressPolicy, EgressRefused, check_url

Json = dict[str, Any]
Header = tuple[str, bytes | None]

PUBLISHED = Path(schemas.__file__).parent / "published" / "job.json"
CALLBACKS = EgressPolicy(allow=(ip_network("127.0.0.0/8"),))
"""The only addresses that the run's processes are allowed to call."""
FETCHES = EgressPolicy()
TENANTS = ("default", "acme", "globex", "initech")
_AUTHORITY = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_NOWHERE = Origin("nowhere", 0, 0)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A record to send."""

    value: bytes | None
    headers: list[Header] = field(default_factory=list)


class DrawnJobs:
    """Draws jobs. Callbacks that the guard permits go to the origin `receiver`. Each field has up to `pool` values."""

    def __init__(self, receiver: str, pool: int, seed: int) -> None:
        self._receiver = receiver
        self._rng = random.Random(seed)
        document = json.loads(PUBLISHED.read_text())
        shapes = _Shapes(document["$defs"])
        self._pools = {
            name: _drawn(shapes.of(node), pool, seed) for name, node in sorted(document["properties"].items())
        }
        self._urls: list[str] = [url for url in self._pools["callback_url"] if url is not None]
        self._noise = _drawn(_JSON, pool, seed)
        self._kinds: list[Json] = document["oneOf"]
        """The kinds of jobs. Each kind requires one member as its question, and fixes the values of other members."""
        self._together = Draft202012Validator({name: document[name] for name in ("oneOf", "allOf")})
        """The rules for members that go together. A drawn value is valid by itself, but may break these rules."""

    def jobs(self, count: int) -> Iterator[Drawn]:
        """Yield jobs that the schema accepts."""
        for _ in range(count):
            yield Drawn(_written(self._job()), self._headers())

    def broken(self, count: int) -> Iterator[Drawn]:
        """Yield jobs with one fault each. By chance, some of these jobs may still be valid."""
        made = 0
        while made < count:
            broken = self._rng.choice(_FAULTS)(self._rng, self._job(), self._headers(), self._noise)
            if self._stays_inside(broken):
                made += 1
                yield broken

    def _job(self) -> Json:
        job = self._members()
        while not self._together.is_valid(job):
            job = self._members()
        if self._rng.random() < 0.8:
            # A drawn format is seldom valid: the schema does not state which fields go together.
            job.pop("response_format", None)
        if self._rng.random() < 0.8:
            job.pop("model_id", None)  # remove the drawn name, because no engine serves such a model
            job.pop("adapter", None)
        if self._rng.random() < 0.7:
            # Half of the URLs go to the receiver unchecked, since a refused URL rejects the job before any other check.
            policy = CALLBACKS if self._rng.random() < 0.5 else None
            job["callback_url"] = self._inside(self._url(), policy, self._receiver)
        else:
            job.pop("callback_url", None)
        if job.get("sources"):
            job["sources"] = self._sources(job["sources"])
        if job.get("messages"):
            job["messages"] = [self._message(message) for message in job["messages"]]
        return job

    def _members(self) -> Json:
        """Return a question of one kind, and some of the members that go with this kind."""
        choose, pools = self._rng.choice, self._pools
        kind = choose(self._kinds)
        (question,) = kind["required"]
        free = pools.keys() - kind["properties"].keys()
        job = {name: choose(pools[name]) for name in sorted(free) if self._rng.random() < 0.3}
        return {question: choose([value for value in pools[question] if value is not None]), **job}

    def _url(self) -> str:
        """Join one drawn URL's scheme and authority to the rest of another one. The schema accepts any combination."""
        one, other = self._rng.choice(self._urls), self._rng.choice(self._urls)
        url = str(_AUTHORITY.findall(one)[0]) + _AUTHORITY.sub("", other, count=1)
        return url[:2048]

    def _sources(self, drawn: Json) -> Json:
        urls = [self._inside(self._url(), FETCHES, "https://127.0.0.1") for _ in drawn.get("urls", ())]
        kept = {**drawn, "urls": urls}
        if self._rng.random() < 0.8:
            kept.pop("profile", None)
        return kept

    def _message(self, drawn: Json) -> Json:
        content = drawn.get("content")
        if not isinstance(content, list):
            return drawn
        return {**drawn, "content": [self._part(part) if "image_url" in part else part for part in content]}

    def _part(self, drawn: Json) -> Json:
        """Return an image's part. A drawn URL is replaced, so that the run fetches no stranger's image."""
        image = drawn["image_url"]
        if image["url"].startswith("data:"):
            return drawn
        return {**drawn, "image_url": {**image, "url": self._inside(self._url(), FETCHES, "https://127.0.0.1")}}

    def _inside(self, url: str, policy: EgressPolicy | None, instead: str) -> str:
        """Return the URL if `policy` refuses it. Otherwise, or without a policy, replace its origin by `instead`."""
        is_refused = policy is not None and not _passes(url, policy)
        return url if is_refused else _AUTHORITY.sub(instead, url, count=1)[:2048]

    def _stays_inside(self, drawn: Drawn) -> bool:
        """True if delivery would call no address but the receiver's."""
        url = read_address(drawn.value, drawn.headers, _NOWHERE).callback_url
        return url is None or _AUTHORITY.findall(url) == [self._receiver] or not _passes(url, CALLBACKS)

    def _headers(self) -> list[Header]:
        rng = self._rng
        possible: list[Header] = [
            (TENANT, rng.choice(TENANTS).encode()),
            (TRACEPARENT, f"00-{rng.getrandbits(128) | 1:032x}-{rng.getrandbits(64) | 1:016x}-01".encode()),
            (IDEMPOTENCY_KEY, f"{rng.getrandbits(64):x}".encode()),
            (SCHEMA, b"1"),
            (f"x-{rng.getrandbits(16):x}", rng.choice((None, b"", rng.randbytes(9)))),
        ]
        return [header for header in possible if rng.random() < 0.4]


def _passes(url: str, policy: EgressPolicy) -> bool:
    with suppress(EgressRefused):
        return bool(check_url(url, policy))
    return False


def _written(job: Json) -> bytes:
    return json.dumps(job, ensure_ascii=False).encode()


# -- from the schema to values ---------------------------------------------------------------------------------------

_TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
_JSON: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)


class _Shapes:
    """Hypothesis strategies for the keywords of the published schema. Raises KeyError for a type that has none."""

    def __init__(self, definitions: Json) -> None:
        self._definitions = definitions
        self._kinds: dict[str, Callable[[Json], SearchStrategy[Any]]] = {
            "null": lambda _: st.none(),
            "boolean": lambda _: st.booleans(),
            "string": _text_of,
            "integer": lambda node: st.integers(node.get("minimum"), node.get("maximum")),
            "number": _number_of,
            "array": lambda node: st.lists(
                self.of(node["items"]), min_size=node.get("minItems", 0), max_size=min(node.get("maxItems", 4), 20)
            ),
            "object": self._object_of,
        }

    def of(self, node: Json) -> SearchStrategy[Any]:
        """Return a strategy for values that this part of the schema accepts."""
        if "$ref" in node:
            return self.of(self._definitions[node["$ref"].rsplit("/", 1)[1]])
        choices = node.get("anyOf") or (node.get("oneOf") if "type" not in node else None)
        if choices:
            return st.one_of([self.of(one) for one in choices])
        if "const" in node or "enum" in node:
            return st.sampled_from(node.get("enum") or [node["const"]])
        return self._kinds[node["type"]](node)

    def _object_of(self, node: Json) -> SearchStrategy[Any]:
        if "properties" not in node:
            values = node["additionalProperties"]
            longest = node.get("propertyNames", {}).get("maxLength", 40)
            return st.dictionaries(
                st.text(st.characters(codec="utf-8"), max_size=longest),
                self.of(values) if isinstance(values, dict) else _JSON,
                max_size=min(node.get("maxProperties", 3), 5),
            )
        shapes = {name: self.of(one) for name, one in node["properties"].items()}
        required = {name: shapes.pop(name) for name in node.get("required", ())}
        return st.fixed_dictionaries(required, optional=shapes)


def _text_of(node: Json) -> SearchStrategy[str]:
    low, high = node.get("minLength", 0), node.get("maxLength", 200)
    if "pattern" not in node:
        return st.text(st.characters(codec="utf-8"), min_size=low, max_size=min(high, 200))
    # In Python, `$` also matches before a final line break; in JSON Schema it does not.
    drawn: SearchStrategy[str] = st.from_regex(str(node["pattern"]), fullmatch=True)
    return drawn.filter(lambda text: low <= len(text) <= high and not text.endswith("\n"))


def _number_of(node: Json) -> SearchStrategy[float]:
    low = node.get("minimum", node.get("exclusiveMinimum"))
    high = node.get("maximum", node.get("exclusiveMaximum"))
    return st.floats(
        low, high, exclude_min="exclusiveMinimum" in node, exclude_max="exclusiveMaximum" in node, allow_nan=False
    )


def _drawn(strategy: SearchStrategy[Any], count: int, seed: int) -> list[Any]:
    """Return at most `count` values. Equal seeds give equal values."""
    found: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy)
    def keep(value: Any) -> None:
        found.append(value)

    keep()
    return found


# -- faults of a record ------------------------------------------------------------------------------------------------

Fault = Callable[[random.Random, Json, list[Header], list[Any]], Drawn]


def _another_type(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    job[rng.choice(list(job))] = rng.choice(noise)
    return Drawn(_written(job), headers)


def _out_of_bounds(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    number = rng.choice((-1, 0, 10**9, 2**63, -(2**63), 10**30, 1e308, 5e-324))
    job[rng.choice(("max_tokens", "temperature", "top_p", "priority", "seed", "ttl_seconds", "context_window"))] = (
        number
    )
    return Drawn(_written(job), headers)


def _no_number(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    job[rng.choice(("max_tokens", "temperature", "ttl_seconds"))] = rng.choice((float("nan"), float("inf")))
    return Drawn(_written(job), headers)


def _no_question(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    for name in QUESTIONS:
        job.pop(name, None)
    return Drawn(_written(job), headers)


def _two_questions(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    job |= {"prompt": "one", "messages": [{"role": "user", "content": "two"}]}
    return Drawn(_written(job), headers)


def _another_url(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    url = list(job.get("callback_url") or "https://[2001:db8::1::2]/hook")
    url[rng.randrange(len(url))] = rng.choice("[]@:%/\\ \x00\n::..é１#?")
    job["callback_url"] = "".join(url)
    return Drawn(_written(job), headers)


def _another_byte(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    value = bytearray(_written(job))
    value[rng.randrange(len(value))] = rng.randrange(256)
    return Drawn(bytes(value), headers)


def _cut_short(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    value = _written(job)
    return Drawn(value[: rng.randrange(len(value))], headers)


def _no_value(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    return Drawn(rng.choice((None, b"", b"null", b"[]", b"0", b'"job"', b"\xff\xfe", b"\x00" * 9)), headers)


def _half_a_character(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    job[rng.choice(("prompt", "custom_id", "job_id", "callback_url"))] = "https://a.example/\ud800"
    return Drawn(json.dumps(job).encode(), headers)


def _deep(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    depth = rng.choice((100, 300, 2000))
    nest = '{"a":' * depth + "1" + "}" * depth
    value = f'{{"prompt":"x","response_format":{{"type":"json_schema","json_schema":{{"schema":{nest}}}}}}}'
    return Drawn(value.encode(), headers)


def _said_twice(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    name = rng.choice(list(job))
    return Drawn(_written(job)[:-1] + f",{json.dumps(name)}:{json.dumps(rng.choice(noise))}}}".encode(), headers)


def _a_header(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    name = rng.choice((TENANT, DEADLINE, PRIORITY, SCHEMA, JOB_ID, WEBHOOK_ID, IDEMPOTENCY_KEY, TRACEPARENT))
    value = rng.choice((None, b"", b"../x", b"\xff", b"-1", b"9" * 400, b"a b", rng.randbytes(30)))
    return Drawn(_written(job), [*headers, (name, value)])


def _many_headers(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    return Drawn(_written(job), [*headers, *[(rng.choice(("", "x", TENANT)), b"")] * rng.choice((100, 7000))])


def _too_large(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    if rng.random() < 0.95:
        return _another_byte(rng, job, headers, noise)  # makes few jobs too large, since each has half a megabyte
    return Drawn(_written({**job, "metadata": {"x": "y" * MAX_JOB_BYTES}}), headers)


def _a_batch_line(rng: random.Random, job: Json, headers: list[Header], noise: list[Any]) -> Drawn:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {**job, "n": rng.choice(noise)}}
    line[rng.choice(list(line))] = rng.choice(noise)
    return Drawn(_written(line), headers)


_FAULTS: tuple[Fault, ...] = (
    _another_type,
    _out_of_bounds,
    _no_number,
    _no_question,
    _two_questions,
    _another_url,
    _another_byte,
    _cut_short,
    _no_value,
    _half_a_character,
    _deep,
    _said_twice,
    _a_header,
    _many_headers,
    _too_large,
    _a_batch_line,
)
