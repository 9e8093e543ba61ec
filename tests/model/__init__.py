"""An explicit-state model of a crawl, whose every call to the shared state is made on the real adapters (ADR 0002)."""
