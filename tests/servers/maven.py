"""Jars from Maven Central, fetched at first use."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.servers.base import CACHE, Unavailable, alone

__all__ = ["jars"]


def jars(name: str, pom: Path) -> Path:
    """The directory with what the pom depends on; `name` tells its versions. Raises `Unavailable`."""
    directory = CACHE / name
    if directory.exists():
        return directory
    if shutil.which("mvn") is None:
        raise Unavailable(f"the jars of {name} are not there, and mvn, which fetches them, is not installed")
    with alone(name):
        if not directory.exists():
            part = CACHE / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            done = subprocess.run(
                ["mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies", f"-DoutputDirectory={part}"],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise Unavailable(f"mvn could not fetch {name}: {(done.stdout + done.stderr).strip()[-500:]}")
            os.replace(part, directory)
    return directory
