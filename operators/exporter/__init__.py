"""The exporter publishes figures of the whole fleet. It reads them from Kafka, so it works even if no worker runs.

A *reading* reads the state of Kafka once; `figures` are its published numbers, and `gauges` exports them to Prometheus.
A *pool* is all workers that read the same lanes: those of the whole fleet, or those of one engine.

    exporter     the loop of readings, and the pages; `reading` is its connection to Kafka
    lanes        the waiting jobs; `open_jobs` are those of one partition
    facts        dead letters, endpoints and workers
    visible      the offsets that a read_committed reader sees
    pool         a pool's measurements and figures
    throughput   jobs per second of one worker
    replicas     waiting jobs and throughput as a number of workers
"""
