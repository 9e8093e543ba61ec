"""What an error of PostgreSQL means for who writes."""

from __future__ import annotations

import re

import psycopg

from bus.errors import BusError, Misconfigured, StorageFailed
from bus.url import hide_secrets
from consumers.sink import SinkUnavailable
from consumers.sinks.postgres.options import Options

__all__ = ["is_of_a_row", "misfit", "reason", "took_too_long", "translate"]

# By the first letters of SQLSTATE; https://www.postgresql.org/docs/current/errcodes-appendix.html
_OF_A_ROW = ("22", "23", "44", "54", "P0")  # P0: a trigger of the user's
_PASSING = ("08", "25006", "25P03", "25P04", "40", "53", "55P03", "57")
_REFUSED = ("28", "3D000", "42501")
_NOT_NOW = {
    "25006": "the server is read-only, as a standby is: name the primary, or add target_session_attrs=read-write",
    "55P03": "another process has locked what is written",
    "57014": "the server took too long: see its load and what the table has of indexes and triggers",
}
# libpq does not tell the SQLSTATE of a login that was refused.
_LOGIN_REFUSED = re.compile(
    r"authentication failed|no password supplied|pg_hba\.conf|(role|database) \".*\" does not exist"
    r"|permission denied for database|not permitted to log in"
)
_CLIENT = re.compile(r"^connection (failed|is bad): ")
_OPTION_REFUSED = re.compile(
    r"invalid .* value|invalid port number|definition of service|does not support SSL|certificate"
)


def took_too_long(error: psycopg.Error) -> bool:
    """Whether a statement was given up, by the server's clock."""
    return error.sqlstate == "57014"


def is_of_a_row(error: psycopg.Error) -> bool:
    """Whether a row is to blame, so that the others may be stored."""
    return (error.sqlstate or "").startswith(_OF_A_ROW)


def reason(error: psycopg.Error) -> str:
    """Why a row is set aside."""
    column = f" (column {error.diag.column_name})" if error.diag.column_name else ""
    return f"{error.sqlstate}: {_message(error)}{column}"


def translate(error: psycopg.Error, name: str) -> BusError:
    """One sentence about the sink `name`."""
    code, what = error.sqlstate or "", _message(error)
    if code.startswith(_PASSING):
        return SinkUnavailable(f"the sink {name} cannot be written now: {_NOT_NOW.get(code, what)}")
    if code.startswith(_REFUSED) or (not code and _LOGIN_REFUSED.search(what)):
        return Misconfigured(
            f"the sink {name} refuses us: {what}: set user, password and database in its URL, or grant the right"
        )
    if not code and _OPTION_REFUSED.search(what):
        return Misconfigured(f"the sink {name} cannot be reached so: {what}: mend that option of its URL")
    if not code and isinstance(error, psycopg.OperationalError):
        return SinkUnavailable(f"the sink {name} is not reachable: {what}")
    return StorageFailed(f"the sink {name} cannot be written: {what}")


def misfit(error: psycopg.Error, options: Options) -> Misconfigured | None:
    """What the check of the statements says of a table or of columns that we cannot use."""
    code = error.sqlstate or ""
    if not code.startswith("42") or code == "42501":
        return None
    return Misconfigured(
        f"the table {options.table} of the sink {options.name} cannot be used with mode={options.mode}"
        f" ({error.diag.message_primary}): name another by ?table=, or mend ?columns="
    )


def _message(error: psycopg.Error) -> str:
    """What the server said last; a client's own error is its first line."""
    if error.diag.message_primary:
        return error.diag.message_primary
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = next((line for line in lines if "FATAL:" in line), lines[0])
    return hide_secrets(_CLIENT.sub("", line.rpartition("FATAL:")[2]).strip().rstrip("."))
