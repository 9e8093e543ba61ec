"""A small web shop on loopback and the spider that crawls it, for `crawlbus demo`."""
