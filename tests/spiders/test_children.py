"""A child of a fleet: started again, given up, told to stop."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from spiders.children import FAILURES, Child, ChildFailed, Reached
from spiders.relay import LAST_WORDS_S, Relay
from tests.servers import free_port


def reaching(reached: Reached) -> Child:
    """One whose state does not answer."""
    nowhere = f"redis://127.0.0.1:{free_port()}"
    return Child(["job", "list", "--bus", "sqlite:///bus.db", "--state", nowhere], {}, reached)


def test_what_was_never_reached_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ChildFailed, match="--state") as failed:
        asyncio.run(reaching(Reached()).run())
    assert failed.value.code == 3


def test_what_was_reached_is_waited_for_until_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    child = reaching(Reached(True))

    async def run() -> int:
        running = asyncio.create_task(child.run())
        while child.restarts <= FAILURES:
            assert not running.done()
            await asyncio.sleep(0.01)
        child.stop()  # in the pause before it is started once more
        return await running

    assert asyncio.run(run()) == 0
    assert child.restarts == FAILURES + 1


def test_a_grandchild_that_lives_on_does_not_hold_its_place() -> None:
    code = dedent(
        """
        import subprocess, sys
        subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"])
        print("crawlbus: no", file=sys.stderr)
        """
    )

    async def run() -> tuple[str, float]:
        relay, loop = Relay(), asyncio.get_running_loop()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE, stderr=relay.write
        )
        try:
            await relay.begin()
            await process.wait()
            ended_s = loop.time()
            return await relay.last_words(), loop.time() - ended_s
        finally:
            relay.close()
            assert process.stdin is not None
            process.stdin.close()

    words, took_s = asyncio.run(run())
    assert words == "crawlbus: no" and took_s < LAST_WORDS_S + 20
