"""Every metric of the fleet, declared once, in base units: a class for each room, and all of them together.

No label is a tenant or a URL, because the number of these is unbounded.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from schemas.codes import DEAD_LETTER_REASONS
from schemas.outcome import Outcome
from telemetry.series import Declared, closed, counter, gauge, histogram, known_gauge

# The range covers an echo answer (a millisecond), a long generation, and a day in a delay tier.
PHASE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400)


class StageMetrics:
    """The metrics of every stage: records, transactions, and records that were given up."""

    job_seconds = histogram(
        "job_seconds",
        "Seconds of a job in a phase: queued, enrich, infer, deliver. A transaction counts once, as settle.",
        PHASE_BUCKETS,
        "phase",
    )
    in_flight = gauge("in_flight", "Records in the handler now.")
    backlog = gauge(
        "backlog_records",
        "Undone records of a partition, reported by its owner. `postback topics backlog` also works without an owner.",
        "topic",
        "partition",
    )
    settles = closed("settles_total", "Settle transactions by result: {}.", result=("committed", "failed", "aborted"))
    settled_records = counter("settled_records_total", "Records settled.")
    repairs = closed(
        "repairs_total",
        "Repair steps after a failed settle, by kind: {}.",
        kind=("committing", "aborting", "rebuilding", "sweeping", "rereading"),
    )
    deferred = counter("deferred_total", "Records moved to a later place without a try.")
    gap_offsets = counter(
        "gap_offsets_total", "Offsets that Kafka skipped: transaction markers, aborted records, removed records."
    )
    retention_loss = counter(
        "retention_loss_total",
        "Offsets that retention removed before they were handled: lost records, and markers between them.",
    )
    quarantined = counter("quarantined_total", "Records given up since they killed workers while alone.")
    handler_defects = closed(
        "handler_defects_total",
        "Exceptions of a defective handler, by the call that raised: {}. Each is an error in the log; alert on any.",
        call=("handle", "defer", "give_up", "last_resort", "due_ms", "assess"),
    )
    dead_letters = closed(
        "dead_letters_total",
        "Records given up into `dead_letters`, by reason as in `postback dead-letters list`.",
        reason=tuple(DEAD_LETTER_REASONS),
    )


class InferenceMetrics:
    """The metrics of jobs, the models of the registry, the input filter, and rollouts."""

    jobs = closed(
        "jobs_total",
        "Results by outcome: {}. A job that is answered again after a crash counts again.",
        outcome=tuple(outcome.value for outcome in Outcome),
    )
    tokens = closed(
        "tokens_total",
        "Tokens by kind: prompt, completion, rewrite (of questions for the search), check (of citations, once more), "
        "wasted (for a job that was cancelled or expired meanwhile).",
        kind=("prompt", "completion", "rewrite", "check", "wasted"),
    )
    model_requests = closed(
        "model_requests_total",
        "Requests to a model of the registry, by result: answered, refused (the request is at fault), failed.",
        "model",
        result=("answered", "refused", "failed"),
    )
    model_cost = counter(
        "model_cost_total",
        "Price of a registry model's answers by its `cost`, in units of the currency.",
        "model",
        "currency",
    )
    model_circuits = gauge(
        "model_circuits_open",
        "Addresses of a registry model that get no requests, since they failed repeatedly.",
        "model",
    )
    screened = closed(
        "screened_total",
        "Jobs that the input filter read, by verdict: {}.",
        verdict=("pass", "flag", "redact", "reject"),
    )
    rollout_samples = closed(
        "rollout_samples_total",
        "Jobs of a running rollout's sample, by result: copied (to the shadow worker), reported (during the canary), "
        "compared (by the shadow worker), same_meaning (compared too, equal by meaning alone), skipped (beyond the "
        "order's jobs per second), unanswered (the second answer failed or was late), too_large, stale (its rollout "
        "is over), unreadable.",
        result=(
            "copied",
            "reported",
            "compared",
            "same_meaning",
            "skipped",
            "unanswered",
            "too_large",
            "stale",
            "unreadable",
        ),
    )
    rollout_share = gauge(
        "rollout_share",
        "Share of an alias's jobs that a rollout's candidate answers, as this worker knows it.",
        "alias",
    )
    rollout_e_value = gauge(
        "rollout_e_value_log10",
        "Lowest log10 of the e-values of a running rollout's profiles, by claim: equal, different; 1.3 decides.",
        "alias",
        "claim",
    )


class EngineMetrics:
    """The metrics of vLLM, and of remote engines."""

    engine_restarts = counter("engine_restarts_total", "Engine processes restarted.")
    engine_tokens = closed(
        "engine_tokens_total",
        "Tokens that vLLM computed, step by step, by kind: prompt (without those of the prefix cache), generation.",
        kind=("prompt", "generation"),
    )
    engine_prefix_tokens = closed(
        "engine_prefix_cache_tokens_total",
        "Prompt tokens that vLLM looked up in its prefix cache, by result: {}.",
        result=("hit", "miss"),
    )
    engine_preemptions = counter(
        "engine_preemptions_total",
        "Running requests that vLLM put back into its queue for want of KV-cache memory; it computes them again.",
    )
    engine_limit = gauge(
        "engine_limit",
        "Requests that the servers of a remote engine may have at once, by engine, over all its addresses. The number "
        "follows the servers' own counts, or else their refusals.",
        "engine",
    )
    engine_away = gauge(
        "engine_away", "Servers of a remote engine that answer nothing now, by engine; their jobs wait.", "engine"
    )
    engine_kv_usage = gauge(
        "engine_kv_cache_usage_ratio", "The used fraction of vLLM's KV cache, 0 to 1, by data-parallel rank.", "rank"
    )
    engine_requests = gauge(
        "engine_requests",
        "Requests in vLLM's scheduler by its own count, by data-parallel rank and state: running, waiting.",
        "rank",
        "state",
    )


class EnrichmentMetrics:
    """The metrics of sources: pages, searches, passages."""

    cache_lookups = closed(
        "cache_lookups_total",
        "Lookups in a level of the page cache (memory, redis, disk), by result: {}.",
        "level",
        result=("hit", "stale", "miss", "error", "away"),
    )
    fetches = closed("fetches_total", "Source fetches by result: {}.", result=("read", "left_out", "late"))
    renderings = closed(
        "renderings_total", "Pages given to the renderer, by result: {}.", result=("rendered", "late", "failed")
    )
    searches = closed(
        "searches_total", "Searches for sources by result: {}.", result=("found", "nothing", "failed", "late")
    )
    reranks = closed(
        "reranks_total",
        "Jobs with passages for the embedding model, by result: {}.",
        result=("done", "partly", "late", "failed"),
    )
    rerank_seconds = histogram(
        "rerank_seconds",
        "Seconds that a job waited for a running embedding model.",
        (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    )
    ocr_wait_seconds = histogram(
        "ocr_wait_seconds",
        "Seconds that a document waited in line for OCR, also if its turn did not come in time.",
        (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
    )


class DeliveryMetrics:
    """The metrics of callbacks and their endpoints."""

    callbacks = closed(
        "callbacks_total",
        "Callback attempts by result: delivered, or the reason of the failure: refused (the egress guard refuses the "
        "URL permanently), address_refused (it refuses the host's present address), gone, throttled, redirected, "
        "client_error, server_error, timeout, dns_failed, connect_failed, tls_failed, connection_closed, "
        "bad_response.",
        result=(
            *("delivered", "refused", "address_refused", "gone", "throttled", "redirected", "client_error"),
            *("server_error", "timeout", "dns_failed", "connect_failed", "tls_failed", "connection_closed"),
            "bad_response",
        ),
    )
    callback_age_seconds = histogram(
        "callback_age_seconds",
        "Seconds from a result, or from its replay, to the callback that delivered it.",
        (*PHASE_BUCKETS, 259200, 604800),
    )
    endpoints_disabled = closed(
        "endpoints_disabled_total",
        "Endpoints that this process disabled, by reason: gone (answered 410), failing (every attempt, for days).",
        reason=("gone", "failing"),
    )
    breaker_changes = closed(
        "breaker_changes_total", "Changes of origins' circuit breakers, by new state: {}.", state=("open", "closed")
    )


class GatewayMetrics:
    """The metrics of the HTTP front door, its store and its certificates."""

    http_requests = counter(
        "http_requests_total",
        "Requests of the gateway by the route's template and the response's status. Route `unread`: no HTTP request, "
        "or refused before routing; `unmatched`: an unknown URL; status 499: the client ended the connection before "
        "the response.",
        "route",
        "status",
    )
    http_request_seconds = histogram(
        "http_request_seconds",
        "Seconds from a request's header fields to the end of its response, by route. Responses that wait for an "
        "answer or stream events count whole.",
        (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
        "route",
    )
    http_connections = gauge("http_connections", "Open connections of the gateway.")
    http_connections_refused = closed(
        "http_connections_refused_total",
        "Connections that the gateway closed at once, by reason: all_taken, client_has_too_many (the limits), "
        "handshake (no TLS 1.3, a refused client certificate, or too slow).",
        reason=("all_taken", "client_has_too_many", "handshake"),
    )
    outbox_records = gauge("outbox_records", "Records that the gateway accepted and Kafka does not have yet.")
    relayed_records = counter("relayed_records_total", "Accepted records that the gateway put on Kafka.")
    viewed_records = closed(
        "viewed_records_total",
        "Records that the gateway's view wrote into the store, by kind: {}.",
        kind=("result", "attempt", "unusable"),
    )
    store_free_bytes = gauge(
        "store_free_bytes",
        "Free bytes on the disk of the gateway's store, by content: database (SQLite), files (of batches). Absent for "
        "PostgreSQL and S3.",
        "content",
    )
    store_disk_bytes = gauge("store_disk_bytes", "Size of that disk, by content.", "content")
    certificate_begin = gauge(
        "certificate_begin_timestamp_seconds",
        "Unix time from which the gateway's certificate is valid, by kind: certificate, authority, revocation_list. "
        "Of several certificates or lists, the one that ends first.",
        "kind",
    )
    certificate_end = gauge(
        "certificate_end_timestamp_seconds", "Unix time at which that certificate or list ends, by kind.", "kind"
    )


class ExporterMetrics:
    """The figures of the whole fleet, which the exporter reads from Kafka."""

    waiting_records = gauge(
        "waiting_records",
        "Records of a topic that are not done, by the ledgers. The exporter reports this and the following metrics, "
        "also while no worker runs.",
        "topic",
    )
    waiting_jobs = gauge(
        "waiting_jobs",
        "Jobs that are not done, by the lane of their engine; the lane is empty for the whole fleet's lanes.",
        "lane",
    )
    oldest_job_seconds = gauge("oldest_job_seconds", "Age of the oldest job that is not done; 0 without one.", "lane")
    class_oldest_job_seconds = gauge(
        "class_oldest_job_seconds", "The same age by the lane's class: default, bulk, spare.", "lane", "class"
    )
    tightest_deadline_seconds = gauge(
        "tightest_deadline_seconds",
        "Seconds until the first deadline of a job that is not done, negative once it has passed.",
        "lane",
    )
    waiting_callbacks = known_gauge(
        "waiting_callbacks",
        "Callbacks that are not delivered, including those that wait for their next attempt. Results without a "
        "callback do not count.",
    )
    thin_partitions = known_gauge(
        "thin_partitions", "Partitions of the fleet's topics with a copy on a broker that is away or behind."
    )
    open_dead_letters = known_gauge(
        "open_dead_letters", "Dead letters that can be put back and were not, up to 100,000."
    )
    disabled_endpoints = known_gauge("disabled_endpoints", "Endpoints of the fleet that are disabled now.")
    workers = gauge("workers", "Workers that announced themselves within three minutes.", "lane")
    model_workers = gauge("model_workers", "Workers that answer for a model, for up to 256 models.", "model")
    worker_jobs_per_second = gauge("worker_jobs_per_second", "Jobs that one worker answers in a second.", "lane")
    worker_answer_seconds = gauge(
        "worker_answer_seconds",
        "Time in which a worker answers 99 of 100 jobs: the median of the workers; 0 before the first answer.",
        "lane",
    )
    wanted_replicas = gauge("wanted_replicas", "Workers that answer all jobs before their deadlines.", "lane")
    figures_timestamp_seconds = known_gauge(
        "figures_timestamp_seconds", "Unix time of the exporter's last reading of Kafka."
    )
    figures_stale = known_gauge(
        "figures_stale",
        "1 while the exporter cannot read Kafka, or its figures are too old; its other metrics keep their values.",
    )


class Metrics(
    StageMetrics,
    InferenceMetrics,
    EngineMetrics,
    EnrichmentMetrics,
    DeliveryMetrics,
    GatewayMetrics,
    ExporterMetrics,
):
    """The fleet's metrics on one registry. A process makes one object and hands it down.

    Every name starts with `postback_`. The phases are `queued`, `enrich`, `infer`, `settle` and `deliver`.
    """

    peer_silent_seconds = gauge(
        "peer_silent_seconds",
        "Seconds for which a server that this process needs has not answered, by peer: kafka (asked by the exporter), "
        "store, files, redis, model_server. The process asks every five seconds, also without work.",
        "peer",
    )

    clock_seconds = gauge(
        "clock_seconds", "Unix time by the process's own clock. Prometheus compares it with the time of the scrape."
    )

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        for room in type(self).__mro__:
            for attribute, declared in vars(room).items():
                if isinstance(declared, Declared):
                    setattr(self, attribute, declared.made_for(self.registry))
