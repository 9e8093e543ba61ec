"""Long runs. `python -m tests.soak` prints the table of `docs/reliability.md`."""
