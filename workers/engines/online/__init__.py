"""Engines of online services with an API of their own: `anthropic`, `gemini` and `responses` (OpenAI's newer API).

`openai_http` sends the HTTP requests of all these engines, and maps the services' errors to outcomes. Each API's
module knows the paths, the JSON and the events of the API. An online service that takes OpenAI's chat completions needs
no module: the engine `openai` reaches it.
"""
