"""One SQLite file shared by the processes of one machine: transport and state."""
