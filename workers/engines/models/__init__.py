"""The model registry: one file that says which models a fleet has, and which engine answers for each model.

`registry_file` reads the file, `entries` defines its tables, and `mistakes` names each mistake with its line. The file
is TOML:

    default = "small"                     # the model of jobs without `model_id`; if absent, the first model

    [engines.hosted]
    kind = "openai"                       # an engine as for `postback worker --engine`
    addresses = ["https://a.example/v1", "https://b.example/v1"]
    api_key = { env = "HOSTED_KEY" }      # or { file = "/run/secrets/hosted" }
    request_timeout_seconds = 120         # any setting of the engine, named as in POSTBACK_ENGINE__OPENAI__…

    [models.small]
    aliases = ["gpt-4o-mini"]
    engine = "hosted"
    model = "acme/small-8b"               # the engine's name for the model; if absent, `small`
    cost = { prompt = 0.15, completion = 0.6, currency = "USD" }   # prices of a million tokens
    limits = { requests_per_second = 20, tokens_per_minute = 200000 }
    escalate = { to = "large", on = ["not_json", "low_confidence"], below = 0.4 }

    [models.large]
    engine = "hosted"
"""
