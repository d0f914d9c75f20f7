"""Every action of a log line, declared once: the event that the action names, and the operator's next step.

A log line's `action` is stable while its sentence may change, so alerts and searches use the action.
`python -m scripts.publish` writes this file into docs/reference/log-actions.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["debug", "info", "warning", "error", "critical"]


@dataclass(frozen=True, slots=True)
class Action:
    """One action of the log."""

    level: Level
    """The highest level of the lines with this action."""
    event: str
    """The event, and the process's own response to it."""
    remedy: str = ""
    """The operator's next step; empty if none is needed."""


_REDRIVE = "`postback dead-letters redrive`"

PROCESS = {
    "serving": Action("info", "The process is ready and takes records."),
    "stopping": Action("info", "A signal or a failure ends the process, which first drains its running records."),
    "stopped": Action("info", "The process has drained and ends."),
    "topic-reading": Action("info", "The process reads a compacted topic to its end before it takes records."),
    "following-ended": Action(
        "error",
        "A compacted topic can no longer be followed; the process drains and ends, since its knowledge would be stale.",
        "Start the process again. Report the stack in the line, if there is one.",
    ),
    "topic-replaced": Action(
        "error",
        "A topic was deleted and created again under the same name; the process drains and ends with status 1.",
        "Start the process again: the new process begins the new topic at offset 0.",
    ),
    "health-check-failed": Action(
        "error",
        "A health check raised an error; its request gets status 500.",
        "Report the stack in the line.",
    ),
    "health-served": Action("info", "The process serves metrics and health on the port in the line."),
    "peer-silent": Action(
        "warning",
        "A server that the process needs did not answer a small question; the process asks again every few seconds.",
        "Look at the server that the line names; an alert rings if it stays silent.",
    ),
    "peer-answers": Action("info", "A server that was silent answers again."),
    "deltas-away": Action(
        "warning",
        "The Redis of POSTBACK_DELTAS__REDIS_URL does not answer; streamed answers come as a whole until it does.",
        "Start Redis, or see why it cannot be reached; a refused PING, PUBLISH or SUBSCRIBE needs another ACL.",
    ),
    "deltas-back": Action("info", "The Redis of POSTBACK_DELTAS__REDIS_URL answers again."),
    "setting-unread": Action(
        "warning",
        "An environment variable looks like a setting, and no process reads it.",
        "Correct the variable's name; the line has the nearest one.",
    ),
    "command-failed": Action(
        "error",
        "The process cannot start or go on; it ends with status 1, or with 2 if options or settings are wrong.",
        "Do as the line says.",
    ),
    "process-crashed": Action(
        "critical", "No code handles an error; the process ends with status 1.", "Report the stack in the line."
    ),
    "thread-crashed": Action("critical", "No code handles an error; its thread ends.", "Report the stack in the line."),
    "error-ignored": Action(
        "error", "Python ignored an error in a callback or a finalizer.", "Report the stack in the line."
    ),
    "log-line-failed": Action("error", "A library logged a line that cannot be formatted; the line is left out."),
}

