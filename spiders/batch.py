"""`Batch`: what the outbox publishes, marks, finishes and acknowledges as one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from bus.dead import Reason, dead_letter
from bus.errors import CodecError, OverLimit
from bus.message import Message
from bus.state import Attempt
from bus.topic import lane_of
from spiders.fetch import Fetch
from spiders.requests import RequestCodec

if TYPE_CHECKING:
    from scrapy import Request

__all__ = ["Batch", "Link", "Prepared"]


class Link(NamedTuple):
    """A request to be published: a Request, or a URL with the template that its `Links` share."""

    url: str
    priority: int
    source: str
    start: bool = False
    request: Request | None = None
    template: tuple[int, bytes] | None = None


class Prepared(NamedTuple):
    """A batch in the form in which it goes out."""

    requests: dict[str, list[Message]]  # lane -> new requests
    retries: dict[str, list[Message]]  # topic -> messages again
    items: list[bytes]
    dead: list[Message]
    mark: list[bytes]
    finish: list[bytes]
    attempts: list[Attempt]
    ended: list[Fetch]  # to be acknowledged, in their order
    counts: Counter[str]
    unfit: list[str]  # why links cannot travel


class Batch:
    """Filled while the batch before it is under way. Publish comes before mark, mark before finish, finish before
    ack; the order within one of these does not matter, so each has a list of its own."""

    def __init__(self) -> None:
        self.links: dict[bytes, Link] = {}
        self.items: list[bytes] = []
        self.finished: list[Fetch] = []
        self.retries: list[Fetch] = []
        self.rejected: list[tuple[Fetch, Reason, str]] = []
        self.dead: list[Message] = []
        self.counts: Counter[str] = Counter()
        self.size = self.size_bytes = 0

    @property
    def ended(self) -> int:
        """Deliveries that wait for their ack."""
        return len(self.finished) + len(self.retries) + len(self.rejected)

    def prepare(self, unseen: Iterable[bytes], codec: RequestCodec, job: str, spider: str) -> Prepared:
        """Encode the links in `unseen`; the others were seen before."""
        out = Prepared({}, {}, self.items, list(self.dead), [], [], [], [], Counter(self.counts), [])
        now = time.time()
        unseen = list(unseen)
        out.counts["duplicates"] += len(self.links) - len(unseen)
        for page in unseen:
            self._prepare_link(page, self.links[page], out, codec, job, spider)
        for fetch in self.retries:
            delay_s = fetch.retry_delay_s or 0.0
            message = fetch.delivery.message.again(attempt=fetch.attempt + 1, not_before=now + delay_s)
            out.retries.setdefault(fetch.delivery.topic, []).append(message)
            out.attempts.append(Attempt(fetch.page, fetch.message_id, fetch.attempt + 1))
        for fetch, reason, detail in self.rejected:
            url = fetch.request.url if fetch.request else None
            whole = reason not in ("decode", "limit")
            letter = dead_letter(
                fetch.delivery.message, reason=reason, detail=detail, job=job, spider=spider, url=url, at=now,
                source=fetch.delivery.topic, whole=whole,
            )  # fmt: skip
            _bury(out, letter, reason)
            out.finish.append(fetch.page)
        out.finish.extend(fetch.page for fetch in self.finished)
        out.ended.extend(self.finished)
        out.ended.extend(self.retries)
        out.ended.extend(fetch for fetch, _, _ in self.rejected)
        ignored = sum(fetch.ignored for fetch in self.finished)
        pages = len(self.finished) - ignored + sum(fetch.handler is not None for fetch, _, _ in self.rejected)
        out.counts.update(pages=pages, ignored=ignored, retries=len(self.retries), items=len(self.items))
        return out

    def _prepare_link(self, page: bytes, link: Link, out: Prepared, codec: RequestCodec, job: str, spider: str) -> None:
        try:
            body = codec.fill(link.template, link.url) if link.template else codec.encode(_request(link))
        except CodecError as error:
            reason: Reason = "limit" if isinstance(error, OverLimit) else "encode"
            out.unfit.append(str(error))
            lost = Message(page.hex(), b"", {"page": page, "source": link.source})
            letter = dead_letter(
                lost,
                reason=reason,
                detail=str(error),
                job=job,
                spider=spider,
                url=link.url,
                at=time.time(),
                whole=False,
            )
            _bury(out, letter, reason)
            out.finish.append(page)
            return
        message = codec.message(page, body, source=link.source, start=link.start)
        out.requests.setdefault(lane_of(link.priority), []).append(message)
        out.mark.append(page)


def _request(link: Link) -> Request:
    if link.request is None:
        raise CodecError("a link without a request")
    return link.request


def _bury(out: Prepared, letter: Message, reason: Reason) -> None:
    out.dead.append(letter)
    out.counts["dead"] += 1
    out.counts[f"dead.{reason}"] += 1
