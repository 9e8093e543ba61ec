"""The two contracts of crawlbus, `Transport` and `State`, and what is built over any of them."""
