"""Reading a hostile record takes little memory with every model."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from pydantic import BaseModel

from schemas.bounded import BoundedModel
from schemas.codec import Origin, read_job, read_result
from tests.input_models import models

RECORD_BYTES: Final = 300_000
MOST_KIB: Final = 136 * 1024
"""Upper bound on growth.

In an earlier version, a record took 390 MiB: pydantic's error for each missing field holds the object that lacks the
field as Python objects again. A sentence of an answer's support may lack three fields, in an object that may lack one.
"""
LARGEST_RECORD_BYTES: Final = 900_000
Path = tuple[str, ...]


def test_a_hostile_record_takes_little_memory_whichever_model_reads_it() -> None:
    """Each model's lists and dicts are filled with wrong and with right items up to the record's size."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # Use `-m`, because a script would import the tests' package `gateway` instead of the product's.
    command = [sys.executable, "-P", "-m", __name__]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    grown = dict(map(json.loads, done.stdout.splitlines()))
    assert len(grown) > 50
    assert {name: kib for name, kib in grown.items() if kib > MOST_KIB} == {}


class Bomb(NamedTuple):
    """A record to read. The collection at `path` has as many items as fit into the record."""

    name: str
    read: Callable[[bytes], object]
    outer: Any
    path: Path
    kind: str
    item: str
    size: int = RECORD_BYTES


def bombs() -> Iterator[Bomb]:
    """For each model that is no part of another: a bomb for each of its collections and each kind of item."""
    bounded = [model for model in models() if issubclass(model, BoundedModel) and model.model_fields]
    schemas = {model: model.model_json_schema(by_alias=True) for model in bounded}
    parts = {(model.__module__, name) for model in bounded for name in schemas[model].get("$defs", {})}
    for model, schema in schemas.items():
        if (model.__module__, model.__name__) in parts:
            continue
        for path, kind, good in collections(schema, schema):
            name = f"{model.__module__}.{model.__qualname__} {'.'.join(path)}"
            yield Bomb(f"{name} {{}}", reader(model), {}, path, kind, "{}")
            if isinstance(good, dict):
                outer = without(example(schema, schema), path)
                yield Bomb(f"{name} {good}", reader(model), outer, path, kind, json.dumps(good))
    yield from batch_lines()
    yield from images()
    largest = {"job_id": "a", "outcome": "succeeded", "created_at": 1}
    yield Bomb("the record that was found", read_result, largest, ("citations",), "array", "{}", LARGEST_RECORD_BYTES)


def batch_lines() -> Iterator[Bomb]:
    """Bombs in lines of an OpenAI Batch, which no model describes."""
    line = {"custom_id": "a", "method": "POST"}
    for url, member in (
        ("/v1/chat/completions", "messages"),
        ("/v1/responses", "input"),
        ("/v1/completions", "prompt"),
    ):
        for path in ((member,), ("metadata",), ("text", "format", "schema")):
            for item in ("{}", '{"role":"user","content":[]}'):
                outer = {**line, "url": url, "body": {}}
                kind = "object" if path == ("metadata",) else "array"
                name = f"line {url} {'.'.join(path)} {item}"
                yield Bomb(name, reader_of_jobs, outer, ("body", *path), kind, item)


def images() -> Iterator[Bomb]:
    """Bombs of valid and of wrong parts of a message, among them more images than one job may have."""
    for item in (
        '{"type":"image_url","image_url":{"url":"https://a.example/"}}',
        '{"type":"image_url","image_url":{"url":"data:image/jpeg;base64,/9j/"}}',
        '{"type":"image_url","image_url":{"url":"a"}}',
        '{"type":"image_url","image_url":{},"a":[[]]}',
        '{"type":"audio"}',
    ):
        path = ("messages", "0", "content")
        yield Bomb(f"parts {item}", reader_of_jobs, {}, path, "array", item, 500_000)


