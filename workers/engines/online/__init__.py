"""Engines of online services with an API of their own: `anthropic` and `gemini`.

`service` has the HTTP that both share, and maps their errors to outcomes. Each API's module has its paths and its JSON.
An online service that speaks OpenAI's protocol needs no module: the engine `openai` reaches it.
"""
