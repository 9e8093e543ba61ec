"""A small HTTP/1.1 server for sites on 127.0.0.1, and the process it runs in."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable
from http import HTTPStatus
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias, cast

__all__ = ["Handler", "Reply", "ServerProcess", "main", "reply", "run"]

MAX_HEAD_BYTES = 64 * 1024
HTML = "text/html; charset=utf-8"


class Reply(NamedTuple):
    """A whole answer, head and body, sent after `delay_s`."""

    head: bytes
    body: bytes
    delay_s: float = 0.0


Handler: TypeAlias = Callable[[str], Reply]  # of the path with its query


def reply(
    body: bytes | str = b"",
    *,
    status: int = 200,
    content_type: str = HTML,
    headers: Iterable[tuple[str, str]] = (),
    delay_s: float = 0.0,
) -> Reply:
    """An answer, rendered once."""
    data = body.encode() if isinstance(body, str) else body
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(data)}",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return Reply("\r\n".join([*lines, "", ""]).encode("latin-1"), data, delay_s)


class _Connection(asyncio.Protocol):
    """Answers one request after the other; GET and HEAD only."""

    _transport: asyncio.Transport

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._buffer = b""
        self._waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waits is not None:
            self._waits.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._serve()

    def _serve(self) -> None:
        while self._waits is None and not self._transport.is_closing():
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                if len(head) > MAX_HEAD_BYTES:
                    self._transport.close()
                return
            self._buffer = rest
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        words = head[: head.find(b"\r\n") if b"\r\n" in head else len(head)].split(b" ")
        if len(words) != 3 or words[0] not in (b"GET", b"HEAD"):
            self._send(reply("only GET and HEAD\n", status=405), body=True, close=True)
            return
        answer = self._handler(words[1].decode("latin-1"))
        body, close = words[0] == b"GET", b"\r\nconnection: close" in head.lower()
        if answer.delay_s:
            loop = asyncio.get_running_loop()
            self._waits = loop.call_later(answer.delay_s, self._send_late, answer, body, close)
        else:
            self._send(answer, body, close)

    def _send_late(self, answer: Reply, body: bool, close: bool) -> None:
        self._waits = None
        self._send(answer, body, close)
        self._serve()

    def _send(self, answer: Reply, body: bool, close: bool) -> None:
        self._transport.write(answer.head + answer.body if body else answer.head)
        if close:
            self._transport.close()


async def _serve_until_told(handler: Handler, listener: socket.socket, stop_with_stdin: bool) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    server = await loop.create_server(lambda: _Connection(handler), sock=listener)
    print(_url(listener), flush=True)  # noqa: T201
    if stop_with_stdin:
        threading.Thread(target=_read_to_the_end, args=(loop, stop), daemon=True).start()
    await stop.wait()
    server.close()


def _url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def _read_to_the_end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 1024):
        pass
    loop.call_soon_threadsafe(stop.set)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where it is installed."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if importlib.util.find_spec("uvloop"):
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(coroutine)


def main(make: Callable[[argparse.Namespace, str], Handler], parser: argparse.ArgumentParser) -> None:
    """The command of a site: prints its URL, and serves until SIGTERM or SIGINT. `make` is given that URL."""
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument("--stop-with-stdin", action="store_true", help="end when standard input ends")
    arguments = parser.parse_args()
    try:
        listener = socket.create_server(("127.0.0.1", arguments.port), backlog=1024)
    except (OSError, OverflowError) as error:
        parser.exit(3, f"{parser.prog}: port {arguments.port} cannot be used: {error}\n")
    run(_serve_until_told(make(arguments, _url(listener)), listener, arguments.stop_with_stdin))


class ServerProcess:
    """Runs a module that calls `main` as a child process while the `with` block lasts; `url` has no slash at its end.

    The child ends by its own process id, and by itself when this process is gone.
    """

    url: str
    _child: subprocess.Popen[str]

    def __init__(self, module: str, *arguments: str) -> None:
        self._command = [sys.executable, "-P", "-m", module, "--stop-with-stdin", *arguments]

    def __enter__(self) -> Self:
        # A session of its own: Ctrl-C is for the crawl, which still needs the site to end in good order.
        self._child = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        assert self._child.stdout is not None
        self.url = self._child.stdout.readline().strip()
        if not self.url:
            self.__exit__(None, None, None)
            raise RuntimeError(f"the server did not start: {' '.join(self._command)}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        child = self._child
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()
