"""A job's path through a worker: read the job, route it, ground it, generate the answer, settle the result."""
