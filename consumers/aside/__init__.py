"""What was set aside, and what to do about it: dead letters, and the quarantine of a sink."""
