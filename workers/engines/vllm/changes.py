"""Changes of a running engine's settings: its weights or its adapters; everything else needs a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from workers.engines.base import EngineAway, EngineRefused
from workers.engines.settings import EngineSection
from workers.engines.vllm.adapters import Adapters
from workers.engines.vllm.guardian import Guardian
from workers.engines.vllm.settings import VllmSettings
from workers.engines.vllm.weights import change_weights


async def change(
    llm: Any,
    old: VllmSettings,
    section: EngineSection,
    adapters: Adapters,
    guardian: Guardian,
    asking_health: asyncio.Lock,
) -> VllmSettings:
    """Give the engine other weights or adapters, and return its new settings. `llm` is None while the engine is away.

    Raises EngineRefused if the change needs a restart or an adapter cannot be loaded, EngineAway if the engine is away,
    and EngineUnavailable if the engine failed.
    """
    new = cast("VllmSettings", section)
    model = {"model": old.model, "revision": old.revision}
    if new.model is None or new.model_copy(update={**model, "adapters": old.adapters}) != old:
        raise EngineRefused("settings besides the model and its adapters have changed")
    is_same_model = new.model_copy(update=model) == new
    if not is_same_model and new.adapters != old.adapters:
        # Refuse to change both, because jobs that wait in vLLM would get the former adapters with the new weights.
        raise EngineRefused("the weights and the adapters have changed at once; save one change, then the other")
    if llm is None:
        raise EngineAway("the engine is away")
    if is_same_model:
        await adapters.change(llm, new)
    else:
        await change_weights(llm, Path(str(old.model)), Path(new.model), adapters, guardian, asking_health)
    return new
