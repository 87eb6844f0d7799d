"""The opened cache that the pages show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from starlette.requests import Request

from cogcache.catalog import CaptionSearch, Catalog, Look, PlacedRows, Placing
from cogcache.errors import ConfigError
from cogcache.store import FeatureStore
from cogcache.system import CachePaths
from cogcache.web.browse import Browser, BrowseRow, Page


@dataclass(frozen=True, slots=True)
class Site:
    """An open cache."""

    store: FeatureStore
    catalog: Catalog
    browser: Browser
    search: CaptionSearch

    def placed(self, rows: Sequence[BrowseRow]) -> PlacedRows:
        """Return rows under the files that hold their videos now; each file is looked at once."""
        return Placing(self.catalog.holders(), Look()).one(rows)

    def shown(self, page: Page) -> Page:
        """Return a page with the current names of the videos."""
        found = self.placed(page.rows)
        return replace(page, rows=found.rows, absent=found.absent)


@contextmanager
def open_site(cache: Path) -> Iterator[Site]:
    """Open a cache for the pages, while a `with` block runs.

    Raises:
        CogcacheError: there is no cache, it has no catalog, or one cannot be opened.
    """
    store, path = FeatureStore.open(cache), CachePaths(cache).catalog
    if not path.is_file():
        raise ConfigError(f"{cache} has no catalog yet", "make one with `cogcache extract`")
    with Catalog(path) as catalog, Browser(path) as browser, CaptionSearch(path) as search:
        yield Site(store, catalog, browser, search)


def site_of(request: Request) -> Site:
    """Return the cache that a request asks about."""
    site: Site = request.app.state.site
    return site
