"""`python -m tests.model [--large] [--sqlite] [--trace]`: every setting, its number of states, its verdict."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.model.stores import Driver, MemoryDriver, RedisDriver, SqliteDriver, Store
from tests.model.table import LARGE, MUTANTS, PROTOCOL, Row


def show(row: Row, store: Store, *, full: bool, trace: bool) -> bool:
    calls = store.calls
    finding = row.run(store, full=full)
    good = set(row.verdict) <= set(finding.verdict) and (row.verdict == "ok") == (finding.verdict == "ok")
    print(
        f"{' ' if good else '!'} {row.text:58} {finding.states:>9} states {store.calls - calls:>6} calls "
        f"{finding.seconds:6.1f} s  {finding.verdict}" + f", and {row.verdict} was expected" * (not good),
        flush=True,
    )
    for letter, steps in finding.broken.items() if trace or not good else ():
        print(f"      {letter}, {len(steps)} steps: {'; '.join(steps)}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="the large settings, too: some minutes")
    parser.add_argument("--sqlite", action="store_true", help="every call on sqlite instead of memory")
    parser.add_argument("--redis", metavar="URL", help="every call on Redis, in a database that may be emptied")
    parser.add_argument("--trace", action="store_true", help="a shortest trace of each counterexample")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        driver: Driver = MemoryDriver()
        if args.redis:
            driver = RedisDriver(args.redis)
        elif args.sqlite:
            driver = SqliteDriver(Path(directory, "model.db"))
        store = Store(driver)
        good = True
        for title, rows in (("the protocol", PROTOCOL + LARGE * args.large), ("a rule left out", MUTANTS)):
            print(title)
            for row in rows:
                if not (args.sqlite and "loss" in row.setting.faults):
                    good &= show(row, store, full=args.large, trace=args.trace)
        driver.close()
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
