"""The registry's rules for jobs: defaults of their models, and a second try with another model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from schemas.codec import ReceivedJob
from schemas.outcome import Outcome
from schemas.result import Result, Usage
from workers.engines.models.entries import Escalation
from workers.engines.models.registry_file import ModelRegistry, RegistryModel
from workers.inference.answer_form import InvalidOutput, NotJson

BAD_FORMS = frozenset((NotJson.code, InvalidOutput.code))
"""Codes of answers that have not the form that the job asks for."""
_OF_THE_MODEL = frozenset(("engine_error", "unfinished", "unsupported", *BAD_FORMS))
"""Codes of failures that another model may avoid. A cancelled or expired job is never tried again."""


class ModelRules:
    """The rules for the models of one lane, from the registry that `current` returns.

    If `current` is None, there are no rules.
    """

    def __init__(self, current: Callable[[], ModelRegistry] | None = None, lane: str | None = None) -> None:
        self._current = current
        self._lane = lane

    def has_none_for(self, model_id: str | None) -> bool:
        """Return whether a job without sources stays as it is, and its first result is final."""
        model = self._model(model_id)
        if model is None:
            return True
        entry = model.entry
        return entry.max_tokens is None and entry.temperature is None and entry.escalate is None

    def escalates(self, model_id: str | None) -> bool:
        """Return whether another model may answer a job instead, after this model's answer."""
        model = self._model(model_id)
        return model is not None and model.entry.escalate is not None

    def with_defaults(self, received: ReceivedJob) -> ReceivedJob:
        """Return the job with its model's defaults for the options that the job does not set."""
        model = self._model(received.job.model_id)
        if model is None:
            return received
        job, entry = received.job, model.entry
        options = {"max_tokens": entry.max_tokens, "temperature": entry.temperature}
        changes: dict[str, Any] = {
            name: value for name, value in options.items() if value is not None and name not in job.model_fields_set
        }
        if "max_tokens" in changes:
            changes["max_tokens"] = min(changes["max_tokens"], job.most_tokens)
        if entry.profile and job.sources is not None and "profile" not in job.sources.model_fields_set:
            changes["sources"] = job.sources.model_copy(update={"profile": entry.profile})
        return replace(received, job=job.model_copy(update=changes)) if changes else received

    def after(self, received: ReceivedJob, result: Result) -> Escalate | None:
        """Return the second try that this result calls for; None if the result is final."""
        model = self._model(received.job.model_id)
        rule = model.entry.escalate if model is not None else None
        why = _reason(rule, result) if rule is not None else None
        return Escalate(model.name, rule.to, why) if model is not None and rule is not None and why else None

    def _model(self, model_id: str | None) -> RegistryModel | None:
        if self._current is None:
            return None
        models = self._current().of_lane(self._lane)
        named = (model for model in models.values() if model_id in model.names)
        return next(named, None) or next(iter(models.values()), None)


class Escalate:
    """A second try of a job: the first model, the second model, and the reason."""

    def __init__(self, first: str, to: str, why: str) -> None:
        self.to = to
        self._tried = f"escalated: {why} with model {first}"

    def chosen(self, first: Result, second: Result) -> Result:
        """Return the second result, or the first if only the first try succeeded.

        The returned result has a note, and the sum of the usage of both tries.
        """
        if second.outcome is Outcome.SUCCEEDED:
            kept, end = second, f"model {self.to} answered"
        elif first.outcome is Outcome.SUCCEEDED:
            kept, end = first, f"model {self.to} gave no answer; the first answer stands"
        else:
            kept, end = second, f"model {self.to} gave no answer either"
        both = {"usage": sum_of(first.usage, second.usage), "timings": second.timings or first.timings}
        return kept.model_copy(update={"notes": [*kept.notes, f"{self._tried}; {end}"], **both})

    def refused(self, first: Result) -> Result:
        """Return the first result, with a note that the second model does not take the job."""
        note = f"{self._tried}; model {self.to} refused the job; the first result stands"
        return first.model_copy(update={"notes": [*first.notes, note]})


def is_bad_form(result: Result) -> bool:
    """True if a whole answer has not the form that the job asks for, so that another try may have it."""
    is_bad = result.error is not None and result.error.code in BAD_FORMS
    return is_bad and result.finish_reason != "length"


def _reason(rule: Escalation, result: Result) -> str | None:
    """Return the reason to escalate, for the note; None if the rule does not apply."""
    code = result.error.code if result.error is not None else None
    watched = _OF_THE_MODEL if "failed" in rule.on else BAD_FORMS if "not_json" in rule.on else ()
    if result.outcome is Outcome.FAILED and code in watched:
        return code
    low = rule.below is not None and result.confidence is not None and result.confidence < rule.below
    if result.outcome is Outcome.SUCCEEDED and low:
        return f"the confidence was below {rule.below:g}"
    return None


def sum_of(first: Usage | None, second: Usage | None) -> Usage | None:
    """Return the sum of both tries' tokens, and of their prices if both have the same currency.

    An optional count is the sum of the reported counts. It is absent if neither engine reports it.
    """
    if first is None or second is None:
        return first or second
    names = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")
    told = {name: [n for n in (getattr(first, name), getattr(second, name)) if n is not None] for name in names}
    sums: dict[str, Any] = {name: sum(counts) for name, counts in told.items() if counts}
    if first.currency == second.currency and first.currency is not None:
        sums["cost"] = (first.cost or 0.0) + (second.cost or 0.0)
    return second.model_copy(update=sums)
