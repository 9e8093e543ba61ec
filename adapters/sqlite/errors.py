"""What SQLite's errors mean to a user: the one place where they are translated."""

from __future__ import annotations

import sqlite3

from bus.errors import BusError, ConnectionLost, StorageFailed, TransportError

__all__ = ["is_busy", "translate"]

_REFUSALS = {
    "SQLITE_FULL": "the disk is full: free some space and start again",
    "SQLITE_READONLY": "the file or its directory is read-only: give this user the right to write there",
    "SQLITE_PERM": "this user may not write there: give it the right, or choose another path",
    "SQLITE_CANTOPEN": "cannot be opened: make its directory, or give this user the right to write there",
    "SQLITE_NOTADB": "is not an SQLite database: choose another path, or move that file away",
    "SQLITE_CORRUPT": "is damaged: restore it from a copy, or move it away to begin anew",
    "SQLITE_IOERR": "cannot be read or written: look at the disk and the system's log",
    "SQLITE_TOOBIG": "a value is larger than SQLite allows",
}


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", None) or ""


def is_busy(error: sqlite3.Error) -> bool:
    """Another connection holds the lock: waiting helps."""
    return _name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def translate(error: sqlite3.Error, path: str) -> BusError:
    """`StorageFailed` where waiting will not help, `ConnectionLost` for a lock held too long."""
    if is_busy(error):
        return ConnectionLost(f"{path}: another process has held the lock for too long")
    name = _name(error)
    for prefix, mend in _REFUSALS.items():
        if name.startswith(prefix):
            return StorageFailed(f"{path}: {mend}")
    return TransportError(f"{path}: {error}")
