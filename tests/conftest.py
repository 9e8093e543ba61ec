"""Real servers for every test: `server_url`, and what becomes of a test whose server cannot be had here."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator

import pytest

from tests.servers import Unavailable, shared_url


@pytest.fixture
def server_url(request: pytest.FixtureRequest) -> str:
    """Of the shared server whose kind is the parameter:
    `@pytest.mark.parametrize("server_url", kinds("redis"), indirect=True)`."""
    return shared_url(request.param)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start all that will be asked for, side by side, while the first tests run. Of several processes each has servers
    of its own, and starts them as it needs them."""
    if session.config.option.collectonly or "PYTEST_XDIST_WORKER" in os.environ:
        return
    specs = (getattr(item, "callspec", None) for item in session.items)
    for kind in sorted(
        {spec.params["server_url"] for spec in specs if spec is not None and "server_url" in spec.params}
    ):
        threading.Thread(target=_start, args=(kind,), daemon=True, name=kind).start()


def _start(kind: str) -> None:
    try:
        shared_url(kind)
    except Exception:
        pass  # said by each test that asks for it


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    yield from _skip_unavailable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    yield from _skip_unavailable()


def _skip_unavailable() -> Generator[None, None, None]:
    """On a person's machine a server that is not there is no mistake; in CI it is."""
    try:
        return (yield)
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
