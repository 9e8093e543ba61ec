"""The servers answer, keep their data over `kill -9`, and leave nothing behind."""

from __future__ import annotations

import pytest

from tests.servers import KINDS, server


@pytest.mark.parametrize("kind", KINDS)
def test_starts(kind: str) -> None:
    with server(kind) as one:
        one.kill()
        one.start()
        one.stop()


@pytest.mark.parametrize("server_url", KINDS, indirect=True)
def test_shared(server_url: str) -> None:
    assert server_url
