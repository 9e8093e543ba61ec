"""Dead letters: what will not be tried again, with the reason, in a log of its own; and the decisions on them."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Literal, NamedTuple, TypeAlias

from bus.codec import SCHEMA, pack, unpack
from bus.errors import CodecError
from bus.message import HeaderValue, Message, new_id

__all__ = ["DeadLetter", "Decision", "Reason", "dead_letter", "decision", "read_dead"]

Reason: TypeAlias = Literal[
    "callback",
    "errback",
    "pipeline",
    "download",
    "status",
    "poison",
    "encode",
    "decode",
    "limit",
    "item",
    "lost",
]
LETTER, DECISION = "crawlbus/dead", "crawlbus/decision"
KEPT_BYTES = 4096


class DeadLetter(NamedTuple):
    """Why a request, a link or an item came to its end.

    `id` names the letter. `message` is the original one with its headers; where it could not be read, encoded, or
    was over a limit, its body is only the first 4 KiB and `whole` is False: such a letter cannot be retried.
    """

    id: str
    job: str
    spider: str
    reason: str
    detail: str
    url: str | None
    at: float
    attempt: int
    source: str  # the topic the message came from
    whole: bool
    message: Message


class Decision(NamedTuple):
    """What became of a dead letter: `letter` is its id."""

    letter: str
    verb: Literal["retry", "drop"]
    at: float


def dead_letter(
    message: Message,
    *,
    reason: Reason,
    detail: str,
    job: str,
    spider: str,
    url: str | None,
    at: float,
    source: str = "",
    whole: bool = True,
) -> Message:
    """The message that enters the dead log. Its id follows from what died, so that a letter written twice is one."""
    body = message.body if whole else message.body[:KEPT_BYTES]
    seed = f"{job}\0{message.id}\0{message.attempt}\0{reason}\0{detail if reason == 'item' else ''}"
    headers: dict[str, HeaderValue] = {
        "content-type": LETTER, "schema": SCHEMA, "job": job, "spider": spider, "reason": reason,
    }  # fmt: skip
    content: dict[str, Any] = {
        "detail": detail[:KEPT_BYTES], "url": url, "at": at, "source": source, "whole": whole,
        "id": message.id, "headers": dict(message.headers), "key": message.key, "body": body,
    }  # fmt: skip
    return Message(blake2b(seed.encode(errors="replace"), digest_size=16).hexdigest(), pack(content), headers)


def decision(letter: str, verb: Literal["retry", "drop"], *, job: str, at: float) -> Message:
    """The message that records a decision on a dead letter, in the same log."""
    headers: dict[str, HeaderValue] = {"content-type": DECISION, "schema": SCHEMA, "job": job}
    return Message(new_id(), pack({"letter": letter, "verb": verb, "at": at}), headers)


def read_dead(message: Message) -> DeadLetter | Decision:
    """An entry of the dead log. Raises `CodecError` for a message that is none."""
    kind, value = message.headers.get("content-type"), unpack(message.body)
    try:
        if kind == DECISION:
            return Decision(value["letter"], value["verb"], value["at"])
        if kind == LETTER:
            original = Message(value["id"], value["body"], value["headers"], value["key"])
            return DeadLetter(
                message.id, str(message.headers["job"]), str(message.headers["spider"]), str(message.headers["reason"]),
                value["detail"], value["url"], value["at"], original.attempt, value["source"], value["whole"], original,
            )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise CodecError(f"not a dead letter: {error}") from None
    raise CodecError(f"not a dead letter: content-type {kind!r}")
