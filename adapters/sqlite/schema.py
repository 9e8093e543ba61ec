"""The tables of the transport. All names begin with `bus_`, so that a sink may live in the same file."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

import msgpack

from bus.errors import BusError, CodecError, Misconfigured
from bus.message import Headers, Message
from bus.topic import Kind, Topic

__all__ = ["TopicRow", "create_tables", "declare", "find_topic", "pack", "unpack"]

VERSION = "2"

# bus_queue: ready rows have owner 0. AUTOINCREMENT: a number is never given twice, so a late ack hits nothing else.
# bus_delayed: rows move to the end of bus_queue when they are due.
# bus_log: place = topic << 40 | offset; one range of the table for each topic, offsets without gaps.
TABLES = """
CREATE TABLE IF NOT EXISTS bus_meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bus_topics (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, retention_s REAL,
    first INTEGER NOT NULL DEFAULT 0, next INTEGER NOT NULL DEFAULT 0, last_at REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS bus_queue (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, owner INTEGER NOT NULL DEFAULT 0,
    deliveries INTEGER NOT NULL DEFAULT 0, id TEXT NOT NULL, key BLOB, headers BLOB, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS bus_queue_owner ON bus_queue (topic, owner);
CREATE TABLE IF NOT EXISTS bus_delayed (
    seq INTEGER PRIMARY KEY, topic INTEGER NOT NULL, due REAL NOT NULL,
    id TEXT NOT NULL, key BLOB, headers BLOB, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS bus_delayed_due ON bus_delayed (topic, due);
CREATE TABLE IF NOT EXISTS bus_owners (
    id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, expires REAL NOT NULL, process TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS bus_log (
    place INTEGER PRIMARY KEY, at REAL NOT NULL, id TEXT NOT NULL, key BLOB, headers BLOB, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS bus_groups (
    topic INTEGER NOT NULL, name TEXT NOT NULL, next INTEGER NOT NULL, seen_at REAL NOT NULL,
    PRIMARY KEY (topic, name)) WITHOUT ROWID;
"""


class TopicRow(NamedTuple):
    id: int
    topic: Topic


def create_tables(connection: sqlite3.Connection, path: str) -> None:
    """Raises `Misconfigured` where the file was written with another layout."""
    for statement in TABLES.split(";"):
        connection.execute(statement)
    connection.execute("INSERT OR IGNORE INTO bus_meta VALUES ('schema', ?)", (VERSION,))
    (found,) = connection.execute("SELECT value FROM bus_meta WHERE name = 'schema'").fetchone()
    if found != VERSION:
        raise Misconfigured(
            f"{path} was written by another version of crawlbus (layout {found}, here {VERSION}): "
            "use that version, or another bus file"
        )


def declare(connection: sqlite3.Connection, topic: Topic) -> TopicRow:
    """Find or make the topic's row. Raises `Misconfigured` where it is of the other kind."""
    connection.execute(
        "INSERT INTO bus_topics (name, kind, retention_s) VALUES (?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET retention_s = excluded.retention_s WHERE kind = excluded.kind",
        (topic.name, topic.kind.value, topic.retention_s),
    )
    row = find_topic(connection, topic.name)
    if row.topic.kind is not topic.kind:
        raise Misconfigured(
            f"topic {topic.name!r} is a {row.topic.kind.name} and cannot be a {topic.kind.name}, too: "
            "choose another ?prefix= on the bus URL"
        )
    return row


def find_topic(connection: sqlite3.Connection, name: str) -> TopicRow:
    row = connection.execute("SELECT id, kind, retention_s FROM bus_topics WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise BusError(f"topic {name!r} was not declared")
    return TopicRow(row[0], Topic(name, Kind(row[1]), row[2]))


def pack(message: Message) -> tuple[str, bytes | None, bytes | None, bytes]:
    """The columns id, key, headers, body."""
    headers = message.headers
    try:
        packed: bytes | None = msgpack.packb(headers, unicode_errors="surrogatepass") if headers else None
    except (TypeError, OverflowError, ValueError) as error:
        raise CodecError(f"a header that cannot travel: {error}", "headers") from None
    return message.id, message.key or None, packed, message.body


def unpack(id: str, key: bytes | None, headers: bytes | None, body: bytes) -> Message:
    return Message(id, body, _headers(headers) if headers else {}, key or b"")


def _headers(packed: bytes) -> Headers:
    """None where they are damaged: whoever reads the message says so, and goes on with the next one."""
    try:
        found = msgpack.unpackb(packed, unicode_errors="surrogatepass")
    except (ValueError, TypeError, msgpack.exceptions.UnpackException):
        return {}
    return found if isinstance(found, dict) else {}
