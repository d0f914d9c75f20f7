"""Images in a job's messages: their shapes in each API, their bounds, and the parts of the program that read texts."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.codec import InvalidJob, write_job
from schemas.images import DATA_URL, IMAGE_TOKENS, MAX_IMAGES, data_url, media_type_of, parted_data_url
from schemas.job import Job, Message
from schemas.openai import CHAT_COMPLETIONS, RESPONSES
from schemas.strict import NotAJob, body_job, job_in
from screening.texts import texts_of, with_texts
from tests.images import GIF, JPEG, PNG, WEBP, asked_of, image_part
from tests.unit.codec_jobs import encoded, read
from workers.engines.families import families
from workers.engines.families.quirks import with_quirks
from workers.enrichment.choosing.tokens import room_for_sources
from workers.inference.prompt_tokens import prompt_tokens

IMAGES = {"image/png": PNG, "image/jpeg": JPEG, "image/gif": GIF, "image/webp": WEBP}
ADDRESS = "https://pictures.example/cat.png"
NOISE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from(["image_url", "text", ADDRESS]),
    lambda some: (
        st.lists(some, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "image_url", "url", "detail"]) | st.text(max_size=5), some)
    ),
    max_leaves=8,
)


def chat(*parts: object, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(parts)}]}


def problems(job: object) -> list[str]:
    with pytest.raises(InvalidJob) as raised:
        read(encoded(job))
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize(("media_type", "image"), IMAGES.items())
def test_an_image_of_each_format_is_recognised_by_its_first_bytes_and_taken(media_type: str, image: bytes) -> None:
    assert media_type_of(image) == media_type
    url = data_url(media_type, image)
    job = read(chat({"type": "text", "text": "Describe the image."}, image_part(url))).job
    assert [(place, each.url) for place, each in job.images] == [("messages.0.content.1", url)]
    assert parted_data_url(url) == (media_type, b64encode(image).decode())
    assert read(write_job(job)).job == job


@given(st.from_regex(DATA_URL, fullmatch=True))
def test_each_data_url_of_the_pattern_is_a_jobs_image_of_the_type_that_it_states(url: str) -> None:
    (_, image), *others = read(chat(image_part(url))).job.images
    media_type, text = parted_data_url(image.url)
    assert others == []
    assert media_type_of(b64decode(text, validate=True)) == media_type


@given(st.binary(max_size=64), st.sampled_from(sorted(IMAGES)))
@example(PNG, "image/jpeg")
def test_a_data_url_is_taken_exactly_if_its_bytes_are_of_the_type(image: bytes, media_type: str) -> None:
    """For PNG, the schema's pattern needs a ninth byte after the eight that show the format; every real PNG has it."""
    is_image = media_type_of(image) == media_type and len(image) > 8
    is_taken = re.search(DATA_URL, data_url(media_type, image)) is not None
    assert is_taken == is_image or len(image) <= 12


@pytest.mark.parametrize(
    "url",
    [
        "ftp://pictures.example/cat.png",
        "https://user:secret@pictures.example/cat.png",
        "https://pictures.example/" + "a" * 2048,
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        data_url("image/jpeg", PNG),
        data_url("image/svg+xml", b"<svg/>"),
        data_url("image/png", PNG)[:-1],
        "data:text/html,<script>",
        "",
        7,
    ],
)
def test_any_other_url_is_refused_by_its_field_and_never_repeated(url: object) -> None:
    [problem] = problems(chat(image_part(url)))
    assert problem.startswith("messages.0.content.0.image_url.url: ")
    assert "secret" not in problem and "passwd" not in problem


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([{"type": "input_audio"}], "messages.0.content.0.type: only `text` and `image_url` parts are taken"),
        (["text"], "messages.0.content.0.type: only `text` and `image_url`"),
        ([{"type": "image_url"}], "messages.0.content.0.image_url: Field required"),
        ([{"type": "image_url", "image_url": ADDRESS}], "messages.0.content.0.image_url: "),
        ([image_part(ADDRESS, detail="much")], "messages.0.content.0.image_url.detail: Input should be 'auto'"),
        ([image_part(ADDRESS)] * (MAX_IMAGES + 1), "messages: `messages` has more than 16 images"),
    ],
)
def test_a_part_that_is_no_image_part_is_refused_by_its_field(parts: list[object], found: str) -> None:
    assert problems(chat(*parts))[0].startswith(found)


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
def test_only_a_users_message_has_images(role: str) -> None:
    assert problems(chat(image_part(ADDRESS), role=role))[0].startswith("messages.0: `image_url` parts go with")


