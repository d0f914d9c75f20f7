"""Every metric of the fleet, declared once, in base units.

No label is a tenant or a URL, because the number of these is unbounded.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from telemetry.series import CALLBACK_RESULTS, DEAD_LETTER_REASONS, SAMPLE_RESULTS, ClosedCounter, KnownGauge

# The range covers an echo answer (a millisecond), a long generation, and a day in a delay tier.
PHASE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400)


class Metrics:
    """The fleet's metrics on one registry. A process makes one object and hands it down.

    Every name starts with `postback_`. The phases are `queued`, `enrich`, `infer`, `settle` and `deliver`.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        r = self.registry
        self.jobs = ClosedCounter.of(
            "postback_jobs_total",
            "Results by outcome: succeeded, failed, expired, cancelled, rejected. A job that is answered again after a "
            "crash counts again.",
            ["outcome"],
            ("succeeded", "failed", "expired", "cancelled", "rejected"),
            registry=r,
        )
        self.job_seconds = Histogram(
            "postback_job_seconds",
            "Seconds of a job in a phase: queued, enrich, infer, deliver. A transaction counts once, as settle.",
            ["phase"],
            buckets=PHASE_BUCKETS,
            registry=r,
        )
        self.in_flight = Gauge("postback_in_flight", "Records in the handler now.", registry=r)
        self.backlog = Gauge(
            "postback_backlog_records",
            "Undone records of a partition, reported by its owner. `postback backlog` also works without an owner.",
            ["topic", "partition"],
            registry=r,
        )
        self.settles = ClosedCounter.of(
            "postback_settles_total",
            "Settle transactions by result: committed, failed, aborted.",
            ["result"],
            ("committed", "failed", "aborted"),
            registry=r,
        )
        self.settled_records = Counter("postback_settled_records_total", "Records settled.", registry=r)
        self.repairs = ClosedCounter.of(
            "postback_repairs_total",
            "Repair steps after a failed settle, by kind: committing, aborting, rebuilding, sweeping, rereading.",
            ["kind"],
            ("committing", "aborting", "rebuilding", "sweeping", "rereading"),
            registry=r,
        )
        self.deferred = Counter("postback_deferred_total", "Records moved to a later place without a try.", registry=r)
        self.gap_offsets = Counter(
            "postback_gap_offsets_total",
            "Offsets that Kafka skipped: transaction markers, aborted records, removed records.",
            registry=r,
        )
        self.retention_loss = Counter(
            "postback_retention_loss_total",
            "Offsets that retention removed before they were handled: lost records, and markers between them.",
            registry=r,
        )
        self.quarantined = Counter(
            "postback_quarantined_total", "Records given up since they killed workers while alone.", registry=r
        )
        self.handler_defects = ClosedCounter.of(
            "postback_handler_defects_total",
            "Exceptions of a defective handler, by the call that raised: handle, defer, give_up, last_resort, due_ms, "
            "party, cost. Each is an error in the log; alert on any.",
            ["call"],
            ("handle", "defer", "give_up", "last_resort", "due_ms", "party", "cost"),
            registry=r,
        )
        self.dead_letters = ClosedCounter.of(
            "postback_dead_letters_total",
            "Records given up into `dead_letters`, by reason as in `postback dead-letters list`.",
            ["reason"],
            DEAD_LETTER_REASONS,
            registry=r,
        )
        self.endpoints_disabled = ClosedCounter.of(
            "postback_endpoints_disabled_total",
            "Endpoints that this process disabled, by reason: gone (answered 410), failing (every attempt, for days).",
            ["reason"],
            ("gone", "failing"),
            registry=r,
        )
        self.disabled_endpoints = KnownGauge(
            "postback_disabled_endpoints", "Endpoints of the fleet that are disabled now.", registry=r
        )
        self.breaker_changes = ClosedCounter.of(
            "postback_breaker_changes_total",
            "Changes of origins' circuit breakers, by new state: open, closed.",
            ["state"],
            ("open", "closed"),
            registry=r,
        )
        self.callbacks = ClosedCounter.of(
            "postback_callbacks_total",
            "Callback attempts by result: delivered, or the reason of the failure: refused (the egress guard refuses "
            "the URL permanently), address_refused (it refuses the host's present address), gone, throttled, "
            "redirected, client_error, server_error, timeout, dns_failed, connect_failed, tls_failed, "
            "connection_closed, bad_response.",
            ["result"],
            CALLBACK_RESULTS,
            registry=r,
        )
        self.callback_age_seconds = Histogram(
            "postback_callback_age_seconds",
            "Seconds from a result, or from its replay, to the callback that delivered it.",
            buckets=(*PHASE_BUCKETS, 259200, 604800),
            registry=r,
        )
        self.tokens = ClosedCounter.of(
            "postback_tokens_total",
            "Tokens by kind: prompt, completion, rewrite (of questions for the search), check (of citations, once "
            "more), wasted (for a job that was cancelled or expired meanwhile).",
            ["kind"],
            ("prompt", "completion", "rewrite", "check", "wasted"),
            registry=r,
        )
        self.model_requests = ClosedCounter.of(
            "postback_model_requests_total",
            "Requests to a model of the registry, by result: answered, refused (the request is at fault), failed.",
            ["model", "result"],
            ("answered", "refused", "failed"),
            registry=r,
        )
        self.model_cost = Counter(
            "postback_model_cost_total",
            "Price of a registry model's answers by its `cost`, in units of the currency.",
            ["model", "currency"],
            registry=r,
        )
        self.model_circuits = Gauge(
            "postback_model_circuits_open",
            "Addresses of a registry model that get no requests, since they failed repeatedly.",
            ["model"],
            registry=r,
        )
        self.outbox_records = Gauge(
            "postback_outbox_records", "Records that the gateway accepted and Kafka does not have yet.", registry=r
        )
        self.relayed_records = Counter(
            "postback_relayed_records_total", "Accepted records that the gateway put on Kafka.", registry=r
        )
        self.viewed_records = ClosedCounter.of(
            "postback_viewed_records_total",
            "Records that the gateway's view wrote into the store, by kind: result, attempt, unusable.",
            ["kind"],
            ("result", "attempt", "unusable"),
            registry=r,
        )
        self.store_free_bytes = Gauge(
            "postback_store_free_bytes",
            "Free bytes on the disk of the gateway's store, by content: database (SQLite), files (of batches). Absent "
            "for PostgreSQL and S3.",
            ["content"],
            registry=r,
        )
        self.store_disk_bytes = Gauge(
            "postback_store_disk_bytes", "Size of that disk, by content.", ["content"], registry=r
        )
        self.certificate_begin = Gauge(
            "postback_certificate_begin_timestamp_seconds",
            "Unix time from which the gateway's certificate is valid, by kind: certificate, authority, "
            "revocation_list. Of several certificates or lists, the one that ends first.",
            ["kind"],
            registry=r,
        )
        self.certificate_end = Gauge(
            "postback_certificate_end_timestamp_seconds",
            "Unix time at which that certificate or list ends, by kind.",
            ["kind"],
            registry=r,
        )
        self.screened = ClosedCounter.of(
            "postback_screened_total",
            "Jobs that the input filter read, by verdict: pass, flag, redact, reject.",
            ["verdict"],
            ("pass", "flag", "redact", "reject"),
            registry=r,
        )
        self.engine_restarts = Counter("postback_engine_restarts_total", "Engine processes restarted.", registry=r)
        self.engine_tokens = ClosedCounter.of(
            "postback_engine_tokens_total",
            "Tokens that vLLM computed, step by step, by kind: prompt (without those of the prefix cache), generation.",
            ["kind"],
            ("prompt", "generation"),
            registry=r,
        )
        self.engine_prefix_tokens = ClosedCounter.of(
            "postback_engine_prefix_cache_tokens_total",
            "Prompt tokens that vLLM looked up in its prefix cache, by result: hit, miss.",
            ["result"],
            ("hit", "miss"),
            registry=r,
        )
        self.engine_preemptions = Counter(
            "postback_engine_preemptions_total",
            "Running requests that vLLM put back into its queue for want of KV-cache memory; it computes them again.",
            registry=r,
        )
        self.engine_limit = Gauge(
            "postback_engine_limit",
            "Requests that the servers of a remote engine may have at once, by engine, over all its addresses. The "
            "number follows the servers' own counts, or else their refusals.",
            ["engine"],
            registry=r,
        )
        self.engine_away = Gauge(
            "postback_engine_away",
            "Servers of a remote engine that answer nothing now, by engine; their jobs wait.",
            ["engine"],
            registry=r,
        )
        self.engine_kv_usage = Gauge(
            "postback_engine_kv_cache_usage_ratio",
            "The used fraction of vLLM's KV cache, 0 to 1, by data-parallel rank.",
            ["rank"],
            registry=r,
        )
        self.engine_requests = Gauge(
            "postback_engine_requests",
            "Requests in vLLM's scheduler by its own count, by data-parallel rank and state: running, waiting.",
            ["rank", "state"],
            registry=r,
        )
        self.cache_lookups = ClosedCounter.of(
            "postback_cache_lookups_total",
            "Lookups in a level of the page cache (memory, redis, disk), by result: hit, stale, miss, error, away.",
            ["level", "result"],
            ("hit", "stale", "miss", "error", "away"),
            registry=r,
        )
        self.fetches = ClosedCounter.of(
            "postback_fetches_total",
            "Source fetches by result: read, left_out, late.",
            ["result"],
            ("read", "left_out", "late"),
            registry=r,
        )
        self.renderings = ClosedCounter.of(
            "postback_renderings_total",
            "Pages given to the renderer, by result: rendered, late, failed.",
            ["result"],
            ("rendered", "late", "failed"),
            registry=r,
        )
        self.searches = ClosedCounter.of(
            "postback_searches_total",
            "Searches for sources by result: found, nothing, failed, late.",
            ["result"],
            ("found", "nothing", "failed", "late"),
            registry=r,
        )
        self.reranks = ClosedCounter.of(
            "postback_reranks_total",
            "Jobs with passages for the embedding model, by result: done, partly, late, failed.",
            ["result"],
            ("done", "partly", "late", "failed"),
            registry=r,
        )
        self.rerank_seconds = Histogram(
            "postback_rerank_seconds",
            "Seconds that a job waited for a running embedding model.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=r,
        )
        self.ocr_wait_seconds = Histogram(
            "postback_ocr_wait_seconds",
            "Seconds that a document waited in line for OCR, also if its turn did not come in time.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
            registry=r,
        )
        self.http_requests = Counter(
            "postback_http_requests_total",
            "Requests of the gateway by the route's template and the response's status. Route `unread`: no HTTP "
            "request, or refused before routing; `unmatched`: an unknown URL; status 499: the client ended the "
            "connection before the response.",
            ["route", "status"],
            registry=r,
        )
        self.http_request_seconds = Histogram(
            "postback_http_request_seconds",
            "Seconds from a request's header fields to the end of its response, by route. Responses that wait for an "
            "answer or stream events count whole.",
            ["route"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            registry=r,
        )
        self.http_connections = Gauge("postback_http_connections", "Open connections of the gateway.", registry=r)
        self.rollout_samples = ClosedCounter.of(
            "postback_rollout_samples_total",
            "Jobs of a running rollout's sample, by result: copied (to the shadow worker), reported (during the "
            "canary), compared (by the shadow worker), same_meaning (compared too, equal by meaning alone), skipped "
            "(beyond the order's jobs per second), unanswered (the second answer failed or was late), too_large, "
            "stale (its rollout is over), unreadable.",
            ["result"],
            SAMPLE_RESULTS,
            registry=r,
        )
        self.rollout_share = Gauge(
            "postback_rollout_share",
            "Share of an alias's jobs that a rollout's candidate answers, as this worker knows it.",
            ["alias"],
            registry=r,
        )
        self.rollout_e_value = Gauge(
            "postback_rollout_e_value_log10",
            "Lowest log10 of the e-values of a running rollout's profiles, by claim: equal, different; 1.3 decides.",
            ["alias", "claim"],
            registry=r,
        )
        self.http_connections_refused = ClosedCounter.of(
            "postback_http_connections_refused_total",
            "Connections that the gateway closed at once, by reason: all_taken, client_has_too_many (the limits), "
            "handshake (no TLS 1.3, a refused client certificate, or too slow).",
            ["reason"],
            ("all_taken", "client_has_too_many", "handshake"),
            registry=r,
        )
        self.peer_silent_seconds = Gauge(
            "postback_peer_silent_seconds",
            "Seconds since a server that this process needs has answered, by peer: kafka (asked by the exporter), "
            "store, files, redis, model_server. The process asks every five seconds, also without work.",
            ["peer"],
            registry=r,
        )
        self.waiting_records = Gauge(
            "postback_waiting_records",
            "Records of a topic that are not done, by the ledgers. The exporter reports this and the following "
            "metrics, also while no worker runs.",
            ["topic"],
            registry=r,
        )
        self.waiting_jobs = Gauge(
            "postback_waiting_jobs",
            "Jobs that are not done, by the lane of their engine; the lane is empty for the whole fleet's lanes.",
            ["lane"],
            registry=r,
        )
        self.oldest_job_seconds = Gauge(
            "postback_oldest_job_seconds",
            "Age of the oldest job that is not done; 0 without one.",
            ["lane"],
            registry=r,
        )
        self.class_oldest_job_seconds = Gauge(
            "postback_class_oldest_job_seconds",
            "The same age by the lane's class: default, bulk, spare.",
            ["lane", "class"],
            registry=r,
        )
        self.tightest_deadline_seconds = Gauge(
            "postback_tightest_deadline_seconds",
            "Seconds until the first deadline of a job that is not done, negative once it has passed.",
            ["lane"],
            registry=r,
        )
        self.waiting_callbacks = KnownGauge(
            "postback_waiting_callbacks",
            "Callbacks that are not delivered, including those that wait for their next attempt. Results without a "
            "callback do not count.",
            registry=r,
        )
        self.thin_partitions = KnownGauge(
            "postback_thin_partitions",
            "Partitions of the fleet's topics with a copy on a broker that is away or behind.",
            registry=r,
        )
        self.open_dead_letters = KnownGauge(
            "postback_open_dead_letters", "Dead letters that can be put back and were not, up to 100,000.", registry=r
        )
        self.workers = Gauge(
            "postback_workers", "Workers that announced themselves within three minutes.", ["lane"], registry=r
        )
        self.model_workers = Gauge(
            "postback_model_workers", "Workers that answer for a model, for up to 256 models.", ["model"], registry=r
        )
        self.worker_clock_skew = Gauge(
            "postback_worker_clock_skew_seconds",
            "Largest difference between a worker's clock and the brokers', by side: ahead, behind. An announcement may "
            "wait 30 s for a broker, so smaller values of `behind` mean nothing.",
            ["side"],
            registry=r,
        )
        self.worker_jobs_per_second = Gauge(
            "postback_worker_jobs_per_second", "Jobs that one worker answers in a second.", ["lane"], registry=r
        )
        self.worker_answer_seconds = Gauge(
            "postback_worker_answer_seconds",
            "Time in which a worker answers 99 of 100 jobs: the median of the workers; 0 before the first answer.",
            ["lane"],
            registry=r,
        )
        self.wanted_replicas = Gauge(
            "postback_wanted_replicas", "Workers that answer all jobs before their deadlines.", ["lane"], registry=r
        )
        self.figures_timestamp_seconds = KnownGauge(
            "postback_figures_timestamp_seconds", "Unix time of the exporter's last reading of Kafka.", registry=r
        )
        self.figures_stale = KnownGauge(
            "postback_figures_stale",
            "1 while the exporter cannot read Kafka, or its figures are too old; its other metrics keep their values.",
            registry=r,
        )
