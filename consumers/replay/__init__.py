"""`crawlbus replay`: a part of the item log once more, into any sink."""