STAGE = {
    "partitions-assigned": Action("info", "The consumer group gave partitions to the process."),
    "partitions-opened": Action("info", "The process has read its partitions' progress, and takes their records."),
    "partitions-unread": Action(
        "warning",
        "Kafka delivered nothing from assigned partitions for ten seconds, not even their ends; the stage asks again "
        "where to begin.",
        "If lines repeat, look at the brokers.",
    ),
    "partitions-revoked": Action(
        "info",
        "The consumer group moves partitions to another process; records that still run after the drain are "
        "abandoned, and the next owner handles them again.",
    ),
    "partitions-lost": Action(
        "warning",
        "The consumer group gave partitions to another process without notice; "
        "this process settles none of their records.",
        "If lines repeat, look for a process that is suspended or starved of CPU.",
    ),
    "partition-left-open": Action(
        "warning",
        "The previous owner of partitions died; the stage tries their first records in small groups. "
        "A topic has one line a minute, with the number of its partitions.",
        "Find out why the previous process ended: out of memory, a crash, SIGKILL.",
    ),
    "cohort-dispatched": Action("info", "The stage tries a group of suspects: records that ran when a worker died."),
    "suspect-tried-without-others": Action(
        "warning",
        "A record killed its worker twice while alone, and no other record completed; the record is tried again.",
    ),
    "record-quarantined": Action(
        "error",
        "A record killed its worker three times while it ran alone; it becomes a dead letter.",
        f"Remove the cause, then {_REDRIVE}.",
    ),
    "nothing-completes": Action(
        "critical",
        "Several records killed their worker while alone, and no record completed; "
        "the process ends and gives up no record.",
        "Look at the machine, its GPU and its memory: no record is to blame.",
    ),
    "settle-failed": Action(
        "warning",
        "A Kafka transaction failed; the stage repairs itself and settles the same records again.",
        "If lines repeat, look at the brokers. `fatal` lines that go on for 15 s end the process: two replicas share "
        "one `POSTBACK_REPLICA`.",
    ),
    "settle-repaired": Action("info", "The repair is complete; the stage settles again."),
    "sweep-postponed": Action(
        "warning",
        "Topics have a partition without a leader; the process writes to these topics "
        "only once the partition has a leader again.",
        "Start the brokers that have the partition's copies.",
    ),
    "progress-undone": Action(
        "error",
        "Kafka lost a commit that it had confirmed, as after the loss of a broker's disk or of the whole topic; "
        "the process handles the partition's records since then again.",
        "Keep three copies of each topic, and delete no topic in use. Consumers may see repeats, which have the same "
        "`webhook-id`.",
    ),
    "topic-made-anew": Action(
        "error",
        "The committed progress belongs to a deleted topic of the same name; the partition begins at offset 0.",
    ),
    "ledger-undecodable": Action(
        "error",
        "A commit's metadata cannot be read as a ledger; every record from the committed offset on counts as not done.",
        "Look for another program that commits in this consumer group.",
    ),
    "offset-behind-end": Action(
        "error",
        "A record states an offset after the end of its partition; the stage leaves the record out and reads on.",
        "Run `postback topics create --fix-config`, and look for the client that wrote to this topic at this offset.",
    ),
    "retention-loss": Action(
        "error",
        "Kafka's retention removed records before they were handled; the stage continues with the oldest one left.",
        "Add replicas, or raise the topic's retention.",
    ),
    "kafka-error": Action(
        "warning",
        "The Kafka client reported an error; the client tries again by itself.",
        "If `/readyz` fails too, look at the brokers.",
    ),
    "kafka-trouble": Action(
        "warning",
        "A request to Kafka failed and is tried again.",
        "If the line says that a topic is gone, run `postback topics create`; if `/readyz` fails too, look at the "
        "brokers.",
    ),
    "handler-raised": Action(
        "error",
        "The handler has a defect; the record becomes a dead letter with the reason `internal_error`.",
        f"Report the stack in the line; after an upgrade, {_REDRIVE}.",
    ),
    "give-up-raised": Action(
        "error",
        "The handler could not even give a record up; the record becomes a dead letter with the reason "
        "`handler_defect`, as a last resort.",
        f"Report the stack in the line; after an upgrade, {_REDRIVE}.",
    ),
    "record-passed-over": Action(
        "error",
        "The last resort raised an error too; the record is settled without a result and without a dead letter.",
        "Report the stack. The line has topic, partition and offset, where Kafka keeps the record until its retention.",
    ),
    "pace-raised": Action(
        "error", "The handler failed to say when a record is due; the record counts as due.", "Report the stack."
    ),
    "sharing-raised": Action(
        "error", "The handler failed to name a record's tenant; the record counts for no tenant.", "Report the stack."
    ),
    "batch-unreadable": Action(
        "warning",
        "A command cannot read a batch of records; the command leaves the rest of the batch out and continues.",
        "Look at the producer that wrote to this topic at this offset.",
    ),
}

