"""Submits jobs to Kafka. The package is light to install: it uses kafka-python, not the workers' compiled client."""
