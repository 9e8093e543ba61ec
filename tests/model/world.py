"""What the model holds besides the real state: the queue, the processes, and the truth they are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from bus.state import MAX_STARTS, JobState
from tests.model.explore import Judgement
from tests.model.stores import Snapshot

T = TypeVar("T")
NONE: frozenset[str] = frozenset()
STAGES = ("check", "publish", "mark", "finish", "retry", "ack")


def page(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def name_of(page_id: bytes) -> str:
    return page_id.decode().rstrip(".")


def put_at(items: tuple[T, ...], i: int, item: T) -> tuple[T, ...]:
    return (*items[:i], item, *items[i + 1 :])


class Message(NamedTuple):
    id: str
    page: str
    attempt: int = 0
    run: int = 1

    def __str__(self) -> str:
        return f"{self.id}/{self.attempt}" if self.attempt else self.id


class Hand(NamedTuple):
    """One delivery in the hands of a process: recv, poison, got, fetched, sent, hands-back."""

    step: str
    message: Message
    lease: bool = True
    alone: bool = False
    links: frozenset[str] = NONE
    at: int = 0  # the run in which it was fetched


class Entry(NamedTuple):
    """In an outbox. link: `message.id` is empty until it is published. again, dead, finish: of this delivery."""

    kind: str
    message: Message
    hand: int
    stored: bool = False
    links: frozenset[str] = NONE  # finish: what is owed once it counts
    at: int = 0


class Process(NamedTuple):
    """`batch` is under way at `stage`; `acking` are the hands whose acks go out behind it."""

    hands: tuple[Hand | None, ...]
    waiting: tuple[Entry, ...] = ()
    batch: tuple[Entry, ...] = ()
    stage: str = ""
    acking: tuple[int, ...] = ()

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.batch or self.acking or any(self.hands))


class Runner(NamedTuple):
    """A run of `start()`, a seed, or a retry of a dead letter. It publishes page by page."""

    kind: str
    todo: str
    run: int
    step: str = "next"
    page: str = ""
    lease: bool = True
    did: frozenset[str] = NONE


class World(NamedTuple):
    queue: tuple[Message, ...]  # sorted
    processes: tuple[Process, ...]
    runners: tuple[Runner | None, ...]
    store: Snapshot
    budget: tuple[tuple[str, int], ...]
    slack: int = 0  # extra fetches that faults excuse, less those made
    saved: Snapshot | None = None  # what a loss of the store, or a power cut, goes back to
    lost: bool = False
    fetched: frozenset[str] = NONE
    finished: frozenset[str] = NONE
    owed: frozenset[str] = NONE  # unfinished links of fetches that count
    hurt: frozenset[str] = NONE  # pages whose fetch has killed a process
    dead: frozenset[str] = NONE  # in the dead log
    decided: frozenset[str] = NONE  # dead letters with a decision
    counted: bool = True  # a run of `start()` has ended in this run of the job
    saw: frozenset[bytes] | None = None  # mutants: what a torn end has read so far

    def left(self, fault: str) -> int:
        return dict(self.budget).get(fault, 0)

    def spend(self, fault: str) -> World:
        return self._replace(budget=tuple((name, n - (name == fault)) for name, n in self.budget))

    def back(self, *messages: Message) -> World:
        return self._replace(queue=tuple(sorted((*self.queue, *messages))))

    def finish(self, name: str, owed: frozenset[str], at: int) -> World:
        """A page is finished in truth: the first finish counts, with its links. Of an earlier run: nothing."""
        if at != self.store.run:
            return self
        owed = NONE if name in self.finished else owed
        finished = self.finished | {name}
        return self._replace(finished=finished, owed=(self.owed | owed) - finished)

    def owe(self, names: frozenset[str]) -> World:
        return self._replace(owed=self.owed | names - self.finished)

    @property
    def idle(self) -> bool:
        return all(process.idle for process in self.processes) and not any(self.runners)

    def fresh(self, name: str) -> str:
        """A message id that nothing refers to any more."""
        used = {message.id for message in self.queue}
        for process in self.processes:
            used |= {hand.message.id for hand in process.hands if hand}
            used |= {entry.message.id for entry in process.waiting + process.batch}
        for snapshot in (self.store, self.saved):
            used |= {begun.message for _, begun in snapshot.begun} if snapshot else set()
        return next(id for n in range(99) if (id := f"{name}{n}") not in used)


@dataclass(frozen=True)
class Setting:
    """A small crawl. `site`: page -> what its links may be at a fetch, a letter each."""

    site: Mapping[str, list[str]]
    seeds: str = ""
    faults: Mapping[str, int] = field(default_factory=dict)
    hands: tuple[int, ...] = (1, 1)
    rules: frozenset[str] = NONE  # words that change a rule; each is explained where it is read
    stages: tuple[str, ...] = STAGES
    one_call: bool = False  # mark and finish in one call, as the outbox does
    kills: str = ""  # pages whose fetch kills the process
    fails: str = ""  # pages whose fetch may fail each time
    attempts: int = 2
    starts: tuple[str, ...] = ()  # what `start()` may yield at a run
    runners: int = 0

    def excuse(self, message: Message) -> int:
        """Extra fetches that a copy of this message may cost: its page, and what the page links to."""
        return self.tries(message.page, message.attempt) + max(map(len, self.site[message.page]))

    def tries(self, name: str, attempt: int = 0) -> int:
        """How often a page is fetched where nothing else goes wrong."""
        attempts = self.attempts - attempt if name in self.fails else 1
        return attempts * (MAX_STARTS + 1 if name in self.kills else 1)

    def first(self) -> World:
        slack = sum(self.tries(name) - 1 for name in self.site)
        slack += sum(self.excuse(Message("", name)) * (self.seeds.count(name) - 1) for name in set(self.seeds))
        ids = [name + ("0" if "ids" not in self.rules else str(n)) for n, name in enumerate(self.seeds)]
        seeds = frozenset((page(name), True) for name in self.seeds)
        store = Snapshot(open=len(seeds), pages=seeds, start_ended=not self.runners)
        return World(
            queue=tuple(sorted(Message(id, name) for id, name in zip(ids, self.seeds, strict=True))),
            processes=tuple(Process((None,) * n) for n in self.hands),
            runners=(None,) * self.runners,
            store=store,
            budget=tuple(sorted(self.faults.items())),
            slack=slack,
            saved=store if "power" in self.faults else None,
            counted=not self.runners,
        )


def judge(world: World, setting: Setting) -> Judgement:
    """L lost URL · P false mark · O never ends · D ends early · X unexcused fetch · F finished while something is
    open · E a run ends though its `start()` did not · h a page is dead that never hurt anybody."""
    store, bad = world.store, ""
    finished = store.state is JobState.FINISHED
    if setting.runners:
        at_rest = world.idle and world.saw is None and finished and store.start_ended
        ended = finished
    else:
        at_rest = world.idle and not world.queue
        ended = not store.open and not world.lost
    bad += "X" * (world.slack < 0) + "D" * bool(ended and world.owed)
    bad += "F" * bool(finished and store.are_open and not world.lost) + "E" * (finished and not world.counted)
    bad += "h" * bool(setting.kills and not setting.fails and world.dead - world.hurt)
    if at_rest:
        seen = {name_of(page_id) for page_id in store.seen}
        bad += "L" * bool(world.owed) + "P" * bool(seen - world.finished)
        bad += "O" * bool((store.are_open or store.begun) and not world.lost)
    is_end = (at_rest and not setting.runners) or world.slack < -2  # a broken ping-pong only repeats itself
    return Judgement(bad, at_rest or world.slack < -2, is_end)
