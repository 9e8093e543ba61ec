"""One room per outside system. Nothing imports them but `bus.registry`, by URL scheme."""
