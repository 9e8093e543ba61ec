"""The connection to PostgreSQL: made when it is needed, and cut where the server no longer answers."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from bus.errors import Closed
from consumers.sink import SinkUnavailable

__all__ = ["STAGING", "Link"]

# One statement may take this long by the server's clock; then by ours, where the server does not keep its own.
STATEMENT_TIMEOUT_S = 50.0
STUCK_S = 60.0
LOCK_TIMEOUT_S = 20.0
IDLE_TIMEOUT_S = 20.0  # a process that was stopped in a transaction gives its locks back

logging.getLogger("psycopg").setLevel(logging.ERROR)  # what it warns of is an error that it raises, too

STAGING = "pg_temp.sink_rows"
_SESSION = """
SET statement_timeout = {statement_ms}; SET lock_timeout = {lock_ms};
SET idle_in_transaction_session_timeout = {idle_ms}; SET jit = off; SET temp_buffers = '32MB';
SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD';
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
"""


class Link:
    """Statements have `?` for a parameter. Used by one thread, but for `cut_if_stuck`."""

    def __init__(self, parameters: dict[str, str], schema: str | None) -> None:
        self._parameters, self._schema = parameters, schema
        self._connection: psycopg.Connection[Any] | None = None
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._busy_since: float | None = None
        self._closed = self._has_staging = self._unhurried = False

    def connect(self) -> None:
        """Unless it is. Raises `psycopg.Error`."""
        if self._closed:
            raise Closed("the sink is closed")
        if self._connection is not None:
            return
        # autocommit: each BEGIN is ours. The timeout of `parameters` holds for the login, too.
        self._connection = psycopg.connect("", autocommit=True, **self._parameters)  # type: ignore[arg-type]
        with self._lock:
            self._socket = socket.socket(fileno=os.dup(self._connection.fileno()))
        try:
            self.execute(self._session())
        except BaseException:
            self.drop()
            raise

    def _session(self) -> str:
        path = f"""SELECT set_config('search_path', '"{self._schema}", ' || current_setting('search_path'), false)"""
        return _SESSION.format(
            statement_ms=round(STATEMENT_TIMEOUT_S * 1000),
            lock_ms=round(LOCK_TIMEOUT_S * 1000),
            idle_ms=round(IDLE_TIMEOUT_S * 1000),
        ) + (path if self._schema else "")

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    @property
    def encoding(self) -> str | None:
        """Of the database."""
        return self._db().info.parameter_status("server_encoding")

    def execute(
        self, statement: str, parameters: Sequence[Any] = (), /, *, plan_anew: bool = False
    ) -> psycopg.Cursor[Any]:
        """Several statements in one are taken where there are no parameters. A plan is kept, unless `plan_anew`: one
        that joins tables may be made while they are small. Raises `psycopg.Error`."""
        text = statement.replace("%", "%%").replace("?", "%s") if parameters else statement
        self._busy_since = time.monotonic()
        try:
            return self._db().execute(text.encode(), parameters or None, prepare=False if plan_anew else None)
        finally:
            self._busy_since = None

    def make_staging(self, columns: str) -> None:
        """A table of this connection alone, which is empty when a transaction begins. Call it outside of one."""
        if not self._has_staging:
            self.execute(f"CREATE TEMPORARY TABLE {STAGING.partition('.')[2]} ({columns}) ON COMMIT DELETE ROWS")
            self._has_staging = True

    def copy(self, data: Iterable[bytes]) -> None:
        """Fill `STAGING` by a COPY in the binary format."""
        self._busy_since = time.monotonic()
        try:
            with self._db().cursor().copy(f"COPY {STAGING} FROM STDIN (FORMAT binary)".encode()) as copy:
                for part in data:
                    copy.write(part)
        finally:
            self._busy_since = None

    def begin(self) -> None:
        """Whatever the user has set: each statement sees what was committed before it, and no row is refused only by
        the COMMIT."""
        self.execute("BEGIN ISOLATION LEVEL READ COMMITTED; SET CONSTRAINTS ALL IMMEDIATE")

    def commit(self) -> None:
        """Without a time limit: where the server waits for a standby, the limit would make it stop waiting, and say
        that all is well. We cut it off instead, and repeat."""
        cursor = self.execute("SET LOCAL statement_timeout = 0; COMMIT")
        while cursor.nextset():
            pass
        if cursor.statusmessage != "COMMIT":
            raise SinkUnavailable("the transaction was not committed")

    def rollback(self) -> None:
        """Back to no transaction; a connection that cannot is dropped."""
        if self._connection is None or self._connection.info.transaction_status == TransactionStatus.IDLE:
            return
        try:
            self.execute("ROLLBACK")
        except psycopg.Error:
            self.drop()

    def drop(self) -> None:
        """The next call connects anew."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = None
        if self._connection is not None:
            self._connection.close()
        self._connection, self._has_staging = None, False

    def close(self) -> None:
        self._closed = True
        self.drop()

    @contextmanager
    def unhurried(self) -> Iterator[None]:
        """Statements in here, in a transaction, take as long as they take."""
        self.execute("SET LOCAL statement_timeout = 0")
        self._unhurried = True
        try:
            yield
        finally:
            self._unhurried = False

    def cut_if_stuck(self, after_s: float, *, unhurried: bool = False) -> None:
        """From another thread: whoever waits for the server since `after_s` gets an error."""
        since = self._busy_since
        if since is None or time.monotonic() - since <= after_s or (self._unhurried and not unhurried):
            return
        with self._lock, suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def _db(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            raise SinkUnavailable("the connection is lost")
        return self._connection
