"""What `crawlbus doctor` asks a PostgreSQL server: it opens the sink as a consumer does, and takes that back."""

from __future__ import annotations

import time
from typing import NamedTuple

import psycopg

from bus.errors import Misconfigured
from bus.findings import CONFIGURATION, FAULT, OK, Finding, clock
from consumers.sinks.postgres.errors import misfit, translate
from consumers.sinks.postgres.layout import Layout
from consumers.sinks.postgres.link import Link
from consumers.sinks.postgres.options import Options
from consumers.sinks.postgres.store import Store

__all__ = ["Server", "about", "examine"]

OLDEST = 12
_DENIED = ("42501", "3F000")  # the second: there is no schema that the user may use
_ABOUT = """
SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),
pg_is_in_recovery(), current_setting('transaction_read_only')::bool,
extract(epoch FROM clock_timestamp())::float8, quote_ident(current_user), quote_ident(current_database()),
quote_ident(coalesce(?, current_schema(), 'public'))
"""
_RIGHTS = """
SELECT t || ' ' || string_agg(p, ', ')
FROM unnest(?::text[]) t CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p
WHERE NOT has_table_privilege(to_regclass(t), p) GROUP BY t ORDER BY t
"""
_LEDGER = ["sink_gaps", "sink_members", "sink_progress", "sink_quarantine"]


class Server(NamedTuple):
    """What it says of itself. `at_s` is s since the epoch; names are quoted as SQL needs it."""

    version_num: int
    encoding: str
    standby: bool
    read_only: bool
    at_s: float
    user: str
    database: str
    schema: str

    @property
    def name(self) -> str:
        return f"PostgreSQL {self.version_num // 10_000}.{self.version_num % 10_000}"


def examine(link: Link, options: Options, layout: Layout, store: Store) -> list[Finding]:
    """`Examined.examine`, of a sink that need not be open. Raises `psycopg.Error`. The caller rolls back."""
    before = time.time()
    server = Server(*link.execute(_ABOUT, (options.schema,)).fetchall()[0])
    skew_s = server.at_s - (before + time.time()) / 2
    found = [*about(server), clock("sink", skew_s, server.name)]
    if any(finding.verdict == FAULT for finding in found):
        return found
    return [*found, _rights(link, options, layout, store, server)]


def about(server: Server) -> list[Finding]:
    """Version and encoding, and whether it may be written at all."""
    found = [Finding("sink", OK, f"{server.name}, {server.encoding}")]
    if server.version_num < OLDEST * 10_000:
        found = [_fault(f"{server.name} is older than {OLDEST}", f"upgrade it to {OLDEST} or later")]
    if server.encoding != "UTF8":
        mend = "make another: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        found.append(_fault(f"the database {server.database} has the encoding {server.encoding}", mend))
    if server.standby:
        mend = "name the primary in --sink, or several hosts and ?target_session_attrs=read-write"
        found.append(_fault("the server is a standby, which cannot be written", mend))
    elif server.read_only:
        mend = f"ALTER ROLE {server.user} RESET default_transaction_read_only, or that of the database or the server"
        found.append(_fault("transactions are read-only", mend))
    return found


def _rights(link: Link, options: Options, layout: Layout, store: Store, server: Server) -> Finding:
    """Make what is missing, unless that could keep a consumer from its table; then as if a batch were stored."""
    link.begin()
    try:
        link.execute("CREATE TEMPORARY TABLE sink_doctor ()")  # as COPY needs one
        missing, there = layout.missing(link), layout.has(link, options.table)
        if missing:
            layout.lock(link)
            layout.make(link, [statement for statement in missing if not (there and statement)])
        if not there or not any(missing):
            store.check()
        lacking = [row[0] for row in link.execute(_RIGHTS, (_LEDGER,)).fetchall()]
    except Misconfigured as error:
        return _fault(str(error), "")
    except psycopg.Error as error:
        if error.sqlstate in _DENIED:
            return _fault(str(translate(error, options.name)), _grant(str(error), layout, server))
        if (unfit := misfit(error, options)) is None:
            raise
        return _fault(str(unfit), "")
    if lacking:
        grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(_LEDGER)} TO {server.user}"
        return _fault(f"{server.user} lacks rights on {'; '.join(lacking)}", grant)
    later = sum(map(bool, missing)) if there else 0
    more = f"; the consumer will add {later} columns or indexes to the table" if later else ""
    return Finding("sink", OK, f"{server.user} may make and write its tables in the schema {server.schema}{more}")


def _grant(denied: str, layout: Layout, server: Server) -> str:
    """What a superuser says to mend it."""
    if "database" in denied:
        right = "TEMPORARY" if "temporary" in denied else "CREATE"
        return f"GRANT {right} ON DATABASE {server.database} TO {server.user}"
    if "schema" in denied:
        return f"GRANT CREATE, USAGE ON SCHEMA {server.schema} TO {server.user}"
    return f"GRANT SELECT, INSERT, UPDATE, DELETE ON {layout.table} TO {server.user}"


def _fault(found: str, mend: str) -> Finding:
    return Finding("sink", FAULT, found, mend, CONFIGURATION)