INFERENCE = {
    "job-ended": Action("debug", "A job has its result, with the outcome in the line."),
    "job-rejected": Action(
        "info", "A record is no valid job, or names an unknown model; its result is `rejected` and names the fields."
    ),
    "fields-unknown": Action(
        "warning",
        "Jobs have fields that Postback does not know; the fields are ignored, and each result names them.",
        "Look for a misspelt field at the producer.",
    ),
    "job-given-up": Action(
        "warning",
        "The engine failed at a job five times while it answered others; the job ends as `failed` (`engine_error`).",
        "Look at the engine server's log for this job.",
    ),
    "abort-failed": Action(
        "warning", "An abort did not reach the engine; the engine may generate tokens that are thrown away."
    ),
    "control-unreadable": Action(
        "warning",
        "A record of `job_control` cannot be read; it is skipped.",
        "Look for another program that writes to `job_control`.",
    ),
    "announcement-refused": Action(
        "warning",
        "Kafka did not take the worker's list of models; the next list follows within a minute.",
        "If lines repeat, check the ACLs of `fleet_workers`.",
    ),
    "engine-loading": Action("info", "The worker loads its engine; it takes jobs once the engine is loaded."),
    "engine-loaded": Action("info", "The worker's engine is loaded; `seconds` is the time that it took."),
    "engine-ready": Action("info", "vLLM has loaded the model."),
    "engine-restart": Action("error", "vLLM's process ended; the worker loads the engine again, jobs wait."),
    "engine-hung": Action(
        "error",
        "The engine answers nothing. The worker kills vLLM's processes and loads the engine again; jobs of a server "
        "wait until it answers.",
        "If lines repeat, look at the server, or at the GPU's driver log (`dmesg`). For long steps on a "
        "CPU, raise `POSTBACK_ENGINE__VLLM__HUNG_SECONDS`.",
    ),
    "engine-watch-failed": Action(
        "error",
        "A look at the engine's health failed by a defect; the worker looks again.",
        "Report the defect; the line has its stack.",
    ),
    "engine-load-failed": Action(
        "error",
        "vLLM could not be loaded; a failed first load ends the worker, and so do five failed reloads in a row.",
        "The line has vLLM's stack; out of memory is the usual reason.",
    ),
    "adapter-refused": Action(
        "error",
        "A LoRA adapter could not be loaded; its jobs are rejected, and other jobs go on.",
        "Mend its folder and restart the worker, or name another folder in the model registry's file.",
    ),
    "adapters-changed": Action(
        "info",
        "A changed registry file has given a running engine other LoRA adapters; no job waits for the change.",
    ),
    "reasoning-marks-missing": Action(
        "info",
        "The model reasons by its family or its chat template, but its tokenizer lacks the marks, "
        "as in distilled models; the reasoning cannot be bounded.",
    ),
    "engine-weights": Action("info", "A running engine gets the weights of another folder; later requests wait."),
    "engine-weights-failed": Action(
        "error",
        "vLLM failed at new weights; its processes are killed, and the former model is loaded again.",
        "Check the new folder with `postback worker --check`, and write the former folder into the registry again.",
    ),
    "engine-wait": Action("info", "The engine's server cannot be reached yet; the worker waits for it."),
    "engine-unavailable": Action(
        "warning",
        "A request to the engine was not answered; each waiting job is tried again until its TTL ends.",
        "Look at the engine's server; `why` has its last answer. After a 429, the worker sends less by itself, as "
        "`postback_engine_limit` shows.",
    ),
    "engine-back": Action("info", "The engine answers again."),
    "engine-address-refused": Action(
        "error",
        "One of a model's addresses refuses the worker; the model's other addresses answer.",
        "Correct the address or its key in the model registry, then start the worker again.",
    ),
    "circuit-open": Action(
        "warning",
        "An address of a model failed repeatedly, or hangs; it gets no job until it answers a small request.",
        "Look at the server behind the address.",
    ),
    "circuit-closed": Action("info", "An address of a model answers again, and gets requests again."),
    "rollout-step": Action("info", "A rollout of a model began or has a new step; the worker follows it."),
    "rollout-decided": Action("info", "The comparisons decide a rollout; the worker writes the rollout's next step."),
    "rollout-step-refused": Action(
        "warning",
        "Kafka did not take a rollout's next step; the worker writes it again.",
        "If lines repeat, check the ACLs of `model_rollouts*`.",
    ),
    "rollout-unreadable": Action(
        "warning",
        "A record of `model_rollouts` cannot be read; it is skipped.",
        "Look for another program that writes to `model_rollouts`.",
    ),
    "rollout-comparison-unreadable": Action(
        "warning",
        "A record of `model_rollouts.comparisons` cannot be read; it is skipped.",
        "Look for another program that writes to `model_rollouts.comparisons`.",
    ),
    "rollout-sample-unreadable": Action(
        "warning",
        "A record of `model_requests.shadow` cannot be read; it is skipped.",
        "Look for another program that writes to `model_requests.shadow`.",
    ),
    "rollout-candidate-unknown": Action(
        "warning",
        "A rollout gives jobs to a candidate that this worker's model registry lacks; the primary answers these jobs.",
        "Add the candidate to POSTBACK_WORKER__MODELS or to the registry's file, in every worker.",
    ),
    "rollout-candidate-away": Action(
        "warning",
        "A candidate has answered no request for a while; the primary answers its jobs, which count as failures.",
        "Look at the candidate's engine; the rollout aborts by itself after a few failures.",
    ),
    "rollout-lane-unread": Action(
        "warning",
        "No running worker reads the lane of a rollout's candidate; the primary answers the candidate's jobs, "
        "and the rollout stays at its step.",
        "Start a worker of that lane.",
    ),
    "announcements-unread": Action(
        "warning",
        "The worker cannot read `fleet_workers`; it tries again after a minute. "
        "Until then, a candidate's jobs go to its lane even if no worker reads the lane.",
        "Check the ACLs of `fleet_workers`.",
    ),
    "rollout-candidate-not-served": Action(
        "error",
        "A shadow worker got samples for a candidate that it does not serve; it throws them away.",
        "Start the shadow worker with the candidate's model, under the candidate's name.",
    ),
    "registry-reloaded": Action("info", "The model registry's file changed; the worker uses its new content."),
    "registry-reload-failed": Action(
        "error",
        "The model registry's file changed and cannot be used; the worker goes on with the content in memory.",
        "Correct the mistakes that `postback models check` names, or restart the worker if the line asks for it.",
    ),
    "registry-reload-waits": Action(
        "info", "The model registry's file changed while an engine is away; the worker uses it once the engine is back."
    ),
    "engine-model-unlisted": Action(
        "warning",
        "The engine's server does not list the model, but answers requests that name it; the worker goes on.",
        "Check the model's name: some servers answer with another model.",
    ),
    "engine-parameter-refused": Action(
        "warning",
        "The engine's server refuses a request parameter; the worker stops sending it.",
        "If the parameter matters, use a newer server.",
    ),
    "finish-reason-unknown": Action(
        "warning",
        "The engine's server ended an answer for an unknown reason; the job fails as unfinished.",
        "Look up the reason in the server's documentation.",
    ),
}

