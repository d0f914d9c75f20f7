"""Engines generate the answers.

`base` defines the interface, `ENGINES` lists the engines, and `registry.create` makes one. To add an engine, write one
module (or package) and add one line to `ENGINES`. The module has the attributes of `registry.EngineModule`. The
command's `--engine` option then offers the engine, and `python -m scripts.publish` updates the settings page, the chart
and its documentation.
"""

from __future__ import annotations

ENGINES = {
    "echo": "workers.engines.echo",
    "vllm": "workers.engines.vllm",
    "openai": "workers.engines.openai_http",
    "anthropic": "workers.engines.online.anthropic",
    "gemini": "workers.engines.online.gemini",
    "responses": "workers.engines.online.responses",
}
"""Maps each engine's name to the engine's module.

Modules are imported only on use, because the command's help loads this file but needs no engine.
"""
