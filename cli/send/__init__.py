"""Commands that send work: jobs, batches and files."""