SCREENING = {
    "job-screened": Action("info", "Rules of the input filter match a job; the line names the rules and the verdict."),
}

ENRICHMENT = {
    "egress-proxy-failed": Action(
        "warning",
        "The proxy of `POSTBACK_EGRESS__PROXY` made no connection; the page or search is left out.",
        "Check the proxy, its rules and the file of `POSTBACK_EGRESS__PROXY_CREDENTIALS`.",
    ),
    "source-name-refused": Action(
        "info",
        "A source's host name has no address that may be fetched; the job goes on without that source.",
        "If the source is your own, add its network to `POSTBACK_EGRESS__ALLOW_FETCH`.",
    ),
    "renderer-failed": Action(
        "warning",
        "The browser of `POSTBACK_ENRICHMENT__RENDERER` did not render a page; an older copy is used, or the page as "
        "its server sent it.",
        "Check that the browser runs, and that `POSTBACK_ENRICHMENT__RENDERER_SECRET` is its secret.",
    ),
    "search-failed": Action(
        "warning",
        "A search failed; the job goes on without its results.",
        "Check the search service and its key.",
    ),
    "search-provider-broken": Action(
        "error", "A search provider has a defect; the job goes on without its results.", "Report the line."
    ),
    "reader-not-started": Action(
        "error",
        "A process that reads pages did not start; the page counts as unreadable for now.",
        "Look at the limits of memory and processes.",
    ),
    "reader-not-confined": Action(
        "warning",
        "The kernel lacks a means of isolating the processes that read pages; these processes run without it.",
        "Use a kernel or container runtime that has the means that the line names.",
    ),
    "model-lost": Action(
        "error",
        "The process of a classifier, an embedding model or a judge of answers died or hung, and its model is loaded "
        "again; meanwhile, jobs follow a classifier's `on_failure`, passages are ranked by words, and answers are "
        "judged by words.",
        "If lines repeat, look at the limits of memory, and at the `seconds` of a classifier's rule.",
    ),
    "model-not-loaded": Action(
        "error",
        "Such a model could not be loaded again; the start is tried again.",
        "The line names the reason; too little memory is the usual one.",
    ),
    "model-ready": Action("info", "Such a model is loaded again."),
    "model-failed": Action(
        "warning",
        "Such a model gave no answer for a text, which counts as without a model.",
        "If jobs are long, raise the `seconds` of a classifier's rule.",
    ),
    "cache-away": Action(
        "warning",
        "A level of the page cache fails; it counts as empty until it is back.",
        "Look at Redis or at the disk, as the line's `level` says.",
    ),
    "cache-back": Action("info", "A level of the page cache works again."),
    "cache-not-closed": Action("warning", "A level of the page cache did not close in time; the process ends anyway."),
}