def reader(model: type[BaseModel]) -> Callable[[bytes], object]:
    """The function that reads this model's records, or the model's own validation if there is none."""
    from schemas.control import JobControl, read_control
    from schemas.endpoint import EndpointRecord, read_endpoint
    from schemas.job import Job
    from schemas.result import Result
    from workers.enrichment.search.service import ServiceAnswer

    if ".search." in model.__module__:
        return lambda body: ServiceAnswer(200, {}, body, 0.0).read(model)
    readers: dict[type[BaseModel], Callable[[bytes], object]] = {
        Job: reader_of_jobs,
        Result: read_result,
        JobControl: read_control,
        EndpointRecord: read_endpoint,
    }
    return readers.get(model, model.model_validate_json)


def reader_of_jobs(value: bytes) -> object:
    """Read a job as a worker does."""
    return read_job(value, (), Origin("topic", 0, 0), 0)


def resolved(part: Any, schema: Any) -> Any:
    """Resolve a part of the schema: a reference to its target, and a choice to its last member that is not null."""
    while "$ref" in part or "anyOf" in part or "allOf" in part or ("oneOf" in part and "type" not in part):
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
        else:
            choice = part.get("anyOf", part.get("allOf", part.get("oneOf")))
            options = [option for option in choice if option.get("type") != "null"]
            part = options[-1]
    return part


def collections(part: Any, schema: Any, path: Path = ()) -> Iterator[tuple[Path, str, Any]]:
    """Path, kind and a valid item of each list and dict below `part`."""
    part = resolved(part, schema)
    if part.get("type") == "array":
        inner = part.get("items", {})
        yield path, "array", example(inner, schema)
        yield from collections(inner, schema, (*path, "0"))
    elif "properties" in part:
        yield path, "object", 0
        for name, member in part["properties"].items():
            yield from collections(member, schema, (*path, name))
    elif part.get("type") == "object":
        inner = part.get("additionalProperties")
        yield path, "object", example(inner, schema) if isinstance(inner, dict) else 0


def example(part: Any, schema: Any) -> Any:
    """A small value that is valid or nearly so."""
    part = resolved(part, schema)
    if "enum" in part or "const" in part:
        return part.get("enum", [part.get("const")])[0]
    if "properties" in part:
        required = part.get("required", ["prompt"] if "prompt" in part["properties"] else [])
        return {name: example(part["properties"][name], schema) for name in required}
    simple = {"string": "a", "integer": 1, "number": 1, "boolean": True, "array": [], "object": {}, "null": None}
    return simple.get(part.get("type", "object"))


def without(value: Any, path: Path) -> Any:
    """Return the value without the member that holds the bomb."""
    if not path or not isinstance(value, dict):
        return value
    return {name: member for name, member in value.items() if name != path[0]}


def written(bomb: Bomb) -> bytes:
    """JSON of the outer value with a collection of the bomb's size at its path."""
    item, path, outer = bomb.item, bomb.path, bomb.outer
    if bomb.kind == "array":
        text = f"[{','.join([item] * ((bomb.size - 1024) // (len(item) + 1)))}]"
    else:
        count = (bomb.size - 1024) // (len(item) + 9)
        text = "{" + ",".join(f'"{number:05x}":{item}' for number in range(count)) + "}"
    for name in reversed(path[1:]):
        text = f"[{text}]" if name == "0" else f"{{{json.dumps(name)}:{text}}}"
    if not path:
        return text.encode()
    members = {**outer, path[0]: None} if isinstance(outer, dict) else {path[0]: None}
    return json.dumps(members).replace(f"{json.dumps(path[0])}: null", f"{json.dumps(path[0])}: {text}").encode()


def measure(bomb: Bomb) -> None:
    """Print the growth in KiB of a process that reads the bomb."""
    record = written(bomb)
    if (child := os.fork()) == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with contextlib.suppress(Exception):  # the model may refuse the record
            bomb.read(record)
        report(bomb.name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        os._exit(0)
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        report(f"{bomb.name} ended with {code}", sys.maxsize)


def report(name: str, kib: int) -> None:
    """Print one line for the test."""
    sys.stdout.write(f"{json.dumps([name, kib])}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    each_one = list(bombs())
    gc.freeze()  # spares each child copies of the pages that its garbage collector visits
    for each in each_one:
        measure(each)
