"""What Redis's errors mean to a user: the one place where they are translated."""

from __future__ import annotations

import re
import socket
import ssl

from redis import exceptions

from adapters.redis.address import Address
from bus.errors import BusError, ConnectionLost, Misconfigured, StorageFailed, TransportError
from bus.tls import MAY_WANT

__all__ = ["RIGHTS", "Moved", "Refused", "translate"]

RIGHTS = "~crawlbus:* ~{crawlbus* +@all"  # keys of the bus begin with the one, those of the state with the other
_AWAY = re.compile(r"\b(LOADING|BUSY|MASTERDOWN|CLUSTERDOWN|UNKILLABLE|max number of clients)\b")
_FULL = re.compile(r"\bOOM\b")
_MISCONF = re.compile(r"\bMISCONF\b")
_NO_MASTER = re.compile(r"\bREADONLY\b|read only replica|\bNOREPLICAS\b")
_NO_CLUSTER = re.compile(r"cluster support disabled")
_NO_SENTINEL = re.compile(r"unknown command ['`]SENTINEL", re.IGNORECASE)
_RIGHTS = re.compile(r"\bNOPERM\b|has no permissions|can't (run this command|access at least one)")
_DATABASE = re.compile(r"DB index is out of range|invalid DB index", re.IGNORECASE)


class Refused(exceptions.RedisError):
    """The server answers, and we will not use it as it is. redis-py closes the connection for it."""

    def __init__(self, error: BusError) -> None:
        super().__init__(str(error))
        self.error = error


class Moved(ConnectionLost):
    """Of a Cluster: nothing was done, and another node is to be asked."""


def translate(error: Exception, address: Address) -> BusError:
    """`ConnectionLost` where waiting helps; else one sentence that names the setting and the mend."""
    if isinstance(error, Refused):
        return error.error
    code = getattr(error, "status_code", None) or ""
    text = f"{code} {error}".strip()
    where = address.named
    if isinstance(error, exceptions.InvalidResponse):
        return Misconfigured(f"{where}: what answers there is no Redis: mend host and port")
    if isinstance(error, exceptions.AuthenticationError):
        return Misconfigured(f"{where}: the server refuses the user or the password: mend them in the URL")
    if _RIGHTS.search(text):
        return Misconfigured(f"{where}: this user may not do what is needed: ACL SETUSER NAME {RIGHTS} ({error})")
    if _DATABASE.search(text):
        return Misconfigured(f"{where}: there is no such database: choose a lower number, or raise `databases` there")
    if _FULL.search(text):
        return StorageFailed(f"{where}: Redis is out of memory: raise its `maxmemory`, or free some")
    if _MISCONF.search(text):
        return StorageFailed(f"{where}: Redis cannot write to its disk: free some space there, and look at its log")
    if isinstance(error, exceptions.MovedError):
        return Moved(f"{where}: slot {error.slot_id} is at another node")
    if isinstance(error, (exceptions.AskError, exceptions.TryAgainError)):
        return ConnectionLost(f"{where}: waiting while a slot is moved to another node")
    if _NO_MASTER.search(text):
        return ConnectionLost(f"{where}: this is a replica now, or lacks one: waiting for a master")
    if _NO_CLUSTER.search(text):
        return Misconfigured(f"{where}: this is no Redis Cluster: write redis://HOST:PORT/DB")
    if _NO_SENTINEL.search(text):
        return Misconfigured(
            f"{where}: what answers there is no Sentinel: name Sentinels, or write redis://HOST:PORT/DB"
        )
    if isinstance(cause := _root(error), ssl.SSLCertVerificationError):
        return Misconfigured(f"{where}: {cause.verify_message}: name its authority with ?ca=FILE")
    if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError, OSError)) or _AWAY.search(text):
        return ConnectionLost(f"{where}: {_reason(error, address)}")
    return TransportError(f"{where}: {_said(error)}")


def _said(error: Exception) -> str:
    """Without the place in a script that Redis adds."""
    return str(error).partition(" script: ")[0].rstrip(".")


def _root(error: BaseException) -> BaseException:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _reason(error: Exception, address: Address) -> str:
    root = _root(error)
    if isinstance(error, exceptions.BusyLoadingError):
        return "Redis is loading its data"
    if isinstance(error, (exceptions.TimeoutError, TimeoutError)):
        return "no answer in time: is it running, and may this machine reach it?"
    if isinstance(root, ConnectionRefusedError):
        return "nobody listens there: is it running?"
    if isinstance(root, socket.gaierror):
        return "that host has no address: is its name right?"
    if isinstance(error, exceptions.ResponseError):
        return _said(error)
    asks = address.tls is not None and "ssl_certfile" not in address.tls
    return "the connection broke" + (f": {MAY_WANT}" if asks else "")
