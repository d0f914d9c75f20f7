"""Apache Kafka from its jars: fetching them, laying out a cluster's data, and running its processes (Linux only)."""
