"""What a figure was taken on."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

__all__ = ["fsync_ms", "machine"]


def machine(folder: Path) -> list[str]:
    """Lines that say what the machine and the versions are."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    versions = " · ".join(f"{name} {version(name)}" for name in ("scrapy", "twisted", "uvloop"))
    python, sqlite = platform.python_version(), sqlite3.sqlite_version
    return [
        f"{_processor()}, {os.cpu_count()} cores, load {load}",
        f"{platform.system()} {platform.release()} · Python {python} · {versions} · SQLite {sqlite}",
        f"fsync of 4 KiB in {folder}: {fsync_ms(folder):.2f} ms (median of 100)",
    ]


def fsync_ms(folder: Path, count: int = 100) -> float:
    """The median time of a write of 4 KiB with fsync, in milliseconds."""
    times = []
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(count):
            before = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - before)
    return statistics.median(times) * 1000


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
