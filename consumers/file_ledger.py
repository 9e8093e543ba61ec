"""What a file sink knows beside its rows: members, progress and gaps in one small file, quarantine in another."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from bus.errors import Misconfigured, StorageFailed
from bus.message import Position, parse_positions
from consumers.members import LEASE_S, Member, lives, lost, new_member, to_take
from consumers.rows import clean_text, utc_text
from consumers.sink import Batch, Progress, Quarantined, Reject, SinkUnavailable

__all__ = ["FileLedger", "append", "replace_file", "sync_directory"]

LOCK_TIMEOUT_S = 10.0
FORMAT = 2


class FileLedger:
    """One member of a consumer of the sink `path`, and the two files BASE.progress and BASE.quarantine.

    The first is replaced atomically, under a lock on `lock`, once what it tells of is on disk; the second counts up to
    the length that the first names. Whoever has locked it loads the first anew.
    """

    def __init__(self, path: Path, base: Path, lock: Path, own: str) -> None:
        """`own` is what the sink itself keeps in the first file."""
        if not base.name:
            raise Misconfigured(f"the sink {path} is a directory: name a file in it")
        self._path, self._lock_path, self._own = path, lock, own
        self.progress = base.with_name(base.name + ".progress")
        self._quarantine = base.with_name(base.name + ".quarantine")
        self.consumer, self._topic = "", ""
        self._member = new_member()
        self._epochs: dict[int, int] = {}

    @contextmanager
    def locked(self) -> Iterator[int]:
        """The lock's file, open. A killed process's lock is gone with it."""
        file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise Misconfigured(f"the sink {self._path} is not a regular file: name another")
            self._lock(file)
            yield file
        finally:
            os.close(file)

    def _lock(self, file: int) -> None:
        give_up = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            if time.monotonic() > give_up:
                raise SinkUnavailable(f"the sink {self._path} is locked by another process")
            time.sleep(0.02)

    # what BASE.progress holds; each is called while it is locked

    def create(self) -> None:
        """The first one. What the sink itself keeps is 0."""
        self.save({"format": FORMAT, self._own: 0, "quarantine": 0, "dropped": [], "consumers": {}, "gaps": []})

    def load(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self.progress.read_bytes())
            if state["format"] != FORMAT:
                raise ValueError(f"its format is {state['format']!r}")
            if missing := {self._own, "quarantine", "dropped", "consumers", "gaps"} - state.keys():
                raise ValueError(f"it has no {', '.join(sorted(missing))}")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageFailed(f"{self.progress} cannot be read as the progress of a sink: {error}") from None
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Atomically, and on disk when it returns."""
        replace_file(self.progress, json.dumps(state, indent=1).encode())

    def join(self, state: dict[str, Any], consumer: str, topic: str) -> None:
        """Of whom we are a member from now on."""
        self.leave(state)
        self.consumer, self._topic, self._epochs = consumer, topic, {}

    @property
    def joined(self) -> bool:
        return bool(self.consumer)

    def hold(self, state: dict[str, Any], partitions: Set[int]) -> dict[int, Progress | None]:
        """`Sink.hold`; what it changes in `state` is to be saved."""
        ours, now_s = self._ours(state), time.time()
        members = [Member(id, *rest) for id, rest in ours["members"].items()]
        live = [member for member in members if member.id != self._member.id and lives(member, now_s)]
        me = self._member._replace(until_s=now_s + LEASE_S)
        ours["members"] = {member.id: member[1:] for member in [*live, me]}
        owners = {int(partition): row["member"] for partition, row in ours["partitions"].items()}
        taken = to_take(partitions, owners, [member.id for member in live], me.id)
        if others := taken & self._epochs.keys():  # another had them meanwhile, and is further
            self._epochs = {}
            raise lost(self.consumer, min(others))
        for partition in taken:
            row = ours["partitions"].setdefault(str(partition), {"epoch": 0, "at": None})
            row |= {"epoch": row["epoch"] + 1, "member": me.id}
        held = {int(p): row for p, row in ours["partitions"].items() if row["member"] == me.id}
        self._epochs = {partition: row["epoch"] for partition, row in held.items() if partition in partitions}
        return {partition: _progress(partition, held[partition]["at"]) for partition in self._epochs}

    def positions(self, state: dict[str, Any]) -> list[Progress]:
        """`Sink.positions`."""
        found = (_progress(int(partition), row["at"]) for partition, row in self._ours(state)["partitions"].items())
        return [progress for progress in found if progress is not None]

    def advance(self, state: dict[str, Any], batch: Batch, rejects: Iterable[Reject]) -> bool:
        """Everything of a batch but its rows; False, with nothing done, if it was stored already: rows of a file that
        are written again are there twice. Raises `Fenced`; `state` is not to be saved then."""
        moved = self._move(state, batch.progress)
        resolved = self.drop(state, batch.resolved) if batch.resolved else 0
        if (batch.progress or batch.resolved) and not moved and not resolved:
            return False
        self._set_aside(state, rejects)
        who = {"consumer": self.consumer, "topic": self._topic}
        for gap in batch.gaps:
            where = {"asked": str(gap.asked), "first": str(gap.first), "end": str(gap.end)}
            state["gaps"].append({**who, **where, "at": utc_text(time.time())})
        return True

    def _move(self, state: dict[str, Any], progress: Mapping[int, Progress]) -> bool:
        """Whether any partition was not there yet."""
        partitions, moved = self._ours(state)["partitions"], False
        for partition, (next, message) in progress.items():
            row = partitions.get(str(partition))
            if row is None or row["epoch"] != self._epochs.get(partition):
                self._epochs.pop(partition, None)
                raise lost(self.consumer, partition)
            at = [next.offset, next.index, message]
            moved |= row["at"] != at
            row["at"] = at
        return moved

    def leave(self, state: dict[str, Any]) -> None:
        """What we hold is free."""
        if self.consumer:
            self._ours(state)["members"].pop(self._member.id, None)

    def _ours(self, state: dict[str, Any]) -> dict[str, Any]:
        topics = state["consumers"].setdefault(self.consumer, {})
        ours: dict[str, Any] = topics.setdefault(self._topic, {"members": {}, "partitions": {}})
        return ours

    # quarantine

    def quarantined(self, state: dict[str, Any]) -> list[Quarantined]:
        """`Sink.quarantined`."""
        try:
            lines = self._quarantine.read_bytes()[: state["quarantine"]].splitlines()
        except FileNotFoundError:
            return []
        latest = {entry["id"]: entry for entry in map(json.loads, lines)}
        dropped = set(state["dropped"])
        found = [_quarantined(entry) for id, entry in latest.items() if id not in dropped]
        return sorted(found, key=lambda each: each.at)

    def drop(self, state: dict[str, Any], ids: Sequence[str]) -> int:
        """`Sink.drop`. The lines stay: they could not go in the moment in which their items are stored."""
        there = {entry.id for entry in self.quarantined(state)} & set(ids)
        state["dropped"] += sorted(there)
        return len(there)

    def _set_aside(self, state: dict[str, Any], rejects: Iterable[Reject]) -> None:
        entries = [self._entry(reject) for reject in rejects]
        if entries:
            again = {entry["id"] for entry in entries}
            state["dropped"] = [id for id in state["dropped"] if id not in again]
            lines = [json.dumps(entry, default=repr).encode() + b"\n" for entry in entries]
            state["quarantine"] = self._append(lines, state["quarantine"])

    def _append(self, lines: Sequence[bytes], length: int) -> int:
        file = os.open(self._quarantine, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(file, min(length, os.fstat(file).st_size))
            return os.fstat(file).st_size + append(file, b"".join(lines))
        finally:
            os.close(file)

    def _entry(self, reject: Reject) -> dict[str, Any]:
        key = repr((self.consumer, self._topic, str(reject.position), reject.id)).encode("utf-8", "backslashreplace")
        return {
            "id": blake2b(key, digest_size=8).hexdigest(), "consumer": self.consumer, "topic": self._topic,
            "position": str(reject.position), "message": reject.id, "at": utc_text(time.time()),
            "reason": clean_text(reject.reason), "headers": dict(reject.headers),
            "content": b64encode(reject.content).decode(),
        }  # fmt: skip


def _progress(partition: int, at: Sequence[Any] | None) -> Progress | None:
    return None if at is None else Progress(Position(partition, at[0], at[1]), at[2])


def _quarantined(entry: Mapping[str, Any]) -> Quarantined:
    (position,) = parse_positions(entry["position"])
    content = b64decode(entry["content"])
    reject = Reject(position, entry["reason"], entry["message"], entry["headers"], content)
    return Quarantined(entry["id"], entry["consumer"], entry["topic"], entry["at"], reject)


def append(file: int, content: bytes | memoryview) -> int:
    """Write at the end, and to the disk; returns how many bytes."""
    os.lseek(file, 0, os.SEEK_END)
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
    os.fsync(file)
    return len(content)


def replace_file(path: Path, content: bytes) -> None:
    """All of it or nothing, and on disk when it returns."""
    temporary = path.with_name(path.name + ".new")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        append(file, content)
    finally:
        os.close(file)
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """What was renamed or created in there survives a power cut."""
    directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
