"""Apache Kafka 4: the bus of `kafka://` and `kafka+ssl://`."""