BATCHES = {
    "file-removal-failed": Action(
        "warning",
        "The content of a deleted, expired or unfinished file could not be removed; the sweep tries again each minute.",
        "See the reason in the line: check the storage of files and the store.",
    ),
    "batch-begun": Action("info", "Every line of the batch is a valid job; the batch is expanded."),
    "batch-refused": Action("info", "A batch has lines that are no jobs, and ends as `failed`."),
    "batch-ended": Action("info", "The output and error files of a batch are written."),
    "batch-recounted": Action(
        "warning",
        "Fewer results were stored than counted; the batch waits for the others.",
        "After `postback store rebuild`, do nothing; otherwise report the line.",
    ),
    "batch-step-failed": Action(
        "error",
        "A batch could not be checked or finalised; the process tries again.",
        "See the reason in the line: check the storage of files and the store.",
    ),
    "range-unusable": Action(
        "error",
        "A part of a batch could not be expanded; its lines fail, and the record is a dead letter.",
        "Check that all gateways have the same storage of files.",
    ),
    "expansion-waiting": Action(
        "warning",
        "The store or the storage of files is away; the expansion of a batch waits, and tries again.",
        "Check the storage of files and the store.",
    ),
}

GATEWAY = {
    "alerts-away": Action(
        "warning",
        "The console's page of the fleet could not read the alerts of Prometheus; the page says so.",
        "See the reason in the line: check POSTBACK_GATEWAY__PROMETHEUS_URL, and Prometheus.",
    ),
    "page-search-failed": Action(
        "warning",
        "A page of the console could not read Kafka; the visitor is told to try again.",
        "See the reason in the line: check Kafka, and the gateway's ACLs.",
    ),
    "api-served": Action("info", "The process serves the API and the console page at the origin in the line."),
    "job-accepted": Action("debug", "A request's job is in the store, and will be put on Kafka."),
    "relay-leading": Action("info", "The process puts accepted records on Kafka, from the line's `position` on."),
    "relay-standby": Action("info", "Another gateway's process puts accepted records on Kafka; this one waits."),
    "relay-failed": Action(
        "warning",
        "Accepted records do not reach Kafka; they stay in the store, and the relay starts again.",
        "Look at the broker, or at the topic that the line names.",
    ),
    "relay-repaired": Action("info", "Accepted records reach Kafka again."),
    "store-behind": Action(
        "warning",
        "Kafka has records that the store never numbered: the store was restored from a backup. Its counter is raised.",
        "If the store was not restored, look for a gateway that runs on a copy of the store, and stop it.",
    ),
    "store-away": Action(
        "error",
        "The database takes no changes, or does not answer; requests get status 503, and `/readyz` fails.",
        "See the reason in the line, and look at the database.",
    ),
    "store-back": Action("info", "The database takes changes again."),
    "view-failed": Action(
        "warning",
        "Results cannot be read from Kafka or written into the store; the view tries again.",
        "Look at the broker and at the database.",
    ),
    "view-repaired": Action("info", "Results are read again."),
    "view-record-failed": Action(
        "error",
        "A result or an attempt could not be written with its consequences, such as its batch's count or its tenant's "
        "webhooks; these are left out.",
        "Report the stack; a second line names the record's place.",
    ),
    "outbox-full": Action(
        "error",
        "The outbox is full, because Kafka takes no records; requests that submit work get status 503.",
        "Look at the broker.",
    ),
    "certificates-read": Action("info", "A file of the door's TLS changed; new connections use the new certificates."),
    "certificates-expiring": Action(
        "warning",
        "A certificate or a revocation list of the door is in the last third of its life, at most half a year before "
        "its end, or has expired. Clients refuse an expired certificate of the door. Past a list's end, the door "
        "refuses every client certificate.",
        "`postback certs renew`, in the authority's directory, or a new file of your own authority.",
    ),
    "revocation-unchecked": Action(
        "warning",
        "The door accepts client certificates, and has no revocation list for their authority.",
        "Copy the authority's `crl.pem` beside its certificate, and start the gateway again.",
    ),
    "connections-refused": Action(
        "warning",
        "The gateway closes connections at once: too many are open, or the process has no file descriptor left.",
        "Raise POSTBACK_GATEWAY__CONNECTIONS, or POSTBACK_GATEWAY__CONNECTIONS_PER_ADDRESS behind a proxy.",
    ),
    "issuer-away": Action(
        "warning",
        "The keys of POSTBACK_ACCESS__OIDC__ISSUER cannot be fetched; the last keys count for a day by default.",
        "See the reason in the line, and check that the gateway reaches the issuer.",
    ),
    "issuer-back": Action("info", "The issuer's keys are fetched again."),
    "rates-unshared": Action(
        "warning",
        "The Redis of POSTBACK_ACCESS__REDIS_URL does not answer; each gateway counts its own requests until it does.",
        "Start Redis, or see why it cannot be reached.",
    ),
    "rates-shared": Action("info", "Redis answers again; the gateways count their requests together.", "Nothing."),
    "connection-failed": Action(
        "error",
        "A defect of the gateway: the time of a connection could not be checked, so the connection ends.",
        "Report the stack in the line.",
    ),
    "audit-failed": Action(
        "error",
        "An audit line cannot be written; the action goes on without it.",
        "Mend the file of POSTBACK_GATEWAY__AUDIT_FILE, or its disk.",
    ),
    "request-failed": Action(
        "error",
        "A request failed by a defect of the gateway; it gets status 500 with the id in the line.",
        "Report the stack in the line.",
    ),
}

