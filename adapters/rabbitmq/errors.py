"""What the driver's errors mean to a user: the one place where they are translated."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any, TypeVar

from aiormq import exceptions as amqp
from aiormq.exceptions import AMQPError, ChannelInvalidStateError

from adapters.rabbitmq.address import Address
from bus.errors import BusError, ConnectionLost, Misconfigured
from bus.tls import MAY_WANT

__all__ = [
    "DRIVER_ERRORS",
    "OURS",
    "RPC_S",
    "Silence",
    "Undeclared",
    "lost",
    "no_connection",
    "refusal",
    "trouble",
    "within",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

RPC_S = 20.0  # the broker has answered by then, or is as good as gone
_LACKS = re.compile(r"\w+ access to \w+ '[^']*'")  # in the broker's words, as it may be the default exchange
OURS: ContextVar[bool] = ContextVar("OURS", default=False)  # in all that the driver does for us
DRIVER_ERRORS = (AMQPError, ChannelInvalidStateError, OSError, RuntimeError, ValueError)


class Undeclared(BusError):
    """The topic does not exist."""


class Silence(ConnectionLost):
    """The broker is connected, and does not answer."""


async def within(answer: Awaitable[T], limit_s: float = RPC_S) -> T:
    """The broker's answer. Raises `Silence` where there is none, else what the driver raises.

    A call that is given up goes on until its answer comes or the connection ends: if it were cancelled, the driver
    would close its channel, and a broker that is just closing it, too, answers by closing the connection.
    """
    token = OURS.set(True)  # the tasks that the driver makes for the answer inherit it
    task: asyncio.Future[T] = asyncio.ensure_future(answer)
    OURS.reset(token)
    try:
        await asyncio.wait((task,), timeout=limit_s)
    finally:
        if not task.done():
            task.add_done_callback(_forget)
    if not task.done():
        raise Silence(f"RabbitMQ has not answered in {limit_s:.0f} s")
    if task.cancelled():  # not by us: the driver cancels what waits on a connection that is gone
        raise ConnectionLost("the connection to RabbitMQ is lost")
    error = task.exception()
    if type(error) is Exception or isinstance(error, StopAsyncIteration):  # the same, where it knows no reason
        raise ConnectionLost("the connection to RabbitMQ is lost") from error
    return task.result()


def _forget(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


def lost(error: BaseException | None = None) -> ConnectionLost:
    """The connection or a channel is gone."""
    if isinstance(error, ConnectionLost):
        return error
    return ConnectionLost(f"the connection to RabbitMQ is lost{_reason(error)}")


def trouble(error: Exception, before: BusError | None) -> BusError:
    """What a task that tries again has met. What nobody has foreseen is logged once, and goes for a lost connection:
    such a task must never end."""
    if isinstance(error, BusError):
        return error
    told = lost(error)
    if str(told) != str(before):
        logger.error("an error that is not foreseen, while connecting to RabbitMQ; trying again", exc_info=error)
    return told


def refusal(error: BaseException, topic: str, address: Address) -> BusError:
    """What the broker has against a call on this topic."""
    if isinstance(error, BusError):
        return error
    if isinstance(error, amqp.ChannelNotFoundEntity):
        if "down or inaccessible" in str(error):
            return ConnectionLost(f"RabbitMQ cannot reach queue {topic!r}: the node that holds it is down")
        return Undeclared(f"topic {topic!r} was not declared")
    if isinstance(error, amqp.ChannelAccessRefused):
        lacks = _LACKS.search(str(error))
        return Misconfigured(
            f"user {address.user!r} of the bus URL has no rights on {topic!r}{f' ({lacks[0]})' if lacks else ''}:"
            f" rabbitmqctl set_permissions -p {address.vhost} {address.user} '.*' '.*' '.*'"
        )
    if isinstance(error, amqp.ChannelPreconditionFailed) and "inequivalent" in str(error):
        return Misconfigured(
            f"queue {topic!r} is there with other arguments: delete it, or choose another ?prefix= on the bus URL"
        )
    if isinstance(error, amqp.ChannelLockedResource):
        return Misconfigured(f"queue {topic!r} belongs to another connection alone: choose another ?prefix=")
    return lost(error)


def no_connection(error: BaseException, host: str, address: Address) -> BusError:
    """Why we did not get in. `Misconfigured` where waiting will not help."""
    cause = error.__cause__
    if isinstance(error, amqp.ProbableAuthenticationError):
        return Misconfigured(
            f"RabbitMQ at {host} refuses user {address.user!r}: correct the name or the password in the bus URL"
        )
    if isinstance(error, amqp.InvalidFrameError | amqp.ConnectionNotAllowed):
        return Misconfigured(
            f"RabbitMQ at {host} has no virtual host {address.vhost!r} for user {address.user!r}:"
            " make it, give the rights, or correct the path of the bus URL"
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Misconfigured(
            f"the certificate of RabbitMQ at {host} is not trusted ({cause.verify_message}): set ca= on the bus URL"
        )
    if isinstance(cause, ssl.SSLError):
        return Misconfigured(
            f"TLS with RabbitMQ at {host} fails ({cause.reason}): see the port, ca= and cert= of the bus URL"
        )
    broken = isinstance(cause, ConnectionResetError | EOFError)
    hint = f"; {MAY_WANT}" if address.tls and broken else ""
    return ConnectionLost(f"RabbitMQ at {host} is not reachable{_reason(error)}{hint}")


def _reason(error: BaseException | None) -> str:
    if isinstance(error, TimeoutError):
        return ": no answer"
    text = str(error.args[-1]) if isinstance(error, Exception) and error.args else ""
    return f": {text}" if text else ""
