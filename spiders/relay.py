"""`Relay`: what a child says on standard error is passed on, and the error it ends with is kept."""

from __future__ import annotations

import asyncio
import os
import sys

__all__ = ["Relay"]

CHUNK_BYTES = 64 * 1024
LAST_WORDS_S = 1.0  # what a child has started may outlive it, and hold the pipe open


class Relay:
    """A pipe of our own: with one of asyncio's, waiting for the child would wait for all that hold it.

    A line may be longer than any buffer: Scrapy logs whole items.
    """

    def __init__(self) -> None:
        self._read, self.write = os.pipe()
        self._kept = ""
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Once the child has the other end."""
        os.close(self.write)
        self.write = -1
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(CHUNK_BYTES)
        pipe, self._read = os.fdopen(self._read, "rb", 0), -1
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._task = loop.create_task(self._pass_on(reader, transport))

    async def last_words(self) -> str:
        """The last line that is an error of ours, once the child has ended: it is told once, at the end."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=LAST_WORDS_S)
        return self._kept

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        for fd in (self._read, self.write):
            if fd >= 0:
                os.close(fd)
        self._read = self.write = -1

    async def _pass_on(self, reader: asyncio.StreamReader, transport: asyncio.BaseTransport) -> None:
        rest = b""
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(line)
                if len(rest) > CHUNK_BYTES:
                    sys.stderr.buffer.write(rest)
                    rest = b""
                sys.stderr.buffer.flush()
            if rest:
                self._take(rest)
        finally:
            transport.close()

    def _take(self, line: bytes) -> None:
        if line.startswith(b"crawlbus: "):
            self._kept = line.decode(errors="replace").strip()
        else:
            sys.stderr.buffer.write(line + b"\n")
