"""OpenAI's files and batches: upload, expansion into jobs, output and error files."""
