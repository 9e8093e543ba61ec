"""Redis, with its append-only file, written out every second."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping

from tests.servers.base import Kind, Unavailable

__all__ = ["Redis"]


class Redis(Kind):
    config_name, port, package = "redis.conf", 6379, "redis-server"
    image_changes = ["WORKDIR /data"]
    hello = b"PING\r\n"

    def __init__(self, version: str, suite: str) -> None:
        self.version, self.suite = version, suite
        self.name, self.image = f"redis-{version}", f"redis:{version}"

    def url(self, port: int) -> str:
        return f"redis://127.0.0.1:{port}/0"

    def is_answer(self, data: bytes) -> bool:
        return data.startswith((b"+PONG", b"-NOAUTH"))

    def config(self, bind: str, port: int, options: Mapping[str, str]) -> str:
        lines = {"bind": bind, "port": str(port), "protected-mode": "no", "save": '""'}
        lines |= {"appendonly": "yes", "appendfsync": "everysec"} | dict(options)
        return "".join(f"{key} {value}\n" for key, value in lines.items())

    def command(self, config: str) -> list[str]:
        return ["redis-server", config]

    def local_command(self, config: str) -> list[str]:
        program = shutil.which("redis-server")
        if program is None:
            raise Unavailable("redis-server is not installed")
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        if not re.search(rf"v={self.version}\.", said):
            raise Unavailable(f"redis-server here is another version: {said.strip()}")
        return [program, config]
