"""Engines of online services with an API of their own: `anthropic` and `gemini`.

`service` has the HTTP that they share, with the outcomes of errors. Each API's module has its paths and its JSON. An
online service that speaks OpenAI's protocol needs no module: the engine `openai` reaches it.
"""
