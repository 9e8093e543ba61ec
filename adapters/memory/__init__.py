"""Bus and state in one process: the executable specification."""
