"""`BusItemProcessor`: items go through the project's pipelines, then to the item log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from itemadapter import ItemAdapter
from scrapy.exceptions import DropItem
from scrapy.pipelines import ItemPipelineManager

from bus.codec import pack
from bus.dead import Reason, dead_letter
from bus.errors import CodecError, OverLimit
from bus.items import item_id, pack_item
from bus.message import Message, new_id
from spiders.addon import worker_of
from spiders.fetch import Fetch, current_fetch
from spiders.links import Links

if TYPE_CHECKING:
    from spiders.worker import Worker

__all__ = ["BusItemProcessor"]


class BusItemProcessor(ItemPipelineManager):
    """Takes an item's ordinal before the pipelines, and appends what comes out of them to the outbox."""

    _worker: Worker
    _key: Sequence[str] = ()

    async def open_spider_async(self) -> None:
        assert self.crawler is not None
        self._worker = worker_of(self.crawler)
        self._key = getattr(self.crawler.spider, "item_key", ())
        await super().open_spider_async()

    async def process_item_async(self, item: Any) -> Any:
        worker, fetch = self._worker, current_fetch.get()
        if isinstance(item, Links):  # from the errback of a failed download, which bypasses spider middlewares
            await worker.follow(item, None)
            raise DropItem("links, followed")
        ordinal = fetch.next_ordinal() if fetch is not None else worker.start_items.begin()
        try:
            result = await super().process_item_async(item) if self.methods["process_item"] else item
            self._append(fetch, ordinal, result)
        except DropItem:
            worker.outbox.count("dropped")
            raise
        except Exception as error:
            if fetch is not None:
                fetch.fail("pipeline", f"{type(error).__name__}: {error}")
            raise
        finally:
            if fetch is None:
                worker.start_items.end()
        return result

    def _append(self, fetch: Fetch | None, ordinal: int, item: Any) -> None:
        worker = self._worker
        url = fetch.request.url if fetch is not None and fetch.request is not None else None
        data = ItemAdapter(item).asdict()
        page = fetch.origin if fetch is not None else b"start"
        try:
            packed = pack_item(self._id(page, ordinal, data), url, time.time(), data)
        except CodecError as error:
            self._bury(error, item_id(worker.job.name, page, ordinal), url)
        else:
            worker.outbox.item(packed)

    def _id(self, page: bytes, ordinal: int, data: dict[str, Any]) -> str:
        job = self._worker.job.name
        values = [data.get(name) for name in self._key]
        if not values or None in values:  # an item of another kind
            return item_id(job, page, ordinal)
        return blake2b(b"%s\0key\0%s" % (job.encode(), pack(values)), digest_size=16).hexdigest()

    def _bury(self, error: CodecError, id: str, url: str | None) -> None:
        """An item that cannot travel is a dead letter of its own; its page is finished all the same."""
        worker = self._worker
        reason: Reason = "limit" if isinstance(error, OverLimit) else "item"
        detail = f"item {id} cannot be stored: {error}"
        worker.once("item", "ERROR", detail)
        letter = dead_letter(
            Message(new_id(), b"", {"item": id}), reason=reason, detail=detail, job=worker.job.name,
            spider=worker.spider.name, url=url, at=time.time(), whole=False,
        )  # fmt: skip
        worker.outbox.bury(letter, reason)
