"""Parts that several groups of commands share: errors, tables, progress, settings, files of jobs and results."""
