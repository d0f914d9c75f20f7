"""The engine for each model, and the difference between a job without an engine and one that is being forwarded."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from workers.inference.registry import MAX_FORWARDS, Forward, Ours, Registry, UnknownModel

SHARED = Registry(("small", "vllm", "default"), None, {"big": "gpu", "mine": None})
GPU = Registry(("big", "vllm", "default"), "gpu", {"small": None, "alias": "gpu"})


@pytest.mark.parametrize("model", [None, "vllm", "default", "small", "mine"])
def test_a_job_without_a_model_or_for_a_model_of_this_worker_is_answered_here(model: str | None) -> None:
    assert SHARED.route(model, None) == Ours()


def test_a_model_of_another_lane_is_forwarded_there() -> None:
    assert SHARED.route("big", None) == Forward("gpu", 1)
    assert GPU.route("small", None) == Forward(None, 1)


def test_a_model_that_the_registry_puts_into_the_lane_of_this_worker_is_answered_here() -> None:
    assert GPU.route("alias", None) == Ours()


def test_a_model_that_is_served_here_is_never_forwarded_whatever_the_registry_says() -> None:
    assert Registry({"small"}, None, {"small": "gpu"}).route("small", None) == Ours()


def test_a_model_that_no_engine_has_is_named_beside_those_that_there_are() -> None:
    with pytest.raises(UnknownModel) as unknown:
        SHARED.route("gpt-17", None)
    assert str(unknown.value) == (
        'no engine of this fleet has the model "gpt-17"; there is "small", "big", "mine": name one of these or leave '
        "it out (`postback submit --model` does either), or have the operator add an alias to POSTBACK_WORKER__MODELS "
        "or the registry"
    )


@given(st.from_regex(r"\A[\x21-\x7e]{1,256}\Z"), st.lists(st.from_regex(r"\A[\x21-\x7e]{1,256}\Z"), max_size=50))
def test_whatever_a_model_is_called_the_refusal_is_short_and_holds_nothing_but_plain_names(
    name: str, others: list[str]
) -> None:
    registry = Registry(("small", "/private/place"), None, dict.fromkeys(others))
    assume(name not in {"small", "/private/place", *others})
    with pytest.raises(UnknownModel) as unknown:
        registry.route(name, None)
    said = str(unknown.value)
    assert len(said) < 1_000
    assert "/private/place" not in said or "/private/place" in "".join((name, *others))
    assert not set(said) & set("<>&'\\$%")


def test_forwarding_is_counted_and_a_circle_ends() -> None:
    forwarded = None
    for times in range(1, MAX_FORWARDS + 1):
        assert SHARED.route("big", forwarded) == Forward("gpu", times)
        forwarded = str(times)
    with pytest.raises(UnknownModel, match="in a circle"):
        SHARED.route("big", forwarded)


def test_a_job_that_arrives_after_many_forwards_is_still_answered_here() -> None:
    assert SHARED.route("small", "99") == Ours()


@pytest.mark.parametrize("header", ["", "-1", "1.5", "x", "²", "9" * 5000])
def test_a_count_that_is_no_number_of_ours_does_not_end_the_worker(header: str) -> None:
    """Any producer can write the header with the number of forwards; an absurd number counts as too many."""
    try:
        assert SHARED.route("big", header) == Forward("gpu", 1)
    except UnknownModel:
        assert header.isdecimal()
