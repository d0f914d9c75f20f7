"""Engines generate the answers. `base` is the seam, `ENGINES` the registry, `registry.create` the way in.

To add an engine, write one module (or package) and add one line to `ENGINES`. The module has the attributes of
`registry.EngineModule`. The command's `--engine` option then offers the engine, and `python -m console.publish` updates
the settings page, the chart and its documentation.
"""

from __future__ import annotations

ENGINES = {
    "echo": "workers.engines.echo",
    "vllm": "workers.engines.vllm",
    "openai": "workers.engines.openai_http",
    "anthropic": "workers.engines.online.anthropic",
    "gemini": "workers.engines.online.gemini",
}
"""Name to module. Modules are imported on use, and this file has no imports, since the command's help loads it."""
