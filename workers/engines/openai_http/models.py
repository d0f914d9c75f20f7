"""The server's list of models: their names and windows."""

from __future__ import annotations

from pydantic import Field

from schemas.bounded import BoundedModel

_MOST_MODELS = 10_000
_NAMES_SHOWN = 8


class _Model(BoundedModel):
    id: str
    parent: str | None = None
    """The base model of a LoRA adapter; only the base model has a window."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together. A vLLM server has this field; OpenAI's protocol does not."""


class ServerModels(BoundedModel):
    """The answer to `GET /models`."""

    data: list[_Model] = Field(max_length=_MOST_MODELS)

    @property
    def names(self) -> list[str]:
        """The names of the models; vLLM's servers list LoRA adapters as models too."""
        return [model.id for model in self.data]

    def window_of(self, name: str) -> int | None:
        """Return the tokens of this model's window, or of its base model's window; None if unknown.

        A number below 1 is ignored, because a worker with such a window would reject every job.
        """
        by_name = {model.id: model for model in self.data}
        model = by_name.get(name)
        if model is not None and model.max_model_len is None and model.parent is not None:
            model = by_name.get(model.parent)
        return model.max_model_len if model is not None and (model.max_model_len or 0) > 0 else None

    def listed_window(self, name: str) -> int | None:
        """Return the window of this model. Raises LookupError, with a text for the operator, for an unlisted model."""
        if name not in self.names:
            raise LookupError(self.lacks(name))
        return self.window_of(name)

    def lacks(self, name: str) -> str:
        """Return a text for the operator: the list lacks this name, and begins with these names (at most eight)."""
        names, more = self.names[:_NAMES_SHOWN], len(self.names) - _NAMES_SHOWN
        shown = ", ".join(names) + (f" and {more} more" if more > 0 else "") if names else "none at all"
        return f"does not list the model {name}, but {shown}"
