"""Log actions of the gateway and its batches; `telemetry/actions.py` lists all."""

from __future__ import annotations

from telemetry.action import Action

BATCHES = {
    "file-removal-failed": Action(
        "warning",
        "The content of a deleted, expired or unfinished file could not be removed; the sweep tries again each minute.",
        "See the reason in the line: check the storage of files and the store.",
    ),
    "part-removal-failed": Action(
        "warning",
        "The parts of an upload that has ended could not be removed; the sweep tries again each minute.",
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
        "Look at the broker; `POSTBACK_STORE__OUTBOX_…` sets the bounds.",
    ),
    "certificates-read": Action("info", "A file of the door's TLS changed; new connections use the new certificates."),
    "certificates-expiring": Action(
        "warning",
        "A certificate or a revocation list of the door is in the last third of its life, or has expired. Clients "
        "refuse an expired certificate of the door. Past a list's end, the door refuses every client certificate.",
        "`postback certs renew` or `postback certs crl`, in the authority's directory.",
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
