"""`Selection`: which items of a part of the log are wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from bus.items import ItemRecord
from bus.message import Message

__all__ = ["Selection"]


@dataclass(frozen=True, slots=True)
class Selection:
    """All that is given must hold. `url` is a pattern for the whole URL, in which `*` stands for any text and `?` for
    one character. `since_s` and `before_s` are times of scraping, s since the epoch: the first is in, the other out."""

    job: str | None = None
    spider: str | None = None
    url: str | None = None
    since_s: float | None = None
    before_s: float | None = None
    _url: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_url", None if self.url is None else _pattern(self.url))

    def may_hold(self, message: Message) -> bool:
        """Told by the headers: False where no item of it is wanted."""
        headers = message.headers
        return self.job in (None, headers.get("job")) and self.spider in (None, headers.get("spider"))

    def takes(self, record: ItemRecord) -> bool:
        """Of an item of a message that `may_hold` some."""
        return self._in_time(record.scraped_at) and (
            self._url is None or (record.url is not None and self._url.fullmatch(record.url) is not None)
        )

    def _in_time(self, at_s: float) -> bool:
        if self.since_s is None and self.before_s is None:
            return True
        at_s = round(at_s, 6)  # as it is stored
        return (self.since_s is None or self.since_s <= at_s) and (self.before_s is None or at_s < self.before_s)


def _pattern(glob: str) -> re.Pattern[str]:
    parts = {"*": ".*", "?": "."}
    return re.compile("".join(parts.get(character) or re.escape(character) for character in glob), re.DOTALL)
