"""Examples of jobs, results and headers for the reference; tests read each by its model."""

from __future__ import annotations

from typing import Any, Final

from schemas.kinds import CLASSIFY, EMBED, RERANK, SCORE

JOB = {
    "job_id": "order-4711",
    "model_id": "qwen2.5-7b",
    "prompt": "Does aspirin lower the risk of a second stroke?",
    "raw": False,
    "context_window": 8192,
    "temperature": 0.2,
    "top_p": 0.95,
    "min_p": 0.05,
    "stop": ["\n\nQ:"],
    "max_tokens": 256,
    "seed": 7,
    "response_format": {"type": "text"},
    "reasoning": {"effort": "low", "max_tokens": 1024},
    "adapter": "cardiology",
    "callback_url": "https://consumer.example/hook",
    "sources": {
        "urls": ["https://example.org/guideline.html"],
        "documents": [
            {"id": "ward-letter", "title": "Letter of 3 May", "text": "Aspirin was paused before the operation."},
            {"id": "ward-scan", "base64": "JVBERi0xLjcK", "media_type": "application/pdf"},
        ],
        "search": {
            "provider": "labs",
            "query": "creatinine",
            "limit": 5,
            "parameters": {"patient": "p1"},
            "domains": ["who.int"],
            "since": "2024-01-01",
            "until": "2024-12-31",
            "language": "en",
        },
        "searches": [{"provider": "pubmed", "query": "creatinine clearance", "limit": 3}],
        "rewrite": True,
        "budget_seconds": 10,
        "freshness_seconds": 3600,
        "max_chars": 8000,
        "profile": "medical",
        "required": True,
    },
    "priority": 5,
    "not_before": 1764100800,
    "ttl_seconds": 3600,
    "metadata": {"ward": "3b"},
    "custom_id": "row-1",
}
"""A job for one question and one answer, with every field that such a job may have."""
SAMPLING = {
    "prompt": "Name a fruit.",
    "temperature": 0.8,
    "max_tokens": 8,
    "n": 2,
    "logprobs": True,
    "top_logprobs": 2,
}
"""A job that asks for two answers with log-probabilities."""
CALLING = {
    "messages": [
        {"role": "user", "content": "Is the pharmacy open?"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "clock", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": "Monday, 9:41"},
    ],
    "tools": [
        {"type": "function", "function": {"name": "clock", "description": "The day and the time."}},
        {
            "type": "function",
            "function": {
                "name": "opening_hours",
                "description": "The hours of a shop on a day.",
                "parameters": {
                    "type": "object",
                    "properties": {"shop": {"type": "string"}, "day": {"type": "string"}},
                    "required": ["shop", "day"],
                },
                "strict": True,
            },
        },
    ],
    "tool_choice": {"type": "function", "function": {"name": "opening_hours"}},
    "parallel_tool_calls": False,
}
"""A job with tools, whose chat has a call and the call's result."""
CHAT = {
    "messages": [
        {"role": "system", "content": "Answer with JSON."},
        {"role": "user", "content": [{"type": "text", "text": "Name a fruit."}]},
    ],
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "fruit",
            "schema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
            "strict": True,
        },
    },
}
"""A chat job whose answer follows a schema."""
SEEING = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "https://pictures.example/label.png", "detail": "low"}},
                {"type": "text", "text": "Which drug is it?"},
            ],
        }
    ],
}
"""A job with an image, for a model that reads images."""
REFERRING = {
    "payload_url": "s3://uploads/acme/chart-4711.json",
    "payload_sha256": "62c1ad6f78b9a2ac1c31bd8ae22e3a2ea9c3ff6c0e5c3f3a1f1b4e8d6c8f2b19",
    "callback_url": "https://consumer.example/hook",
}
"""A job whose question is in a bucket."""
KIND_JOBS: Final[dict[str, dict[str, Any]]] = {
    EMBED.field: {"embed": ["Aspirin lowers the risk.", "Statins do too."], "dimensions": 256},
    RERANK.field: {
        "rerank": {
            "query": "Does aspirin lower the risk of a stroke?",
            "documents": ["Statins are taken in the evening.", "Aspirin lowers the risk."],
            "top_n": 2,
        }
    },
    SCORE.field: {
        "score": {
            "queries": ["Does aspirin lower the risk of a stroke?"],
            "documents": ["Statins are taken in the evening.", "Aspirin lowers the risk."],
        }
    },
    CLASSIFY.field: {"classify": ["Aspirin lowers the risk.", "Buy now!"]},
}
"""A job of each kind without a question."""
RESULT = {
    "job_id": "order-4711",
    "custom_id": "row-1",
    "model_id": "qwen2.5-7b",
    "outcome": "succeeded",
    "reasoning": "The first trial names a rate of 4 %, the second one of 3 %.",
    "text": "Aspirin lowers the risk of a second stroke [1].",
    "confidence": 0.87,
    "sources": ["pmid:10591382"],
    "source_details": [
        {
            "id": "pmid:10591382",
            "url": "https://pubmed.ncbi.nlm.nih.gov/10591382/",
            "canonical_url": "https://pubmed.ncbi.nlm.nih.gov/10591382",
            "title": "Aspirin after a first stroke",
            "published": "1999-12",
            "doi": "10.1000/182",
        }
    ],
    "citations": [
        {
            "start": 0,
            "end": 47,
            "source": "pmid:10591382",
            "support": "lexical",
            "quote": {
                "exact": "Aspirin reduced the risk of a second stroke",
                "prefix": "follow-up. ",
                "suffix": " by a fifth.",
            },
        }
    ],
    "answer": {"support": "all", "sentences": [], "not_checked": ["entailment"]},
    "notes": ["https://example.org/guideline.html: the server answered 404"],
    "screening": [{"rule": "toxicity", "kind": "words", "verdict": "flag", "field": "prompt", "count": 1}],
    "usage": {
        "prompt_tokens": 1204,
        "completion_tokens": 14,
        "total_tokens": 1218,
        "cached_tokens": 1136,
        "cost": 0.000189,
        "currency": "USD",
        "reasoning_tokens": 9,
    },
    "finish_reason": "stop",
    "timings": {"queued_ms": 12.5, "enrich_ms": 840.0, "infer_ms": 412.3},
    "engine": "vllm",
    "metadata": {"ward": "3b"},
    "created_at": 1764022104,
}
"""A successful result with every field; `error` belongs only to other results."""
SAMPLED = {
    "job_id": "order-4711",
    "outcome": "succeeded",
    "text": "Apple",
    "choices": [
        {
            "index": 0,
            "text": "Apple",
            "reasoning": "A common one.",
            "finish_reason": "stop",
            "confidence": 0.61,
            "citations": [],
            "logprobs": [
                {
                    "token": "Apple",
                    "logprob": -0.494296,
                    "top_logprobs": [
                        {"token": "Apple", "logprob": -0.494296},
                        {"token": "Pear", "logprob": -1.386294},
                    ],
                }
            ],
        },
        {
            "index": 1,
            "text": "Pear",
            "finish_reason": "stop",
            "confidence": 0.25,
            "logprobs": [{"token": "Pear", "logprob": -1.386294}],
        },
    ],
    "created_at": 1764022104,
}
"""The result of a job for two answers."""
SCORED = {
    "job_id": "order-4711",
    "outcome": "succeeded",
    "text": "Apple",
    "logprobs": [{"token": "Apple", "logprob": -0.494296, "top_logprobs": [{"token": "Apple", "logprob": -0.494296}]}],
    "created_at": 1764022104,
}
"""The result of a job for one answer with log-probabilities."""
CALLED = {
    "job_id": "order-4711",
    "outcome": "succeeded",
    "text": "",
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "opening_hours", "arguments": '{"shop": "pharmacy", "day": "Monday"}'},
        }
    ],
    "finish_reason": "tool_calls",
    "created_at": 1764022104,
}
"""The result of a job with tools."""
CALLED_CHOICE = {"choices": [{"tool_calls": CALLED["tool_calls"], "refusal": "I cannot help with that."}]}
"""Part of a result: one of several answers, with fields that ordinary answers lack."""
REFUSAL = {
    "job_id": "order-4711",
    "outcome": "succeeded",
    "refusal": "I cannot help with that.",
    "finish_reason": "stop",
    "created_at": 1764022104,
}
"""The result of a job that the model refuses to answer."""
_DONE = {
    "job_id": "order-4711",
    "outcome": "succeeded",
    "usage": {"prompt_tokens": 24, "completion_tokens": 0, "total_tokens": 24},
    "finish_reason": "stop",
    "engine": "openai",
    "created_at": 1764022104,
}
KIND_RESULTS: Final[dict[str, dict[str, Any]]] = {
    EMBED.field: {**_DONE, "embeddings": [[0.12, -0.98, 0.05], [0.31, -0.77, 0.11]]},
    RERANK.field: {**_DONE, "ranks": [{"index": 1, "score": 0.93}, {"index": 0, "score": 0.02}]},
    SCORE.field: {**_DONE, "scores": [0.02, 0.93]},
    CLASSIFY.field: {
        **_DONE,
        "labels": [
            {"label": "medicine", "probabilities": [0.96, 0.04]},
            {"label": "advertising", "probabilities": [0.01, 0.99]},
        ],
    },
}
"""The result of the job of each kind; real embeddings have hundreds of numbers."""
FAILURE = {
    "job_id": "order-4711",
    "outcome": "failed",
    "error": {"code": "no_sources", "message": "sources.required is set, and no source could be used"},
    "created_at": 1764022104,
}
"""A result without an answer."""
HEADER_EXAMPLES = {
    "tenant": "acme",
    "deadline": "1764108504000",
    "priority": "5",
    "idempotency-key": "order-4711-try-1",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "schema": "1",
}
