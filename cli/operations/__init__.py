"""Operations on a running fleet through Kafka: topics, backlog, dead letters, deliveries, endpoints, cancellations."""
