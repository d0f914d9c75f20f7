"""Engines generate the answers. `base` is the seam, `ENGINES` the registry, `registry.create` the way in.

To add an engine, write one module (or package) and add one line to `ENGINES`. The module has the attributes of
`registry.EngineModule`. The `--engine` choice of the command, the settings page, the chart and its documentation follow
from it: `python -m console.publish` writes them anew.
"""

from __future__ import annotations

ENGINES = {
    "echo": "workers.engines.echo",
    "vllm": "workers.engines.vllm",
    "openai": "workers.engines.openai_http",
}
"""Name to module. The modules are imported on use, and nothing else stands here: the command's help loads this."""
