"""Dead letters: what will not be tried again, with the reason, in a log of its own; and the decisions on them."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Literal, NamedTuple, TypeAlias

from bus.codec import SCHEMA, pack, unpack
from bus.errors import CodecError
from bus.message import HeaderValue, Message, new_id

__all__ = ["DeadLetter", "Decision", "Reason", "dead_letter", "decision", "read_dead"]

Reason: TypeAlias = Literal[
    "callback", "errback", "pipeline", "download", "status", "poison", "encode", "decode", "limit", "item", "lost"
]  # fmt: skip
LETTER, DECISION = "crawlbus/dead", "crawlbus/decision"
KEPT_BYTES = 4096
KEPT_HEADERS = 64


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
    """The message that enters the dead log. Its id follows from what died, so that a letter written twice is one.

    Never raises: of a message that is too large with all that is told of it, the first 4 KiB stay.
    """
    seed = f"{job}\0{message.id}\0{message.attempt}\0{reason}\0{detail if reason == 'item' else ''}"
    headers: dict[str, HeaderValue] = {
        "content-type": LETTER, "schema": SCHEMA, "job": job, "spider": spider, "reason": reason,
    }  # fmt: skip
    content: dict[str, Any] = {
        "detail": detail[:KEPT_BYTES], "url": url, "at": at, "source": source, "whole": whole,
        "id": message.id, "headers": dict(message.headers), "key": message.key,
        "body": message.body if whole else message.body[:KEPT_BYTES],
    }  # fmt: skip
    try:
        body = pack(content)
    except CodecError:
        body = pack(_shortened(content))
    return Message(blake2b(seed.encode(errors="replace"), digest_size=16).hexdigest(), body, headers)


def _shortened(content: dict[str, Any]) -> dict[str, Any]:
    """The same with nothing in it longer than 4 KiB."""

    def short(value: Any) -> Any:
        return value[:KEPT_BYTES] if isinstance(value, str | bytes) else value

    headers = {short(name): short(value) for name, value in list(content["headers"].items())[:KEPT_HEADERS]}
    return {**{name: short(value) for name, value in content.items()}, "headers": headers, "whole": False}


def decision(letter: str, verb: Literal["retry", "drop"], *, job: str, at: float) -> Message:
    """The message that records a decision on a dead letter, in the same log."""
    headers: dict[str, HeaderValue] = {"content-type": DECISION, "schema": SCHEMA, "job": job}
    return Message(new_id(), pack({"letter": letter, "verb": verb, "at": at}), headers)


def read_dead(message: Message) -> DeadLetter | Decision:
    """An entry of the dead log. Raises `CodecError` for a message that is none."""
    headers, value = message.headers, unpack(message.body)
    match headers.get("content-type"), value:
        case (str(kind), {"letter": str(letter), "verb": "retry" | "drop" as verb, "at": int() | float() as at}):
            if kind == DECISION:
                return Decision(letter, verb, at)
        case (
            str(kind),
            {
                "id": str(id), "body": bytes(body), "headers": dict(inner), "key": bytes(key), "detail": str(detail),
                "url": str() | None as url, "at": int() | float() as at, "source": str(source), "whole": bool(whole),
            },
        ):  # fmt: skip
            if kind == LETTER:
                original = Message(id, body, inner, key)
                job, spider, reason = (str(headers.get(name)) for name in ("job", "spider", "reason"))
                attempt = original.attempt
                return DeadLetter(message.id, job, spider, reason, detail, url, at, attempt, source, whole, original)
    raise CodecError(f"not a dead letter: content-type {headers.get('content-type')!r}")
