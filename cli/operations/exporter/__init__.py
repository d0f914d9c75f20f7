"""The exporter publishes figures of the whole fleet. It reads them from Kafka, so it works even if no worker runs.

A *reading* reads the state of Kafka once; `figures` are its published numbers, as JSON and for Prometheus.
A *pool* is all workers that read the same lanes: those of the whole fleet, or those of one engine.

    exporter     the loop of readings, and the pages
    reading      the connection to Kafka, with dead letters, endpoints and workers
    waiting      the waiting jobs and callbacks
    figures      a pool's measurements, the figures, and the gauges
    replicas     waiting jobs and measured speed as a number of workers
"""
