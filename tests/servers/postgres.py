"""PostgreSQL. Its password is in the URL, so that a test can look for it where it must not be."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from tests.servers.base import Kind, Unavailable

__all__ = ["PASSWORD", "Postgres", "new_database"]

USER, PASSWORD = "crawlbus", "open-sesame"
# It refuses to run as root; Debian's package and the public image both have this user.
AS_POSTGRES = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
# What is half made by a start that was killed is made anew.
START = f"""
set -e
PATH="$0:$PATH"
cd "$1"
if [ ! -e made ]; then
    rm -rf data
    echo {PASSWORD} | initdb --pgdata=data --username={USER} --pwfile=/dev/stdin --auth=scram-sha-256 \\
        --encoding=UTF8 --locale=C.UTF-8 --no-sync --no-instructions
    echo "host all all all scram-sha-256" >>data/pg_hba.conf
    touch made
fi
exec postgres -D data -c config_file="$2"
"""
LOGIN = f"\0\3\0\0user\0{USER}\0database\0postgres\0\0".encode()


class Postgres(Kind):
    config_name, port, package = "postgresql.conf", 5432, "postgresql"
    hello = (len(LOGIN) + 4).to_bytes(4, "big") + LOGIN  # only a server that has recovered asks for the password
    stop_signal, close_signal = "SIGINT", "SIGQUIT"  # the "fast" and the "immediate" shutdown

    def __init__(self, version: str, suite: str) -> None:
        self.version, self.suite = version, suite
        self.name, self.image = f"postgres-{version}", f"postgres:{version}"
        self._programs = f"/usr/lib/postgresql/{version}/bin"

    def url(self, port: int) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres"

    def is_answer(self, data: bytes) -> bool:
        return data.startswith(b"R")

    def config(self, bind: str, port: int, options: Mapping[str, str]) -> str:
        lines = {
            "listen_addresses": bind,
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "dynamic_shared_memory_type": "mmap",  # a file in the data, that goes with it
        }
        return "".join(f"{key} = '{value}'\n" for key, value in (lines | dict(options)).items())

    def command(self, config: str) -> list[str]:
        return [*AS_POSTGRES, "sh", "-c", START, self._programs, "/tmp", config]

    def local_command(self, config: str) -> list[str]:
        if not Path(self._programs, "postgres").exists():
            raise Unavailable(f"postgresql {self.version} is not installed in {self._programs}")
        as_postgres = [] if os.geteuid() else AS_POSTGRES
        return [*as_postgres, "sh", "-c", START, self._programs, str(Path(config).parent), config]

    def prepare(self, directory: str) -> None:
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres", "postgres")


@contextmanager
def new_database(url: str) -> Iterator[str]:
    """The URL of an empty database on the server of `url`, for one test alone; it is dropped at the end."""
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield f"{url.rpartition('/')[0]}/{name}"
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
