"""What may happen to a job besides its pages: `start()`, seeds, dead letters retried, the end, a restart."""

from __future__ import annotations

from bus.state import JobState
from tests.model.explore import Step
from tests.model.steps import Steps, Steps_
from tests.model.stores import JOB
from tests.model.world import NONE, Message, Runner, World, name_of, page, put_at


class JobSteps(Steps):
    """Runners publish page by page: check -> publish -> confirmed -> mark -> next; then they say that they have ended.

    Further words in `setting.rules`:
    torn          the end is read and set in two calls
    buckets       `open` is read bucket by bucket, a page each, instead of from its count
    hasty-end     `start()` is said to have ended before its last page is marked
    unmarked-start  what `start()` publishes is not marked
    decide-first  the decision on a dead letter is recorded before its page is marked
    quick         a suspect job ends like any other
    purge         a restart empties the queue
    """

    def __call__(self, world: World) -> Steps_:
        yield from super().__call__(world)
        yield from self.end(world)
        yield from self.restart(world)
        for i, runner in enumerate(world.runners):
            me = f"r{i + 1}"
            if runner is None:
                yield from self.run(world, i, me)
            else:
                yield from self.lose_runner(world, i, runner, me)
                yield from getattr(self, f"runner_{runner.step}")(world, i, runner, me)

    # the job

    def end(self, world: World) -> Steps_:
        store, rules = world.store, self.setting.rules
        if store.state is not JobState.RUNNING and world.saw is None:
            return
        if "torn" in rules or "buckets" in rules:
            yield from self.end_in_two(world)
        elif not store.suspect or "quick" in rules:
            was = store._replace(suspect=False)
            answer, after = self.do(was, "end", store.job)
            if answer is JobState.FINISHED:
                yield Step("the job is FINISHED", world._replace(store=after._replace(suspect=store.suspect)))
        elif world.idle and not world.queue:
            answer, after = self.do(store, "end", store.job, unaccounted=store.open)
            if answer is JobState.FINISHED:
                yield Step(f"the slow end: FINISHED, unaccounted: {store.open}", world._replace(store=after))

    def end_in_two(self, world: World) -> Steps_:
        store, saw = world.store, world.saw
        if not store.start_ended or any(name.startswith("seed:") for name, _ in store.leases):
            return
        if "torn" in self.setting.rules and saw is None:
            if not store.open:
                yield Step("somebody reads: drained", world._replace(saw=frozenset()))
            return
        buckets = [] if "torn" in self.setting.rules else [page(name) for name in sorted(self.setting.site)]
        left = [bucket for bucket in buckets if bucket not in (saw or ())]
        if left and left[0] in store.are_open:
            if saw is not None:
                yield Step(f"bucket {name_of(left[0])} is not empty", world._replace(saw=None))
        elif left:
            seen = (saw or frozenset()) | {left[0]}
            yield Step(f"somebody reads bucket {name_of(left[0])}: empty", world._replace(saw=seen))
        else:
            done = store._replace(state=JobState.FINISHED)
            yield Step("somebody sets: FINISHED", world._replace(saw=None, store=done))

    def restart(self, world: World) -> Steps_:
        if world.store.state is JobState.FINISHED and world.left("restart"):
            _, after = self.do(world.store, "restart", JOB)
            new = world.spend("restart")._replace(
                store=after, fetched=NONE, finished=NONE, owed=NONE, counted=False, slack=world.slack + 5
            )
            yield Step("RESTART", new._replace(queue=()) if "purge" in self.setting.rules else new)

    # a runner

    def put_runner(self, world: World, i: int, runner: Runner | None) -> World:
        return world._replace(runners=put_at(world.runners, i, runner))

    def run(self, world: World, i: int, me: str) -> Steps_:
        run = world.store.run
        if not world.store.start_ended:
            answer, after = self.call(world, run, "acquire", "start", me)
            for todo in self.setting.starts if answer else ():
                new = self.put_runner(world._replace(store=after), i, Runner("start", todo, run))
                yield Step(f"{me} takes the lease and runs start(): {todo}", new)
        if world.left("seed"):
            answer, after = self.call(world, run, "acquire", "seed:file", me)
            if answer:
                new = self.put_runner(world._replace(store=after), i, Runner("seed", "S", run)).spend("seed")
                yield Step(f"{me} begins to seed S", new)
        for name in sorted(world.dead - world.decided) if world.left("retry-dead") else ():
            if not name.islower():  # a page that was dead twice stays so
                new = self.put_runner(world, i, Runner("retry", "", run, "publish", name.lower()))
                yield Step(f"{me} retries the dead letter of {name}", new.spend("retry-dead"))

    def lose_runner(self, world: World, i: int, runner: Runner, me: str) -> Steps_:
        leases = {"start": "start", "seed": "seed:file", "retry": ""}[runner.kind]
        free = world.store._replace(leases=world.store.leases - {(leases, me)})
        if world.left("runner-crash"):
            new = self.put_runner(world._replace(store=free), i, None).spend("runner-crash")
            yield Step(f"{me} ({runner.kind}) CRASHES at {runner.step} {runner.page}", new, True)
        if world.left("runner-lease") and runner.lease and leases:
            new = self.put_runner(world._replace(store=free), i, runner._replace(lease=False))
            yield Step(f"{me} ({runner.kind}) LOSES ITS LEASE", new.spend("runner-lease"), True)

    def runner_next(self, world: World, i: int, runner: Runner, me: str) -> Steps_:
        if not runner.todo:
            yield from self.runner_ends(world, i, runner, me)
            return
        name, rest = runner.todo[0], runner.todo[1:]
        unseen, _ = self.call(world, runner.run, "check", (page(name),))
        if unseen:
            new = self.put_runner(world, i, runner._replace(todo=rest, page=name, step="publish"))
            yield Step(f"{me} checks {name}: not seen", new)
        else:
            new = self.put_runner(world, i, runner._replace(todo=rest, did=runner.did | {name}))
            yield Step(f"{me} checks {name}: seen", new)

    def runner_publish(self, world: World, i: int, runner: Runner, me: str) -> Steps_:
        message = Message(world.fresh(runner.page), runner.page, 0, runner.run)
        new = self.put_runner(world, i, runner._replace(step="confirm", did=runner.did | {runner.page}))
        yield Step(f"{me}: {message} is stored", new.back(message))

    def runner_confirm(self, world: World, i: int, runner: Runner, me: str) -> Steps_:
        step = "next" if "unmarked-start" in self.setting.rules else "mark"
        new = self.put_runner(world, i, runner._replace(step=step))
        if runner.kind == "retry" and "decide-first" in self.setting.rules:
            new = new._replace(decided=new.decided | {runner.page.upper()}).owe(frozenset(runner.page))
        yield Step(f"{me} gets the confirm", new)

    def runner_mark(self, world: World, i: int, runner: Runner, me: str) -> Steps_:
        if "hasty-end" in self.setting.rules and runner.kind == "start" and not runner.todo:
            yield from self.runner_ends(world, i, runner, me)
        _, after = self.call(world, runner.run, "mark", (page(runner.page),))
        step = "decide" if runner.kind == "retry" else "next"
        new = self.put_runner(world._replace(store=after), i, runner._replace(step=step))
        yield Step(f"{me} marks {runner.page}", new)

    def runner_decide(self, world: World, i: int, runner: Runner, me: str) -> Steps_:
        new = world._replace(decided=world.decided | {runner.page.upper()}).owe(frozenset(runner.page))
        yield Step(f"{me} records the decision", self.put_runner(new, i, None))

    def runner_ends(self, world: World, i: int, runner: Runner, me: str) -> Steps_:
        lease = "start" if runner.kind == "start" else "seed:file"
        ended = runner.kind == "seed"
        if not ended:
            ended, after = self.call(world, runner.run, "end_start", me)
            world = world._replace(store=after)
        _, after = self.call(world, runner.run, "drop", lease, me)
        new = self.put_runner(world._replace(store=after), i, None)
        if ended and runner.run == world.store.run:
            new = new.owe(runner.did)._replace(counted=new.counted or runner.kind == "start")
        yield Step(f"{me} ends its {runner.kind}" + " (refused)" * (not ended), new)
