"""States with one rule left out, made of the real one: each takes a `do` and gives another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bus.frontier import Begun
from bus.state import Verdict
from tests.model.stores import Do, Snapshot

Answer = tuple[Any, Snapshot]


def after(*calls: str) -> Callable[[Callable[[Snapshot, Any, Any, Snapshot], Answer]], Callable[[Do], Do]]:
    """Change what these calls do: the mutant gets what was before, the arguments, the answer and what is now."""

    def make(change: Callable[[Snapshot, Any, Any, Snapshot], Answer]) -> Callable[[Do], Do]:
        def mutate(do: Do) -> Do:
            def mutated(before: Snapshot, call: str, *args: Any, **options: Any) -> Answer:
                answer, now = do(before, call, *args, **options)
                return change(before, args, answer, now) if call in calls else (answer, now)

            return mutated

        mutate.__doc__ = change.__doc__
        return mutate

    return make


@after("arrive", "retry")
def nothing_begun(before: Snapshot, args: Any, answer: Any, now: Snapshot) -> Answer:
    """There is no register of begun pages: every message of an open page is fetched."""
    return answer, now._replace(begun=frozenset())


@after("arrive")
def no_superseded(before: Snapshot, args: Any, answer: Any, now: Snapshot) -> Answer:
    """A lower attempt counts from nought like a higher one, instead of being superseded."""
    if answer != [Verdict.SUPERSEDED]:
        return answer, now
    arrival = args[1][0]
    others = frozenset(entry for entry in now.begun if entry[0] != arrival.page)
    begun = others | {(arrival.page, Begun(arrival.message, arrival.attempt, 1))}
    return [Verdict.FETCH], now._replace(begun=begun)


@after("mark")
def mark_opens_again(before: Snapshot, args: Any, answer: Any, now: Snapshot) -> Answer:
    """Mark puts into `open` what is in `seen` already."""
    pages = frozenset((page, is_open or page in args[1]) for page, is_open in now.pages)
    return answer, now._replace(pages=pages, open=sum(is_open for _, is_open in pages))


@after("arrive")
def unseen_is_done(before: Snapshot, args: Any, answer: Any, now: Snapshot) -> Answer:
    """Arrive takes a page that is not in `seen` for finished."""
    return (answer, now) if args[1][0].page in before.seen else ([Verdict.DONE], before)


@after("finish")
def finish_forgets(before: Snapshot, args: Any, answer: Any, now: Snapshot) -> Answer:
    """Finish takes the page out of `seen`."""
    return answer, now._replace(pages=frozenset(entry for entry in now.pages if entry[0] not in args[1]))


@after("arrive")
def arrive_wakes_nothing(before: Snapshot, args: Any, answer: Any, now: Snapshot) -> Answer:
    """Arrive does not set a finished job running."""
    return answer, now._replace(state=before.state)


@after("release")
def release_removes(before: Snapshot, args: Any, answer: Any, now: Snapshot) -> Answer:
    """Release removes the entry whose starts are at nought."""
    pages = {arrival.page for arrival in args[1]}
    begun = frozenset(entry for entry in now.begun if entry[0] not in pages or entry[1].starts)
    return answer, now._replace(begun=begun)


@after("release")
def release_makes(before: Snapshot, args: Any, answer: Any, now: Snapshot) -> Answer:
    """Release makes an entry where there is none, with less than no starts."""
    begun = {page for page, _ in now.begun}
    made = {(a.page, Begun(a.message, a.attempt, -1)) for a in args[1] if a.page not in begun}
    pages = frozenset((page, is_open or page in {p for p, _ in made}) for page, is_open in now.pages)
    return answer, now._replace(begun=now.begun | made, pages=now.pages or pages)


@after("arrive")
def never_alone(before: Snapshot, args: Any, answer: Any, now: Snapshot) -> Answer:
    """A page is dead after MAX_STARTS, whoever killed the processes."""
    return ([Verdict.DEAD], now) if answer == [Verdict.ALONE] else (answer, now)


@after("end_start")
def end_start_without_lease(before: Snapshot, args: Any, answer: Any, now: Snapshot) -> Answer:
    """Whoever comes may say that `start()` has ended, whatever run he belongs to."""
    return True, now._replace(start_ended=True)
