"""The input filter: an operator's rules flag, redact or reject the texts of jobs.

    load_screen(settings) ─► screen.check(tenant, job) ─► Screened(verdict, findings, job)

Gateway and workers share the one `Screen` of `screening.screen`. The operator's file is read by `rules_file` into the
models of `rules`. A check reads the texts of a job (`texts`), folds them (`plain`), asks the `matchers`, and puts
markers in place of redacted matches. `classifier_process` runs an operator's model in a process of its own.
"""
