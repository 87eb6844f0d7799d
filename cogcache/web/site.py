"""What the pages are about: one cache, opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from cogcache.catalog import CaptionSearch, Catalog
from cogcache.errors import ConfigError
from cogcache.store import FeatureStore
from cogcache.web.browse import Browser


@dataclass(frozen=True, slots=True)
class Site:
    """An open cache."""

    store: FeatureStore
    catalog: Catalog
    browser: Browser
    search: CaptionSearch


@contextmanager
def open_site(cache: Path) -> Iterator[Site]:
    """Open a cache for the pages, while a `with` block runs.

    Raises:
        CogcacheError: there is no cache, it has no catalog, or one cannot be opened.
    """
    store, path = FeatureStore.open(cache), cache / "catalog.sqlite"
    if not path.is_file():
        raise ConfigError(f"{cache} has no catalog yet", "make one with `cogcache extract`")
    with Catalog(path) as catalog, Browser(path) as browser, CaptionSearch(path) as search:
        yield Site(store, catalog, browser, search)


def site_of(request: Request) -> Site:
    """Return the cache that a request is about."""
    site: Site = request.app.state.site
    return site
