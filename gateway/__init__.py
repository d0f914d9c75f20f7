"""The HTTP front door of a fleet: jobs come in over HTTPS, and their answers can be read there.

    role      the process: door, relay, view and expansion, by `--roles`
    door      HTTP: the server, the application, its routes, and the console page
    batches   OpenAI's files and batches: expansion into jobs, output files
    webhooks  webhook endpoints of tenants, and their events
    view      follows the fleet's topics and writes rows: results, attempts, events
    accept    accepts work exactly once: rows, idempotency, the outbox and its relay
    access    authentication and limits: principals, API keys, tokens, certificates, limits, quotas
    blobs     contents of files, in a folder or in S3-compatible storage
    store     the database: tables, one writer thread with group commit, readers
    paging    rows of a tenant by their id, and pages of lists
    errors    refusals in OpenAI's shape, and the store's errors

Kafka keeps the truth about jobs. The store can be rebuilt, except keys, tenants, files, batches and idempotency.
A package imports only the packages below its line.
"""
