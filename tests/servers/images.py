"""Images of servers: the public ones, or the same from Debian's packages, for machines that can pull none."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

from docker.errors import DockerException, ImageNotFound

from tests.servers.base import CACHE, Kind, Unavailable, alone
from tests.servers.engine import Engine

__all__ = ["image_at_hand", "image_for"]


def image_at_hand(kind: Kind, engine: Engine) -> str | None:
    """Its name, if the engine has one."""
    with closing(engine.client()) as client:
        for name in (_built_name(kind), kind.image):
            try:
                client.images.get(name)
                return name
            except ImageNotFound:
                pass
    return None


def image_for(kind: Kind, engine: Engine) -> str:
    """The one at hand; else it is built, or pulled. Raises `Unavailable`."""
    with alone(kind.name):
        if found := image_at_hand(kind, engine):
            return found
        if os.geteuid() == 0 and shutil.which("mmdebstrap") and _build(kind, engine):
            return _built_name(kind)
        try:
            with closing(engine.client()) as client:
                client.images.pull(kind.image)
        except DockerException as error:
            raise Unavailable(f"the image {kind.image} cannot be pulled: {error}") from error
    return kind.image


def _built_name(kind: Kind) -> str:
    return f"crawlbus-tests/{kind.name}:latest"


def _build(kind: Kind, engine: Engine) -> bool:
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        tar, options = Path(directory, "image.tar"), Path(directory, "apt.conf")
        options.write_text(_said("apt-config", "dump", "Acquire"))  # the proxy of this machine, and its like
        mirror = _said("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages").split()[:1]
        command = ["mmdebstrap", "--quiet", "--variant=essential", f"--aptopt={options}", f"--include={kind.package}"]
        done = subprocess.run([*command, kind.suite, str(tar), *mirror], capture_output=True, text=True)
        if done.returncode:
            print(f"{kind.name}: mmdebstrap could not build an image: {done.stderr.strip()[-500:]}")
            return False
        name, _, tag = _built_name(kind).partition(":")
        with closing(engine.client()) as client:
            client.api.import_image_from_file(str(tar), repository=name, tag=tag, changes=kind.image_changes)
    return True


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
