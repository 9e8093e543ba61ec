"""Page ids: what deduplication counts as one page."""

from __future__ import annotations

import json
import re
from hashlib import blake2b, sha1
from typing import Protocol

from scrapy import Request
from scrapy.utils.request import RequestFingerprinter
from w3lib.url import canonicalize_url

from spiders.fetch import Fetch

__all__ = ["PageIds", "page_of", "repeat_of"]

# A URL that w3lib's canonicalize_url and safe_url_string leave as it is: checked by a test against both.
_PLAIN_URL = re.compile(r"https?://[a-z0-9]+(?:[.-][a-z0-9]+)*(?::[0-9]{4,5})?(?:/(?!\.)[A-Za-z0-9._~-]+)*/?", re.ASCII)
_START = b"start"


class Fingerprinter(Protocol):
    def fingerprint(self, request: Request) -> bytes: ...


def page_of(fingerprint: bytes) -> bytes:
    """The page id of a fingerprint: 16 bytes, evenly spread whatever the fingerprinter returns."""
    return blake2b(fingerprint, digest_size=16).digest()


def repeat_of(parent: bytes, fingerprint: bytes, count: int) -> bytes:
    """The page id of the `count`-th `dont_filter` request with this fingerprint from one parent."""
    return blake2b(b"%s\0%d\0%s" % (parent, count, fingerprint), digest_size=16).digest()


class PageIds:
    """Page ids of requests, by the project's fingerprinter; plain GET requests by URL from a bounded cache.

    The fast path gives the same answer as Scrapy's own fingerprinter and is used only with that one.
    """

    def __init__(self, fingerprinter: Fingerprinter, *, cache_size: int = 50_000) -> None:
        self._fingerprinter = fingerprinter
        self._fast = type(fingerprinter) is RequestFingerprinter
        self._cache: dict[str, bytes] = {}
        self._older: dict[str, bytes] = {}
        self._cache_size = cache_size
        self._starts: dict[bytes, int] = {}  # in two generations: a repetition far away counts as the first
        self._older_starts: dict[bytes, int] = {}

    @property
    def plain(self) -> bool:
        """May URLs be fingerprinted without a Request?"""
        return self._fast

    def of(self, request: Request, parent: Fetch | None, *, root: bool, filtered: bool) -> bytes:
        """The page id of a request that `parent` (None: `start()`) has yielded.

        Filtered, it is the fingerprint's. Else it depends on the parent, too, so that each of such requests is a
        page of its own, and the same one when the parent is fetched again. A `root` is a request of `start()`, which
        may be run again by another worker, or a redirect of one: there it is the fingerprint's, but for repetitions.
        """
        if root and parent is None:
            return self._of_start(self._fingerprinter.fingerprint(request), filtered)
        if root and not filtered and self._is_again(request, parent):
            root = False  # as a cookie wall does: the same page once more, now with a cookie
        if filtered or root:
            if self._fast and request.method == "GET" and not request.body and "verbatim_url" not in request.meta:
                return self.of_url(request.url)
            return page_of(self._fingerprinter.fingerprint(request))
        assert parent is not None
        fingerprint = self._fingerprinter.fingerprint(request)
        return repeat_of(parent.page, fingerprint, parent.repeat(fingerprint))

    def _is_again(self, request: Request, parent: Fetch | None) -> bool:
        """Does a redirect of a start request lead back to a page of its own chain? Scrapy bounds such chains."""
        urls = [request.url, *request.meta.get("redirect_urls", ())]
        first, *chain = [page_of(self._fingerprinter.fingerprint(request.replace(url=url))) for url in urls]
        return first in chain or (parent is not None and first == parent.page)

    def _of_start(self, fingerprint: bytes, filtered: bool) -> bytes:
        count = self._starts.get(fingerprint, self._older_starts.get(fingerprint, 0))
        if len(self._starts) >= self._cache_size:
            self._older_starts, self._starts = self._starts, {}
        self._starts[fingerprint] = count + 1
        return page_of(fingerprint) if filtered or not count else repeat_of(_START, fingerprint, count)

    def of_url(self, url: str) -> bytes:
        """The page id of a plain GET request, whose URL is one that Request has made safe."""
        page = self._cache.get(url)
        if page is None:
            page = self._older.get(url) or page_of(_fingerprint(url))
            if len(self._cache) >= self._cache_size:
                self._older, self._cache = self._cache, {}
            self._cache[url] = page
        return page

    def forget_starts(self) -> None:
        """`start()` is about to run from its beginning."""
        self._starts.clear()
        self._older_starts.clear()


def is_plain(url: str) -> bool:
    """Neither Request nor the fingerprinter would change this URL, but for an empty path."""
    return _PLAIN_URL.fullmatch(url) is not None


def _fingerprint(url: str) -> bytes:
    """Scrapy's fingerprint of a GET request without body: SHA-1 of a JSON map with sorted keys."""
    if not is_plain(url):
        url = canonicalize_url(url)
    elif url.count("/") == 2:
        url += "/"
    return sha1(f'{{"body": "", "headers": {{}}, "method": "GET", "url": {json.dumps(url)}}}'.encode()).digest()
