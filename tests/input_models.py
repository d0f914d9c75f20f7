"""Every pydantic model of the program, for tests of all of them."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Final

from pydantic import BaseModel

from schemas.bounded import BoundedModel

PACKAGES: Final = ("schemas", "workers", "producers", "gateway", "cli")
NOT_IMPORTED: Final = (
    "workers.engines.vllm",  # needs a GPU
    "workers.engines.vllm.cpu_worker",
    "workers.enrichment.reading.by_trafilatura",  # imports a package that only reading processes load
    "workers.enrichment.reading.scans",  # imports a package that only OCR processes load
    "workers.enrichment.processes.ocr",
)


def models() -> list[type[BaseModel]]:
    """Every pydantic model of the program's modules.

    A class that a function makes is left out: whether it exists depends on the tests that ran before in this process.
    """
    for name in PACKAGES:
        for module in pkgutil.walk_packages(import_module(name).__path__, f"{name}."):
            if module.name not in NOT_IMPORTED and not module.name.endswith("__main__"):
                import_module(module.name)
    found, todo = set(), [BaseModel]
    while todo:
        for model in todo.pop().__subclasses__():
            if model not in found:
                found.add(model)
                todo.append(model)
    ours = [
        model
        for model in found - {BoundedModel}
        if model.__module__.partition(".")[0] in PACKAGES and "<locals>" not in model.__qualname__
    ]
    return sorted(ours, key=lambda model: (model.__module__, model.__qualname__))