DELIVERY = {
    "delivery-window": Action(
        "info", "The line states the maximum number of bytes of results that the process holds at once."
    ),
    "callback-delivered": Action("debug", "A callback was answered with 2xx."),
    "callback-failed": Action("info", "An attempt failed; the callback waits in a tier for its next attempt."),
    "callback-given-up": Action(
        "warning",
        "A callback failed for good; it becomes a dead letter with the reason.",
        f"Tell the consumer; once the endpoint works again, {_REDRIVE}.",
    ),
    "callback-kept": Action(
        "info",
        "The callback's endpoint is disabled; the callback becomes a dead letter without an attempt.",
        f"`postback endpoints enable`, then {_REDRIVE}.",
    ),
    "result-unusable": Action(
        "warning",
        "A record of `model_results` or of a tier is no result with a callback; it becomes a dead letter.",
        "Look for another program that writes to these topics.",
    ),
    "breaker-changed": Action("info", "An origin gets no calls for a time, or one probe, or all calls again."),
    "inference.endpoint.disabled": Action(
        "warning",
        "An endpoint answered 410 or failed for days; its callbacks become dead letters.",
        "Tell the consumer; then `postback endpoints enable` and `postback replay`.",
    ),
    "inference.endpoint.not-disabled": Action(
        "warning",
        "A tenant has the maximum number of disabled endpoints; another failing endpoint stays enabled.",
        "`postback endpoints list` shows the disabled endpoints; enable those that are in use again.",
    ),
    "endpoint-record-unreadable": Action(
        "warning",
        "A record of `callback_endpoints` cannot be read; it is skipped.",
        "Look for another program that writes to `callback_endpoints`.",
    ),
    "resources-exhausted": Action(
        "error",
        "The process can open no more connections; callbacks are deferred, and no attempt is counted.",
        "Raise the limit of open files, or add processes.",
    ),
    "keyring-reloaded": Action("info", "The keyring's file changed; the new keys are in use."),
    "keyring-reload-failed": Action(
        "error",
        "The keyring's file changed and cannot be read; the keys in memory go on signing.",
        "Correct the file: the line names the problem.",
    ),
    "certificates-reload-failed": Action(
        "error",
        "A file of certificates changed and cannot be read; the certificates in memory stay in use.",
        "Correct the file: the line names the problem.",
    ),
}

EXPORTER = {
    "exporter-reading-works": Action("info", "The exporter has read Kafka, for the first time or after a failure."),
    "exporter-reading-failed": Action(
        "warning",
        "The exporter could not read Kafka; its figures are stale, and `/backlog` answers 503.",
        "Look at the line's `problem`, then at the brokers or at the exporter's ACLs.",
    ),
    "exporter-reading-raised": Action(
        "error",
        "A reading of Kafka raised an unexpected error; the exporter connects again.",
        "Report the stack in the line.",
    ),
}


SECTIONS: dict[str, dict[str, Action]] = {
    "Every process": PROCESS,
    "Taking and settling records": STAGE,
    "Inference and engines": INFERENCE,
    "Input filter": SCREENING,
    "Enrichment": ENRICHMENT,
    "Batches": BATCHES,
    "Delivery": DELIVERY,
    "The gateway": GATEWAY,
    "The exporter": EXPORTER,
}
"""All actions, by the part of the system that logs them. The keys are the titles on the published page."""
