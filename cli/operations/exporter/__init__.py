"""The exporter publishes figures of the whole fleet. It reads them from Kafka, so it works even if no worker runs.

A *reading* reads the state of Kafka once; `figures` are its published numbers, as JSON and for Prometheus.
A *pool* is all workers that read the same lanes: those of the whole fleet, or those of one engine.

    exporter     a pool's measurements, the figures and the gauges, the loop of readings, and the pages
    reading      waiting jobs and callbacks, dead letters, endpoints and workers, by one connection to Kafka
    replicas     waiting jobs and measured speed as a number of workers, and the settings of the exporter
"""
