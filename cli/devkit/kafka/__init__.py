"""Apache Kafka from its jars (Linux only): fetches the jars, lays out a cluster's data, and runs the processes."""
