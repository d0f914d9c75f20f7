"""OpenAI's files and batches: upload, expansion into jobs, output and error files.

    paging       lists in pages
    files        rows of files; `shelf` keeps rows and contents together
    uploads      uploads in parts: their rows, and the contents, which are joined to a file
    orders       rows of batches: create, cancel, list
    ranges       the lines of a file, and records of `batch_requests`; `checking` finds lines that are no job
    expansion    the stage from `batch_requests` to the lanes
    finalising   writes the output and error files
    clerk        checks, finalises and sweeps, beside the process's stages

A module imports only modules above it.
"""
