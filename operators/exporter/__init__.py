"""The exporter: figures of the whole fleet, read from Kafka, also while no worker runs.

`exporter` reads Kafka again and again and publishes `figures`. `lanes` has the waiting jobs, with `open_jobs` of one
partition; `facts` follows letters, endpoints and workers. `throughput` measures workers, and `replicas` turns waiting
jobs and throughput into a number of workers.
"""
