"""A Docker engine: the one that answers, or else, for root, one of our own."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import time
from contextlib import closing
from typing import IO

import docker
from docker.errors import DockerException

from tests.servers.base import CACHE, Unavailable, alone, reaper

__all__ = ["Engine", "answering", "leave", "own"]

HOME = CACHE / "docker"
NETWORK = "crawlbus-tests"
START_TIMEOUT_S = 30.0
_use: list[IO[str]] = []  # our share in the engine


class Engine:
    def __init__(self, host: str, network: str | None = None) -> None:
        self.host, self.network = host, network

    @property
    def settings(self) -> dict[str, object]:
        """For `docker.from_env`."""
        return {"environment": {"DOCKER_HOST": self.host}}

    def client(self) -> docker.DockerClient:
        return docker.from_env(**self.settings)

    def answers(self) -> bool:
        if self.host.startswith("unix://") and not _listens(self.host.removeprefix("unix://")):
            return False
        try:
            with closing(self.client()) as client:
                return bool(client.ping())
        except (DockerException, OSError):
            return False


def _listens(path: str) -> bool:
    """Asked first, as Docker's client leaves a socket open where nobody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def answering() -> Engine | None:
    """The engine of this machine."""
    engine = Engine(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
    return engine if engine.answers() else None


def own() -> Engine:
    """Our own, started if need be; it ends with the last process that uses it. Raises `Unavailable`."""
    if os.geteuid() or shutil.which("dockerd") is None:
        raise Unavailable("no Docker engine answers, and to start one needs root and dockerd")
    engine = Engine(f"unix://{HOME}/socket", NETWORK)
    with alone("docker-start"):
        if not _use:
            HOME.mkdir(parents=True, exist_ok=True)
            _use.append((HOME / "users").open("w"))
            fcntl.flock(_use[0], fcntl.LOCK_SH)
            reaper().add("engine", HOME)
        if not engine.answers():
            _start(engine)
    return engine


def leave() -> None:
    """Let go of our own engine."""
    while _use:
        _use.pop().close()


def _start(engine: Engine) -> None:
    # Not the usual bridge, and no rule for the firewall: another engine may be there. Published ports need neither.
    command = ["dockerd", "--host", engine.host, "--bridge=none", "--iptables=false", "--ip6tables=false"]
    command += ["--data-root", f"{HOME}/data", "--exec-root", f"{HOME}/exec", "--pidfile", f"{HOME}/pid"]
    (HOME / "pid").unlink(missing_ok=True)
    # The shell lets go of it: whoever started the engine may end before it does.
    subprocess.run(
        ["sh", "-c", f'"$@" >"{HOME}/log" 2>&1 </dev/null &', "sh", *command], check=True, start_new_session=True
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not engine.answers():
        if time.monotonic() > deadline:
            raise Unavailable(f"dockerd does not start: {(HOME / 'log').read_text()[-500:]}")
        time.sleep(0.05)
    with closing(engine.client()) as client:
        client.containers.prune()
        if not client.networks.list(names=[NETWORK]):
            client.networks.create(NETWORK)
