"""A `start()` that comes to its end while the state does not answer."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.servers import server
from tests.spiders.scene import Site, environment, project, stored, wait_until

WAIT_S = 90
LATE = """
    import asyncio, os

    class Shop(scrapy.Spider):
        name = "shop"

        async def start(self):
            yield Request(self.url + "/a")
            while not os.path.exists("go"):
                await asyncio.sleep(0.05)
            yield Request(self.url + "/b")

        def parse(self, response):
            yield {"url": response.url}
"""


def test_a_start_that_ends_while_the_state_does_not_answer(tmp_path: Path) -> None:
    project(tmp_path, LATE)
    site, log = Site({"/a": "", "/b": ""}), tmp_path / "log"
    with server("redis-7") as state, site.open() as url, log.open("wb") as out:
        place = ["--bus", "sqlite:///bus.db", "--state", state.url, "--sink", "sqlite:///items.db"]
        command = [sys.executable, "-P", "-m", "bus.cli", "crawl", "shop", "-a", f"url={url}", *place]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=out, stderr=out)
        try:
            wait_until(lambda: site.hits["/a"] > 0, timeout_s=WAIT_S)
            state.freeze()
            (tmp_path / "go").touch()
            wait_until(lambda: b"waiting, and going on" in log.read_bytes(), timeout_s=WAIT_S)
            time.sleep(1.0)
            state.thaw()
            assert process.wait(WAIT_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
    assert site.hits["/a"] == site.hits["/b"] == 1 and len(stored(tmp_path)[1]) == 2
    assert "Traceback" not in log.read_text()
