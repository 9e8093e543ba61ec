"""`crawlbus status --watch` while the bus or the state is away."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

from bus.registry import connect_state
from tests.servers import server
from tests.spiders.scene import environment, wait_until


def test_it_outlives_an_outage_and_says_each_change_once(tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"

    def rows() -> list[dict[str, Any]]:
        """Of the jobs at each look."""
        return [json.loads(line)["jobs"][0] for line in out.read_text().splitlines()]

    def waits_for(count: int) -> None:
        wait_until(lambda: err.read_text().count("WARNING") == count)

    with server("redis-7") as bus, server("redis-7") as state, out.open("w") as to, err.open("w") as log:
        asyncio.run(new_job(state.url))
        bus.kill()
        state.kill()
        command = [sys.executable, "-m", "bus.cli", "status", "--watch", "--json", "--bus", bus.url, "--state"]
        with subprocess.Popen([*command, state.url], stdout=to, stderr=log, env=environment(), cwd=tmp_path) as watcher:
            try:
                waits_for(1)
                state.start()
                wait_until(lambda: rows() and rows()[-1]["queued"] is None)
                waits_for(2)
                bus.start()
                wait_until(lambda: rows()[-1]["queued"] == 0)
                waits_for(3)
                state.kill()
                waits_for(4)
                seen = len(rows())
                state.start()
                wait_until(lambda: len(rows()) > seen + 1)
            finally:
                watcher.send_signal(signal.SIGTERM)
            assert watcher.wait(20) == 0
    said = [line.partition("bus.cli_status: ")[2] for line in err.read_text().splitlines()]
    assert [next(word for word in ("STATE", "BUS", "is back") if word in line) for line in said] == [
        "STATE", "BUS", "is back", "STATE", "is back",
    ]  # fmt: skip


async def new_job(url: str) -> None:
    async with aclosing(await connect_state(url)) as state:
        await state.join("shop", spider="shop")
