"""Log actions that every process has; `telemetry/actions.py` lists all."""

from __future__ import annotations

from telemetry.action import Action

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
    "model-build": Action("info", "The demo makes its small model; the next start finds the model in the cache."),
}
