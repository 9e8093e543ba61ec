"""The sinks, one file each; found by URL scheme through the entry points `crawlbus.sinks`."""