@given(NOISE)
@example([image_part(ADDRESS)])
@example([{"type": ["text"]}])
def test_any_content_gives_a_job_or_a_refusal_in_a_record_and_at_the_gateway(content: object) -> None:
    job = {"messages": [{"role": "user", "content": content}]}
    try:
        read(encoded(job))
    except InvalidJob as invalid:
        assert invalid.problems
        with pytest.raises(NotAJob):
            job_in(encoded(job))
    for url, body in (
        (CHAT_COMPLETIONS, job),
        (RESPONSES, {"input": [{"role": "user", "content": content}]}),
    ):
        try:
            body_job(url, body)
        except NotAJob as refused:
            assert refused.problems


@given(NOISE, st.sampled_from(["user", "system", "assistant", "tool"]))
def test_the_published_schema_takes_the_same_contents_as_the_reader(content: object, role: str) -> None:
    message = {"role": role, "content": content, **({"tool_call_id": "a"} if role == "tool" else {})}
    schema = Job.model_json_schema()
    try:
        Message.model_validate_json(json.dumps(message), strict=True)
    except ValueError:
        is_message = False
    else:
        is_message = True
    described = {**schema["$defs"]["Message"], "$defs": schema["$defs"]}
    assert jsonschema.Draft202012Validator(described).is_valid(message) == is_message


# -- other shapes ------------------------------------------------------------------------------------------------------


def test_a_chat_and_a_request_to_responses_have_their_images() -> None:
    shown = data_url("image/png", PNG)
    chatted = body_job(CHAT_COMPLETIONS, chat(image_part(ADDRESS, detail="low"), image_part(shown)))
    parts = [
        {"type": "input_text", "text": "Describe the image."},
        {"type": "input_image", "image_url": ADDRESS, "detail": "high"},
        {"type": "input_image", "image_url": shown},
    ]
    responded = body_job(RESPONSES, {"input": [{"role": "user", "content": parts}]})
    assert [(each.url, each.detail) for _, each in chatted.images] == [(ADDRESS, "low"), (shown, None)]
    assert [(each.url, each.detail) for _, each in responded.images] == [(ADDRESS, "high"), (shown, None)]
    assert responded.images[0][0] == "messages.0.content.1"


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ({"type": "input_image"}, "input.0.content.0.image_url"),
        ({"type": "input_image", "image_url": "ftp://a"}, "input.0.content.0.image_url"),
        ({"type": "input_image", "image_url": ADDRESS, "detail": "much"}, "input.0.content.0.detail"),
        ({"type": "input_image", "file_id": "file-1"}, "input.0.content.0.file_id"),
        ({"type": "input_file", "file_id": "file-1"}, "input.0.content.0"),
    ],
)
def test_a_malformed_image_of_a_response_is_refused_by_its_own_place(part: object, place: str) -> None:
    with pytest.raises(NotAJob) as refused:
        body_job(RESPONSES, {"input": [{"role": "user", "content": [part]}]})
    assert refused.value.problems[0].field == place


def test_a_line_of_a_batch_has_its_image() -> None:
    line = {"custom_id": "1", "method": "POST", "url": CHAT_COMPLETIONS, "body": chat(image_part(ADDRESS))}
    assert [each.url for _, each in read(line).job.images] == [ADDRESS]


