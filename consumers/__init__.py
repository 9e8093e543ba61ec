"""The consumer daemon, its sinks, and dead letters."""
