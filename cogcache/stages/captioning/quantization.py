"""What `--quantization auto` stands for in a cache: what its captions were made in, if any."""

from __future__ import annotations

from collections.abc import Callable

from cogcache.catalog import Catalog
from cogcache.models import Choice, Family, MadeWith, choose_quantization
from cogcache.settings import Settings


def quantization_for(
    settings: Settings,
    family: Family,
    catalog: Catalog,
    *,
    will_run: bool = True,
    prepare: Callable[[], None] | None = None,
) -> Choice:
    """Return settings with a kind in place of `auto`, and why it is that one.

    Nothing is loaded for it where the catalog has captions that `auto` can have made and none are
    to be added: a run that has nothing to do stays one that imports no torch.

    Args:
        settings: of the run.
        family: of the checkpoint.
        catalog: of the cache.
        will_run: whether captions are to be made, and not only listed.
        prepare: is called before torch is needed.
    """
    if settings.language.quantization != "auto" or settings.inference.is_vllm:
        return choose_quantization(settings, family)
    made = MadeWith(catalog.captions.made_in(settings.model), _group_size(catalog))
    return choose_quantization(settings, family, made, will_run=will_run, prepare=prepare)


def _group_size(catalog: Catalog) -> int | None:
    key = catalog.captions.newest_key("int4") or {}
    size: int | None = key.get("quantization", {}).get("group_size")
    return size
