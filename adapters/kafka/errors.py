"""The driver's errors as the bus's, and its log quiet: what is wrong is said once, by us."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka import errors as driver

from bus.errors import BusError, ConnectionLost, Misconfigured, OverLimit, TransportError

__all__ = ["NoRights", "quieten", "said", "translated"]

_REFUSED = (
    driver.AuthenticationFailedError,
    driver.SaslAuthenticationFailed,
    driver.IllegalSaslStateError,
    driver.UnsupportedSaslMechanismError,
)
_RIGHTS = (
    driver.TopicAuthorizationFailedError,
    driver.GroupAuthorizationFailedError,
    driver.ClusterAuthorizationFailedError,
    driver.TransactionalIdAuthorizationFailed,
)
_TOO_LARGE = (driver.MessageSizeTooLargeError, driver.RecordTooLargeError, driver.RecordListTooLargeError)


class NoRights(Misconfigured):
    """An ACL is missing."""


def quieten() -> None:
    """The driver writes some forty lines a second while a broker is away. A level that the user has set stays."""
    logger = logging.getLogger("aiokafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL + 1)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Around calls of the driver; `what` is being done, e.g. "read topic 'crawlbus.items'"."""
    try:
        yield
    except (driver.KafkaError, OSError) as error:  # asyncio's TimeoutError is an OSError
        raise said(error, what) from None


def said(error: BaseException, what: str) -> BusError:
    """One of ours, in one sentence."""
    if isinstance(error, _RIGHTS):
        return NoRights(
            f"Kafka lets the user of the bus URL not {what} ({type(error).__name__}): grant it in the cluster's ACLs, "
            "or choose another user or ?prefix="
        )
    if isinstance(error, _REFUSED):
        return Misconfigured(
            "Kafka refuses the user, password or mechanism= of the bus URL: correct --bus (CRAWLBUS_BUS)"
        )
    if isinstance(error, ssl.SSLError):
        reason = error.reason or type(error).__name__
        return Misconfigured(f"no TLS with Kafka ({reason.lower()}): correct ca=, cert=, key= or kafka+ssl:// of --bus")
    if isinstance(error, _TOO_LARGE):
        return OverLimit(f"Kafka cannot {what}: a message is larger than the topic's max.message.bytes")
    if isinstance(error, driver.UnknownTopicOrPartitionError):
        return BusError(f"Kafka cannot {what}: the topic was not declared, or was deleted")
    if isinstance(error, driver.InvalidTopicError):
        return Misconfigured(f"Kafka cannot {what}: topic names have letters, digits, '.', '_' and '-', at most 249")
    if (
        isinstance(error, driver.KafkaError)
        and not error.retriable
        and not isinstance(error, driver.KafkaConnectionError)
    ):
        return TransportError(f"Kafka cannot {what}: {type(error).__name__}")
    return ConnectionLost(f"Kafka does not answer ({type(error).__name__}) and cannot {what}")
