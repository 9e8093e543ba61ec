"""A small web shop on 127.0.0.1: `python -m spiders.demo.shop`, or `with Shop() as shop: shop.url`.

1,000 products in 20 categories, with what a real shop has besides: pagination, a sitemap, a robots.txt with areas that
are linked and forbidden, redirects, withdrawn products, an application that fails for ever, one that fails twice, and a
product whose data is broken. Every page is the same in each run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from spiders.demo.server import Reply, ServerProcess, main, reply

__all__ = ["BROKEN", "FAILING", "FLAKY", "FLAKY_FAILURES", "PRODUCTS", "Shop", "ShopSite"]

PRODUCTS = 1000
PAGE_SIZE = 20
FLAKY, FLAKY_FAILURES = 500, 2  # answers 503 twice, then is a product like any other
BROKEN = 777  # its price is no number
SHORT_LINKS = 20  # /s/N redirects to a product
WITHDRAWN = 10  # 404
FAILING = 3  # reviews that answer 500 for ever
CATEGORIES = (
    "Lamps", "Chairs", "Tables", "Desks", "Rugs", "Curtains", "Cushions", "Mirrors", "Clocks", "Vases",
    "Kettles", "Pans", "Spoons", "Cups", "Plates", "Bowls", "Baskets", "Blankets", "Towels", "Candles",
)  # fmt: skip
_STYLES = ("Plain", "Blue", "Oak", "Tall", "Round", "Folding", "Striped", "Grey", "Small", "Old")
_MAKERS = ("Aalto", "Brandt", "Costa", "Dahl", "Ebner")

_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
_ROBOTS = "User-agent: *\nDisallow: /cart\nDisallow: /account/\nAllow: /account/help\nSitemap: {url}/sitemap.xml\n"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title} - The Demo Shop</title></head>
<body>
<nav>{nav}</nav>
<main>
{main}
</main>
</body></html>
"""


class Shop(ServerProcess):
    """The shop in a process of its own."""

    def __init__(self, port: int = 0) -> None:
        super().__init__("spiders.demo.shop", "--port", str(port))


class ShopSite:
    """All pages, rendered once; a handler of `spiders.demo.server`. `url` is its own."""

    def __init__(self, url: str) -> None:
        self._failures = FLAKY_FAILURES
        self._pages: dict[str, Reply] = {
            "/": _home(),
            "/account/help": _page("Help", "<p>Everything arrives within a week.</p>"),
            "/account/orders": _page("Your orders", "<p>None yet.</p>"),
            "/cart": _page("Your cart", "<p>It is empty.</p>"),
            "/robots.txt": reply(_ROBOTS.format(url=url), content_type="text/plain"),
            "/sale": _redirect("/category/lamps?page=2", 302),
            "/shop": _redirect("/index.html"),
            "/index.html": _redirect("/"),
        }
        for category in range(len(CATEGORIES)):
            self._pages.update(_listings(category))
        for number in range(1, PRODUCTS + 1):
            self._pages[_path(number)] = _product(number)
            self._pages[f"/cart/add/{number}"] = self._pages["/cart"]
        for number in range(1, SHORT_LINKS + 1):
            self._pages[f"/s/{number}"] = _redirect(_path(number * 7))
        for number in range(1, FAILING + 1):
            self._pages[f"/reviews/{number}"] = reply("the reviews are broken\n", status=500)
        self._pages["/sitemap.xml"] = reply(_sitemap(url, self._pages), content_type="application/xml")
        self._missing = reply("<h1>Not here (any more)</h1>", status=404)
        self._busy = reply("try again\n", status=503)

    def __call__(self, path: str) -> Reply:
        if path == _path(FLAKY) and self._failures:
            self._failures -= 1
            return self._busy
        return self._pages.get(path, self._missing)


def _path(number: int) -> str:
    return f"/products/{number:04d}"


def _category(number: int) -> int:
    return (number - 1) * len(CATEGORIES) // PRODUCTS


def _category_path(category: int, page: int = 1) -> str:
    return f"/category/{CATEGORIES[category].lower()}" + (f"?page={page}" if page > 1 else "")


def _name(number: int) -> str:
    style, maker = _STYLES[number % len(_STYLES)], _MAKERS[number // 10 % len(_MAKERS)]
    return f"{style} {CATEGORIES[_category(number)].rstrip('s').lower()} by {maker}, no. {number}"


def _price(number: int) -> str:
    cents = 499 + number * 3571 % 19_500
    return "on request" if number == BROKEN else f"{cents // 100}.{cents % 100:02d}"


def _link(path: str, text: str) -> str:
    return f'<a href="{path}">{text}</a>'


def _page(title: str, main: str) -> Reply:
    nav = [
        ("/", "Home"),
        ("/sale", "Sale"),
        ("/account/help", "Help"),
        ("/account/orders", "Orders"),
        ("/cart", "Cart"),
    ]
    return reply(_PAGE.format(title=title, nav=" ".join(_link(*each) for each in nav), main=main))


def _redirect(path: str, status: int = 301) -> Reply:
    return reply(status=status, headers=[("Location", path)])


def _items(links: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{link}</li>" for link in links) + "</ul>"


def _home() -> Reply:
    links = [_link(_category_path(index), name) for index, name in enumerate(CATEGORIES)]
    return _page("Welcome", f"<h1>The Demo Shop</h1>{_items(links)}{_link('/shop', 'The old front door')}")


def _listings(category: int) -> Iterable[tuple[str, Reply]]:
    numbers = [number for number in range(1, PRODUCTS + 1) if _category(number) == category]
    pages = -(-len(numbers) // PAGE_SIZE)
    for page in range(1, pages + 1):
        shown = numbers[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        links = _items(_link(_path(number), _name(number)) for number in shown)
        pager = " ".join(_link(_category_path(category, other), str(other)) for other in range(1, pages + 1))
        yield (
            _category_path(category, page),
            _page(CATEGORIES[category], f"<h1>{CATEGORIES[category]}</h1>{links}{pager}"),
        )


def _product(number: int) -> Reply:
    category = CATEGORIES[_category(number)]
    related = [_path((number * step + step) % PRODUCTS + 1) for step in range(1, 12)]
    links = [_link(path, "goes well with it") for path in related]
    if number % 10 == 0:
        links.append(_link(f"/cart/add/{number}", "Add to cart"))
    if number % (PRODUCTS // SHORT_LINKS) == 0:
        links.append(_link(f"/s/{number * SHORT_LINKS // PRODUCTS}", "Product of the day"))
    if number % (PRODUCTS // WITHDRAWN) == 0:
        links.append(_link(f"/products/withdrawn-{number * WITHDRAWN // PRODUCTS}", "The model before"))
    if number <= FAILING:
        links.append(_link(f"/reviews/{number}", "Reviews"))
    return _page(
        _name(number),
        f'<h1 class="name">{_name(number)}</h1>\n'
        f'<p>Price: <span class="price">{_price(number)}</span>, no. <span class="sku">S{number:04d}</span></p>\n'
        f'<p>In <a class="category" href="{_category_path(_category(number))}">{category}</a></p>\n{_items(links)}',
    )  # fmt: skip


def _sitemap(url: str, paths: Iterable[str]) -> str:
    listed = [path for path in paths if path.startswith(("/products/", "/category/"))]
    urls = "".join(f"<url><loc>{url}{path}</loc></url>\n" for path in listed)
    return f'{_XML}<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{urls}</urlset>\n'


if __name__ == "__main__":
    main(lambda _, url: ShopSite(url), argparse.ArgumentParser("python -m spiders.demo.shop"))
