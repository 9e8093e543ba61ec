"""What Redis keeps of a topic: its keys, and a record of what it is, so that any connection can tell."""

from __future__ import annotations

from typing import NamedTuple

from adapters.redis.connection import Script, Server
from bus.errors import BusError, Misconfigured
from bus.topic import Kind, Topic

__all__ = ["GROUP", "Keys", "TopicRow", "declare", "find"]

GROUP = "crawlbus"  # the one consumer group of a QUEUE

# KEYS: record, stream, bell; ARGV: kind, retention, group. Returns the kind that it has.
_DECLARE = Script("""
local kind = redis.call('HGET', KEYS[1], 'kind') or ARGV[1]
if kind ~= ARGV[1] then return kind end
redis.call('HSET', KEYS[1], 'kind', kind, 'retention', ARGV[2])
if kind == 'queue' then
  for i = 2, 3 do redis.pcall('XGROUP', 'CREATE', KEYS[i], ARGV[3], '0', 'MKSTREAM') end
end
return kind
""")


class Keys(NamedTuple):
    """The keys of one topic. Its name is their hash tag, so that they share a slot."""

    record: str  # hash: kind, retention; of a LOG also end, first, at, trimmed; of a QUEUE how many were ever delayed
    stream: str
    bell: str  # stream, of a QUEUE: an entry wakes one reader that waits, to look what there is besides new work
    delayed: str  # sorted set, of a QUEUE: packed messages by due time (ms)
    groups: str  # hash, of a LOG: group -> "offset time", the next to ack and when it was seen last (µs)
    owner: str  # beginning of the key of each reader, which lives as long as its lease


class TopicRow(NamedTuple):
    topic: Topic
    keys: Keys

    @property
    def retention(self) -> str:
        """As its record holds it, in seconds; empty where there is no limit."""
        return "" if self.topic.retention_s is None else repr(float(self.topic.retention_s))


def _keys(name: str) -> Keys:
    base = f"crawlbus:bus:{{{name}}}"
    return Keys(base, *(f"{base}:{part}" for part in ("stream", "bell", "delayed", "groups", "owner:")))


async def declare(server: Server, topic: Topic) -> TopicRow:
    """Find or make the topic. Raises `Misconfigured` where it is of the other kind."""
    row = TopicRow(topic, keys := _keys(topic.name))
    arguments = (topic.kind.value, row.retention, GROUP)
    found = await server.run(_DECLARE, (keys.record, keys.stream, keys.bell), arguments)
    if (kind := Kind(found.decode())) is not topic.kind:
        raise Misconfigured(
            f"topic {topic.name!r} is a {kind.name} and cannot be a {topic.kind.name}, too: "
            "choose another ?prefix= on the bus URL"
        )
    return row


async def find(server: Server, name: str) -> TopicRow:
    keys = _keys(name)
    kind, retention = await server.call("HMGET", keys.record, "kind", "retention")
    if kind is None:
        raise BusError(f"topic {name!r} was not declared")
    return TopicRow(Topic(name, Kind(kind.decode()), float(retention) if retention else None), keys)
