"""Kafka beside the stage: clients' properties, questions about topics, and compacted topics that are followed."""
