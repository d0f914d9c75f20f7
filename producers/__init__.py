"""Submits jobs to Kafka.

The package is easy to install, because it uses kafka-python and not the workers' compiled client.
"""