def test_the_gateway_names_a_members_unknown_fields_and_a_worker_drops_them() -> None:
    part = image_part(ADDRESS, size=3) | {"alt": "a cat"}
    with pytest.raises(NotAJob) as refused:
        job_in(encoded(chat(part)))
    assert [problem.field for problem in refused.value.problems] == [
        "messages.0.content.0.alt",
        "messages.0.content.0.image_url.size",
    ]
    assert json.loads(write_job(read(chat(part)).job)) == chat(image_part(ADDRESS))


# -- readers of texts --------------------------------------------------------------------------------------------------


def test_the_input_filter_reads_only_the_texts_and_keeps_the_images_in_their_places() -> None:
    job = Job.model_validate(chat({"type": "text", "text": "a"}, image_part(ADDRESS), {"type": "text", "text": "b"}))
    [text] = texts_of(job)
    assert (text.text, text.parts) == ("a\nb", ("a", "b"))
    changed = with_texts(job, {text.place: ("A", "B")})
    said = [part.model_dump(exclude_none=True) for part in (changed.messages or [])[0].parts]
    assert said == [{"type": "text", "text": "A"}, image_part(ADDRESS), {"type": "text", "text": "B"}]


def test_a_family_without_system_messages_keeps_the_images_of_the_first_question() -> None:
    request = asked_of(ADDRESS)
    told = (Message(role="system", content="Be brief."), *(request.messages or ()))
    [message] = with_quirks(replace(request, messages=told), families()["gemma-2"]).messages or ()
    assert (message.texts, [image.url for image in message.images]) == (("Be brief.", "Describe the image."), [ADDRESS])


def test_the_hash_of_a_question_covers_its_images_and_that_of_a_chat_without_images_stays() -> None:
    hashes = [Job.model_validate(chat(image_part(f"{ADDRESS}?{number}"))).prompt_sha256 for number in (1, 2)]
    assert len({*hashes}) == 2
    texts = [Job.model_validate({"messages": [{"role": "user", "content": said}]}) for said in ("a", [text_part("a")])]
    assert texts[0].prompt_sha256 == texts[1].prompt_sha256


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_an_image_costs_the_same_whether_the_job_carries_or_names_it(separators: tuple[str, str]) -> None:
    large = data_url("image/png", PNG + b"\xff" * 300_000)
    for url in (large, ADDRESS):
        value = json.dumps(chat(image_part(url), text_part("Why?")), separators=separators).encode()
        assert prompt_tokens(value) == pytest.approx(IMAGE_TOKENS, abs=60)
        assert prompt_tokens(value.replace(b"/", b"\\/")) == pytest.approx(IMAGE_TOKENS, abs=60)
    line = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": large}]}]}
    assert prompt_tokens(json.dumps(line, separators=separators).encode()) == pytest.approx(IMAGE_TOKENS, abs=60)


@given(st.text(max_size=200))
@example('"url":"data:image/png;base64,iVBORw0KGgoAAAA"')
def test_a_text_cannot_lower_its_cost_by_looking_like_an_image(text: str) -> None:
    value = json.dumps({"messages": [{"role": "user", "content": text + '"image_url"'}]}).encode()
    assert prompt_tokens(value) >= len(value) / 4


def test_images_leave_less_room_for_sources() -> None:
    job = Job.model_validate(chat(text_part("Why?"), image_part(ADDRESS)))
    bare = Job.model_validate(chat(text_part("Why?")))
    rooms = [room_for_sources(each, context_tokens=8000) or 0 for each in (bare, job)]
    assert rooms[0] - rooms[1] == IMAGE_TOKENS


@given(st.lists(st.text(max_size=5), min_size=1, max_size=MAX_IMAGES))
def test_the_text_of_a_message_consists_of_its_text_parts(texts: list[str]) -> None:
    parts = [part for text in texts for part in (text_part(text), image_part(ADDRESS))]
    message = Message.model_validate({"role": "user", "content": parts})
    assert (message.text, len(message.images)) == ("\n".join(texts), len(texts))
