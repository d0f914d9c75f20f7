"""Engines of online services with an API of their own: `anthropic`, `gemini` and `responses` (OpenAI's newer API).

`service` has the HTTP that they share, and maps their errors to outcomes. Each API's module has its paths and its JSON.
An online service that takes OpenAI's chat completions needs no module: the engine `openai` reaches it.
"""
