"""What the worker processes may do next. `Steps` is the seam: each method is one step of a process or one fault."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bus.state import Arrival, Attempt, JobState, Verdict
from tests.model.explore import Step
from tests.model.stores import Do, Snapshot
from tests.model.world import NONE, Entry, Hand, Message, Process, Setting, World, name_of, page, put_at

Steps_ = Iterator[Step[World]]


class Steps:
    """All steps of all processes. The calls of the state are those of the real adapter, through `do`.

    One delivery: recv -> arrive -> got -> fetch -> fetched -> its links and its end are in the outbox.
    One batch of an outbox: check -> publish (the bus stores each message on its own) -> confirmed -> mark ->
    finish -> retry; the acks go out behind it, while the next batch may be under way.

    Words in `setting.rules`, each a rule left out or changed:
    filter      links that wait in the process's own outbox are skipped (the protocol, where there are many hands)
    unordered   ... and then the page is finished at once, without waiting for the batch that holds them
    unmarked    links of a page whose callback raised are not marked
    drop        a process that loses a lease drops what the delivery has put in the outbox
    new-id      a retry is published under a new message id
    retry-ends  a retry finishes its page
    together    a page that is fetched alone does not wait for its neighbours
    no-run      calls carry the run of the moment, not that of the message
    """

    def __init__(self, setting: Setting, do: Do) -> None:
        self.setting, self.do = setting, do

    def __call__(self, world: World) -> Steps_:
        for i, process in enumerate(world.processes):
            me = f"w{i + 1}"
            yield from self.crash(world, i, process, me)
            yield from self.outbox(world, i, process, me)
            for n, hand in enumerate(process.hands):
                if hand is None:
                    yield from self.receive(world, i, n, me)
                else:
                    yield from self.lose_lease(world, i, n, hand, me)
                    yield from self.hand(world, i, n, hand, me)
        yield from self.lose_store(world)

    # small things

    def call(self, world: World, run: int, name: str, *args: Any, **options: Any) -> tuple[Any, Snapshot]:
        run = world.store.run if "no-run" in self.setting.rules else run
        job = world.store.job._replace(run=run)
        return self.do(world.store, name, job, *args, **options)

    def put(self, world: World, i: int, process: Process) -> World:
        return world._replace(processes=put_at(world.processes, i, process))

    def put_hand(self, world: World, i: int, n: int, hand: Hand | None, *entries: Entry) -> World:
        process = world.processes[i]
        hands = put_at(process.hands, n, hand)
        return self.put(world, i, process._replace(hands=hands, waiting=process.waiting + entries))

    def arrival(self, message: Message, alone: bool = False) -> Arrival:
        return Arrival(page(message.page), message.id, message.attempt, alone)

    # a delivery

    def receive(self, world: World, i: int, n: int, me: str) -> Steps_:
        if self.setting.runners and world.store.state is JobState.FINISHED:
            return  # workers leave when the job is finished, and come back when it runs again
        for k, message in enumerate(world.queue):
            if k == 0 or world.queue[k - 1] != message:
                rest = world._replace(queue=world.queue[:k] + world.queue[k + 1 :])
                yield Step(f"{me} receives {message}", self.put_hand(rest, i, n, Hand("recv", message)))

    def hand(self, world: World, i: int, n: int, hand: Hand, me: str) -> Steps_:
        if world.left("back") and hand.step in ("recv", "got", "fetched"):
            yield self.release(world, i, n, hand, me)
        if hand.step == "back":
            back = self.put_hand(world, i, n, None)
            yield Step(f"{me} hands {hand.message} back", back.back(hand.message) if hand.lease else back)
        elif hand.step in ("recv", "poison"):
            yield from self.arrive(world, i, n, hand, me)
        elif hand.step == "got":
            yield from self.fetch(world, i, n, hand, me)
        elif hand.step == "fetched":
            yield from self.send(world, i, n, hand, me)
        elif hand.step == "bypass":
            (_, after), name = (
                self.call(world, hand.message.run, "finish", (page(hand.message.page),)),
                hand.message.page,
            )
            new = self.put_hand(world._replace(store=after), i, n, hand._replace(step="bypassed"))
            yield Step(f"{me} finishes {name} at once", new.finish(name, hand.links, hand.at))
        elif hand.step == "bypassed":
            yield Step(f"{me} acks {hand.message}", self.put_hand(world, i, n, None))

    def arrive(self, world: World, i: int, n: int, hand: Hand, me: str) -> Steps_:
        others = [other for k, other in enumerate(world.processes[i].hands) if other and k != n]
        if "together" not in self.setting.rules:
            if any(other.alone or other.step == "poison" for other in others) and hand.step == "recv":
                return  # begins nothing else until that page is finished
            if hand.step == "poison" and any(o.step not in ("recv", "poison") or o.alone for o in others):
                return  # waits until nothing else in its process is begun
        message, alone = hand.message, hand.step == "poison"
        answer, after = self.call(world, message.run, "arrive", (self.arrival(message, alone),))
        (verdict,) = answer
        new = world._replace(store=after)
        if verdict is Verdict.FETCH:
            label, new = "begins", self.put_hand(new, i, n, hand._replace(step="got", alone=alone))
        elif verdict is Verdict.ALONE:
            label, new = "must fetch alone", self.put_hand(new, i, n, hand._replace(step="poison"))
        elif verdict is Verdict.DEAD:
            entries = [Entry(kind, message, n, at=new.store.run) for kind in ("dead", "finish")]
            label, new = "finds poisonous", self.put_hand(new, i, n, hand._replace(step="sent"), *entries)
        else:
            label, new = f"acks unread ({verdict.value})", self.put_hand(new, i, n, None)
        yield Step(f"{me} {label}: {message}", new)

    def release(self, world: World, i: int, n: int, hand: Hand, me: str) -> Step[World]:
        new, begun = world.spend("back"), hand.step != "recv"
        if begun:
            _, after = self.call(world, hand.message.run, "release", (self.arrival(hand.message),))
            new = new._replace(store=after, slack=world.slack + 1)
        return Step(f"{me} releases {hand.message}", self.put_hand(new, i, n, hand._replace(step="back")))

    def fetch(self, world: World, i: int, n: int, hand: Hand, me: str) -> Steps_:
        message, setting, run = hand.message, self.setting, world.store.run
        name = message.page
        slack = world.slack - (name in world.fetched)
        world = world._replace(fetched=world.fetched | {name}, slack=slack)
        if name in setting.kills:
            hurt = world._replace(hurt=world.hurt | {name})
            yield Step(f"{me} fetches {name}: KILLED by the page", self.kill(hurt, i, spare=n))
        for links in map(frozenset, setting.site[name]) if name not in setting.kills else ():
            new = self.put_hand(world, i, n, hand._replace(step="fetched", links=links, at=run))
            yield Step(f"{me} fetches {name}: {''.join(sorted(links)) or 'no links'}", new)
            if world.left("half"):
                dead = Entry("dead", message, n, at=run)
                new = self.put_hand(world.spend("half"), i, n, hand._replace(links=links, at=run))
                new = self.into_outbox(new, i, n, dead)
                yield Step(f"{me} fetches {name}: {''.join(sorted(links))}, then its callback raises", new)
        yield from self.fail(world, i, n, hand, me)

    def fail(self, world: World, i: int, n: int, hand: Hand, me: str) -> Steps_:
        message, run = hand.message, world.store.run
        ways = [kind for kind in ("retry", "dead") if world.left(kind)]
        ways += ["fail"] if message.page in self.setting.fails or world.left("fail") else []
        for way in ways:
            again = way == "retry" or (way == "fail" and message.attempt + 1 < self.setting.attempts)
            new = world.spend(way)
            if again and message.page not in self.setting.fails:
                new = new._replace(slack=new.slack + 1)
            if again:
                id = world.fresh(message.page) if "new-id" in self.setting.rules else message.id
                entries = [Entry("again", message._replace(id=id, attempt=message.attempt + 1), n)]
                entries += [Entry("finish", message, n, at=-1)] if "retry-ends" in self.setting.rules else []
            else:
                entries = [Entry(kind, message, n, at=run) for kind in ("dead", "finish")]
            sent = self.put_hand(new, i, n, hand._replace(step="sent"), *entries)
            yield Step(f"{me} fetches {message.page}: fails, {'retry' if again else 'dead'}", sent)

    def send(self, world: World, i: int, n: int, hand: Hand, me: str) -> Steps_:
        yield Step(f"{me} yields all of {hand.message}", self.into_outbox(world, i, n))

    def into_outbox(self, world: World, i: int, n: int, *dead: Entry) -> World:
        """The links of a page, its dead letter if its callback raised, and its end enter the outbox."""
        process, rules = world.processes[i], self.setting.rules
        hand = process.hands[n]
        assert hand is not None
        message, links = hand.message, hand.links
        if "filter" in rules:
            links -= {e.message.page for e in process.waiting + process.batch if e.kind == "link"}
        if "unordered" in rules and not links:
            return self.put_hand(world, i, n, hand._replace(step="bypass"))
        kind = "unmarked" if dead and "unmarked" in rules else "link"
        entries = [Entry(kind, Message("", link, 0, message.run), n) for link in sorted(links)]
        entries += [*dead, Entry("finish", message, n, links=hand.links, at=hand.at)]
        return self.put_hand(world, i, n, hand._replace(step="sent", links=NONE, at=0), *entries)

    # an outbox

    def outbox(self, world: World, i: int, process: Process, me: str) -> Steps_:
        if process.acking:
            yield from self.ack(world, i, process._replace(acking=()), process.acking, me)
        if not process.batch:
            if process.waiting:
                new = process._replace(waiting=(), batch=process.waiting)
                yield from self.enter(world, i, new, -1, f"{me} takes a batch")
            return
        at = self.setting.stages.index(process.stage)
        if process.stage == "publish":
            yield from self.publish(world, i, process, at, me)
        elif process.stage == "ack":  # only where a mutant acks before the end of the batch
            ended = tuple(e.hand for e in process.batch if e.kind in ("finish", "again"))
            for step in self.ack(world, i, process, ended, me):
                yield from self.enter(step.world, i, step.world.processes[i], at, step.label)
        else:
            label, new, after = getattr(self, process.stage)(world, process)
            yield from self.enter(new, i, after, at, f"{me} {label}")

    def enter(self, world: World, i: int, process: Process, at: int, label: str) -> Steps_:
        """The next stage at which this batch has something to do; behind the last one, its acks go out."""
        kinds = {entry.kind for entry in process.batch}
        needs = {
            "check": {"link", "unmarked"}, "publish": {"link", "unmarked", "again", "dead"},
            "mark": {"link", "finish"} if self.setting.one_call else {"link"},
            "finish": {"finish"}, "retry": {"again"}, "ack": {"finish", "again"},
        }  # fmt: skip
        for stage in self.setting.stages[at + 1 :]:
            if stage == "ack" and stage == self.setting.stages[-1]:
                break
            if needs[stage] & kinds and not (stage == "finish" and self.setting.one_call):
                yield Step(label, self.put(world, i, process._replace(stage=stage)))
                return
        acked = self.setting.stages[-1] != "ack"
        ended = () if acked else tuple(e.hand for e in process.batch if e.kind in ("finish", "again"))
        if process.acking and ended:
            return  # never two acks at a time
        done = process._replace(batch=(), stage="", acking=process.acking + tuple(dict.fromkeys(ended)))
        yield Step(label, self.put(world, i, done))

    def check(self, world: World, process: Process) -> tuple[str, World, Process]:
        """What is not seen gets a message id; a link that is seen leaves the batch."""
        links = [entry for entry in process.batch if entry.kind in ("link", "unmarked")]
        names = {entry.message.page: entry.message.run for entry in links}
        unseen: set[str] = set()
        for run in sorted(set(names.values())):
            asked = tuple(page(name) for name in sorted(names) if names[name] == run)
            answer, _ = self.call(world, run, "check", asked)
            unseen |= {name_of(page_id) for page_id in answer}
        ids = {name: world.fresh(name) for name in unseen}
        batch: list[Entry] = []
        for entry in process.batch:
            if entry.kind not in ("link", "unmarked"):
                batch.append(entry)
            elif (id := ids.pop(entry.message.page, None)) is not None:
                batch.append(entry._replace(message=entry.message._replace(id=id)))
        label = f"checks {''.join(sorted(names))}: publishes {''.join(sorted(unseen)) or 'none'}"
        return label, world, process._replace(batch=tuple(batch))

    def publish(self, world: World, i: int, process: Process, at: int, me: str) -> Steps_:
        left = [k for k, e in enumerate(process.batch) if e.kind not in ("finish",) and not e.stored]
        stored = [k for k, e in enumerate(process.batch) if e.stored]
        if not left:
            yield from self.enter(world, i, process, at, f"{me} gets the confirm")
            return
        for k in left:
            entry = process.batch[k]
            batch = put_at(process.batch, k, entry._replace(stored=True))
            new = self.put(world, i, process._replace(batch=batch))
            if entry.kind == "dead":
                new = new._replace(dead=new.dead | {entry.message.page})
                yield Step(f"{me}: {entry.message.page} is stored in the dead log", new)
            else:
                yield Step(f"{me}: {entry.message} is stored", new.back(entry.message))
        if world.left("unconf") and stored:
            batch = tuple(entry._replace(stored=False) for entry in process.batch)
            excuse = sum(1 for k in stored if process.batch[k].kind != "dead")
            new = self.put(world, i, process._replace(batch=batch)).spend("unconf")
            new = new._replace(slack=new.slack + excuse)
            yield Step(f"{me}'s CONFIRM FAILS, it publishes all again", new, True)

    def mark(self, world: World, process: Process) -> tuple[str, World, Process]:
        links = [entry.message for entry in process.batch if entry.kind == "link"]
        ends = [entry for entry in process.batch if entry.kind == "finish" and self.setting.one_call]
        for run in sorted({message.run for message in links} | {entry.message.run for entry in ends}):
            marks = tuple(page(message.page) for message in links if message.run == run)
            finish = tuple(page(entry.message.page) for entry in ends if entry.message.run == run)
            _, after = self.call(world, run, "mark", marks, finish=finish)
            world = world._replace(store=after)
        for entry in ends:
            world = world.finish(entry.message.page, entry.links, entry.at)
        names = "".join(sorted(message.page for message in links))
        label = f"marks {names or 'none'}" + f", finishes {''.join(e.message.page for e in ends)}" * bool(ends)
        return label, world, process

    def finish(self, world: World, process: Process) -> tuple[str, World, Process]:
        ends = [entry for entry in process.batch if entry.kind == "finish"]
        for entry in ends:
            _, after = self.call(world, entry.message.run, "finish", (page(entry.message.page),))
            world = world._replace(store=after).finish(entry.message.page, entry.links, entry.at)
        return f"finishes {''.join(entry.message.page for entry in ends)}", world, process

    def retry(self, world: World, process: Process) -> tuple[str, World, Process]:
        again = [entry.message for entry in process.batch if entry.kind == "again"]
        for message in again:
            attempt = Attempt(page(message.page), message.id, message.attempt)
            _, after = self.call(world, message.run, "retry", (attempt,))
            world = world._replace(store=after)
        return f"enters the next attempt of {', '.join(message.id for message in again)}", world, process

    def ack(self, world: World, i: int, process: Process, ended: tuple[int, ...], me: str) -> Steps_:
        hands = [(n, hand) for n in ended if (hand := process.hands[n])]
        rest = tuple(None if n in ended else hand for n, hand in enumerate(process.hands))
        done = self.put(world, i, process._replace(hands=rest))
        label = f"{me} acks {', '.join(str(hand.message) for _, hand in hands)}"
        yield Step(label, done)
        for _, hand in hands if world.left("acklost") else ():
            if hand.lease:
                new = done.back(hand.message).spend("acklost")
                more = self.setting.tries(hand.message.page, hand.message.attempt) - 1
                yield Step(f"{label}: THE ACK IS LOST", new._replace(slack=new.slack + more), True)

    # faults

    def kill(self, world: World, i: int, spare: int | None = None) -> World:
        """A process ends; what it held comes back. `spare`: the fetch that is no surprise."""
        hands = world.processes[i].hands
        back = [hand.message for hand in hands if hand and hand.lease]
        excuse = sum(self.setting.excuse(hand.message) for n, hand in enumerate(hands) if hand and n != spare)
        new = self.put(world, i, Process((None,) * len(hands))).back(*back)
        return new._replace(slack=new.slack + excuse)

    def crash(self, world: World, i: int, process: Process, me: str) -> Steps_:
        if world.left("crash") and not process.idle:
            where = process.stage or "/".join(hand.step for hand in process.hands if hand)
            yield Step(f"{me} CRASHES at {where}", self.kill(world, i).spend("crash"), True)

    def lose_lease(self, world: World, i: int, n: int, hand: Hand, me: str) -> Steps_:
        if not (world.left("lease") and hand.lease):
            return
        new = self.put_hand(world, i, n, hand._replace(lease=False)).back(hand.message).spend("lease")
        new = new._replace(slack=new.slack + self.setting.excuse(hand.message))
        if "drop" in self.setting.rules:
            new = self.drop(new, i, n)
        yield Step(f"{me} LOSES THE LEASE of {hand.message}", new, True)

    def drop(self, world: World, i: int, n: int) -> World:
        process = world.processes[i]
        batch = tuple(entry for entry in process.batch if entry.hand != n or entry.stored)
        return self.put(
            world,
            i,
            Process(
                hands=put_at(process.hands, n, None),
                waiting=tuple(entry for entry in process.waiting if entry.hand != n),
                batch=batch,
                stage=process.stage if batch else "",
                acking=tuple(k for k in process.acking if k != n),
            ),
        )

    def lose_store(self, world: World) -> Steps_:
        if not world.left("loss"):
            return
        if world.saved is None:
            yield Step("(here begins the store's last second)", world._replace(saved=world.store), True)
        elif world.saved != world.store:
            was, now = world.saved, world.store
            gone = len(was.pages ^ now.pages) + len(was.begun ^ now.begun)
            store = was._replace(state=JobState.RUNNING, suspect=True)  # what a process does that finds it so
            new = world.spend("loss")._replace(store=store, saved=None, lost=True, slack=world.slack + 2 * gone)
            yield Step("THE STORE LOSES ITS LAST SECOND", new, True)
