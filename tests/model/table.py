"""Every setting with its verdict. A row of the protocol must be `ok`; a row that leaves a rule out must break.

L lost URL · P false mark · O never ends · D ends early · X unexcused fetch · S stuck · F finished while something is
open · E a run ends though its `start()` did not · h a page is dead that never hurt anybody
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.model import mutants
from tests.model.explore import Finding, Model, explore
from tests.model.jobs import JobSteps
from tests.model.power import PowerCut
from tests.model.steps import Steps
from tests.model.stores import Do, Store
from tests.model.world import Setting, World, judge

ONE = {"P": ["C"], "C": [""]}
SHARED = {"P": ["C"], "Q": ["C"], "C": ["E"], "E": [""]}
FICKLE = {"P": ["C", "D"], "Q": ["C"], "C": [""], "D": [""]}
GONE = {"P": ["C", ""], "Q": ["C"], "C": [""]}
WIDE = FICKLE | {"P": ["CD"]}
LOOP = {"P": ["C"], "Q": ["C"], "C": ["PE"], "E": [""]}
MIXED = {"P": ["CD", "D"], "Q": ["C"], "C": ["E"], "D": [""], "E": [""]}
TWIN = {"P": [""]}
DUO = {"K": [""], "J": [""]}
STARTS = {"P": ["C"], "C": [""], "R": [""], "S": [""]}
BACKWARDS = {"B": ["A"], "A": [""]}
AGAIN = {"P": ["X"], "X": [""], "p": ["X"], "x": [""]}  # small letters: dead letters retried


class Row(NamedTuple):
    text: str
    setting: Setting
    verdict: str = "ok"
    mutate: Callable[[Do], Do] | None = None
    sqlite: bool = False  # in CI, on sqlite as well

    @property
    def redis(self) -> bool:
        """In CI, on Redis as well: those that sqlite is asked but for the longest, and a loss."""
        return "loss" in self.setting.faults or (self.sqlite and "seed" not in self.setting.faults)

    def run(self, store: Store, *, full: bool = False) -> Finding:
        """`full`: go on where what was looked for has been found."""
        do = self.mutate(store.do) if self.mutate else store.do
        kind = JobSteps if self.setting.runners else Steps
        steps = PowerCut(kind, self.setting, do) if "power" in self.setting.faults else kind(self.setting, do)
        until = None if full or self.verdict == "ok" else self.verdict
        model = Model(self.setting.first(), steps, lambda world: judge(world, self.setting), _key)
        return explore(model, until=until)


def _key(world: World) -> World:
    """Processes are interchangeable."""
    return world._replace(processes=tuple(sorted(world.processes, key=hash)))


def _row(text: str, site: Any, seeds: str = "", faults: str = "", verdict: str = "ok", **more: Any) -> Row:
    """`faults`: words; one that is there twice may strike twice."""
    words = faults.split()
    row = {name: more.pop(name) for name in ("mutate", "sqlite") if name in more}
    rules = frozenset(more.pop("rules", "").split())
    if "starts" in more:
        more = {"runners": 2, "hands": (1,), **more}
    setting = Setting(site, seeds, {word: words.count(word) for word in words}, rules=rules, **more)
    return Row(text, setting, verdict, **row)


def _order(stages: str) -> tuple[str, ...]:
    return tuple(stages.split())


TWO_HANDS: dict[str, Any] = {"hands": (2,), "rules": "filter"}

PROTOCOL = [
    _row("two workers, a crash", SHARED, "PQ", "crash", sqlite=True),
    _row("a lost lease", SHARED, "PQ", "lease"),
    _row("a lost lease; mark and finish in one call", SHARED, "PQ", "lease", one_call=True, sqlite=True),
    _row("a failed confirm, a crash", WIDE, "P", "unconf crash"),
    _row("a retry, a dead letter, a crash", ONE, "P", "retry dead crash", sqlite=True),
    _row("a retry under a lost lease", ONE, "P", "retry lease", sqlite=True),
    _row("a retry, two lost acks", ONE, "P", "retry acklost acklost", sqlite=True),
    _row("a page that changes, a crash, a lost ack", FICKLE, "P", "crash acklost"),
    _row("a doubled message", FICKLE, "PPQ", "crash", hands=(1,)),
    _row("links that lead back", LOOP, "P", "crash lease"),
    _row("a store that loses its last second, a crash", ONE, "P", "loss crash"),
    _row("a power cut, a crash", ONE, "P", "power crash"),
    _row("a power cut, a retry", ONE, "P", "power retry", sqlite=True),
    _row("one process, two hands, a lost lease", FICKLE, "PQ", "lease", one_call=True, sqlite=True, **TWO_HANDS),
    _row("... a callback that raises after its links", FICKLE, "PQ", "half", **TWO_HANDS),
    _row("... a crash", GONE, "PQ", "crash", one_call=True, **TWO_HANDS),
    _row("a page that kills, a crash", ONE, "P", "crash", kills="C", sqlite=True),
    _row("a page that kills, a lost lease, a failed confirm", ONE, "P", "lease unconf", kills="C"),
    _row("a page that kills or fails, a lost ack", ONE, "P", "acklost", kills="C", fails="C"),
    _row("a page that kills beside a healthy one", DUO, "KJ", hands=(2,), kills="K", sqlite=True),
    _row("handed back, under a lost lease", TWIN, "PP", "lease back back", hands=(1, 1, 1), rules="ids", sqlite=True),
    _row("start(): a lost lease", STARTS, faults="runner-lease", starts=("P", "R"), sqlite=True),
    _row("start(): a crash, of the worker too", STARTS, faults="runner-crash crash", starts=("P", "R")),
    _row("start(): a power cut", STARTS, faults="power", starts=("P", "R")),
    _row("a seed under a lost lease", STARTS, faults="seed runner-lease", starts=("P",), sqlite=True),
    _row("a dead letter retried, a crash", AGAIN, faults="dead retry-dead runner-crash", starts=("P",)),
    _row("after a loss of the store: the slow end", ONE, faults="loss", starts=("P",)),
    _row("a restart; a zombie of the run before", ONE, faults="restart lease", starts=("P",), runners=1, hands=(1, 1)),
    _row("a restart; a start() of the run before", ONE, faults="restart runner-lease", starts=("P",), sqlite=True),
]  # fmt: skip

MUTANTS = [
    _row("mark before the confirm", ONE, "P", "crash", "LOP", stages=_order("check mark publish finish retry ack")),
    _row("finish before mark", ONE, "P", "", "D", stages=_order("check publish finish mark retry ack")),
    _row("ack before finish", ONE, "P", "crash", "LOP", stages=_order("check publish mark ack finish retry")),
    _row("a retry is acked before its confirm", ONE, "P", "crash retry", "LOP",
         stages=_order("check ack publish mark finish retry")),
    _row("a retry is acked before it is entered", ONE, "P", "crash retry acklost", "X",
         stages=_order("check publish mark finish ack retry")),
    _row("a retry under a new message id", ONE, "P", "retry", "LOP", rules="new-id"),
    _row("a retry finishes its page", ONE, "P", "retry", "DLP", rules="retry-ends"),
    _row("a page that is skipped is finished at once", GONE, "PQ", "crash", "DL", hands=(2,),
         rules="filter unordered"),
    _row("a lost lease drops what is in the outbox", GONE, "PQ", "lease", "DL", hands=(2,), rules="filter drop"),
    _row("links of a page that died are not marked", ONE, "P", "half", "D", rules="unmarked"),
    _row("no register of begun pages", SHARED, "PQ", "crash", "X", mutate=mutants.nothing_begun),
    _row("no attempt is superseded", ONE, "P", "retry acklost acklost", "X", mutate=mutants.no_superseded),
    _row("mark opens what is seen", LOOP, "PQ", "crash", "OX", mutate=mutants.mark_opens_again),
    _row("arrive takes what is not seen for done", ONE, "P", "", "LOP", mutate=mutants.unseen_is_done),
    _row("finish forgets the page", LOOP, "PQ", "", "X", mutate=mutants.finish_forgets),
    _row("arrive does not wake a finished job", STARTS, "", "runner-lease", "F", starts=("P", "R"),
         mutate=mutants.arrive_wakes_nothing),
    _row("release removes an entry", TWIN, "PP", "lease back back", "OP", hands=(1, 1, 1), rules="ids",
         mutate=mutants.release_removes),
    _row("release makes an entry", ONE, "P", "lease back", "O", mutate=mutants.release_makes),
    _row("dead after so many starts, whoever died", DUO, "KJ", "", "h", hands=(2,), kills="K",
         mutate=mutants.never_alone),
    _row("alone, but beside others", DUO, "KJ", "", "h", hands=(2,), kills="K", rules="together"),
    _row("the end in two calls", STARTS, "", "runner-lease", "DFLOP", starts=("P", "R"), rules="torn"),
    _row("`open` read bucket by bucket", BACKWARDS, "", "", "DFLOP", starts=("B",), rules="buckets"),
    _row("start() ends before its last mark", STARTS, "", "", "DL", starts=("P",), rules="hasty-end"),
    _row("start pages are not marked", STARTS, "", "", "DL", starts=("P",), rules="unmarked-start"),
    _row("anybody may end start()", ONE, "", "restart runner-lease", "E", starts=("P",),
         mutate=mutants.end_start_without_lease),
    _row("a decision before the mark", AGAIN, "", "dead retry-dead runner-crash", "DL", starts=("P",),
         rules="decide-first"),
    _row("a suspect job ends like any other", ONE, "", "loss", "DLS", starts=("P",), rules="quick"),
    _row("mark and finish do not wait for the disk", ONE, "P", "power", "O", rules="lazy"),
    _row("no run numbers", ONE, "", "restart lease", "DLPS", starts=("P",), runners=1, hands=(1, 1),
         rules="no-run purge"),
    _row("beyond the promise: a zombie, a loss and two crashes", TWIN, "PP", "lease loss crash crash", "P",
         rules="ids"),
]  # fmt: skip

LARGE = [
    _row("two crashes", SHARED, "PQ", "crash crash"),
    _row("a crash, a lost lease", SHARED, "PQ", "crash lease", one_call=True),
    _row("a page that changes, a crash, a lost lease", FICKLE, "PQ", "crash lease", one_call=True),
    _row("a retry, a dead letter, a crash", SHARED, "PQ", "retry dead crash", one_call=True),
    _row("deep, a crash", MIXED, "PQ", "crash", one_call=True),
    _row("a failed confirm, a crash", WIDE, "PQ", "unconf crash", one_call=True),
    _row("two hands; a crash", FICKLE, "PQ", "crash", one_call=True, **TWO_HANDS),
    _row("two hands; raises after its links, a crash", FICKLE, "PQ", "half crash", **TWO_HANDS),
    _row("two processes, two hands; a lost lease", FICKLE, "PQ", "lease", one_call=True, hands=(2, 1), rules="filter"),
    _row("a store that loses its last second, a crash", GONE, "PQ", "loss crash", one_call=True),
    _row("a page that kills or fails; a crash, a lost lease", ONE, "P", "crash lease", kills="C", fails="C"),
    _row("a power cut, a lost lease", FICKLE, "PQ", "power lease", one_call=True),
    _row("start(): a power cut, a lost lease", STARTS, faults="power runner-lease", starts=("P", "R")),
    _row("start(): a lost lease, crashes", STARTS, faults="runner-lease runner-crash crash", starts=("P", "R")),
    _row("a seed; a lost lease, a crash", STARTS, faults="seed runner-lease runner-crash", starts=("P",)),
    _row("after a loss: the slow end; a lost lease", ONE | {"R": [""]}, faults="loss runner-lease", starts=("P", "R")),
    _row("a restart; a start() of the run before, a crash", ONE, faults="restart runner-lease crash", starts=("P",)),
]  # fmt: skip
